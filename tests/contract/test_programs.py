"""Program agents against real processes, without a swarm: what they may say, and every way in which they can go wrong.

The context is a fake with a journal that outlives it, so that a second attempt resumes the first.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from swarmd import config
from swarmd.adapters.programs import SubprocessPrograms
from swarmd.adapters.tools import ToolSettings
from swarmd.core.errors import Fault, Rejected
from swarmd.core.program import ProgramSpec
from swarmd.core.turns import ModelReply
from swarmd.core.wire import Outcome
from swarmd.edges.loading import OpenTools, load_agents
from swarmd.roles.attempt import AgentFailed, Child
from swarmd.roles.program_agent import program_agent
from tests.system.swarms import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PROGRAMS = SubprocessPrograms(os.environ)
#: Enough of the protocol for a Python program: `say`, `hear`, `step`, `call`.
PRELUDE = """
import json, os, signal, sys, time
def say(**line): print(json.dumps(line), flush=True)
def hear():
    line = sys.stdin.readline()
    if not line: sys.exit(0)
    return json.loads(line)
def step(id, name, do):
    say(op="step", id=id, name=name)
    told = hear()
    if told["op"] == "recorded": return told["result"]
    if told["op"] == "error": return told["error"]["code"]
    say(op="result", id=id, value=do(told["key"]))
    assert hear() == {"op": "ok", "id": id}
def call(id, verb, **args):
    say(op="call", id=id, verb=verb, args=args)
    told = hear()
    return told["value"] if told["op"] == "answer" else told["error"]
start = hear()
"""


class FakeContext:
    """What a program agent needs of a context; `journal` is what a real one would have in the log."""

    task, epoch, labels, deadline_at_ms = "t1", 1, {"project": "x"}, 0

    def __init__(self, journal: dict[str, Any] | None = None) -> None:
        self.journal = {} if journal is None else journal
        self.calls: list[Any] = []
        self._seen: dict[str, int] = {}
        self.waiting = asyncio.Event()

    async def step(self, name: str, function: Callable[[], Awaitable[Any]]) -> Any:
        self._seen[name] = self._seen.get(name, 0) + 1
        key = f"{name}#{self._seen[name]}"
        if key not in self.journal:
            self.journal[key] = await function()
        return self.journal[key]

    def hand_on(self, error: Exception) -> None:
        self.calls.append(("hand_on", getattr(error, "code", "")))

    async def model(self, prompt: Any, **more: Any) -> ModelReply:
        self.calls.append(("model", prompt, more))
        return ModelReply("hello", "stop", "offline:none")

    async def spawn(self, agent: str, wanted: Any, **more: Any) -> Child:
        self.calls.append(("spawn", agent, wanted, more))
        return Child(f"t1~{len(self.calls)}")

    async def gather(self, *children: Child, return_failures: bool = False) -> list[Any]:
        lost = Outcome("t1~2", "dead")
        return [lost if return_failures and child.task == "t1~2" else child.task for child in children]

    async def first(self, *children: Child, count: int = 1) -> list[Any]:
        return [(child, 1) for child in children[:count]]

    async def cancel(self, *children: Child, reason: str = "") -> None:
        self.calls.append(("cancel", children, reason))

    async def sleep(self, seconds: float) -> None:
        self.calls.append(("sleep", seconds))

    async def send(self, to: str, value: Any) -> None:
        raise Rejected("unknown_task", f"there is no task {to}")

    async def ask(self, **arguments: Any) -> Any:
        self.waiting.set()
        await asyncio.Event().wait()

    async def receive(self, sender: str = "", timeout_s: float | None = None) -> Any:
        return SimpleStruct("t2", {"n": 1})


class SimpleStruct(msgspec.Struct):
    """As a received message looks."""

    sender: str
    value: Any


def spec_of(body: str, **limits: Any) -> ProgramSpec:
    """A Python program that begins with the prelude."""
    return ProgramSpec((sys.executable, "-S", "-c", PRELUDE + textwrap.dedent(body)), **limits)


def agent_of(spec: ProgramSpec) -> Any:
    """An agent that is run with a fake context."""
    return program_agent("prog", spec, PROGRAMS)


async def run(body: str, wanted: Any = None, ctx: FakeContext | None = None, **limits: Any) -> Any:
    agent = agent_of(spec_of(body, **limits))
    async with asyncio.timeout(20):
        return await agent.run(ctx or FakeContext(), wanted)


async def failure(body: str, **limits: Any) -> Any:
    """The one error that running this program gives."""
    with pytest.raises((Rejected, Fault, AgentFailed)) as caught:
        await run(body, **limits)
    return caught.value


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return (
        Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z" if os.path.isdir("/proc") else False
    )


# --- what works ------------------------------------------------------------------------------------


async def test_a_program_is_told_what_is_wanted_and_answers() -> None:
    said = await run('say(op="done", output=start)', {"text": "ü", "n": [1, 2.5, None]})
    assert said == {
        "op": "start",
        "protocol": 1,
        "task": "t1",
        "epoch": 1,
        "agent": "prog",
        "input": {"text": "ü", "n": [1, 2.5, None]},
        "labels": {"project": "x"},
    }


STEPS = """
done = []
def do(n):
    def act(key):
        done.append(n)
        return {"n": n, "key": key}
    return act
got = [step(n, "act", do(n)) for n in range(1, 5)]
say(op="done", output=[done, got])
"""


async def test_steps_are_recorded_and_never_executed_again() -> None:
    journal: dict[str, Any] = {}
    assert (await run(STEPS, ctx=FakeContext(journal)))[0] == [1, 2, 3, 4]
    assert journal == {f"act#{n}": {"n": n, "key": f"t1~act~{n}"} for n in range(1, 5)}
    del journal["act#4"]
    done, got = await run(STEPS, ctx=FakeContext(journal))
    assert done == [4]
    assert got == [*({"n": n, "key": f"t1~act~{n}"} for n in (1, 2, 3)), None]


async def test_several_steps_may_be_under_way_at_once_and_end_in_any_order() -> None:
    ctx = FakeContext()
    body = """
    for id in (1, 2, 3): say(op="step", id=id, name=f"s{id}")
    for _ in range(3): assert hear()["op"] == "execute"
    for id in (3, 1, 2):
        say(op="result", id=id, value=id * 10)
        assert hear() == {"op": "ok", "id": id}
    say(op="done")
    """
    assert await run(body, ctx=ctx) is None
    assert ctx.journal == {"s1#1": 10, "s2#1": 20, "s3#1": 30}


async def test_calls_reach_the_context_and_are_answered() -> None:
    ctx = FakeContext()
    body = """
    model = call(1, "model", prompt="hi", schema={"type": "string"})
    one, two = call(2, "spawn", agent="echo", input=[1]), call(3, "spawn", agent="echo")
    said = [model["text"], one, call(4, "gather", children=[one]),
            call(6, "first", children=[one]), call(7, "sleep", seconds=0.5), call(8, "receive")]
    call(9, "cancel", children=[one, two], reason="enough")
    said.append(call(10, "gather", children=["t1~2x"])["code"])
    said.append(call(11, "send", to="nobody")["code"])
    say(op="done", output=said)
    """
    assert await run(body, ctx=ctx) == [
        "hello",
        "t1~2",
        ["t1~2"],
        [{"task": "t1~2", "output": 1}],
        None,
        {"sender": "t2", "value": {"n": 1}},
        "unknown_child",
        "unknown_task",
    ]
    assert [name for name, *_ in ctx.calls] == ["model", "spawn", "spawn", "sleep", "cancel", "hand_on", "hand_on"]
    assert ctx.calls[0][2] == {"model": "", "name": "model", "schema": {"type": "string"}}


async def test_children_that_failed_can_be_looked_at() -> None:
    body = """
    call(1, "sleep", seconds=0)
    one = call(2, "spawn", agent="echo")
    say(op="done", output=call(3, "gather", children=[one], return_failures=True))
    """
    assert await run(body) == [{"failed": {"task": "t1~2", "state": "dead"}}]


@pytest.mark.parametrize(
    ("asked", "code", "named"),
    [
        ('verb="fly"', "unknown_verb", "model"),
        ('verb="spawn", agnt="x"', "bad_arguments", "agnt"),
        ('verb="recall", text="x", k="many"', "bad_arguments", "$.k"),
        ('verb="sleep", seconds=-1', "bad_arguments", "$.seconds"),
    ],
)
async def test_a_bad_call_is_answered_in_words(asked: str, code: str, named: str) -> None:
    error = await run(f'say(op="done", output=call(1, {asked}))')
    assert error["code"] == code
    assert named in error["message"]


async def test_a_step_that_fails_is_not_recorded_until_the_program_goes_on() -> None:
    ctx = FakeContext()
    body = """
    say(op="step", id=1, name="s"); hear()
    say(op="result", id=1, error={"code": "no_luck", "message": "try later"})
    say(op="done", output=hear())
    """
    assert await run(body, ctx=ctx) == {"op": "error", "id": 1, "error": {"code": "no_luck", "message": "try later"}}
    assert (ctx.journal, ctx.calls) == ({}, [("hand_on", "no_luck")])


async def test_a_program_that_ends_at_an_error_is_quoted_with_it() -> None:
    error = await failure('call(1, "send", to="nobody"); sys.exit(4)')
    assert (error.code, "code 4" in error.message) == ("program_exited", True)
    assert error.message.endswith("the last error that it was told: unknown_task: there is no task nobody")


async def test_code_that_does_not_match_the_journal_fails_with_the_error_of_the_journal() -> None:
    ctx = FakeContext()

    async def step(name: str, function: Any) -> Any:
        raise AgentFailed("journal_mismatch", "expected 'fetch#1', found 'model#1'", retryable=False)

    ctx.step = step  # type: ignore[method-assign]
    with pytest.raises(AgentFailed, match="expected 'fetch#1'") as caught:
        await run('step(1, "fetch", lambda key: 1); sys.exit(1)', ctx=ctx)
    assert (caught.value.code, caught.value.retryable) == ("journal_mismatch", False)


async def test_a_program_says_why_it_fails() -> None:
    error = await failure('say(op="fail", code="too_hard", message="a\\x1b[31m \\u202e b", retryable=False)')
    assert (error.code, error.message, error.retryable) == ("too_hard", "a[31m  b", False)


@pytest.mark.parametrize("shell", ["sh"])
async def test_a_shell_script_can_be_an_agent(shell: str) -> None:
    script = """
    read start
    echo '{"op":"step","id":1,"name":"greet"}'
    read answer
    case "$answer" in
      *'"execute"'*) echo '{"op":"result","id":1,"value":"hello"}'; read stored;;
    esac
    echo '{"op":"done","output":"said"}'
    """
    ctx = FakeContext()
    for _ in range(2):
        agent = agent_of(ProgramSpec((shell, "-c", script)))
        assert await agent.run(ctx, None) == "said"
    assert ctx.journal["greet#1"] == "hello"


async def test_large_values_pass_in_both_directions() -> None:
    text = "x" * 3_000_000
    assert await run('say(op="done", output=start["input"])', text, line_bytes_max=4_000_000) == text


async def test_a_program_gets_the_variables_it_was_promised_and_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMISED", "yes")
    monkeypatch.setenv("KEPT_BACK", "secret")
    names, folder = await run(
        'say(op="done", output=[sorted(os.environ), os.getcwd()])', env=("PROMISED",), cwd=str(tmp_path)
    )
    assert "PROMISED" in names
    assert "KEPT_BACK" not in names
    assert folder == str(tmp_path)  # which pytest has resolved


async def test_a_program_inherits_its_three_streams_and_no_more() -> None:
    if sys.platform != "linux":
        pytest.skip("needs /proc")
    listed = await run("fds = os.listdir('/proc/self/fd'); say(op='done', output=sorted(fds))")
    assert listed[:3] == ["0", "1", "2"]
    assert len(listed) == 4  # and the directory that is being read


# --- what goes wrong -------------------------------------------------------------------------------


WAYS = [
    ('print("hello", flush=True); time.sleep(60)', "program_garbage", "line 1 of the program's stdout"),
    ('say(op="fly"); time.sleep(60)', "program_garbage", "fly"),
    ('say(op="done", output=1, extra=2); time.sleep(60)', "program_garbage", "extra"),
    ('os.write(1, b"\\xff\\xfe\\x00\\n"); time.sleep(60)', "program_garbage", "stdout"),
    ('os.write(1, b"[" * 2000 + b"\\n"); time.sleep(60)', "program_garbage", "stdout"),
    ('os.write(1, b\'{"op":"done","output":"\\\\ud800"}\\n\')', "program_garbage", "stdout"),
    ('say(op="step", id=0, name="x"); time.sleep(60)', "program_garbage", "$.id"),
    ('say(op="result", id=7, value=1); time.sleep(60)', "program_protocol", "7"),
    ('say(op="step", id=1, name="x"); hear(); say(op="result", id=1)', "program_protocol", "either"),
    ('[say(op="step", id=1, name="x") for _ in "ab"]; time.sleep(60)', "program_protocol", "under way already"),
    ('[say(op="step", id=n, name="x") for n in range(1, 300)]; time.sleep(60)', "program_protocol", "256"),
    ('os.write(1, b"x" * 100000); time.sleep(60)', "program_line_too_long", "2048"),
    ('say(op="done", output="x" * 100000); time.sleep(60)', "program_line_too_long", "2048"),
    ("sys.exit(3)", "program_exited", "code 3"),
    ("os.kill(os.getpid(), signal.SIGSEGV)", "program_exited", "SIGSEGV"),
    ('print("a\\x1b[31mbc", file=sys.stderr); sys.exit(0)', "program_exited", "its last words: a[31mbc"),
    ("os.write(1, b'{\"op\":'); sys.exit(0)", "program_exited", "in the middle of a line (6 bytes of it)"),
    ("os.close(1); time.sleep(60)", "program_exited", "closed its stdout"),
    ("raise ValueError('no such luck')", "program_exited", "ValueError: no such luck"),
    ("time.sleep(60)", "program_start_slow", "400 ms"),
    ('say(op="ready"); time.sleep(60)', "program_silent", "400 ms"),
    ('say(op="step", id=1, name="x"); hear(); time.sleep(60)', "program_silent", "its turn"),
]


async def goes_wrong(body: str, code: str, words: str) -> None:
    limits = {"stop_timeout_ms": 200, "line_bytes_max": 2_048}
    if code == "program_start_slow":
        limits["start_timeout_ms"] = 400
    if code == "program_silent":
        limits["silence_timeout_ms"] = 400
    error = await failure(body, **limits)
    assert error.code == code, error.message
    assert words in error.message
    assert len(error.message) < 2_000
    assert isinstance(error, Rejected) == (code in ("program_garbage", "program_protocol", "program_line_too_long"))


@pytest.mark.parametrize(("body", "code", "words"), WAYS)
async def test_each_way_to_go_wrong_has_one_clear_failure(body: str, code: str, words: str) -> None:
    await goes_wrong(body, code, words)


def test_it_is_all_the_same_on_uvloop() -> None:
    """The loops differ in how they tell of pipes and processes; roles run on uvloop where it is installed."""
    uvloop = pytest.importorskip("uvloop")

    async def everything() -> None:
        journal: dict[str, Any] = {}
        for expected in ([1, 2, 3, 4], []):
            assert (await run(STEPS, ctx=FakeContext(journal)))[0] == expected
        for way in WAYS:
            await goes_wrong(*way)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(everything())


async def test_a_program_that_waits_for_an_answer_is_not_silent() -> None:
    ctx = FakeContext()
    agent = agent_of(spec_of('call(1, "ask", prompt="?")', silence_timeout_ms=50))
    async with asyncio.TaskGroup() as group:
        asked: asyncio.Task[Any] = group.create_task(agent.run(ctx, None))
        await ctx.waiting.wait()
        done, _ = await asyncio.wait([asked], timeout=0.3)
        assert not done
        asked.cancel()


async def test_words_on_stderr_become_bounded_lines_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    body = """
    for n in range(10): print("line", n, "\\x07" + "y" * 9000, file=sys.stderr)
    sys.stderr.flush()
    say(op="done")
    """
    with caplog.at_level(logging.INFO):
        await run(body, log_lines_max=3)
    lines = [record.getMessage() for record in caplog.records if record.name == "swarmd.roles.program_agent"]
    assert [line[:13] for line in lines[:3]] == [f"prog: line {n} " for n in range(3)]
    assert max(map(len, lines)) < 4_200
    assert "\x07" not in "".join(lines)
    assert lines[3:] == ["prog said 7 more lines"]


STUBBORN = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if not child:
    while True: time.sleep(1)
open(start["input"], "w").write(f"{os.getpid()} {child}\\n")
"""


async def _pids(file: Path) -> list[int]:
    text: str = await until(lambda: file.exists() and file.read_text().endswith("\n") and file.read_text())
    return [int(pid) for pid in text.split()]


@pytest.mark.parametrize("end", ['say(op="done", output=1)', "sys.exit(1)", "print('garbage', flush=True)"])
async def test_what_a_program_leaves_behind_is_ended_with_it(end: str, tmp_path: Path) -> None:
    """It ignores SIGTERM, has forked, and its child holds its pipes open."""
    file = tmp_path / "pids"
    try:
        assert await run(f"{STUBBORN}\n{end}\ntime.sleep(60)", str(file), stop_timeout_ms=100) == 1
    except (Rejected, Fault):
        assert "done" not in end
    for pid in await _pids(file):
        await until(lambda pid=pid: gone(pid))


async def test_a_cancelled_attempt_ends_its_program_within_a_second(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    agent = agent_of(spec_of(f"{STUBBORN}\ntime.sleep(60)", stop_timeout_ms=300))
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        attempt: asyncio.Task[Any] = group.create_task(agent.run(FakeContext(), str(file)))
        pids = await _pids(file)
        started = loop.time()
        attempt.cancel()
        await asyncio.wait([attempt])
    assert loop.time() - started < 1.0
    assert attempt.cancelled()
    for pid in pids:
        await until(lambda pid=pid: gone(pid))


async def test_a_second_cancellation_still_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    agent = agent_of(spec_of(f"{STUBBORN}\ntime.sleep(60)", stop_timeout_ms=60_000))
    async with asyncio.TaskGroup() as group:
        attempt: asyncio.Task[Any] = group.create_task(agent.run(FakeContext(), str(file)))
        pids = await _pids(file)
        attempt.cancel()
        await asyncio.sleep(0)
        attempt.cancel()
        await asyncio.wait([attempt])
    for pid in pids:
        await until(lambda pid=pid: gone(pid))


async def test_a_program_hears_that_it_shall_end(tmp_path: Path) -> None:
    file = tmp_path / "heard"
    body = """
    def leave(*_):
        open(start["input"], "w").write("heard")
        sys.exit(0)
    signal.signal(signal.SIGTERM, leave)
    say(op="ready")
    call(1, "ask", prompt="?")
    """
    ctx = FakeContext()
    async with asyncio.TaskGroup() as group:
        running = agent_of(spec_of(body)).run(ctx, str(file))
        attempt: asyncio.Task[Any] = group.create_task(running)
        await ctx.waiting.wait()
        attempt.cancel()
        await asyncio.wait([attempt])
    assert file.read_text() == "heard"


async def test_a_flood_is_held_back_and_not_piled_up(tmp_path: Path) -> None:
    """While the host is busy nothing is read beyond a bound: the program waits in its write."""
    wrote = tmp_path / "wrote"
    body = f"""
    import threading
    count = 0
    line = json.dumps({{"op": "ready"}}).encode() + b" " * 900 + b"\\n"
    for _ in range(20_000):
        os.write(1, line)
        count += 1
    open({str(wrote)!r}, "w").write(str(count))
    say(op="done", output=count)
    """
    process = await PROGRAMS.start(spec_of(body), lambda words: None)
    try:
        await process.send(json.dumps({"op": "start", "input": None}).encode())
        await process.receive()
        queued = process._pipes
        await until(lambda: queued._paused)
        assert queued._queued < 2 * 1024 * 1024
        assert not wrote.exists()
        for _ in range(19_999):
            await process.receive()
        assert json.loads(await process.receive()) == {"op": "done", "output": 20_000}
    finally:
        await process.end()


# --- before the first start ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"command": ("no-such-command",)}, "not on the PATH"),
        ({"command": ("./agent.py",)}, "no executable file"),
        ({"cwd": "/no/such/place"}, "no directory"),
        ({"env": ("NOT_SET_ANYWHERE",)}, "NOT_SET_ANYWHERE"),
    ],
)
def test_a_declaration_that_cannot_work_is_refused(limits: dict[str, Any], words: str) -> None:
    spec = ProgramSpec(**{"command": ("sh",), **limits})
    with pytest.raises(Rejected, match=words) as caught:
        PROGRAMS.check("prog", spec)
    assert caught.value.code == "bad_program"


async def test_a_file_that_cannot_be_run_says_so(tmp_path: Path) -> None:
    file = tmp_path / "agent"
    file.write_bytes(b"\x00\x01")
    file.chmod(0o700)
    agent = agent_of(ProgramSpec((str(file),)))
    with pytest.raises(Fault, match="Exec format error"):
        await agent.run(FakeContext(), None)
    file.unlink()
    with pytest.raises(Fault, match="not there any more"):
        await agent.run(FakeContext(), None)


async def test_a_program_dies_with_its_host(tmp_path: Path) -> None:
    """Kill -9 of the host process: the program, deaf to everything, goes too (on Linux)."""
    if sys.platform != "linux":
        pytest.skip("needs Linux: elsewhere a program notices by the end of its stdin")
    file = tmp_path / "pid"
    deaf = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    deaf += f"; open({str(file)!r}, 'w').write(f'{{os.getpid()}}\\n'); time.sleep(60)"
    host = f"""
import asyncio, os, sys
from swarmd import config
from swarmd.adapters.programs import SubprocessPrograms
from swarmd.adapters.tools import ToolSettings
from swarmd.core.program import ProgramSpec
async def main():
    spec = ProgramSpec((sys.executable, "-c", {deaf!r}))
    await SubprocessPrograms(os.environ).start(spec, print)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", host)
    (pid,) = await _pids(file)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    await until(lambda: gone(pid))


def test_a_name_is_given_once_and_limits_are_checked() -> None:
    def refusal(text: str) -> str:
        with pytest.raises(Rejected) as caught:
            config.load(text, {})
        return caught.value.message

    program = '[program.one]\ncommand = ["sh"]\n'
    twice = refusal(f'{program}[[agent]]\nname = "one"\ninstructions = "x"\n')
    assert "two agents are called 'one'" in twice
    assert "swarm 'elsewhere'" in refusal(f'{program}swarms = ["elsewhere"]\n')
    assert "did you mean 'command'" in refusal('[program.one]\ncomand = ["sh"]\n')
    assert "program" in refusal("[program.one]\ncommand = []\n")
    assert "line_bytes_max" in refusal(f"{program}line_bytes_max = 1\n")
    with pytest.raises(Rejected, match="'a b'"):
        config.load('[program."a b"]\ncommand = ["sh"]\n', {})
    no_models, tools, programs = cast("Any", None), OpenTools(ToolSettings()), {"echo": ProgramSpec(("sh",))}
    with pytest.raises(Rejected, match=r"comes from module swarmd\.agents and from a program") as caught:
        load_agents(["swarmd.agents"], [], no_models, tools, programs)
    assert caught.value.code == "bad_agents"
