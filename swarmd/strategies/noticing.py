"""What a reader of a board has noticed: the notes that were there, then what a watch matched. The nearest come first.

Watches end with the run; of one that fails they expire. A watch that is gone, or has missed matches, begins anew with
what is there. Must not know what is done with the notes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct, field

from swarmd.core.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable

    from swarmd.roles.context import Context
    from swarmd.roles.memory_steps import Recalled

#: Longer than most runs take, and short enough for a memory that serves 5,000 watches.
WATCH_MS: Final = 7 * 24 * 3_600_000
#: Notes that are kept for one reader, the nearest of them.
NOTICED_MAX: Final = 1_000


class Reader(Struct):
    """Who reads the notes with these labels on one subject; shown are those with a cosine of at least `threshold`.

    `noticed` are cosine and text by memory, once `look` was called.
    """

    watch: str
    about: str
    labels: dict[str, str]
    k: int
    threshold: float
    noticed: dict[str, tuple[float, str]] = field(default_factory=dict)
    begun: bool = False

    async def look(self, ctx: Context, seq: int) -> None:
        """Notice everything up to sequence `seq` of the memory's log."""
        if not self.begun:
            return await self._begin(ctx, seq)
        while True:
            try:
                found = await ctx.matches(self.watch, at_least_seq=seq)
            except Rejected as rejected:
                if rejected.code != "unknown_watch":
                    raise
                return await self._begin(ctx, seq)
            if found.missed:
                return await self._begin(ctx, seq)
            self._notice(found.memories)
            if found.seq >= seq:
                return None

    def nearest(self) -> list[str]:
        """The `k` notes that are nearest to the subject."""
        return [text for _, text in self._ranked()[: self.k]]

    def _ranked(self) -> list[tuple[float, str]]:
        return sorted(self.noticed.values(), key=lambda note: -note[0])

    async def _begin(self, ctx: Context, seq: int) -> None:
        """Watch first, then look at what is there: nothing falls between the two."""
        since = await ctx.watch(
            self.watch, self.about, threshold=self.threshold, labels=self.labels, expires_in_ms=WATCH_MS
        )
        found = await ctx.recall(
            self.about,
            k=self.k,
            labels=self.labels,
            at_least_seq=max(seq, since),
            mode="dense",
            min_similarity=self.threshold,
        )
        self.begun = True
        self._notice(found)

    def _notice(self, memories: Iterable[Recalled]) -> None:
        for memory in memories:
            cosine = memory.similarity if isinstance(memory.similarity, float) else -1.0
            self.noticed[memory.id] = (cosine, memory.text)
        if len(self.noticed) > NOTICED_MAX:
            least = self._ranked()[NOTICED_MAX - 1][0]
            self.noticed = {memory: note for memory, note in self.noticed.items() if note[0] >= least}
