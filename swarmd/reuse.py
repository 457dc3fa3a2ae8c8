"""Semantic reuse: when the result of an earlier task may stand for that of a new one, as an agent's author declares it.

Likeness is the cosine of two texts as the memory's embedder sees them; only results of the same agent, version and
`made_of` are compared. Pure. Must not know memories, journals or how results are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final, Literal, Protocol

import msgspec
from msgspec import Struct

from swarmd.core.errors import Rejected
from swarmd.passages import TEXT_BYTES_MAX

Scope = Literal["agent", "swarm", "shared"]
SCOPES: Final = ("agent", "swarm", "shared")


class Reuse(Struct, frozen=True):
    """Results of inputs whose texts have a cosine of at least `threshold` are taken instead of running the agent.

    With 1 the texts must be the same. They are kept in the space `scope`, for `expires_s` seconds (0: for ever). `text`
    makes the text of an input, a pure function; without one it is the input itself where that is a text, else its JSON
    with sorted keys. `made_of` is what results depend on beside input and version, such as the words of a prompt.
    Raises `Rejected("bad_reuse")`.
    """

    threshold: float = 1.0
    scope: Scope = "agent"
    expires_s: float = 0.0
    text: Callable[[Any], str] | None = None
    made_of: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise Rejected("bad_reuse", f"threshold is {self.threshold}: a cosine above 0, at most 1")
        if self.scope not in SCOPES:
            raise Rejected("bad_reuse", f"scope is {self.scope!r}: there is {', '.join(SCOPES)}")
        if not (math.isfinite(self.expires_s) and self.expires_s >= 0):
            raise Rejected("bad_reuse", f"expires_s is {self.expires_s}: seconds, 0 for ever")


class Declaration(Protocol):
    """What a configuration says of it, for one agent."""

    @property
    def reuse_threshold(self) -> float: ...

    @property
    def reuse_scope(self) -> Scope: ...

    @property
    def reuse_expires_s(self) -> float: ...


def declared(said: Declaration, made_of: str) -> Reuse | None:
    """The same for a declared agent; None where nothing is to be reused."""
    if not said.reuse_threshold:
        return None
    return Reuse(said.reuse_threshold, said.reuse_scope, said.reuse_expires_s, None, made_of)


def text_of(reuse: Reuse, wanted: Any) -> str:
    """The text that an input is compared by; "" when it has none that a memory could hold.

    Raises `Rejected("bad_reuse")` when the author's function does, or returns no text.
    """
    if reuse.text is not None:
        try:
            text = reuse.text(wanted)
        except Exception as error:  # a stranger's code: whatever it raises is told as its failure
            raise Rejected("bad_reuse", f"Reuse.text raised {type(error).__name__}: {error}") from error
        if not isinstance(text, str):
            raise Rejected("bad_reuse", f"Reuse.text returned a {type(text).__name__}, not a text")
    elif isinstance(wanted, str):
        text = wanted
    else:
        text = msgspec.json.encode(wanted, order="deterministic").decode()
    fits = text.strip() and len(text.encode("utf-8", "surrogatepass")) <= TEXT_BYTES_MAX
    return text if fits else ""


def source_of(reuse: Reuse, text: str, agent: str, model: str) -> str:
    """What marks a kept result as one of this very `agent` (with its version), and a digest of what else it is made of.

    With a threshold of 1 the text is part of that: embedders give the cosine 1 to texts that are not the same.
    """
    made_of = [reuse.made_of, model, *([text] if reuse.threshold == 1 else [])]
    return f"reuse {agent} {blake2b(msgspec.json.encode(made_of), digest_size=8).hexdigest()}"
