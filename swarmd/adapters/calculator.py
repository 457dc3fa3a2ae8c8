"""Built-in tools that compute: `calculator` and `current_time`.

Job: arithmetic that a model should not do in its head, and the time, which it cannot know.
Invariants: an expression is read as a syntax tree and walked by hand: nothing is evaluated by Python, no name is looked
up but those listed. Every intermediate number is bounded before it is made, so that no expression takes long or much
memory. Numbers are exact (integers and fractions) until a function, or their length, makes them floats.
Must not know: agents, journals, other tools.
"""

from __future__ import annotations

import ast
import difflib
import math
import operator
import warnings
from datetime import UTC, datetime
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from swarmd.core.errors import Rejected
from swarmd.core.turns import ToolSpec
from swarmd.ports import ToolPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmd.ports import Clock, SideEffects

EXPRESSION_CHARS_MAX: Final = 1_000
DEPTH_MAX: Final = 60
#: An exact number of more bits than this goes on as a float. No operation makes more than twice as many.
BITS_MAX: Final = 10_000
DIGITS_SHOWN: Final = 15

Number = Fraction | float

_CONSTANTS: Final[dict[str, Number]] = {"pi": math.pi, "e": math.e, "tau": math.tau}


def calculate(expression: str) -> str:
    """The value of an arithmetic expression. Raises `Rejected("bad_expression")` naming what cannot be computed."""
    if len(expression) > EXPRESSION_CHARS_MAX:
        raise _bad(f"it has {len(expression)} characters, {EXPRESSION_CHARS_MAX} are allowed")
    try:
        with warnings.catch_warnings(action="ignore"):  # such as "1if x": it is refused below
            tree = ast.parse(expression.strip().replace("^", "**"), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise _bad(f"it cannot be read: {getattr(error, 'msg', error)}") from None
    try:
        return _shown(_value(tree.body, DEPTH_MAX))
    except ZeroDivisionError:
        raise _bad("it divides by zero") from None
    except OverflowError:
        raise _bad("a number in it is too large") from None
    except ValueError as error:
        raise _bad(f"it has no value: {error}") from None


def _bad(why: str) -> Rejected:
    return Rejected("bad_expression", f"the expression cannot be computed: {why}")


def _value(node: ast.expr, depth: int) -> Number:
    if not depth:
        raise _bad(f"it is nested deeper than {DEPTH_MAX}")
    match node:
        case ast.Constant(value=bool() | str() | bytes() | complex() | None):
            raise _bad(f"{node.value!r} is no number")
        case ast.Constant(value=int(number)):
            return _bounded(Fraction(number))
        case ast.Constant(value=float(number)):
            # As it is written, so that 0.1 + 0.2 is 0.3.
            return _decimal(number)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner, depth - 1)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _value(inner, depth - 1)
        case ast.BinOp(left=left, op=op, right=right):
            return _combined(op, _value(left, depth - 1), _value(right, depth - 1))
        case ast.Name(id=name):
            if name not in _CONSTANTS:
                raise _bad(_unknown(name))
            return _CONSTANTS[name]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            if name not in _FUNCTIONS:
                raise _bad(_unknown(name))
            least, most, function = _FUNCTIONS[name]
            if not least <= len(args) <= most:
                raise _bad(f"{name} takes {least if least == most else f'{least} to {most}'} numbers, not {len(args)}")
            return _bounded(function(*(_value(arg, depth - 1) for arg in args)))
    raise _bad(f"{ast.unparse(node)[:60]!r} is no arithmetic")


def _unknown(name: str) -> str:
    known = [*_CONSTANTS, *_FUNCTIONS]
    near = difflib.get_close_matches(name, known, 1)
    return f"there is no {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}")


def _decimal(number: float) -> Number:
    if not math.isfinite(number) or abs(number) > 1e300:
        raise _bad("a number in it is too large")
    return Fraction(repr(number))


def _bounded(number: Number) -> Number:
    """The same number, as a float where it has grown too long. Raises `OverflowError` if that is too large."""
    if isinstance(number, Fraction):
        if max(number.numerator.bit_length(), number.denominator.bit_length()) <= BITS_MAX:
            return number
        number = float(number)
    if not math.isfinite(number):
        raise OverflowError
    return number


def _combined(op: ast.operator, left: Number, right: Number) -> Number:
    match op:
        case ast.Pow():
            return _bounded(_power(left, right))
        case ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.FloorDiv() | ast.Mod():
            if isinstance(left, float) or isinstance(right, float):
                left, right = float(left), float(right)
            done = _OPERATORS[type(op)](left, right)
            return _bounded(done if isinstance(done, float) else Fraction(done))
    raise _bad(f"{type(op).__name__} is no operator of it; there are + - * / // % **")


_OPERATORS: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(exponent.numerator) * bits > BITS_MAX and abs(base) != 1 and base:
            return math.pow(base, exponent)
        if abs(base) == 1 or not base:
            return (base if exponent.numerator % 2 else Fraction(1)) if base else _zero_power(exponent)
        return Fraction(base**exponent.numerator)
    if base < 0:
        raise _bad("a negative number has no such power")
    return math.pow(base, exponent)


def _zero_power(exponent: Fraction) -> Number:
    if exponent < 0:
        raise ZeroDivisionError
    return Fraction(int(exponent == 0))


def _whole(number: Number, what: str) -> int:
    if number != number // 1:
        raise _bad(f"{what} takes whole numbers")
    return int(number)


def _factorial(number: Number) -> Number:
    whole = _whole(number, "factorial")
    if not 0 <= whole <= 1_000:
        raise _bad("factorial takes 0 to 1000")
    return Fraction(math.factorial(whole))


def _choose(count: Number, taken: Number) -> Number:
    n, k = _whole(count, "comb"), _whole(taken, "comb")
    if not 0 <= n <= 5_000 or not 0 <= k <= 5_000:
        raise _bad("comb takes 0 to 5000")
    return Fraction(math.comb(n, k))


def _root(number: Number) -> Number:
    if isinstance(number, Fraction) and number >= 0:
        up, down = math.isqrt(number.numerator), math.isqrt(number.denominator)
        if up * up == number.numerator and down * down == number.denominator:
            return Fraction(up, down)
    return math.sqrt(number)


def _round(number: Number, places: Number = Fraction(0)) -> Number:
    digits = _whole(places, "round")
    if not -300 <= digits <= 300:
        raise _bad("round takes -300 to 300 places")
    return Fraction(round(number, digits)) if isinstance(number, Fraction) else float(round(number, digits))


def _of_whole(function: Callable[..., int]) -> Callable[..., Number]:
    return lambda *numbers: Fraction(function(*(_whole(number, function.__name__) for number in numbers)))


def _of_float(function: Callable[..., float]) -> Callable[..., Number]:
    return lambda *numbers: float(function(*(float(number) for number in numbers)))


#: (fewest arguments, most arguments, function) by name.
_FUNCTIONS: Final[dict[str, tuple[int, int, Callable[..., Number]]]] = {
    "abs": (1, 1, abs),
    "min": (1, 50, min),
    "max": (1, 50, max),
    "sum": (1, 50, lambda *numbers: _total(numbers)),
    "mean": (1, 50, lambda *numbers: _combined(ast.Div(), _total(numbers), Fraction(len(numbers)))),
    "round": (1, 2, _round),
    "floor": (1, 1, lambda number: Fraction(math.floor(number))),
    "ceil": (1, 1, lambda number: Fraction(math.ceil(number))),
    "sqrt": (1, 1, _root),
    "factorial": (1, 1, _factorial),
    "comb": (2, 2, _choose),
    "gcd": (1, 50, _of_whole(math.gcd)),
    "lcm": (1, 2, _of_whole(math.lcm)),
    **{
        function.__name__: (1, 1, _of_float(function))
        for function in (math.exp, math.sin, math.cos, math.tan, math.asin, math.acos, math.atan, math.log2, math.log10)
    },
    "ln": (1, 1, _of_float(math.log)),
    "log": (1, 2, _of_float(math.log)),
    "degrees": (1, 1, _of_float(math.degrees)),
    "radians": (1, 1, _of_float(math.radians)),
}


def _total(numbers: tuple[Number, ...]) -> Number:
    total: Number = Fraction(0)
    for number in numbers:
        total = _combined(ast.Add(), total, number)
    return total


def _shown(number: Number) -> str:
    """Exact where a decimal is; else to 15 digits, with the fraction where there is a short one."""
    if isinstance(number, float):
        return f"{number:.{DIGITS_SHOWN}g}"
    if number.denominator == 1:
        return str(number.numerator)
    rest = number.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    about = f"{number.numerator / number.denominator:.{DIGITS_SHOWN}g}"
    if rest == 1 and Fraction(about) == number:
        return about
    is_short = len(str(number.numerator)) + len(str(number.denominator)) < 30
    return f"{about} (exactly {number})" if is_short else about


class Calculator:
    """`calculator(expression)`."""

    def __init__(self) -> None:
        self.timeout_ms, self.output_bytes_max = 5_000, 16 * 1024
        self.side_effects: SideEffects = "none"
        self.policy = ToolPolicy()
        names = ", ".join([*_CONSTANTS, *_FUNCTIONS])
        self.spec = ToolSpec(
            "calculator",
            f"Compute an arithmetic expression exactly: numbers, + - * / // % **, (), {names}. Angles in radians.",
            {
                "type": "object",
                "properties": {
                    "expression": {"type": "string", "minLength": 1, "description": "such as (3 + 4) * 2 ** 10 / 7"}
                },
                "required": ["expression"],
                "additionalProperties": False,
            },
        )

    async def call(self, arguments: dict[str, Any], key: str = "") -> str:
        """Raises `Rejected("bad_expression")`."""
        return calculate(arguments["expression"])


class CurrentTime:
    """`current_time(zone?)`: date, time, weekday and offset in a time zone of the IANA database."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.timeout_ms, self.output_bytes_max = 5_000, 1_024
        self.side_effects: SideEffects = "none"
        self.policy = ToolPolicy()
        self.spec = ToolSpec(
            "current_time",
            "Tell the current date and time in a time zone.",
            {
                "type": "object",
                "properties": {
                    "zone": {"type": "string", "description": "an IANA name such as Europe/Paris; UTC if left out"}
                },
                "required": [],
                "additionalProperties": False,
            },
        )

    async def call(self, arguments: dict[str, Any], key: str = "") -> str:
        """Raises `Rejected("unknown_zone")`."""
        from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

        name = str(arguments.get("zone", "")).strip() or "UTC"
        try:
            zone = UTC if name.upper() == "UTC" else ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            known = sorted(available_timezones())
            if not known:
                raise Rejected("unknown_zone", "no time zones are installed here (package tzdata): use UTC") from None
            near = difflib.get_close_matches(name.replace(" ", "_"), known, 3, 0.5)
            same = [other for other in known if other.rpartition("/")[2].lower() == name.lower().replace(" ", "_")]
            hint = ", ".join(dict.fromkeys([*same, *near])) or "a name such as Europe/Paris"
            raise Rejected("unknown_zone", f"there is no time zone {name[:100]!r}: try {hint}") from None
        now = datetime.fromtimestamp(self._clock.now_ms() // 1000, UTC).astimezone(zone)
        return f"{now.isoformat()} ({now:%A}, {name})"
