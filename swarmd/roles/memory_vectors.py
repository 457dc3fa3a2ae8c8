"""The vectors of versions of memories, as one store has them: their authors' own, or made by its embedder.

Invariants: every version gets a vector, in order. An embedder that fails is asked again for as long as it takes; a text
that it refuses is embedded by its beginning, and one that it refuses altogether gets a direction of its own, so that
it is found by its words: both are counted and told. Must not know stores or the log.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b
from math import sqrt
from typing import TYPE_CHECKING, Final

from swarmd.core.errors import Fault, Rejected
from swarmd.core.memory_door import vector_of
from swarmd.ports import Pin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmd.core.memory import Memory, Version, Watched
    from swarmd.ports import Clock, Embeddings, Meter, Probe

RETRY_MS: Final = 500
RETRY_MS_MAX: Final = 10_000
#: Beginnings, in characters, that are tried of a text that is refused as a whole.
BEGINNINGS: Final = (8_000, 2_000, 500)
#: Callers share batches, so that one may be refused for the text of another: it asks so many times more.
COMPANY_TRIES: Final = 2
#: Who refuses this refuses everything.
HARMLESS: Final = "memory"


class Vectors:
    """Vectors of one embedder, whose `spec` makes it again elsewhere; `trouble` says why there are none just now."""

    def __init__(self, memory: str, spec: str, embeddings: Embeddings, world: tuple[Clock, Probe, Meter]) -> None:
        self.spec, self.embeddings = spec, embeddings
        self.pin = Pin(embeddings.id, embeddings.dimension)
        self.trouble = ""
        self._memory = memory
        self._clock, self._probe, self._meter = world

    async def of(self, versions: Sequence[tuple[Memory, Version]]) -> list[Sequence[float]]:
        """One vector per version, in order, however long it takes."""
        found: list[Sequence[float] | None] = [own_vector(version, self.pin) for _, version in versions]
        missing = [at for at, vector in enumerate(found) if vector is None]
        made = await self.made([(versions[at][0].id, versions[at][1].text) for at in missing])
        for at, vector in zip(missing, made, strict=True):
            found[at] = vector
        return [vector for vector in found if vector is not None]

    async def made(self, texts: Sequence[tuple[str, str]]) -> list[Sequence[float]]:
        """Vectors of texts, each with the id that it is told by; however long it takes."""
        if not texts:
            return []
        pause_ms = RETRY_MS
        while True:
            try:
                if len(texts) == 1:
                    made = [await self._one(*texts[0])]
                else:
                    made = await self.embeddings.vectors([text for _, text in texts])
                self.trouble = ""
                return made
            except Fault as error:
                self.trouble = f"texts cannot be embedded: {error.message}"
                self._probe.trouble("embedder", error)
                await self._clock.sleep(error.retry_after_ms or pause_ms)
                pause_ms = min(2 * pause_ms, RETRY_MS_MAX)
            except Rejected:  # some of them are refused
                half = len(texts) // 2
                return await self.made(texts[:half]) + await self.made(texts[half:])

    async def _one(self, memory_id: str, text: str) -> Sequence[float]:
        """Of one text, whatever the embedder thinks of it. Raises `Fault`."""
        try:
            return (await vectors_of(self.embeddings, [text]))[0]
        except Rejected as refused:
            why = refused.message
        for chars in BEGINNINGS:
            if len(text) > chars:
                try:
                    vector = (await vectors_of(self.embeddings, [text[:chars]]))[0]
                except Rejected:
                    continue
                self._tell("beginning", f"memory {memory_id} is embedded by its first {chars} characters: {why}")
                return vector
        try:
            await vectors_of(self.embeddings, [HARMLESS])
        except Rejected as error:
            raise Fault("embedder_refuses", f"{self.pin.embedder} refuses every text: {error.message}") from None
        self._tell("words", f"memory {memory_id} is found by its words only, its text cannot be embedded: {why}")
        return direction_of(text, self.pin.dimension)

    def _tell(self, how: str, what: str) -> None:
        self._meter.count("swarmd_memory_unembedded_total", self._memory, how)
        self._probe.incident(what)


async def vectors_of(embeddings: Embeddings, texts: Sequence[str]) -> list[Sequence[float]]:
    """Vectors of texts; raises `Rejected` only for these, not for what others had in the same batch. And `Fault`."""
    for _ in range(COMPANY_TRIES):
        try:
            return await embeddings.vectors(texts)
        except Rejected:
            continue
    return await embeddings.vectors(texts)


def own_vector(fact: Version | Watched, pin: Pin) -> array[float] | None:
    """The vector that came with a version or a watch, where the same embedder made it and it is one; else None."""
    if not fact.vector or fact.embedder != pin.embedder or len(fact.vector) != 4 * pin.dimension:
        return None
    return vector_of(fact.vector) or None


def direction_of(text: str, dimension: int) -> array[float]:
    """A unit vector that depends on the text alone and means nothing: in many dimensions, far from all others."""
    numbers: list[float] = []
    block = 0
    while len(numbers) < dimension:
        digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=64, salt=block.to_bytes(16)).digest()
        numbers += [byte - 127.5 for byte in digest]
        block += 1
    length = sqrt(sum(number * number for number in numbers[:dimension]))
    return array("f", [number / length for number in numbers[:dimension]])
