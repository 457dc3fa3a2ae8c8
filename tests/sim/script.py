"""What simulated agents do: a small script in the task's input, the same for every attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct, field

if TYPE_CHECKING:
    from random import Random  # noqa: TID251 - handed in by the world


class Script(Struct, omit_defaults=True):
    """`steps` steps of `ms`, then `acts`, then children (gathered), then one more step if there were any, then the end.

    An act is a wait ("timer", "human", "event", "message") or a message that is sent ("send:" and to whom).
    """

    steps: int = 1
    ms: int = 20
    fail: str = ""  #: "", "retry" (by chance, retryable) or "doom"
    hot: bool = False  #: wait in the slot instead of suspending
    late: bool = False  #: the first attempt takes much longer than the others
    first: bool = False  #: go on with the first child that ends, and cancel the others
    acts: list[str] = field(default_factory=list)
    agent: str = "work"
    children: list[Script] = field(default_factory=list)


ACTS = (
    "timer",
    "human",
    "event",
    "message",
    "send:family",
    "send:agent:parent",
    "send:agent:work",
    "send:task:client0-1",
)


def draw(chance: Random, depth: int = 0) -> Script:
    """A random script: mostly short, some long, some that fail, some with children."""
    kind = chance.random()
    script = Script(steps=chance.randint(0, 4), ms=chance.choice((1, 10, 40, 120)))
    if kind < 0.08:
        script.steps, script.ms = chance.randint(2, 5), 500
    elif kind < 0.22:
        script.fail = "retry"
    elif kind < 0.28:
        script.fail = "doom"
    elif kind < 0.40 and depth == 0:
        script.agent = "remote"
    elif kind < 0.62 and depth < 2:
        script.agent = "parent"
        script.hot, script.first = chance.random() < 0.3, chance.random() < 0.3
        script.children = [draw(chance, depth + 1) for _ in range(chance.randint(1, 3))]
    elif kind < 0.85:
        script.acts = [chance.choice(ACTS) for _ in range(chance.randint(1, 4))]
        script.hot = chance.random() < 0.3
    script.late = chance.random() < 0.25 and script.ms <= 120  # so that what waits for its key waits not too long
    if script.agent == "work" and chance.random() < 0.6:
        script.agent = "race"
    return script


def encode(script: Script) -> bytes:
    return msgspec.json.encode(script)


def decode(payload: bytes) -> Script:
    return msgspec.json.decode(payload, type=Script)
