"""The built-in tools and the way calls are carried out: limits, errors as text, and no way out of the fences."""

from __future__ import annotations

import asyncio
import gzip
import importlib.util
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.adapters import web_fetch
from swarmd.adapters.file_tools import ENTRIES_MAX, FILE_BYTES_MAX, ReadFile, Roots
from swarmd.adapters.tools import ToolSettings, open_tools
from swarmd.adapters.web_fetch import FetchUrl, is_public
from swarmd.core.errors import Fault, Rejected, SwarmdError
from swarmd.core.turns import ToolSpec
from swarmd.ports import ToolPolicy
from swarmd.roles.tool_calls import ToolOutcome, argument_problems, capped, clean, run_tool
from tests.contract.scripted_http import Asked, http, serving

if TYPE_CHECKING:
    from pathlib import Path

    from swarmd.ports import SideEffects

needs_aiohttp = pytest.mark.skipif(
    importlib.util.find_spec("aiohttp") is None, reason="needs aiohttp: pip install 'swarmd[web]'"
)


class Unshowable(Exception):
    """An error whose text cannot be made."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Scripted:
    """A tool that does what the test says."""

    def __init__(self, result: str | BaseException, *, output_bytes_max: int = 1_000, hangs: bool = False) -> None:
        self.spec = ToolSpec("scripted", "", {"type": "object", "properties": {"n": {"type": "integer"}}})
        self.timeout_ms = 50
        self.output_bytes_max = output_bytes_max
        self.side_effects: SideEffects = "idempotent"
        self.policy = ToolPolicy()
        self.result = result
        self.hangs = hangs
        self.called = asyncio.Event()

    async def call(self, arguments: dict[str, Any], key: str = "") -> str:
        self.called.set()
        if self.hangs:
            await asyncio.Event().wait()
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


class TestRunTool:
    async def test_text(self) -> None:
        assert await run_tool(Scripted("fine"), {"n": 1}) == ToolOutcome("fine")

    @pytest.mark.parametrize("error", [Rejected("bad", "do other\x1b[2J"), Fault("bad", "do other\x00[2J")])
    async def test_declared_failures_become_text(self, error: SwarmdError) -> None:
        outcome = await run_tool(Scripted(error), {})
        assert (outcome.text, outcome.error) == ("", "bad: do other[2J")
        assert outcome.told() == f"error: bad: do other[2J\nhint: {outcome.hint}"

    async def test_timeout(self) -> None:
        outcome = await run_tool(Scripted("", hangs=True), {})
        assert outcome.error.startswith(
            "tool_timeout: scripted did not finish within 50 ms. It may have had its effect"
        )

    @pytest.mark.parametrize(
        "bug", [TimeoutError("its own"), KeyError("x"), SystemExit(3), asyncio.CancelledError("its own"), Unshowable()]
    )
    async def test_whatever_a_tool_raises_is_told(self, bug: BaseException) -> None:
        outcome = await run_tool(Scripted(bug), {})
        assert outcome.error.startswith(f"tool_failed: scripted raised {type(bug).__name__}")

    async def test_a_cancelled_caller_is_cancelled(self) -> None:
        tool = Scripted("", hangs=True)
        tool.timeout_ms = 60_000
        async with asyncio.TaskGroup() as group:
            call = group.create_task(run_tool(tool, {}))
            await tool.called.wait()
            call.cancel()
        assert call.cancelled()

    async def test_bad_arguments_never_reach_the_tool(self) -> None:
        outcome = await run_tool(Scripted(RuntimeError("called")), {"n": "one"})
        assert outcome.error == "bad_arguments: n must be of type integer"

    async def test_long_output_keeps_both_ends_and_says_how_much_is_gone(self) -> None:
        outcome = await run_tool(Scripted("a" * 5_000 + "z" * 5_000), {})
        assert outcome.text.startswith("aaa")
        assert outcome.text.endswith("zzz")
        assert len(outcome.text) <= 1_000
        assert f"[... {outcome.cut_bytes} bytes cut ...]" in outcome.text
        assert outcome.cut_bytes + outcome.text.count("a") + outcome.text.count("z") == 10_000

    async def test_a_long_error_is_cut_too(self) -> None:
        outcome = await run_tool(Scripted(Rejected("bad", "x" * 9_000)), {})
        assert len(outcome.error) <= 2_000


@settings(deadline=None)
@given(st.text(max_size=400), st.integers(min_value=0, max_value=300))
def test_capped_text_fits_and_accounts_for_every_byte(text: str, bytes_max: int) -> None:
    size = len(clean(text).encode())
    kept, cut = capped(clean(text), bytes_max)
    assert len(kept.encode()) <= bytes_max
    assert (cut == 0) == (size <= bytes_max)


def test_clean_text_hides_nothing() -> None:
    assert clean("a\r\nb\rc\td\x1b[31m\x00\u202ee\U000e0041\ud800") == "a\nb\nc\td[31me?"


@pytest.mark.parametrize(
    ("schema", "arguments", "problems"),
    [
        ({}, {"x": 1}, []),
        ({"type": "object"}, [], ["the arguments must be of type object"]),
        ({"type": "object", "required": ["a"]}, {}, ["a is missing"]),
        (
            {"properties": {"a": {"type": "string"}}, "additionalProperties": False},
            {"a": "x", "b": 1},
            ["b is unknown; known: a"],
        ),
        ({"properties": {"a": {"type": "integer"}}}, {"a": True}, ["a must be of type integer"]),
        ({"properties": {"a": {"type": "integer"}}}, {"a": 2.0}, []),
        ({"properties": {"a": {"type": "integer"}}}, {"a": 2.5}, ["a must be of type integer"]),
        ({"properties": {"a": {"type": ["string", "null"]}}}, {"a": None}, []),
        ({"properties": {"a": {"enum": ["x", "y"]}}}, {"a": "z"}, ["a must be one of ['x', 'y']"]),
        ({"properties": {"a": {"type": "number", "minimum": 1}}}, {"a": 0.5}, ["a must keep to minimum 1"]),
        (
            {"properties": {"a": {"type": "array", "items": {"type": "object", "required": ["b"]}}}},
            {"a": [{"b": 1}, {}]},
            ["a[1].b is missing"],
        ),
    ],
)
def test_arguments_are_checked_against_the_schema(schema: dict[str, Any], arguments: Any, problems: list[str]) -> None:
    assert argument_problems(schema, arguments) == problems


@pytest.mark.parametrize(
    "schema",
    [
        {"type": 5},
        {"type": [{}]},
        {"properties": []},
        {"properties": {"a": {"enum": 5}}},
        {"properties": {"a": {"minimum": "x"}}},
        {"required": 5},
    ],
)
async def test_a_schema_that_is_none_is_told(schema: dict[str, Any]) -> None:
    tool = Scripted("called")
    tool.spec = ToolSpec("scripted", "", schema)
    outcome = await run_tool(tool, {"a": 1})
    assert outcome.text == "called" or outcome.error.startswith("bad_schema: the parameters of scripted are no JSON")


class TestFiles:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        root = tmp_path / "root"
        (root / "sub").mkdir(parents=True)
        (root / "a.md").write_text("\ufeffone\ntwo\nthree\n", encoding="utf-8")
        (root / "sub" / "b.txt").write_text("\u00fcber")
        (tmp_path / "secret.txt").write_text("secret")
        (tmp_path / "root-next").mkdir()
        (tmp_path / "root-next" / "c.txt").write_text("secret")
        return root

    async def run(self, root: Path, tool: str, **arguments: Any) -> ToolOutcome:
        tools = open_tools(["read_file", "list_files"], ToolSettings(roots=(str(root),)))
        return await run_tool(tools[tool], arguments)

    async def test_reads_text_and_lines(self, root: Path) -> None:
        assert (await self.run(root, "read_file", path="a.md")).text == "one\ntwo\nthree\n"
        assert (await self.run(root, "read_file", path="sub/b.txt")).text == "\u00fcber"
        assert (await self.run(root, "read_file", path=str(root / "sub" / ".." / "a.md"))).text.startswith("one")
        assert (await self.run(root, "read_file", path="a.md", first_line=2, lines=1)).text == "two\n"
        assert "has 3 lines" in (await self.run(root, "read_file", path="a.md", first_line=4)).error

    @pytest.mark.parametrize(
        ("path", "code"),
        [
            ("../secret.txt", "outside_roots"),
            ("/etc/passwd", "outside_roots"),
            ("../root-next/c.txt", "outside_roots"),
            ("link", "outside_roots"),
            ("dirlink/secret.txt", "outside_roots"),
            ("none", "not_found"),
            ("ring", "not_found"),
            ("a.md/x", "not_found"),
            ("x" * 300, "not_found"),
            ("a\0b", "bad_path"),
            ("\ud800", "outside_roots"),
            ("sub", "not_a_file"),
            ("pipe", "not_a_file"),
            ("large", "too_large"),
            ("binary", "not_text"),
            ("latin1", "not_text"),
            ("", "bad_arguments"),
        ],
    )
    async def test_refuses_clearly(self, root: Path, path: str, code: str) -> None:
        (root / "link").symlink_to(root.parent / "secret.txt")
        (root / "dirlink").symlink_to(root.parent)
        (root / "ring").symlink_to(root / "ring")
        os.mkfifo(root / "pipe")
        (root / "large").write_bytes(b"x" * (FILE_BYTES_MAX + 1))
        (root / "binary").write_bytes(b"a\0b")
        (root / "latin1").write_bytes("\u00fc".encode("latin-1"))
        outcome = await self.run(root, "read_file", path=path)
        assert outcome.error.partition(":")[0] == code
        assert "secret\n" not in outcome.error + outcome.text

    async def test_a_link_inside_is_followed(self, root: Path) -> None:
        (root / "inner").symlink_to(root / "sub")
        assert (await self.run(root, "read_file", path="inner/b.txt")).text == "\u00fcber"

    @pytest.mark.parametrize("swapped", ["sub", "sub/b.txt"])
    async def test_a_link_swapped_in_after_the_check_leads_nowhere(
        self, root: Path, swapped: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (root.parent / "b.txt").write_text("secret")
        find = Roots.find

        def find_then_swap(roots: Roots, path: str) -> tuple[Path, Path]:
            found = find(roots, path)
            (root / swapped).rename(root / "moved")
            (root / swapped).symlink_to(root.parent if swapped == "sub" else root.parent / "b.txt")
            return found

        monkeypatch.setattr(Roots, "find", find_then_swap)
        with pytest.raises(Rejected) as caught:
            await ReadFile(Roots([root])).call({"path": "sub/b.txt"})
        assert caught.value.code == "not_found"

    async def test_lists(self, root: Path) -> None:
        (root / "link").symlink_to(root.parent / "secret.txt")
        assert (await self.run(root, "list_files")).text == f"a.md\t{len('one two three ') + 3}\nsub/b.txt\t5"
        assert (await self.run(root, "list_files", pattern="*.txt")).text == "sub/b.txt\t5"
        assert (await self.run(root, "list_files", path="sub")).text == "sub/b.txt\t5"
        assert (await self.run(root, "list_files", pattern="*.py")).text == "[no files]"
        assert (await self.run(root, "list_files", path="..")).error.startswith("outside_roots")
        assert (await self.run(root, "list_files", path="a.md")).error.startswith("not_a_directory")

    async def test_lists_no_more_than_its_cap(self, root: Path) -> None:
        for number in range(ENTRIES_MAX):
            (root / "sub" / str(number)).touch()
        lines = (await self.run(root, "list_files")).text.split("\n")
        assert len(lines) == ENTRIES_MAX + 1
        assert lines[-1].startswith("[more than 1000 files")

    async def test_several_roots(self, root: Path) -> None:
        other = root.parent / "root-next"
        tools = open_tools(["list_files", "read_file"], ToolSettings(roots=(str(root), str(other))))
        listed = (await run_tool(tools["list_files"], {})).text.split("\n")
        assert [line.split("\t")[0] for line in listed] == [
            str(path) for path in (root / "a.md", root / "sub" / "b.txt", other / "c.txt")
        ]
        assert (await run_tool(tools["read_file"], {"path": str(other / "c.txt")})).text == "secret"
        assert (await run_tool(tools["read_file"], {"path": "c.txt"})).text == "secret"


class TestOpenTools:
    def test_only_what_was_named(self, tmp_path: Path) -> None:
        assert list(open_tools(["fetch_url"])) == ["fetch_url"]
        assert open_tools([]) == {}

    @pytest.mark.parametrize(
        ("names", "roots", "code", "words"),
        [
            (["read_flie"], ["."], "unknown_tool", "read_file"),
            (["submit"], ["."], "unknown_tool", "fetch_url"),
            (["read_file"], [], "no_roots", "roots"),
            (["list_files"], ["/nowhere/at/all"], "bad_root", "/nowhere"),
        ],
    )
    def test_clear_errors(self, names: list[str], roots: list[str], code: str, words: str) -> None:
        with pytest.raises(Rejected, match=words) as caught:
            open_tools(names, ToolSettings(roots=tuple(roots)))
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("64:ff9b::808:808", True),
        ("2a00::5efe:808:808", True),
        *[
            (address, False)
            for address in (
                "127.0.0.1 0.0.0.0 10.1.1.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 224.0.0.1 "
                "255.255.255.255 192.0.2.1 198.18.0.1 240.0.0.1 :: ::1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 "
                "64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::1 2002:7f00:1:: 2001::1 fe80::1 fe80::1%eth0 "
                "fc00::1 fec0::1 ff02::1 localhost 2130706433 192.0.0.8 192.88.99.1 3fff::1 2001:db8::1 100::1 5f00::1 "
                "::ffff:0:7f00:1 ::10.0.0.1 2001:470:1f0b::5efe:7f00:1 2a00::200:5efe:a00:1"
            ).split()
        ],
    ],
)
def test_which_addresses_are_public(address: str, expected: bool) -> None:
    assert is_public(address) is expected


@needs_aiohttp
class TestFetch:
    async def fetch(self, url: str, *allow: str) -> ToolOutcome:
        return await run_tool(FetchUrl(allow), {"url": url})

    async def test_reads_a_page_through_an_exception(self) -> None:
        async with serving(http("<title>T</title><p>Hello <b>you</b>", kind="text/html; charset=utf-8")) as server:
            assert await self.fetch(f"{server.url}/page?a=b#c", server.host) == ToolOutcome("T\nHello you")
        assert server.asked[0].path == "/page?a=b"
        assert not {"cookie", "authorization"} & set(server.asked[0].headers)

    @pytest.mark.parametrize(
        ("kind", "body", "text"),
        [
            ("text/plain; charset=latin-1", b"\xfcber", "\u00fcber"),
            ("text/plain; charset=nonsense", b"x", "x"),
            ("application/json", b'{"a":1}', '{"a":1}'),
            ("application/ld+json", b"{}", "{}"),
        ],
    )
    async def test_other_texts(self, kind: str, body: bytes, text: str) -> None:
        async with serving(http(body, kind=kind)) as server:
            assert (await self.fetch(server.url, server.host)).text == text

    @pytest.mark.parametrize(
        ("response", "code"),
        [
            (http("", status=404), "http_refused"),
            (http("", status=503), "http_failed"),
            (http(b"PNG", kind="image/png"), "not_text"),
            (http(b"a\0b", kind="text/plain"), "not_text"),
            (http(b"x", kind=""), "not_text"),
            (http(b"x" * 2_000_001, kind="text/plain"), "too_large"),
            (http(gzip.compress(b"x" * 3_000_000), kind="text/plain", content_encoding="gzip"), "too_large"),
            (b"not http at all\r\n\r\n", "unreachable"),
            (b"", "unreachable"),
            (http("abc", kind="text/plain")[:-1], "unreachable"),
        ],
    )
    async def test_what_cannot_be_read(self, response: bytes, code: str) -> None:
        async with serving(response) as server:
            assert (await self.fetch(server.url, server.host)).error.partition(":")[0] == code

    @pytest.mark.parametrize(
        "url",
        [
            "file:///etc/passwd",
            "ftp://example.org/",
            "http://",
            "x",
            "http://user:password@example.org/",
            "http://example.org:22/",
            "http://example.org:99999/",
            "http://[::1/",
            "gopher://127.0.0.1:70/",
        ],
    )
    async def test_urls_that_are_refused_before_any_socket(self, url: str) -> None:
        assert (await self.fetch(url)).error.startswith("bad_url")

    @pytest.mark.parametrize(
        "url",
        [
            "http://127.0.0.1/",
            "https://127.0.0.1/",
            "http://localhost/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[64:ff9b::7f00:1]/",
            "http://169.254.169.254/latest/meta-data",
            "http://0.0.0.0/",
            "http://10.0.0.1/",
            "http://224.0.0.1/",
        ],
    )
    async def test_internal_addresses_are_blocked_at_connect(self, url: str) -> None:
        assert (await self.fetch(url)).error.startswith("blocked_address")

    @pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "0177.0.0.1", "0"])
    async def test_odd_ways_to_write_loopback_lead_nowhere(self, host: str) -> None:
        assert (await self.fetch(f"http://{host}/")).error.partition(":")[0] in ("blocked_address", "bad_url")

    async def test_a_name_that_resolves_to_an_internal_address(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def rebound(*_: Any, **__: Any) -> Any:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.168.7.7", 80))]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", rebound)
        outcome = await self.fetch("http://innocent.example/")
        assert outcome.error == "blocked_address: innocent.example is at 192.168.7.7, which is not a public address"

    async def test_a_name_that_resolves_to_something_else_the_second_time(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A redirect to the same name is resolved anew, and judged by what it is now."""
        loop = asyncio.get_running_loop()
        async with serving(http("", 302, location="http://rebound.example/secret")) as server:
            answers = [("127.0.0.1", server.port), ("127.0.0.1", 80)]

            async def rebound(*_: Any, **__: Any) -> Any:
                return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", answers.pop(0))]

            monkeypatch.setattr(loop, "getaddrinfo", rebound)
            outcome = await self.fetch(f"http://rebound.example:{server.port}/", f"rebound.example:{server.port}")
        assert outcome.error == "blocked_address: rebound.example is at 127.0.0.1, which is not a public address"
        assert answers == []

    async def test_a_drip_of_bytes_costs_no_more_than_the_timeout(self) -> None:
        hung_up = asyncio.Event()

        async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
            try:
                while True:
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.01)
            except ConnectionError:
                writer.transport.abort()
                hung_up.set()

        async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
            host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            outcome = await run_tool(FetchUrl([host], timeout_ms=300), {"url": f"http://{host}/"})
            await asyncio.wait_for(hung_up.wait(), 20)
        assert outcome.error.startswith("tool_timeout")

    async def test_an_exception_is_for_its_exact_host_and_port(self) -> None:
        async with serving(http("x", kind="text/plain")) as one, serving(http("y", kind="text/plain")) as two:
            assert (await self.fetch(two.url, one.host)).error.startswith("bad_url")
            assert (await self.fetch(f"http://localhost:{one.port}/", one.host)).error.startswith("bad_url")

    async def test_redirects_are_followed_and_counted(self) -> None:
        def answer(asked: Asked) -> bytes:
            left = int(asked.path.strip("/"))
            return http("", 302, location=f"/{left - 1}") if left else http("done", kind="text/plain")

        async with serving(answer) as server:
            assert (await self.fetch(f"{server.url}/3", server.host)).text == "done"
            assert (await self.fetch(f"{server.url}/4", server.host)).error.startswith("too_many_redirects")

    @pytest.mark.parametrize(
        ("location", "code"),
        [
            ("http://127.0.0.1/", "blocked_address"),
            ("http://169.254.169.254/", "blocked_address"),
            ("file:///etc/passwd", "bad_url"),
            ("http://a:b@example.org/", "bad_url"),
            ("http://127.0.0.1:1/", "bad_url"),
        ],
    )
    async def test_each_redirect_is_judged_anew(self, location: str, code: str) -> None:
        async with serving(http("", 301, location=location)) as server:
            assert (await self.fetch(server.url, server.host)).error.partition(":")[0] == code

    async def test_proxies_of_the_environment_are_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with serving(http("proxy", kind="text/plain")) as proxy, serving(http("x", kind="text/plain")) as server:
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            monkeypatch.setenv("http_proxy", proxy.url)
            assert (await self.fetch(server.url, server.host)).text == "x"
        assert not proxy.asked

    async def test_a_silent_server_costs_no_more_than_the_timeout(self) -> None:
        async with serving(None) as server:
            outcome = await run_tool(FetchUrl([server.host], timeout_ms=200), {"url": server.url})
        assert outcome.error.startswith("tool_timeout")

    async def test_a_missing_package_says_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str) -> Any:
            raise ModuleNotFoundError(name)

        monkeypatch.setattr(web_fetch, "import_module", missing)
        assert (await self.fetch("http://example.org/")).error.startswith("missing_extra")
