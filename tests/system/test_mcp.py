"""`swarmd mcp` on a real swarm, driven by the official client over stdio and HTTP; and agents that use MCP tools."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import shutil
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from swarmd.core import subjects
from swarmd.core.memory_wire import RecalledPassage, RecallReply, RecallRequest, RememberReply, RememberRequest
from tests.contract import hostile_mcp
from tests.system.rig import ROOT, SWARM, a_rig
from tests.system.swarms import until
from tests.system.ups import PLAIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mcp import Client

    from swarmd.ports import Received
    from tests.system.rig import Rig

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mcp") is None, reason="needs the MCP SDK: pip install 'swarmd[mcp]'"
)
TOKEN = "a-token-that-is-long-enough"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with a_rig(tmp_path, "orchestrator") as rig:
        await rig.worker("w1", "--agents", "tests.system.wait_agents")
        yield rig


@asynccontextmanager
async def over_stdio(rig: Rig, *flags: str) -> AsyncIterator[Client]:
    from mcp import Client, StdioServerParameters

    arguments = ["-m", "swarmd", "--nats", rig.server.url, "mcp", "--by", "ada", *flags]
    command = StdioServerParameters(command=sys.executable, args=arguments, cwd=str(ROOT), env=PLAIN)
    async with asyncio.timeout(60), Client(command, read_timeout_seconds=40) as client:
        yield client


async def call(client: Client, tool: str, **arguments: Any) -> Any:
    """What a tool answers; structured content and text say the same."""
    result = await client.call_tool(tool, arguments)
    (said,) = result.content
    text = getattr(said, "text", "")
    if result.is_error:
        return text
    assert json.loads(text) == result.structured_content
    return result.structured_content


async def test_a_client_submits_asks_and_cancels(rig: Rig) -> None:
    async with over_stdio(rig) as client:
        tools = (await client.list_tools()).tools
        assert {tool.name for tool in tools} >= {"submit", "status", "result", "tasks", "cancel", "inbox", "answer"}
        assert all(tool.input_schema["type"] == "object" and tool.description for tool in tools)
        assert "asker" in (await call(client, "status"))["agents"]
        task = (await call(client, "submit", agent="listener", input={"event": "go"}))["task"]
        waiting = await call(client, "result", task=task, wait_s=0.1)
        assert not waiting["final"]
        assert (await call(client, "signal", name="go", value=[1])) == {"signalled": "go"}
        done = await call(client, "result", task=task)
        assert done == {"task": task, "state": "completed", "final": True, "output": [1]}
        assert (await call(client, "status", task=task))["state"] == "completed"
        second = (await call(client, "submit", agent="listener", input={"event": "never"}))["task"]
        assert await call(client, "cancel", task=second, reason="enough") == {"task": second}
        assert (await call(client, "result", task=second))["state"] == "cancelled"


async def test_what_is_wrong_is_told(rig: Rig) -> None:
    async with over_stdio(rig) as client:
        assert "$.agent" in await call(client, "submit", agent=7)
        assert "unknown field `agnt`" in await call(client, "submit", agent="x", agnt="y")
        assert (await call(client, "status", task="no-such-task")).startswith("unknown_task: ")
        assert (await call(client, "result", task="no-such-task")).startswith("unknown_task: ")
        assert (await call(client, "tasks")).startswith("no_observer: ")
        assert (await call(client, "recall", text="x")).startswith("no_memory: ")
        assert (await call(client, "answer", id="nope", value=1)).startswith("unknown_request: ")
        assert (await call(client, "nothing")).startswith("unknown_tool: ")


async def test_questions_are_answered_and_approvals_only_where_that_is_allowed(rig: Rig) -> None:
    async with over_stdio(rig) as client:
        asked = (await call(client, "submit", agent="asker", input={"ledger": rig.ledger}))["task"]
        wanted = {"arguments": {"sum": 5}}
        approved = (await call(client, "submit", agent="approver", input=wanted))["task"]

        async def open_request(task: str) -> Any:
            return (await call(client, "inbox", task=task))["requests"]

        (question,) = await until(lambda: open_request(asked))
        wrong = await call(client, "answer", id=question["id"], value={"age": "old"})
        assert wrong.startswith("invalid_answer: $.age")
        assert await call(client, "answer", id=question["id"], value={"age": 36}) == {"task": asked}
        assert (await call(client, "result", task=asked))["output"] == {
            "value": {"age": 36},
            "by": "ada",
            "timed_out": False,
        }
        (approval,) = await until(lambda: open_request(approved))
        answer = {"decision": "approve", "digest": approval["digest"]}
        assert (await call(client, "answer", id=approval["id"], value=answer)).startswith("forbidden: ")
    async with over_stdio(rig, "--approve") as client:
        assert await call(client, "answer", id=approval["id"], value=answer) == {"task": approved}
        assert (await call(client, "result", task=approved))["output"]["decision"] == "approve"


async def test_instructions_memory_and_the_list_of_tasks(rig: Rig) -> None:
    await rig.start("observer", "v1")
    kept: list[RememberRequest] = []

    def remember(message: Received) -> None:
        kept.append(msgspec.json.decode(message.payload, type=RememberRequest))
        replies.put_nowait((message.reply, RememberReply("m1", 3)))

    def recall(message: Received) -> None:
        text = msgspec.json.decode(message.payload, type=RecallRequest).text
        replies.put_nowait((message.reply, RecallReply([RecalledPassage("m1", f"about {text}", 1.0)], 3)))

    async def reply() -> None:
        while True:
            subject, answer = await replies.get()
            await rig.bus.publish(subject, msgspec.json.encode(answer))

    replies: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
    await rig.bus.subscribe(subjects.memory_verb("shared", "remember"), remember)
    await rig.bus.subscribe(subjects.memory_verb("shared", "recall"), recall)
    async with asyncio.TaskGroup() as group, over_stdio(rig) as client:
        replying = group.create_task(reply())
        assert await call(client, "remember", text="bees dance", source="book") == {"id": "m1", "seq": 3}
        assert (kept[0].text, kept[0].source, kept[0].author) == ("bees dance", "book", "ada")
        assert (await call(client, "recall", text="bees"))["passages"][0]["text"] == "about bees"
        replying.cancel()
        task = (await call(client, "submit", agent="obedient", input={"steps": 1, "gate": rig.gate("o")}))["task"]
        assert await call(client, "tell", task=task, text="in French") == {"told": task}
        assert await until(lambda: listed(client, task))
        await call(client, "cancel", task=task)


async def listed(client: Client, task: str) -> bool:
    found = await call(client, "tasks", agent="obedient")
    return isinstance(found, dict) and task in [one["id"] for one in found["tasks"]]


async def test_over_http_with_a_token_only(rig: Rig) -> None:
    import httpx2
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client

    command = ["-m", "swarmd", "--nats", rig.server.url, "mcp", "--http", "0"]
    server = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, cwd=ROOT, env={**PLAIN, "SWARMD_MCP_TOKEN": TOKEN}
    )
    try:
        assert server.stdout is not None
        async with asyncio.timeout(60):
            url = (await server.stdout.readline()).decode().strip()
            headers = {"authorization": f"Bearer {TOKEN}"}
            async with httpx2.AsyncClient(headers=headers, trust_env=False) as http:
                async with Client(streamable_http_client(url, http_client=http)) as client:
                    done = await call(client, "submit", agent="writer", input={"values": [], "to": ""}, wait_s=30)
                    assert done["state"] == "completed"
                for wrong, status in (
                    ({"authorization": ""}, 401),
                    ({"authorization": f"Bearer {TOKEN}x"}, 401),
                    ({"origin": "http://evil.example"}, 403),
                    ({"host": "evil.example"}, 421),
                ):
                    said = await http.post(url, json={"jsonrpc": "2.0", "id": 1, "method": "ping"}, headers=wrong)
                    assert said.status_code == status, wrong
    finally:
        server.terminate()
        await server.wait()


async def test_without_a_token_there_is_no_http(rig: Rig) -> None:
    command = ["-m", "swarmd", "--nats", rig.server.url, "mcp", "--http", "0"]
    server = await asyncio.create_subprocess_exec(
        sys.executable, *command, stderr=asyncio.subprocess.PIPE, cwd=ROOT, env=PLAIN
    )
    _, said = await server.communicate()
    assert server.returncode == 3
    assert b"SWARMD_MCP_TOKEN must hold" in said


async def test_an_agent_uses_the_tools_of_a_server_that_dies_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "swarm.toml").write_text(
        f"""
[mcp.bad]
command = {json.dumps([sys.executable, "-S", "-E", hostile_mcp.__file__, "tools"])}
tools = ["echo", "die"]
[[agent]]
name = "declared"
instructions = "Answer."
tools = ["mcp.bad.*"]
"""
    )
    async with a_rig(tmp_path, "orchestrator") as rig:
        worker = await rig.worker("w1", "--agents", "tests.system.mcp_agents", "--config", str(tmp_path / "swarm.toml"))
        first, died, second = await rig.client.run("caller", [["echo", {"n": 1}], ["die", {}], ["echo", {"n": 2}]])
        assert "mcp_lost" in died
        told = [json.loads(line) for text in (first, second) for line in text.splitlines() if line.startswith("{")]
        assert [one["arguments"] for one in told] == [{"n": 1}, {"n": 2}]
        assert told[0]["pid"] != told[1]["pid"]
        assert len({one["meta"]["swarmd/idempotency-key"] for one in told}) == 2
        assert await worker.stop() == 0


async def test_a_worker_whose_server_is_not_there_says_which(tmp_path: Path) -> None:
    from tests.system.ups import swarmd

    file = tmp_path / "swarm.toml"
    file.write_text(
        '[mcp.gone]\ncommand = ["no-such-program"]\n[[agent]]\nname = "a"\ninstructions = "x"\ntools = ["mcp.gone.*"]\n'
    )
    done = await asyncio.to_thread(swarmd, "config", "check", str(file))
    assert done.code == 3
    assert "mcp.gone: there is no program 'no-such-program'" in done.err


async def test_the_document_shows_what_works(tmp_path: Path) -> None:
    from tests.system.ups import swarmd

    page = (ROOT / "docs" / "how-to" / "mcp.md").read_text()
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "swarm.toml").write_text(text)
    path = f"{Path(sys.executable).parent}:{PLAIN['PATH']}"
    if shutil.which("mcp-server-time", path=path) is None:
        pytest.skip("needs mcp-server-time: pip install 'swarmd[test]'")
    check = ("config", "check", str(tmp_path / "swarm.toml"))
    refused = await asyncio.to_thread(swarmd, *check, environ={"PATH": path})
    assert "TRACKER_AUTHORIZATION for Authorization is not set" in refused.err
    done = await asyncio.to_thread(swarmd, *check, environ={"PATH": path, "TRACKER_AUTHORIZATION": "Bearer x"})
    assert (done.code, done.err) == (0, "")
    assert "secretary" in done.out


assert SWARM == "main", "the commands above talk to the swarm that they talk to by default"
