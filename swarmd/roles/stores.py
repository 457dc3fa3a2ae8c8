"""How full the stores are: warned at 80 %; at 90 % new work is refused, and running work finishes in the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from swarmd.core.leader import Leader
    from swarmd.core.wire import StoreHealth
    from swarmd.ports import Clock, Meter, Probe

FULL_SHARE: Final = 0.9
WARN_SHARE: Final = 0.8
#: What a store's keeper said last counts for so long: a dead observer must not refuse work for ever.
STALE_MS: Final = 30_000
#: What fills while nobody leads and drains by being read: refusing what is in it would lose what was promised.
BUFFERS: Final = frozenset({"intake"})


class StoreWatch:
    """Holds what was last seen of each store against its limit, and tells the leader to refuse or not."""

    def __init__(self, leader: Leader, clock: Clock, probe: Probe, meter: Meter) -> None:
        self._leader, self._clock, self._probe, self._meter = leader, clock, probe, meter
        self._seen: dict[str, tuple[StoreHealth, int]] = {}
        self._warned: set[str] = set()

    def seen(self, store: StoreHealth) -> None:
        """A store has this size now."""
        self._meter.gauge("swarmd_store_bytes", store.bytes, store.store)
        self._meter.gauge("swarmd_store_limit_bytes", store.bytes_max, store.store)
        self._seen[store.store] = (store, self._clock.now_ms())
        share = _share(store)
        if share < WARN_SHARE:
            self._warned.discard(store.store)
        elif store.store not in self._warned:
            self._warned.add(store.store)
            self._probe.incident(f"{store.store} is {share:.0%} full ({store.bytes} of {store.bytes_max} bytes)")
        self.judge()

    def grown(self, store: str, size: int) -> None:
        """A store grew by about so much since it was last looked at: a burst must not fill it between two looks."""
        known = self._seen.get(store)
        if known is not None and size:
            before = _share(known[0])
            known[0].bytes += size
            if before < FULL_SHARE <= _share(known[0]):
                self.judge()

    def judge(self) -> None:
        """Refuse new work while any store is full that was heard of lately."""
        now = self._clock.now_ms()
        fresh = [s for s, at_ms in self._seen.values() if s.store not in BUFFERS and now - at_ms < STALE_MS]
        full = [s for s in fresh if _share(s) >= FULL_SHARE]
        self._leader.refusing = "; ".join(f"{s.store} holds {s.bytes} of {s.bytes_max} bytes: {s.advice}" for s in full)


def _share(store: StoreHealth) -> float:
    return store.bytes / store.bytes_max if store.bytes_max > 0 else 0.0
