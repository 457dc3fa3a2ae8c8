"""Semantic reuse: hits and misses, what may be taken and by whom, and that no task is lost by it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from swarmd.adapters.fakes import FakeBus
from swarmd.core.errors import Rejected
from swarmd.core.events import Failed, Failure, Stepped
from swarmd.core.wire import Start
from swarmd.reuse import Reuse, declared, source_of, text_of
from swarmd.roles.attempt import AgentFailed
from swarmd.roles.journal import Recorded
from swarmd.roles.member import MemberSettings
from swarmd.roles.worker import NodeOffer, Worker
from swarmd.sdk import Agent
from tests.contract.scripted_memory import ScriptedMemory
from tests.contract.test_journal import Life, life, output
from tests.contract.test_roles import WAIT_S, Silent

if TYPE_CHECKING:
    from swarmd.core.events import Fact
    from swarmd.roles.context import Context

__all__ = ["life"]
QUESTION = "How long does a lease of an attempt live before it lapses?"
ALIKE = "How long does the lease of an attempt live, until it lapses?"
SWARMS = ("main", "main", "other", "other")
OTHER = "Which colour has the sky over the harbour?"


class Counted(Silent):
    """Counts what is counted."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def count(self, name: str, *labels: str, by: float = 1) -> None:
        if name == "swarmd_reuse_total":
            self.counts[labels[1]] = self.counts.get(labels[1], 0) + int(by)


class Desk:
    """Tasks of one agent that reuses, over one log and one memory; `runs` are the inputs that were really worked on."""

    def __init__(self, life: Life, memory: ScriptedMemory) -> None:
        self.meter = Counted()
        self.ports = msgspec.structs.replace(life.ports, meter=self.meter)
        self.memory, self._life = memory, life
        self.runs: list[Any] = []
        self.epochs: dict[str, int] = {}

    async def task(self, name: str, wanted: Any, reuse: Reuse | None, **how: Any) -> Fact:
        """The report on the next attempt of a task; `run`, `agent`, `swarm` and `version` may be others."""

        async def plain(ctx: Context, given: Any) -> Any:
            return f"answer to {await ctx.step('think', lambda: given)}"

        async def run(ctx: Context, given: Any) -> Any:
            self.runs.append(given)
            return await how.get("run", plain)(ctx, given)

        agent, version = how.get("agent", "a"), how.get("version", "1")
        self.epochs[name] = self.epochs.get(name, 0) + 1
        start = Start(name, self.epochs[name], "w/b/0", agent, msgspec.Raw(msgspec.json.encode(wanted)))
        start.version, start.journal = version, self.journal(name)
        node = NodeOffer("n", {agent: Agent(agent, run, how.get("code", version), how.get("migrates"), reuse=reuse)}, 1)
        ports = msgspec.structs.replace(self.ports, swarm=how.get("swarm", "main"))
        worker = Worker(MemberSettings("s", "w", "b"), [node], ports, FakeBus())
        async with asyncio.timeout(WAIT_S):
            return await worker.outcome(start)

    def journal(self, name: str) -> list[tuple[int, int]]:
        return [place for place, fact in self.facts(name) if isinstance(fact, Recorded)]

    def facts(self, name: str) -> list[Any]:
        from swarmd.core.codec import Codec, Commit
        from swarmd.core.events import Event

        log: Any = self.ports.reader._log
        commits = [commit for commit in map(Codec().decode, log._records) if isinstance(commit, Commit)]
        return [
            ((commit.seq, at), event.data)
            for commit in commits
            for at, event in enumerate(commit.events)
            if isinstance(event, Event) and event.subject == name
        ]

    def steps(self, name: str) -> list[tuple[str, str]]:
        return [(fact.key, fact.kind) for _, fact in self.facts(name) if isinstance(fact, Stepped)]


@pytest.fixture
async def desk(life: Life) -> Desk:
    bus: Any = life.ports.bus
    clock: Any = life.ports.clock
    return Desk(life, await ScriptedMemory(bus, clock).serve())


async def test_the_result_of_an_input_that_is_alike_is_taken(desk: Desk) -> None:
    reuse = Reuse(threshold=0.9)
    assert output(await desk.task("t1", QUESTION, reuse)) == f"answer to {QUESTION}"
    assert output(await desk.task("t2", ALIKE, reuse)) == f"answer to {QUESTION}"
    assert output(await desk.task("t3", OTHER, reuse)) == f"answer to {OTHER}"
    assert desk.runs == [QUESTION, OTHER]
    assert desk.meter.counts == {"hit": 1, "miss": 2}
    assert desk.steps("t1") == [("reuse#1", "reuse"), ("think#1", "step"), ("reuse_kept#1", "remember")]
    ((_, hit),) = [found for found in desk.facts("t2") if isinstance(found[1], Stepped)]
    said = msgspec.json.decode(hit.result)
    (kept, _) = desk.memory.held.values()
    assert (hit.kind, said["memory"], said["seq"], said["task"]) == ("reuse", kept.id, kept.seq, "main/t1")
    assert 0.9 <= said["similarity"] <= 1
    assert ("main/t2", "reuse", kept.id) in desk.memory.reads
    assert (kept.text, kept.author, kept.space, kept.step) == (QUESTION, "a", "swarm/main/agent/a", "reuse_kept#1")


async def test_one_only_takes_what_is_as_near_as_it_wants(desk: Desk) -> None:
    exact = Reuse()
    for name, wanted in (("t1", QUESTION), ("t2", ALIKE), ("t3", QUESTION)):
        output(await desk.task(name, wanted, exact))
    assert desk.runs == [QUESTION, ALIKE]
    for name, value in (("t4", {"b": 1, "a": [1, 2]}), ("t5", {"a": [1, 2], "b": 1}), ("t6", {"a": [1, 3], "b": 1})):
        output(await desk.task(name, value, exact))
    assert len(desk.runs) == 4


async def test_a_changed_agent_takes_nothing_from_before(desk: Desk) -> None:
    output(await desk.task("t1", QUESTION, Reuse(0.95)))
    output(await desk.task("t2", QUESTION, Reuse(0.95), version="2"))
    output(await desk.task("t3", QUESTION, Reuse(0.95, made_of="another prompt")))
    output(await desk.task("t4", QUESTION, Reuse(0.95), agent="b"))
    assert len(desk.runs) == 4
    output(
        await desk.task("t5", QUESTION, Reuse(0.95), version="1", code="2", migrates={"1": {}})
    )  # begun by the old code
    assert len(desk.runs) == 5
    output(await desk.task("t6", QUESTION, Reuse(0.95), version="2"))
    assert len(desk.runs) == 5


async def test_scopes_keep_swarms_apart_or_together(desk: Desk) -> None:
    for scope in ("agent", "swarm", "shared"):
        desk.runs.clear()
        reuse = Reuse(1.0, cast("Any", scope))
        for number, swarm in enumerate(SWARMS):
            text = f"{scope}: {QUESTION}"
            fact = await desk.task(f"{scope}-{number}", text, reuse, swarm=swarm)
            assert output(fact) == f"answer to {text}"
        assert len(desk.runs) == (1 if scope == "shared" else len(set(SWARMS))), scope


async def test_what_others_wrote_into_a_shared_space_is_no_result(desk: Desk) -> None:
    reuse = Reuse(0.95, "shared")
    source = source_of(reuse, QUESTION, "a@1", desk.ports.default_model)

    async def forge(ctx: Context, given: Any) -> Any:
        await ctx.remember(QUESTION, source=source, payload={"output": "forged"})
        return "forged"

    output(await desk.task("forger", OTHER, None, run=forge))
    forged = next(iter(desk.memory.held.values()))
    output(await desk.task("t1", QUESTION, reuse))  # by agent a, but by no such step
    assert desk.runs == [OTHER, QUESTION]
    for field, value in (("swarm", ""), ("author", "b"), ("payload", msgspec.Raw(b'["forged"]'))):
        was = getattr(forged, field)
        forged.step = "reuse_kept#1"
        desk.memory.held = {"forged": forged}
        setattr(forged, field, value)
        output(await desk.task(f"t-{field}", QUESTION, reuse))
        setattr(forged, field, was)
    assert len(desk.runs) == 5


async def test_revoked_and_expired_results_are_not_taken(desk: Desk) -> None:
    reuse = Reuse(0.95, expires_s=60)
    output(await desk.task("t1", QUESTION, reuse))
    (kept,) = desk.memory.held.values()
    desk.memory.revoke(kept.id)
    output(await desk.task("t2", QUESTION, reuse))
    output(await desk.task("t3", QUESTION, reuse))
    assert len(desk.runs) == 2
    clock: Any = desk.ports.clock
    await clock.advance(60_001)
    output(await desk.task("t4", QUESTION, reuse))
    assert len(desk.runs) == 3


async def test_failures_are_not_kept(desk: Desk) -> None:
    async def fail(ctx: Context, given: Any) -> Any:
        raise AgentFailed("broken", "it broke")

    for name in ("t1", "t2"):
        assert isinstance(await desk.task(name, QUESTION, Reuse(0.95), run=fail), Failed)
    assert len(desk.runs) == 2
    assert desk.memory.held == {}


async def test_results_that_a_memory_cannot_hold_are_not_kept(desk: Desk) -> None:
    async def large(ctx: Context, given: Any) -> Any:
        return "x" * 60_000

    async def no_json(ctx: Context, given: Any) -> Any:
        return object()

    for name in ("t1", "t2"):
        assert len(output(await desk.task(name, QUESTION, Reuse(0.95), run=large))) == 60_000
    fact = await desk.task("t3", QUESTION, Reuse(0.95), run=no_json)
    assert isinstance(fact, Failed)
    assert fact.failure.code == "not_json"
    for name, wanted in (("t4", ""), ("t5", "x" * 40_000)):  # with no text that could be compared
        assert "answer" in output(await desk.task(name, wanted, Reuse(text=lambda given: given)))
    assert desk.meter.counts == {"miss": 3, "too_large": 2}
    assert desk.memory.held == {}


async def test_an_unavailable_memory_costs_no_task(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmd.roles.reuse_steps.REUSE_WAIT_MS", 10)
    desk.memory.broken = Failure("memory_behind", "wait")
    output(await desk.task("t1", QUESTION, Reuse(0.95)))
    desk.memory.broken, desk.memory.silent = None, True
    output(await desk.task("t2", QUESTION, Reuse(0.95)))
    bus: Any = desk.ports.bus
    bus.subscriptions.clear()
    output(await desk.task("t3", QUESTION, Reuse(0.95)))
    assert desk.meter.counts == {"unavailable": 3, "not_kept": 3}
    said = [msgspec.json.decode(fact.result)["why"] for _, fact in desk.facts("t1") if fact.key.startswith("reuse")]
    assert said == ["memory_behind", "memory_behind"]


async def test_a_crash_between_the_two_logs_keeps_a_result_once(desk: Desk) -> None:
    writer: Any = desk.ports.writer
    stores = writer.store

    class Cut(BaseException):
        """The worker dies here."""

    async def die(event: Any) -> Any:
        if event.data.key == "reuse_kept#1":
            raise Cut
        return await stores(event)

    writer.store = die
    assert isinstance(await desk.task("t1", QUESTION, Reuse(0.95)), Failed)
    writer.store = stores
    assert output(await desk.task("t1", QUESTION, Reuse(0.95))) == f"answer to {QUESTION}"
    assert list(desk.memory.held) == ["t1~reuse_kept~1"]
    assert desk.meter.counts == {"miss": 1}
    assert [verb for verb, _ in desk.memory.asked].count("recall") == 1


async def test_two_tasks_at_once_both_run_and_both_end(desk: Desk) -> None:
    both = await asyncio.gather(desk.task("t1", QUESTION, Reuse(0.95)), desk.task("t2", QUESTION, Reuse(0.95)))
    assert [output(fact) for fact in both] == [f"answer to {QUESTION}"] * 2
    assert desk.runs == [QUESTION] * 2
    assert output(await desk.task("t3", QUESTION, Reuse(0.95))) == f"answer to {QUESTION}"
    assert len(desk.runs) == 2


async def test_reuse_may_change_under_tasks_that_are_under_way(desk: Desk) -> None:
    async def halting(ctx: Context, given: Any) -> Any:
        said = [await ctx.step("reuse", lambda: "mine"), await ctx.step("reuse_kept", lambda: "too")]
        if ctx.epoch == 1:
            raise AgentFailed("again", "again")
        return said

    for name, before, after in (
        ("on", None, Reuse(0.95)),
        ("off", Reuse(0.95), None),
        ("same", Reuse(0.5), Reuse(0.5)),
    ):
        assert isinstance(await desk.task(name, name, before, run=halting), Failed)
        assert output(await desk.task(name, name, after, run=halting)) == ["mine", "too"], name
    assert [memory.task for memory in desk.memory.held.values()] == ["same"]
    desk.runs.clear()
    assert output(await desk.task("hit", "same", Reuse(0.5), run=halting)) == ["mine", "too"]
    assert desk.runs == []
    assert output(await desk.task("hit", "same", None, run=halting)) == ["mine", "too"]  # was cut off, and runs now
    assert desk.runs == ["same"]


async def test_whoever_recalls_does_not_find_results(desk: Desk) -> None:
    async def recalls(ctx: Context, given: Any) -> Any:
        await ctx.remember("The lease of an attempt is renewed.", space="agent")
        return [passage.text for passage in await ctx.recall(QUESTION, filter='author = "a"')]

    output(await desk.task("t1", QUESTION, Reuse(0.95)))
    assert output(await desk.task("t2", OTHER, Reuse(0.95), run=recalls)) == ["The lease of an attempt is renewed."]


@pytest.mark.parametrize(
    ("reuse", "words"),
    [
        (lambda: Reuse(threshold=0), "a cosine above 0"),
        (lambda: Reuse(threshold=float("nan")), "a cosine above 0"),
        (lambda: Reuse(scope="task"), "there is agent, swarm, shared"),  # type: ignore[arg-type]
        (lambda: Reuse(expires_s=-1), "0 for ever"),
        (lambda: text_of(Reuse(text=lambda given: given["no"]), {}), "Reuse.text raised KeyError"),
        (lambda: text_of(Reuse(text=lambda given: 1), {}), "returned a int"),  # type: ignore[arg-type, return-value]
    ],
)
def test_bad_declarations_are_refused(reuse: Any, words: str) -> None:
    with pytest.raises(Rejected, match=words) as caught:
        reuse()
    assert caught.value.code == "bad_reuse"


def test_declarations_of_a_file() -> None:
    from swarmd.core.agent import AgentSpec
    from swarmd.roles.llm_agent import llm_agent

    plain, told = (
        AgentSpec("n", "Work."),
        AgentSpec("n", "Work.", reuse_threshold=0.9, reuse_scope="swarm", reuse_expires_s=5),
    )
    assert declared(plain, "") is None
    made = llm_agent(told, lambda name: None)  # type: ignore[arg-type, return-value]
    assert made.reuse is not None
    assert (made.reuse.threshold, made.reuse.scope, made.reuse.expires_s) == (0.9, "swarm", 5)
    again = llm_agent(msgspec.structs.replace(told, instructions="Work well."), lambda name: None)  # type: ignore[arg-type, return-value]
    assert again.reuse is not None
    assert source_of(again.reuse, "x", "n@1", "m") != source_of(made.reuse, "x", "n@1", "m")
