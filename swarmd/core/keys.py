"""Concurrency keys: of the tasks with one key only so many run at once, and only so many begin each minute.

Time is handed in. The counts of running tasks are the fold's; what is only decided is told here as `taken`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta, Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

MINUTE_MS: Final = 60_000


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
        self.now_ms = 0

    def policy(self, key: str) -> KeyPolicy:
        """The policy of `key`: its own, or that of the longest beginning which is declared."""
        if key in self._exact:
            return self._exact[key]
        return next((policy for start, policy in self._families if key.startswith(start)), _ONE)

    def is_open(self, key: str) -> bool:
        """Whether one more task of `key` may begin now."""
        policy = self.policy(key)
        if self._used.get(key, 0) + self._taken.get(key, 0) >= policy.concurrency:
            return False
        return not policy.per_minute or self._tokens(key, policy) >= 1.0

    def opens_at_ms(self, key: str) -> int:
        """When the rate of `key` allows another one; 0 when it is not the rate that holds it up."""
        policy = self.policy(key)
        missing = 1.0 - self._tokens(key, policy) if policy.per_minute else 0.0
        return self.now_ms + round(missing * MINUTE_MS / policy.per_minute) + 1 if missing > 0 else 0

    def _tokens(self, key: str, policy: KeyPolicy) -> float:
        """Tokens in the bucket, which holds those of one second: a new leader begins with none, never with too many."""
        held, at_ms = self._buckets.get(key, (0.0, self.now_ms))
        size = max(1.0, policy.per_minute / 60)
        tokens = min(size, held + (self.now_ms - at_ms) * policy.per_minute / MINUTE_MS)
        self._buckets[key] = (tokens, self.now_ms)
        return tokens

    def take(self, key: str) -> None:
        """A task of `key` is given a slot, which the fold does not know yet."""
        self._taken[key] = self._taken.get(key, 0) + 1
        policy = self.policy(key)
        if policy.per_minute:
            self._buckets[key] = (self._tokens(key, policy) - 1.0, self.now_ms)

    def settle(self, key: str) -> None:
        """The fold has that slot, or it came to nothing."""
        self._taken[key] -= 1
        if not self._taken[key]:
            del self._taken[key]


_ONE: Final = KeyPolicy()
