"""Who asked for what is on its way into the log: each is told what the fold made of the event that he asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swarmd.core.events import Event, Fact

#: What a shell needs to answer somebody; None for what nobody waits for.
Ask = Any


class Asks:
    """Asks by the event that stands for them.

    Commits may be folded in another order than they were made in, so that who asked is found by what was asked.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[type[Fact], str], list[tuple[Fact, Ask]]] = {}

    def add(self, event: Event, ask: Ask) -> None:
        """`ask` waits for what becomes of `event`."""
        self._waiting.setdefault((type(event.data), event.subject), []).append((event.data, ask))

    def take(self, event: Event) -> Ask:
        """Who waits for this event, once; None for nobody."""
        key = (type(event.data), event.subject)
        waiting = self._waiting.get(key, [])
        for at, (fact, ask) in enumerate(waiting):
            if fact == event.data:
                del waiting[at]
                if not waiting:
                    del self._waiting[key]
                return ask
        return None

    def __iter__(self) -> Iterator[Ask]:
        """Everybody who still waits."""
        return (ask for waiting in self._waiting.values() for _, ask in waiting if ask is not None)
