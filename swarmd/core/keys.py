"""Concurrency keys: of the tasks with one key only so many run at once, and only so many begin each minute.

Time is handed in. The counts of running tasks are the fold's; what is only decided is told here as `taken`.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta, Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

MINUTE_MS: Final = 60_000
#: Rates of keys that have not been used for a while are forgotten when there are so many.
BUCKETS_MIN: Final = 1_000


class KeyPolicy(Struct, frozen=True, forbid_unknown_fields=True):
    """How many tasks of one key run at once, and how many begin each minute (0: as many as there are)."""

    concurrency: Annotated[int, Meta(ge=1)] = 1
    per_minute: Annotated[int, Meta(ge=0)] = 0


class Keys:
    """What each key allows now. `policies` are by key; one that ends in `*` is for all keys that begin so."""

    def __init__(self, policies: Mapping[str, KeyPolicy], used: Mapping[str, int]) -> None:
        self._exact = {name: policy for name, policy in policies.items() if not name.endswith("*")}
        families = [(name[:-1], policy) for name, policy in policies.items() if name.endswith("*")]
        self._families = sorted(families, key=lambda family: -len(family[0]))
        self._used = used
        self._taken: dict[str, int] = {}
        self._buckets: dict[str, tuple[float, int]] = {}
        self._buckets_max = BUCKETS_MIN
        self.now_ms = self._since_ms = 0

    def begin(self, now_ms: int) -> None:
        """An office begins: no key has anything saved up, however long nobody has asked for it."""
        self.now_ms = self._since_ms = now_ms

    def tick(self, now_ms: int) -> bool:
        """Time passes. Whether the clock went back: then it counts from there."""
        back_ms, self.now_ms = self.now_ms - now_ms, now_ms
        if back_ms > 0:
            self._since_ms -= back_ms
            self._buckets = {key: (held, at_ms - back_ms) for key, (held, at_ms) in self._buckets.items()}
        return back_ms > 0

    def policy(self, key: str) -> KeyPolicy:
        """The policy of `key`: its own, or that of the longest beginning which is declared."""
        if key in self._exact:
            return self._exact[key]
        return next((policy for start, policy in self._families if key.startswith(start)), _ONE)

    def room(self, key: str) -> int:
        """How many more tasks of `key` may run at once, whatever its rate."""
        return self.policy(key).concurrency - self._used.get(key, 0) - self._taken.get(key, 0)

    def has_room(self, key: str) -> bool:
        """Whether one more task of `key` may run, whatever its rate."""
        return self.room(key) > 0

    def is_open(self, key: str) -> bool:
        """Whether one more task of `key` may begin now."""
        policy = self.policy(key)
        return self.has_room(key) and (not policy.per_minute or self._tokens(key, policy) >= 1.0)

    def opens_at_ms(self, key: str) -> int:
        """When the rate of `key` allows another one; 0 when it is not the rate that holds it up."""
        policy = self.policy(key)
        missing = 1.0 - self._tokens(key, policy) if policy.per_minute else 0.0
        return self.now_ms + ceil(missing / _per_ms(policy)) if missing > 0 else 0

    def _tokens(self, key: str, policy: KeyPolicy) -> float:
        """Tokens in the bucket: a new leader begins with none, so that a change of leader is no second helping."""
        held, at_ms = self._buckets.get(key, (0.0, self._since_ms))
        return min(_size(policy), held + (self.now_ms - at_ms) * _per_ms(policy))

    def take(self, key: str) -> None:
        """A task of `key` is given a slot, which the fold does not know yet."""
        self._taken[key] = self._taken.get(key, 0) + 1
        policy = self.policy(key)
        if policy.per_minute:
            self._buckets[key] = (self._tokens(key, policy) - 1.0, self.now_ms)
            if len(self._buckets) > self._buckets_max:
                self._buckets = {known: bucket for known, bucket in self._buckets.items() if not self._is_plain(known)}
                self._buckets_max = max(BUCKETS_MIN, 2 * len(self._buckets))

    def _is_plain(self, key: str) -> bool:
        """Whether a bucket is as full as if its key had never been used."""
        policy = self.policy(key)
        unused = (self.now_ms - self._since_ms) * _per_ms(policy)
        return min(unused, self._tokens(key, policy)) >= _size(policy)

    def settle(self, key: str) -> None:
        """The fold has that slot, or it came to nothing."""
        self._taken[key] -= 1
        if not self._taken[key]:
            del self._taken[key]


def _size(policy: KeyPolicy) -> float:
    """A bucket holds the tokens of one second, or one."""
    return max(1.0, policy.per_minute / 60)


def _per_ms(policy: KeyPolicy) -> float:
    """How fast it fills: a full bucket and what comes in within a minute are no more than the rate together."""
    return (policy.per_minute + 1 - _size(policy)) / MINUTE_MS


_ONE: Final = KeyPolicy()
