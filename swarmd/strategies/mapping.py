"""map_reduce: one agent for each part, then a tree of another over their results.

The parts and the tree are one plan, so a node of the tree starts as soon as its own inputs are there.
Must not know what the agents do. After Dean & Ghemawat, "MapReduce" (2004).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import UNSET, Meta, Struct

from swarmd.core.errors import Rejected
from swarmd.sdk import agent
from swarmd.strategies.asking import AnyCall, Call, agent_call, input_for, read
from swarmd.strategies.order import begun, output_of
from swarmd.strategies.plan import Plan, PlanTask
from swarmd.strategies.running import Running, advance, stop
from swarmd.strategies.templates import put
from swarmd.text import paragraphs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from swarmd.roles.context import Context

PARTS_MAX: Final = 1_000
EXAMPLE: Final = '{"items": ["a text", "another"], "map": "summarise", "reduce": {"agent": "merge", "take": "text"}}'


class MapReduce(Struct, frozen=True, forbid_unknown_fields=True):
    """Either `items` or a `text`, which is cut at paragraphs into chunks of at most `chunk_chars`.

    The input of `map` is {"from": "part"} unless it is given ({"from": "index"} counts from 0), that of `reduce` is
    {"from": "parts"}, a list of at most `fan_in` results. Without `reduce` the result is the list of mapped parts.
    `skip_failed` goes on without the parts that failed.
    """

    map: AnyCall
    items: list[Any] | None = None
    text: str = ""
    chunk_chars: Annotated[int, Meta(ge=100, le=1_000_000)] = 6_000
    reduce: AnyCall | None = None
    fan_in: Annotated[int, Meta(ge=2, le=100)] = 8
    parallel: Annotated[int, Meta(ge=1, le=1_000)] = 32
    skip_failed: bool = False


@agent
async def map_reduce(ctx: Context, wanted: Any) -> dict[str, Any]:
    """A `MapReduce` in; {"result", "parts", "failed"} out, `failed` telling by index why parts were skipped."""
    job = read(MapReduce, wanted, EXAMPLE)
    parts = parts_of(job)
    plan = tree_of(job, parts)
    run = Running(begun(plan, {}), job.parallel)
    failed = await advance(ctx, run)
    why = run.progress.failed
    if failed is not None:
        await stop(ctx, run, list(run.live), "a part failed")
        raise Rejected("part_failed", f"{_said(failed.id, len(parts))} failed: {why[failed.id]}")
    skipped = {name.partition(".")[2]: reason for name, reason in why.items() if name.startswith("part.")}
    if len(skipped) == len(parts):
        raise Rejected("part_failed", f"all {len(parts)} parts failed; the first: {next(iter(skipped.values()))}")
    return {"result": output_of(run.progress), "parts": len(parts), "failed": skipped}


def parts_of(job: MapReduce) -> list[Any]:
    """The parts of the input. Raises `Rejected("bad_input")` when there are none, or too many."""
    if (job.items is None) == (not job.text):
        raise Rejected("bad_input", f"give either items or a text; an example: {EXAMPLE}")
    parts = list(paragraphs(job.text, job.chunk_chars)) if job.items is None else job.items
    if not parts:
        raise Rejected("bad_input", "there is nothing to map: items is empty, or the text has no words")
    if len(parts) > PARTS_MAX:
        hint = "pack several into one item" if job.items is not None else "raise chunk_chars"
        raise Rejected("bad_input", f"there are {len(parts)} parts, at most {PARTS_MAX} are allowed: {hint}")
    return parts


def tree_of(job: MapReduce, parts: Sequence[Any]) -> Plan:
    """The plan: a task for each part, and levels of `reduce` over at most `fan_in` results each."""
    mapper = agent_call(job.map, "map", ("part", "index"))
    tasks = []
    for index, part in enumerate(parts):
        given = input_for(mapper, {"part": part, "index": index}, part)
        name = f"part.{index}"
        tasks.append(PlanTask(name, mapper.agent, {"literal": given}, take=mapper.take, optional=job.skip_failed))
    names = [task.id for task in tasks]
    if job.reduce is None:
        return Plan(tasks, [{"from": name} for name in names])
    reducer = agent_call(job.reduce, "reduce", ("parts",))
    tasks += _reduced(reducer, names, job.fan_in)
    return Plan(tasks, {"from": tasks[-1].id})


def _reduced(reducer: Call, names: list[str], fan_in: int) -> Iterator[PlanTask]:
    """The nodes of the tree, level by level; a result that is left over alone rises to the next level as it is."""
    template = {"from": "parts"} if reducer.input is UNSET else reducer.input
    level = 0
    while level == 0 or len(names) > 1:
        level += 1
        risen: list[str] = []
        for number, group in enumerate(groups_of(names, fan_in)):
            if len(group) == 1 and len(names) > 1:
                risen += group
                continue
            name = f"reduce.{level}.{number}"
            risen.append(name)
            yield PlanTask(name, reducer.agent, put(template, "parts", group), take=reducer.take)
        names = risen


def groups_of(names: Sequence[str], fan_in: int) -> list[list[str]]:
    """The names in order, in the fewest groups of at most `fan_in`, their sizes differing by at most one."""
    count = -(-len(names) // fan_in)
    size, larger = divmod(len(names), count)
    ends = [size * (n + 1) + min(n + 1, larger) for n in range(count)]
    return [list(names[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def _said(name: str, parts: int) -> str:
    kind, _, number = name.partition(".")
    return f"part {int(number)} of {parts}, counted from 0," if kind == "part" else f"node {number} of the reduction"
