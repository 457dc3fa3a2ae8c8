"""router: gives a task to the agent whose declared examples it is most like, or to a fallback.

Likeness is the cosine of embeddings; the built-in embedder works offline and knows little of meaning. The choice
is a recorded step, so it stays what it was when a task is resumed under another embedder.
Must not know what the agents do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta, Struct

from swarmd.core.errors import Rejected
from swarmd.core.ids import check_name
from swarmd.hash_embedder import HashEmbedder
from swarmd.sdk import agent
from swarmd.strategies.asking import read
from swarmd.strategies.templates import shown, take

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from swarmd.roles.context import Context

    Embed = Callable[[Sequence[str]], Sequence[Sequence[float]]]

ROUTES_MAX: Final = 100
EXAMPLE: Final = (
    '{"input": "…", "routes": [{"agent": "billing", "examples": ["I was charged twice"]}], "fallback": "desk"}'
)


class RouteTo(Struct, frozen=True, forbid_unknown_fields=True):
    """An agent, and texts that are typical of what it shall get."""

    agent: str
    examples: list[str]


class Routing(Struct, frozen=True, forbid_unknown_fields=True):
    """`input` goes to the agent of the route that is most like it, if that is `threshold` or more, else to `fallback`.

    `text` is the part of the input that is compared (a path such as "message.body"; "": all of it). Without a
    fallback an input that is like no route is refused.
    """

    input: Any
    routes: list[RouteTo]
    text: str = ""
    threshold: Annotated[float, Meta(ge=-1, le=1)] = 0.2
    fallback: str = ""


class Choice(Struct, frozen=True):
    """Where an input goes; `agent` is "" for nowhere. `scores` are those of all routes' agents."""

    agent: str
    score: float
    scores: dict[str, float]
    by_fallback: bool = False


@agent
async def router(ctx: Context, wanted: Any) -> dict[str, Any]:
    """A `Routing` in; {"agent", "score", "scores", "by_fallback", "result"} out, `result` being the agent's output.

    Raises `Rejected`: `bad_input`, `no_route`; and `ChildFailed` when the chosen agent fails.
    """
    return await routed(ctx, wanted)


async def routed(ctx: Context, wanted: Any, embed: Embed | None = None) -> dict[str, Any]:
    """`router` with an embedder of your own: texts to unit vectors."""
    routing = read(Routing, wanted, EXAMPLE)
    check_routes(routing)
    text = take(routing.input, routing.text)
    if not isinstance(text, str) or not text.strip():
        raise Rejected("bad_input", f"there is no text to compare: {shown(text)}; say by `text` which part it is")
    chosen = await ctx.step("route", choose, routing, text, embed or HashEmbedder().embed)
    if not chosen["agent"]:
        scores = ", ".join(f"{name} {score:.2f}" for name, score in chosen["scores"].items())
        raise Rejected("no_route", f"no route is as like it as {routing.threshold}, and there is no fallback: {scores}")
    child = await ctx.spawn(chosen["agent"], routing.input)
    (result,) = await ctx.gather(child)
    return {**chosen, "result": result}


def check_routes(routing: Routing) -> None:
    """Raise `Rejected("bad_input")` for routes that cannot be chosen between."""
    if not routing.routes or len(routing.routes) > ROUTES_MAX:
        raise Rejected(
            "bad_input", f"there are {len(routing.routes)} routes: give 1 to {ROUTES_MAX}; for example {EXAMPLE}"
        )
    for route in routing.routes:
        check_name("agent", route.agent)
        if not route.examples or not all(example.strip() for example in route.examples):
            raise Rejected("bad_input", f"the route to {route.agent!r} needs examples that are not empty")
    if routing.fallback:
        check_name("agent", routing.fallback)


def choose(routing: Routing, text: str, embed: Embed) -> Choice:
    """Where `text` goes: a route scores like its most similar example; of equal routes the first is taken."""
    examples = [example for route in routing.routes for example in route.examples]
    asked, *known = embed([text, *examples])
    likeness = iter([dot(asked, vector) for vector in known])
    scores: dict[str, float] = {}
    for route in routing.routes:
        best = max(next(likeness) for _ in route.examples)
        scores[route.agent] = max(best, scores.get(route.agent, -1.0))
    name = max(scores, key=lambda agent: scores[agent])
    if scores[name] >= routing.threshold:
        return Choice(name, scores[name], scores)
    return Choice(routing.fallback, scores[name], scores, by_fallback=True)


def dot(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine of two unit vectors, rounded so that it reads well and machines agree on it."""
    return round(sum(a * b for a, b in zip(one, other, strict=True)), 6)
