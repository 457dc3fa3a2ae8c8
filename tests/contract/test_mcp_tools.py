"""Tools of MCP servers: real servers of both protocol eras, and one that misbehaves in every way we know of."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import os
import signal
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from swarmd.adapters import mcp_session
from swarmd.adapters.mcp_format import NAME_CHARS_MAX, offered_name, text_of
from swarmd.adapters.mcp_session import McpServerSettings, McpSession
from swarmd.adapters.mcp_tools import McpServers
from swarmd.core.errors import Fault, Rejected
from swarmd.roles.tool_calls import run_tool
from tests.contract import hostile_mcp
from tests.contract.scripted_http import Asked, http, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mcp") is None, reason="needs the MCP SDK: pip install 'swarmd[mcp]'"
)
needs_time_server = pytest.mark.skipif(
    importlib.util.find_spec("mcp_server_time") is None, reason="needs mcp-server-time: pip install 'swarmd[test]'"
)
NODE = os.environ.get("SWARMD_NODE_MCP", "")
needs_node_servers = pytest.mark.skipif(
    not NODE, reason="needs the MCP servers for Node.js: set SWARMD_NODE_MCP to the node_modules that hold them"
)
HOSTILE = str(Path(hostile_mcp.__file__))
SHORT_S = 0.5


def hostile(mode: str, *more: str, **changes: Any) -> McpServerSettings:
    settings = McpServerSettings(
        "bad",
        (sys.executable, "-S", "-E", HOSTILE, mode, *more),
        environ=dict(os.environ),
        connect_timeout_s=20,
        timeout_s=20,
    )
    return msgspec.structs.replace(settings, **changes)


@asynccontextmanager
async def kept(settings: McpServerSettings) -> AsyncIterator[McpSession]:
    """A session that is kept alive until the end of the block."""
    session = McpSession(settings)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        keeper = group.create_task(session.keep())
        try:
            yield session
        finally:
            keeper.cancel()


@asynccontextmanager
async def running(settings: McpServerSettings) -> AsyncIterator[McpServers]:
    servers = McpServers({settings.name: settings})
    async with asyncio.timeout(60):
        await servers.discover([f"mcp.{settings.name}.*"])
        async with servers.running():
            yield servers


def echoed(result: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.content[0].text)
    return found


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # ended; whoever adopted it has not looked yet


async def gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while lives(pid):
            await asyncio.sleep(0.01)


class TestReferenceServers:
    @needs_time_server
    async def test_the_newer_protocol(self) -> None:
        settings = McpServerSettings("time", (sys.executable, "-m", "mcp_server_time"), environ=dict(os.environ))
        async with running(settings) as servers:
            assert servers.expand("mcp.time.*") == ["time__convert_time", "time__get_current_time"]
            tool = servers.tool("time__get_current_time")
            assert tool.spec.parameters["required"] == ["timezone"]
            text = await tool.call({"timezone": "Europe/Berlin"})
            assert json.loads(text)["timezone"] == "Europe/Berlin"
            with pytest.raises(Rejected, match="'timezone' is a required property") as missing:
                await tool.call({})
            assert missing.value.code == "bad_arguments"
            with pytest.raises(Rejected, match="Invalid timezone") as failed:
                await tool.call({"timezone": "Nowhere"})
            assert failed.value.code == "tool_error"

    @needs_node_servers
    async def test_the_older_protocol(self) -> None:
        command = (f"{NODE}/.bin/mcp-server-everything",)
        async with running(McpServerSettings("all", command, environ=dict(os.environ))) as servers:
            assert await servers.tool("all__echo").call({"message": "hi"}) == "Echo: hi"
            picture = await servers.tool("all__get-tiny-image").call({})
            assert "[image image/png, about 4035 bytes, not shown]" in picture
            weather = await servers.tool("all__get-structured-content").call({"location": "New York"})
            assert json.loads(weather)["conditions"] == "Cloudy"

    @needs_node_servers
    async def test_files_stay_within_their_directory(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("hello")
        command = (f"{NODE}/.bin/mcp-server-filesystem", str(tmp_path))
        async with running(McpServerSettings("files", command, environ=dict(os.environ))) as servers:
            tool = servers.tool("files__read_text_file")
            assert await tool.call({"path": str(tmp_path / "a.txt")}) == "hello"
            with pytest.raises(Rejected, match="Access denied"):
                await tool.call({"path": "/etc/passwd"})


class TestCalls:
    async def test_arguments_and_key_arrive(self) -> None:
        async with kept(hostile("tools")) as session:
            said = echoed(await session.call("bad__echo", {"x": [1]}, "key-1"))
            assert said["arguments"] == {"x": [1]}
            assert said["meta"]["swarmd/idempotency-key"] == "key-1"

    async def test_calls_run_side_by_side(self) -> None:
        async with kept(hostile("tools", timeout_s=SHORT_S)) as session:
            await session.listed()
            slow, quick = await asyncio.gather(
                session.call("bad__hang", {}), session.call("bad__echo", {}), return_exceptions=True
            )
            assert echoed(quick)["arguments"] == {}
            assert isinstance(slow, Fault)
            assert slow.code == "mcp_timeout"
            await session.call("bad__echo", {})
            assert session.lives == 1

    async def test_a_call_that_is_cancelled_leaves_the_connection_as_it_was(self) -> None:
        async with kept(hostile("tools")) as session:
            await session.listed()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await session.call("bad__hang", {})
            await session.call("bad__echo", {})
            assert session.lives == 1

    async def test_a_failure_of_the_tool_is_told(self) -> None:
        async with running(hostile("tools")) as servers:
            outcome = await run_tool(servers.tool("bad__fail"), {})
            assert outcome.error == "tool_error: the disk is full"

    @pytest.mark.parametrize(("tool", "code"), [("ill", "bad_answer"), ("wrong", "mcp_error")])
    async def test_what_is_no_answer_is_a_fault(self, tool: str, code: str) -> None:
        async with kept(hostile("tools")) as session:
            with pytest.raises(Fault) as fault:
                await session.call(f"bad__{tool}", {})
            assert fault.value.code == code
            assert "\x1b" not in fault.value.message
            assert session.lives == 1

    async def test_input_that_is_asked_for_is_named(self) -> None:
        async with kept(hostile("asks")) as session:
            with pytest.raises(Rejected, match=r"Where\? \(fields: city\)") as rejected:
                await session.call("bad__echo", {})
            assert rejected.value.code == "needs_input"

    async def test_its_own_output_schema_is_never_run(self) -> None:
        async with running(hostile("structured")) as servers, asyncio.timeout(10):
            assert "aaaa!" in await servers.tool("bad__lie").call({})

    @pytest.mark.parametrize("tool", ["huge", "huge_id_last"])
    async def test_an_answer_that_is_too_long_fails_its_call_alone(self, tool: str) -> None:
        async with kept(hostile("tools")) as session:
            with pytest.raises(Fault, match="ask for less"):
                await session.call(f"bad__{tool}", {})
            await session.call("bad__echo", {})
            assert session.lives == 1

    async def test_a_long_line_for_nobody_ends_the_connection(self) -> None:
        async with kept(hostile("tools")) as session:
            with pytest.raises(Fault) as fault:
                await session.call("bad__huge_unsigned", {})
            assert fault.value.code == "mcp_lost"


class TestLives:
    async def test_a_server_that_dies_fails_the_calls_in_flight_and_comes_back(self) -> None:
        async with kept(hostile("tools")) as session:
            before = echoed(await session.call("bad__echo", {}))["pid"]
            calls = (session.call("bad__hang", {}), session.call("bad__die", {}))
            for failure in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(failure, Fault)
                assert failure.code == "mcp_lost"
                assert "not known" in failure.message
            with pytest.raises(Fault, match="tried again") as fault:
                await session.call("bad__echo", {})
            assert fault.value.code == "mcp_unavailable"
            assert fault.value.retry_after_ms
            after = await self.answering(session)
            assert after != before
            assert session.lives == 2

    async def answering(self, session: McpSession) -> int:
        while True:
            try:
                return int(echoed(await session.call("bad__echo", {}))["pid"])
            except Fault as fault:
                await asyncio.sleep((fault.retry_after_ms or 1) / 1000)

    async def test_a_list_that_changes(self) -> None:
        async with running(hostile("tools")) as servers:
            session = servers.tool("bad__grow")._session
            await session.call("bad__grow", {})
            while "bad__new" not in session.listing.tools:
                await asyncio.sleep(0.01)
            with pytest.raises(Rejected) as rejected:
                await session.call("bad__die", {})
            assert rejected.value.code == "tool_gone"
            await session.call("bad__new", {})
            assert session.lives == 1

    async def test_a_server_that_clings_to_life_is_ended_with_its_children(self, tmp_path: Path) -> None:
        pids = tmp_path / "pids"
        async with kept(hostile("clings", str(pids))) as session:
            await session.call("bad__echo", {})
            server, child = map(int, pids.read_text().split())
        await gone(server)
        await gone(child)

    async def test_it_dies_with_its_parent(self, tmp_path: Path) -> None:
        pids = tmp_path / "pids"
        program = f"""
import asyncio, os, sys
from swarmd.adapters.mcp_session import McpServerSettings, McpSession
settings = McpServerSettings("bad", {(sys.executable, "-S", HOSTILE, "clings", str(pids))!r}, environ=dict(os.environ))
async def main():
    session = McpSession(settings)
    async with asyncio.TaskGroup() as group:
        group.create_task(session.keep())
        await session.listed()
        print("ready", flush=True)
asyncio.run(main())
"""
        parent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        assert parent.stdout is not None
        async with asyncio.timeout(30):
            assert await parent.stdout.readline() == b"ready\n"
        server, child = map(int, pids.read_text().split())
        parent.kill()
        await parent.wait()
        await gone(server)
        os.kill(child, signal.SIGKILL)  # a grandchild is beyond the kernel's promise


class TestConnecting:
    @pytest.mark.parametrize(
        ("mode", "why"),
        [
            ("silent", "did not answer within 0.5 s"),
            ("endless_line", "did not answer within 0.5 s"),
            ("garbage", ""),
            ("dies", "I have no licence"),
            ("list_dies", ""),
            ("no_versions", ""),
        ],
    )
    async def test_a_server_that_does_not_connect_is_a_fault(self, mode: str, why: str) -> None:
        limit_s = SHORT_S if why.startswith("did") else 20
        async with asyncio.timeout(30):
            with pytest.raises(Fault) as fault:
                await McpSession(hostile(mode, connect_timeout_s=limit_s)).look()
        assert fault.value.code in ("mcp_unavailable", "mcp_lost")
        assert why in fault.value.message

    async def test_a_greeting_is_passed_over(self) -> None:
        listing = await McpSession(hostile("greets")).look()
        assert "bad__echo" in listing.tools

    async def test_a_program_that_is_missing(self) -> None:
        settings = McpServerSettings("bad", ("no-such-program",), environ=dict(os.environ))
        with pytest.raises(Rejected, match="there is no program 'no-such-program'"):
            await McpSession(settings).look()

    async def test_a_variable_that_is_missing(self) -> None:
        with pytest.raises(Rejected, match="NO_SUCH_KEY is not set"):
            await McpSession(hostile("tools", env=("NO_SUCH_KEY",))).look()

    async def test_nobody_listens(self) -> None:
        settings = McpServerSettings("web", url="http://127.0.0.1:9/mcp", connect_timeout_s=10)
        with pytest.raises(Fault) as fault:
            await McpSession(settings).look()
        assert fault.value.code == "mcp_unavailable"

    async def test_only_named_variables_are_passed_on(self, tmp_path: Path) -> None:
        seen = tmp_path / "environ"
        environ = {**os.environ, "GIVEN": "1", "KEPT": "secret"}
        await McpSession(hostile("environ", str(seen), environ=environ, env=("GIVEN",))).look()
        found = json.loads(seen.read_text())
        assert found["GIVEN"] == "1"
        assert "KEPT" not in found

    async def test_backoff_grows_while_a_server_dies(self) -> None:
        async with kept(hostile("dies")) as session:
            waits: list[float] = []
            while len(waits) < 3:
                with pytest.raises(Fault, match="I have no licence") as fault:
                    await session.call("bad__echo", {})
                if fault.value.retry_after_ms:
                    waits.append(session._retry_at - session._since)
                    await asyncio.sleep(fault.value.retry_after_ms / 1000 + 0.01)
            assert waits[2] > 2 * mcp_session.BACKOFF_S_MIN


class TestLies:
    async def test_tools_with_schemas_that_cannot_be_used_are_refused_by_name(self) -> None:
        listing = await McpSession(hostile("lies")).look()
        assert set(listing.refused) == {"no_object", "elsewhere", "no_schema", "too_big", "good"}
        assert listing.refused["good"] == "the server lists it twice"
        assert "http://127.0.0.1:9/schema.json" in listing.refused["elsewhere"]
        assert {"bad__good", "bad__evil_pattern", "bad__doubling"} <= set(listing.tools)
        odd = [name for name, listed in listing.tools.items() if listed.true_name in ("a b/c", "a b.c")]
        assert len(odd) == 2

    @pytest.mark.parametrize("tool", ["endless", "doubling", "dangling"])
    async def test_a_schema_cannot_hold_us_up(self, tool: str) -> None:
        listing = await McpSession(hostile("lies")).look()
        with pytest.raises(Rejected) as rejected:
            listing.tools[f"bad__{tool}"].arguments.check({"x": "text"})
        assert rejected.value.code == "bad_schema"

    async def test_a_pattern_cannot_hold_us_up(self) -> None:
        listing = await McpSession(hostile("lies")).look()
        listing.tools["bad__evil_pattern"].arguments.check({"x": "a" * 60 + "!"})

    async def test_its_words_are_cleaned_and_its_hints_not_passed_on(self) -> None:
        async with running(hostile("lies")) as servers:
            spec = servers.tool("bad__good").spec
        assert spec.description == "reads[2J nothing"
        assert "readOnlyHint" not in msgspec.json.encode(spec).decode()

    async def test_only_some_tools(self) -> None:
        listing = await McpSession(hostile("lies", tools=("evil_pattern", "nowhere"))).look()
        assert set(listing.tools) == {"bad__evil_pattern"}
        assert listing.refused == {"nowhere": "the server has no such tool"}

    async def test_more_tools_than_anybody_needs(self) -> None:
        listing = await McpSession(hostile("many")).look()
        assert len(listing.tools) == mcp_session.TOOLS_MAX

    async def test_a_list_without_end(self) -> None:
        listing = await McpSession(hostile("pages")).look()
        assert set(listing.tools) == {"bad__t"}


class TestShapes:
    """Answers of any shape are judged or refused; none is a bug of ours."""

    SHAPES = (
        "null",
        "7",
        "[]",
        "{}",
        '{"tools": 7}',
        '{"tools": [1, null, {"name": 5}, {}]}',
        '{"tools": [{"name": "x"}, {"name": "", "inputSchema": {"type": "object"}}]}',
        '{"tools": [{"name": "x", "inputSchema": {"type": "object", "properties": {"a": true}, "required": 3}}]}',
        '{"tools": [], "nextCursor": 5}',
        '{"protocolVersion": "2025-11-25", "serverInfo": 1, "capabilities": {"tools": []}}',
        '{"protocolVersion": [], "serverInfo": {"name": "x", "version": "1"}, "capabilities": {}}',
        "[" * 400 + "]" * 400,
    )

    async def test_it_is_a_listing_or_a_fault(self) -> None:
        """All at once: many are passed over as noise, and then the session waits as long as it may."""
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for mode, shape in itertools.product(("list", "hello"), self.SHAPES):
                group.create_task(self.judged(mode, shape))

    async def judged(self, mode: str, shape: str) -> None:
        try:
            listing = await McpSession(hostile(mode, shape, connect_timeout_s=3)).look()
        except Fault as fault:
            codes = ("mcp_unavailable", "mcp_lost", "mcp_error", "bad_answer")
            assert fault.code in codes, f"{mode}: {shape}"  # noqa: PT017
        else:
            assert set(listing.tools) <= {"bad__x", "bad__", offered_name("bad", "")}, f"{mode}: {shape}"


class TestNames:
    @pytest.mark.parametrize("tool", ["a", "a/b", "a.b", "x" * 200, "ü", "x" * 60 + "1", "x" * 60 + "2", "", "\ud800"])
    def test_every_name_can_be_offered(self, tool: str) -> None:
        name = offered_name("server", tool)
        assert 1 <= len(name) <= NAME_CHARS_MAX
        assert name.replace("_", "").replace("-", "").isalnum()
        assert name.isascii()

    def test_different_tools_have_different_names(self) -> None:
        names = ["a/b", "a.b", "a_b", "x" * 60 + "1", "x" * 60 + "2"]
        assert len({offered_name("s", name) for name in names}) == len(names)

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("mcp.tim.*", "did you mean 'time'"),
            ("mcp.other.x", "configured are: time"),
            ("mcp.time", "write mcp.time"),
            ("mcp.time.x", "the server has none"),
        ],
    )
    def test_a_name_that_is_not_there(self, name: str, hint: str) -> None:
        servers = McpServers({"time": McpServerSettings("time", ("true",))})
        assert servers.owns(name)
        with pytest.raises(Rejected) as rejected:
            servers.expand(name)
        assert rejected.value.code == "unknown_tool"
        assert hint in rejected.value.message


class TestHttp:
    @needs_node_servers
    async def test_the_older_protocol(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = await asyncio.create_subprocess_exec(
            f"{NODE}/.bin/mcp-server-everything",
            "streamableHttp",
            env={**os.environ, "PORT": str(port)},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with kept(McpServerSettings("all", url=f"http://127.0.0.1:{port}/mcp")) as session:
                result = await answered(session, "all__echo", {"message": "hi"})
                assert text_of(result) == "Echo: hi"
                assert session.lives == 1
                server.kill()
                await server.wait()
                with pytest.raises(Fault) as fault:
                    await session.call("all__echo", {"message": "hi"})
                assert fault.value.code in ("mcp_lost", "mcp_unavailable", "mcp_error")
                with pytest.raises(Fault):
                    await session.call("all__echo", {"message": "hi"})
        finally:
            if server.returncode is None:
                server.kill()
            await server.wait()

    async def test_headers_go_along_and_long_answers_fail_alone(self) -> None:
        seen: list[str] = []

        def play(asked: Asked) -> bytes:
            message = asked.json()
            seen.append(asked.headers.get("authorization", ""))
            found: dict[str, Any]
            if message["method"] == "server/discover":
                found = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}, **hostile_mcp.MODERN}
            elif message["method"] == "tools/list":
                found = {"tools": [hostile_mcp.tool("big"), hostile_mcp.tool("small")], **hostile_mcp.MODERN}
            else:
                size = 5 * hostile_mcp.MIB if message["params"]["name"] == "big" else 10
                found = {"content": [{"type": "text", "text": "x" * size}], "resultType": "complete"}
            return http({"jsonrpc": "2.0", "id": message["id"], "result": found})

        async with serving(play) as server:
            settings = McpServerSettings("web", url=f"{server.url}/mcp", headers={"Authorization": "Bearer key-1"})
            async with kept(settings) as session:
                with pytest.raises(Fault, match="ask for less"):
                    await session.call("web__big", {})
                assert text_of(await session.call("web__small", {})) == "x" * 10
                assert session.lives == 1
        assert set(seen) == {"Bearer key-1"}

    @pytest.mark.parametrize("answer", [None, b"HTTP/1.1 500 No\r\n\r\n", http("<html>", kind="text/html"), b"garbage"])
    async def test_what_is_no_server_is_a_fault(self, answer: bytes | None) -> None:
        async with asyncio.timeout(20), serving(answer) as server:
            settings = McpServerSettings("web", url=f"{server.url}/mcp", connect_timeout_s=SHORT_S)
            with pytest.raises(Fault) as fault:
                await McpSession(settings).look()
        assert fault.value.code == "mcp_unavailable"


async def answered(session: McpSession, tool: str, arguments: dict[str, Any]) -> Any:
    """The answer once the server is there."""
    while True:
        try:
            return await session.call(tool, arguments)
        except Fault as fault:
            if fault.code != "mcp_unavailable":
                raise
            await asyncio.sleep((fault.retry_after_ms or 1) / 1000)
