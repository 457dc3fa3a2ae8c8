"""The calculator is exact, refuses what is no arithmetic, and no expression takes long; the clock knows its zones."""

from __future__ import annotations

import asyncio
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.adapters.calculator import Calculator, CurrentTime, calculate
from swarmd.core.errors import Rejected
from swarmd.roles.tool_calls import run_tool


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 1", "2"),
        ("0.1 + 0.2", "0.3"),
        ("2 ** 10", "1024"),
        ("2^10", "1024"),
        ("(3 + 4) * 2 / 7", "2"),
        ("1 / 3", "0.333333333333333 (exactly 1/3)"),
        ("7 // 2 + 7 % 3", "4"),
        ("-2 ** 2", "-4"),
        ("sqrt(2)", "1.4142135623731"),
        ("sqrt(9/4)", "1.5"),
        ("round(2.675, 2)", "2.68"),
        ("max(1, 2.5, 2)", "2.5"),
        ("mean(1, 2, 4)", "2.33333333333333 (exactly 7/3)"),
        ("factorial(20)", "2432902008176640000"),
        ("comb(52, 5)", "2598960"),
        ("gcd(12, 18) + lcm(4, 6)", "18"),
        ("log(8, 2)", "3"),
        ("sin(pi / 2)", "1"),
        ("1_000 * 3", "3000"),
        ("0 ** 0", "1"),
        ("(-1) ** 99999999999", "-1"),
        ("2 ** -2", "0.25"),
        ("1000 * 1.00004 ** 3650", "1157.19280913313"),
        ("  1 +\t1", "2"),
    ],
)
def test_values(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("", "cannot be read"),
        ("1 +", "cannot be read"),
        ("1 / 0", "divides by zero"),
        ("0 ** -1", "divides by zero"),
        ("5 % 0", "divides by zero"),
        ("9 ** 9 ** 9", "too large"),
        ("9.9 ** 99999", "too large"),
        ("2.0 ** 0.5 ** -20", "too large"),
        ("10 ** 4000 * 10 ** 4000", "too large"),
        ("1.5 ** 10 ** 100000", "too large"),
        ("1if 1else 2", "no arithmetic"),
        (r"'\d'", "no number"),
        ("factorial(1001)", "0 to 1000"),
        ("factorial(2.5)", "whole"),
        ("comb(10**9, 10**8)", "0 to 5000"),
        ("exp(1000)", "too large"),
        ("sqrt(-1)", "no value"),
        ("(-8) ** 0.5", "no such power"),
        ("1e999", "too large"),
        ("sqr(2)", "did you mean 'sqrt'"),
        ("x", "there is no 'x'"),
        ("True", "no number"),
        ("'a' * 3", "no number"),
        ("1j", "no number"),
        ("[1] * 10", "no arithmetic"),
        ("1 < 2", "no arithmetic"),
        ("1 if 1 else 2", "no arithmetic"),
        ("().__class__", "no arithmetic"),
        ("__import__('os')", "there is no '__import__'"),
        ("(lambda: 1)()", "no arithmetic"),
        ("abs(x=1)", "no arithmetic"),
        ("abs(*[1])", "no arithmetic"),
        ("1 << 100000", "LShift"),
        ("sqrt(1, 2)", "sqrt takes 1 numbers"),
        ("(" * 400 + "1" + ")" * 400, "cannot be read|nested"),
        ("-" * 900 + "1", "nested|cannot be read"),
        ("1+" * 600 + "1", "characters"),
        ("\0", "cannot be read"),
    ],
)
def test_what_is_refused_and_why(expression: str, words: str) -> None:
    with pytest.raises(Rejected, match=words) as caught:
        calculate(expression)
    assert caught.value.code == "bad_expression"


NUMBERS = st.integers(-99, 99).map(str) | st.sampled_from(["0.5", "1.25", "1e10", "1e-10", "pi", "9" * 60])
EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from("+ - * / // % **".split()), inner),
        st.builds(
            "{}({})".format, st.sampled_from("sqrt factorial round exp abs ln floor sum mean gcd tan".split()), inner
        ),
        st.builds("comb({}, {})".format, inner, inner),
    ),
    max_leaves=12,
)


def computed(expression: str) -> str:
    """The value, or the code of the refusal."""
    try:
        return calculate(expression)
    except Rejected as error:
        return error.code


@settings(deadline=None, max_examples=300)
@given(EXPRESSIONS)
def test_no_expression_takes_long(expression: str) -> None:
    began = time.process_time()
    assert len(computed(expression)) < 4_000
    assert time.process_time() - began < 1


@given(st.text(max_size=40) | st.text(alphabet="0123456789+-*/().,e ^%xj_[]'", max_size=40))
def test_any_text_is_computed_or_refused(text: str) -> None:
    assert computed(text)


@given(st.lists(st.tuples(st.sampled_from("+-*"), st.integers(0, 10**6)), min_size=1, max_size=8))
def test_whole_numbers_are_exact(parts: list[tuple[str, int]]) -> None:
    expression = "1" + "".join(f" {op} {number}" for op, number in parts)
    assert calculate(expression) == str(eval(expression))


@given(st.integers(-(10**6), 10**6), st.integers(1, 999))
def test_fractions_are_exact(up: int, down: int) -> None:
    assert calculate(f"({up} / {down}) * {down}") == str(up)
    assert calculate(f"floor({up} / {down})") == str(Fraction(up, down).__floor__())


async def test_as_a_tool() -> None:
    assert (await run_tool(Calculator(), {"expression": "6 * 7"})).text == "42"
    outcome = await run_tool(Calculator(), {"expression": "6 *"})
    assert outcome.error.startswith("bad_expression: the expression cannot be computed: it cannot be read")
    assert (await run_tool(Calculator(), {"expresion": "1"})).error.startswith("bad_arguments: expression is missing")


class Noon:
    """A clock that stands still."""

    def now_ms(self) -> int:
        return 1_783_944_000_999  # 2026-07-13 12:00:00.999 UTC

    async def sleep(self, delay_ms: int) -> None:
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "2026-07-13T12:00:00+00:00 (Monday, UTC)"),
        ({"zone": "utc"}, "2026-07-13T12:00:00+00:00 (Monday, utc)"),
        ({"zone": "Europe/Paris"}, "2026-07-13T14:00:00+02:00 (Monday, Europe/Paris)"),
        ({"zone": "Asia/Kolkata"}, "2026-07-13T17:30:00+05:30 (Monday, Asia/Kolkata)"),
        ({"zone": "Pacific/Kiritimati"}, "2026-07-14T02:00:00+14:00 (Tuesday, Pacific/Kiritimati)"),
    ],
)
async def test_the_time(arguments: dict[str, str], text: str) -> None:
    assert (await run_tool(CurrentTime(Noon()), arguments)).text == text


@pytest.mark.parametrize(
    ("zone", "hint"),
    [("Europe/Pariss", "Europe/Paris"), ("Tokyo", "Asia/Tokyo"), ("../../etc/passwd", "try "), ("a\0b", "try ")],
)
async def test_an_unknown_zone(zone: str, hint: str) -> None:
    outcome = await run_tool(CurrentTime(Noon()), {"zone": zone})
    assert outcome.error.startswith("unknown_zone")
    assert hint in outcome.error
