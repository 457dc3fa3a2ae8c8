"""Functions as tools: in the loop, in threads and in processes, under their limits, whatever they do."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.core.errors import Fault, Rejected
from swarmd.core.tool_text import fit, untrusted
from swarmd.roles.tool_calls import ToolCalls, clean, run_tool
from swarmd.sdk_tools import tool, tool_of, tools_in
from tests.contract import aside_tools

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT_S = 30


@pytest.fixture(autouse=True)
def no_process_stays() -> Iterator[None]:
    yield
    for found in tools_in(aside_tools):
        found.close()


def lives(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().split(") ")[1][0] != "Z"


def words(path: Path) -> str:
    return path.read_text() if path.exists() else ""


async def gone(pid: int) -> None:
    """Return when no process has this id."""
    async with asyncio.timeout(WAIT_S):
        while lives(pid):
            await asyncio.sleep(0.02)


class TestResults:
    @pytest.mark.parametrize(
        ("result", "text"),
        [("fine", "fine"), (None, "null"), ({"a": [1, 2.5]}, '{"a":[1,2.5]}'), (True, "true"), (b"ab", '"YWI="')],
    )
    @pytest.mark.parametrize("is_async", [True, False])
    async def test_texts_stay_and_the_rest_is_json(self, result: Any, text: str, is_async: bool) -> None:
        async def soon() -> Any:
            """Doc."""
            return result

        def now() -> Any:
            """Doc."""
            return result

        assert (await run_tool(tool_of(tool(soon if is_async else now)), {})).told() == text

    async def test_what_is_no_json_is_told(self) -> None:
        @tool
        async def strange() -> object:
            """Doc."""
            return object()

        assert (await run_tool(tool_of(strange), {})).error.startswith("bad_result: strange returned a object")

    async def test_the_key_reaches_the_function_and_not_the_model(self) -> None:
        @tool
        def pay(amount: int, idempotency_key: str) -> str:
            """Doc."""
            return f"{amount} {idempotency_key}"

        assert list(tool_of(pay).spec.parameters["properties"]) == ["amount"]
        assert (await run_tool(tool_of(pay), {"amount": 3}, "task/tool:pay#1")).text == "3 task/tool:pay#1"

    async def test_control_characters_and_size(self) -> None:
        @tool(output_bytes_max=1_000)
        async def loud() -> str:
            """Doc."""
            return "\x1b[2J\x00" + "\u00fc" * 5_000_000 + "\x07end\r\n"

        outcome = await run_tool(tool_of(loud), {})
        assert outcome.text.startswith("[2J\u00fc")
        assert outcome.text.endswith("end\n")
        assert len(outcome.text.encode()) <= 1_000
        assert outcome.cut_bytes > 9_990_000

    @pytest.mark.parametrize("raised", [ValueError("x"), SystemExit(1), StopIteration("y"), KeyboardInterrupt()])
    async def test_whatever_a_thread_raises(self, raised: BaseException) -> None:
        @tool
        def fails() -> None:
            """Doc."""
            raise raised

        assert (await run_tool(tool_of(fails), {})).error.startswith("tool_failed: fails raised ")


class TestRetries:
    async def test_only_faults_are_repeated(self) -> None:
        tries: list[str] = []

        @tool(retries=2, backoff_s=0)
        async def flaky(how: str) -> str:
            """Doc."""
            tries.append(how)
            if how == "rejected":
                raise Rejected("no", "never")
            if how == "dead" or len(tries) < 3:
                raise Fault("down", "not now")
            return "up"

        outcome = await run_tool(tool_of(flaky), {"how": "fault"})
        assert (outcome.text, outcome.retries) == ("up", 2)
        tries.clear()
        assert (await run_tool(tool_of(flaky), {"how": "rejected"})).error == "no: never"
        assert tries == ["rejected"]
        tries.clear()
        assert (await run_tool(tool_of(flaky), {"how": "dead"})).error == "down: not now (tried 3 times)"
        assert len(tries) == 3

    def test_at_most_once_has_none(self) -> None:
        with pytest.raises(Rejected, match="cannot be at_most_once and have retries"):

            @tool(retries=1, side_effects="at_most_once")
            async def pay() -> None:
                """Doc."""


class TestSeats:
    async def test_no_more_calls_at_once_than_declared(self) -> None:
        at_once: list[int] = []
        going = asyncio.Event()

        @tool(concurrency=2)
        async def count() -> int:
            """Doc."""
            at_once.append(1)
            if len(at_once) == 2:
                asyncio.get_running_loop().call_soon(going.set)
            assert sum(at_once) <= 2
            await going.wait()
            at_once[at_once.index(1)] = 0
            return 1

        calls = ToolCalls()
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(calls(tool_of(count), {})) for _ in range(6)]
        assert [call.result().text for call in running] == ["1"] * 6

    async def test_who_finds_no_seat_was_not_called(self) -> None:
        @tool(concurrency=1, timeout_s=0.1)
        async def stuck() -> None:
            """Doc."""
            await asyncio.Event().wait()

        calls = ToolCalls()
        found = await asyncio.gather(*(calls(tool_of(stuck), {}) for _ in range(3)))
        assert "tool_busy" in {outcome.error.partition(":")[0] for outcome in found}

    async def test_a_thread_that_hangs_is_left_and_keeps_its_seat(self) -> None:
        release, ended = threading.Event(), threading.Event()

        @tool(concurrency=1, timeout_s=0.1)
        def hang() -> None:
            """Doc."""
            release.wait(WAIT_S)
            ended.set()

        assert (await run_tool(tool_of(hang), {})).error.startswith("tool_timeout")
        assert (await run_tool(tool_of(hang), {})).error.startswith("tool_busy")
        release.set()
        assert ended.wait(WAIT_S)
        async with asyncio.timeout(WAIT_S):
            while (await run_tool(tool_of(hang), {})).error:
                await asyncio.sleep(0.01)


class TestProcesses:
    async def run(self, how: str) -> Any:
        return await run_tool(tool_of(aside_tools.act), {"how": how}, "the key")

    async def test_a_process_is_kept_and_ends_only_when_it_must(self) -> None:
        pid = (await self.run("pid")).text
        assert pid != str(os.getpid())
        assert (await self.run("key")).text == "the key"
        assert (await self.run("rejected")).error == "no: not so"
        assert (await self.run("fault")).error == "down: later"
        assert (await self.run("what")).error == "tool_failed: act raised KeyError: 'what'"
        assert (await self.run("leave")).error == "tool_failed: act raised SystemExit: 3"
        large = await self.run("large")
        assert len(large.text) <= 1_000
        assert large.cut_bytes > 49_000_000
        assert (await self.run("pid")).text == pid
        assert (await self.run("die")).error.startswith("tool_died: the process of act ended in the middle")
        assert (await self.run("pid")).text not in ("", pid)

    async def test_a_hung_call_is_killed_and_harms_no_other(self, tmp_path: Path) -> None:
        hangs, told = tool_of(aside_tools.hang), tmp_path / "pid"
        async with asyncio.TaskGroup() as group:
            call = group.create_task(run_tool(hangs, {"path": str(told)}))
            async with asyncio.timeout(WAIT_S):
                while not words(told):
                    await asyncio.sleep(0.02)
            call.cancel()
        await gone(int(told.read_text()))
        assert (await self.run("pid")).text

    def test_the_process_ends_with_a_parent_that_is_killed(self, tmp_path: Path) -> None:
        told = tmp_path / "pid"
        program = (
            "import asyncio\nfrom tests.contract import aside_tools\nfrom swarmd.sdk_tools import tool_of\n"
            f"asyncio.run(tool_of(aside_tools.hang).call({{'path': {str(told)!r}}}))\n"
        )
        with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) as parent:
            try:
                asyncio.run(self.written(told))
            finally:
                parent.kill()
        asyncio.run(gone(int(told.read_text())))

    async def written(self, path: Path) -> None:
        async with asyncio.timeout(WAIT_S):
            while not words(path):
                await asyncio.sleep(0.02)

    def test_what_no_other_process_can_import_is_refused(self) -> None:
        with pytest.raises(Rejected, match="must be able to import it"):

            @tool(sync="process")
            def local() -> None:
                """Doc."""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "two words"}, "cannot be called 'two words'"),
        ({"timeout_s": 0}, "> 0"),
        ({"retires": 1}, "retires"),
        ({"side_effects": "maybe"}, "maybe"),
        ({"sync": "fork"}, "not 'fork'"),
        ({"sync": "process"}, "is async"),
    ],
)
def test_bad_declarations_are_refused_at_once(options: dict[str, Any], words: str) -> None:
    async def fine() -> None:
        """Doc."""

    with pytest.raises(Rejected, match=words) as caught:
        tool(**options)(fine)
    assert caught.value.code == "bad_tool"


def test_a_tool_without_words_is_refused() -> None:
    with pytest.raises(Rejected, match="has no docstring"):

        @tool
        async def silent() -> None: ...


@settings(deadline=None)
@given(st.text(max_size=300), st.integers(0, 120))
def test_fitted_text_is_clean_and_within_its_limit(text: str, bytes_max: int) -> None:
    kept, cut = fit(text, bytes_max)
    assert len(kept.encode()) <= bytes_max
    assert clean(kept) == kept
    if not cut and len(text) <= 2 * bytes_max:
        assert kept == clean(text)


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_text_can_close_its_frame(text: str, more: str) -> None:
    framed = untrusted("search", clean(text))
    closing = framed.splitlines()[-1]
    forged = clean(f"{text}\n{closing}\n{more}")
    assert untrusted("search", forged).splitlines()[-1] != closing
    assert untrusted("search", forged) == untrusted("search", forged)
    assert untrusted('a"><b', "x").startswith('<tool-output tool="a___b" mark="')
