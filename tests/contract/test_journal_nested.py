"""Steps within steps, on the way through crashes; and what agents give that no reader of the log could read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from swarmd.core.events import Failed, Suspended
from swarmd.roles.attempt import Child
from tests.contract.test_journal import Life, output
from tests.contract.test_roles import attempt_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from swarmd.roles.context import Context


@pytest.fixture
async def life(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Life]:
    monkeypatch.setattr("swarmd.roles.journal.GRACE_MS", 0)
    made = attempt_ports()
    async with asyncio.TaskGroup() as group:
        writing = group.create_task(made.writer.run())
        yield Life(made)
        writing.cancel()


# --- steps within steps ----------------------------------------------------------------------------


async def test_a_step_that_was_cut_off_goes_on_with_the_steps_within_it(life: Life) -> None:
    done: list[str] = []

    async def run(ctx: Context, wanted: Any) -> Any:
        async def innermost() -> Any:
            await ctx.step("note", done.append, "innermost")
            return (await ctx.ask("Go?")).value

        async def outer() -> Any:
            await ctx.step("note", done.append, "outer")
            return await ctx.step("inner", innermost)

        came = await ctx.step("outer", outer)
        child = await ctx.spawn("b")
        await ctx.step("note", done.append, "end")
        return [came, child.task]

    key = "outer#1!inner#1!ask#1"
    assert await life.attempt(run) == Suspended(epoch=1, waits=[[key]])
    await life.resolve(key, "yes")
    first = output(await life.attempt(run))
    assert first == ["yes", "t~1"]
    assert output(await life.attempt(run)) == first
    assert done == ["outer", "innermost", "end"]


async def test_children_that_a_recorded_step_spawned_are_not_taken_for_others(life: Life) -> None:
    async def run(ctx: Context, wanted: Any) -> Any:
        async def spawn() -> str:
            return (await ctx.spawn("a")).task

        return [await ctx.step("within", spawn), (await ctx.spawn("b")).task]

    assert output(await life.attempt(run)) == ["t~1", "t~2"]
    assert output(await life.attempt(run)) == ["t~1", "t~2"]


# --- what agents give that nobody could read --------------------------------------------------------


@pytest.mark.parametrize(
    "misuse",
    [
        lambda ctx: ctx.ask("Who?", to=5),
        lambda ctx: ctx.ask("Who?", on_timeout="escalate", escalate_to=[1], timeout_s=1),
        lambda ctx: ctx.receive(sender=5),
        lambda ctx: ctx.wait_event("e", earlier="yes"),
        lambda ctx: ctx.ask("Who?", to=object()),
        lambda ctx: ctx.ask("Who?", timeout_s=1e300),
        lambda ctx: ctx.wait_event("e", timeout_s=float("inf")),
        lambda ctx: ctx.sleep(float("nan")),
    ],
)
async def test_an_argument_of_another_type_fails_the_attempt_and_is_no_garbage(life: Life, misuse: Any) -> None:
    fact = await life.attempt(lambda ctx, wanted: misuse(ctx))
    assert isinstance(fact, Failed)
    assert (fact.failure.code, fact.retryable) == ("bad_argument", False)


@pytest.mark.parametrize("wait", ["gather", "first"])
async def test_a_task_that_is_no_child_is_not_waited_for(life: Life, wait: str) -> None:
    fact = await life.attempt(lambda ctx, wanted: getattr(ctx, wait)(Child("stranger")))
    assert isinstance(fact, Failed)
    assert fact.failure.code == "unknown_child"
