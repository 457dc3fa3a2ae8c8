"""Whether and when a failed model call is tried again, and by which model: pure, with randomness handed in.

Method: exponential back-off with full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015):
the wait is uniform between nothing and a ceiling that doubles with each failure. What a server asks for by Retry-After
goes before it. A caller records the wait as a timer of its own, so that a restart neither forgets nor repeats it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta, Struct

from swarmd.core.errors import Fault

if TYPE_CHECKING:
    from collections.abc import Sequence

JITTER_BITS: Final = 32
#: Faults of our own queue before an endpoint: nothing was sent, nothing failed.
_TURNED_AWAY: Final = frozenset({"rate_wait", "endpoint_busy"})
Count = Annotated[int, Meta(ge=0)]
Millis = Annotated[int, Meta(ge=1)]

#: What another model may do better though another try of the same one will not: its endpoint, key or size is at fault.
_ELSEWHERE: Final = frozenset(
    {"unauthorized", "forbidden", "model_not_found", "insufficient_quota", "context_too_long", "content_filtered"}
    | {"output_cut", "request_over_limit", "tools_unsupported"}
)


class RetryLimits(Struct, frozen=True):
    """`retries` after the first call; waits grow from `base_ms` to `wait_ms_max`; a longer Retry-After is no retry."""

    retries: Count = 8
    base_ms: Millis = 500
    wait_ms_max: Millis = 30_000
    retry_after_ms_max: Millis = 600_000


DEFAULT_LIMITS: Final = RetryLimits()


def next_delay(failures: int, error: Exception, jitter_bits: int, limits: RetryLimits = DEFAULT_LIMITS) -> int | None:
    """Milliseconds to wait before the next call of the same model; None: do not call it again.

    `failures` counts the failed calls so far, `error` is the last one's, `jitter_bits` are 32 random bits. A call that
    only was turned away is tried again however often, until its task's own limits end it.
    """
    if not isinstance(error, Fault):
        return None
    if turned_away(error):
        wait = error.retry_after_ms or limits.base_ms
        return wait + ((wait * (jitter_bits & (1 << JITTER_BITS) - 1)) >> JITTER_BITS)
    if failures > limits.retries:
        return None
    ceiling = min(limits.wait_ms_max, limits.base_ms << min(max(failures - 1, 0), 30))
    jitter = (ceiling * (jitter_bits & (1 << JITTER_BITS) - 1)) >> JITTER_BITS
    if error.retry_after_ms is None:
        return jitter
    if error.retry_after_ms > limits.retry_after_ms_max:
        return None
    # All who were told the same wait must not come back in the same moment.
    spread = min(limits.base_ms, ceiling)
    return error.retry_after_ms + ((spread * (jitter_bits & (1 << JITTER_BITS) - 1)) >> JITTER_BITS)


def turned_away(error: Exception) -> bool:
    """Whether no call was made, since our own limits had no room for it: not to be counted as a failure."""
    return isinstance(error, Fault) and error.code in _TURNED_AWAY


def try_elsewhere(error: Exception) -> bool:
    """Whether the next fallback model should be asked once the retries of this one are used up."""
    return isinstance(error, Fault) or getattr(error, "code", "") in _ELSEWHERE


def model_order(chosen: str | Sequence[str], default: str, fallbacks: Sequence[str] = ()) -> tuple[str, ...]:
    """The models to try, in order, each once: an agent's own list as it is, one name (or none) before `fallbacks`."""
    if isinstance(chosen, str):
        names = [chosen or default, *fallbacks]
    else:
        names = [*chosen] or [default, *fallbacks]
    return tuple(dict.fromkeys(names))
