"""One look at the inboxes of all swarms, shared by all pages that are open.

Job: ask each swarm about once a second while somebody looks, and tell the pages when something changed. Invariants: no
page means no requests; a swarm that does not answer is said to be stale, and hides no other. Must not know HTTP.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import UNSET, Struct, field

from swarmd.core.errors import SwarmdError
from swarmd.edges import forms
from swarmd.edges.forms import Field
from swarmd.edges.people import InboxItem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from swarmd.edges.people import People

LOOK_S: Final = 1.0
SHOWN_MAX: Final = 200
"""Requests of one swarm on a page; the rest is counted."""


class Asked(Struct, omit_defaults=True):
    """A request with the form for its answer.

    For an approval the form is that of the arguments, and `shown` are the arguments as they would be used: a browser
    that reads them as numbers of its own may round them.
    """

    swarm: str
    item: InboxItem
    form: Field
    shown: str = ""


class Look(Struct):
    """What all pages show: open requests, how many more there are, and which swarms could not be asked."""

    requests: list[Asked] = field(default_factory=list)
    more: int = 0
    stale: dict[str, str] = field(default_factory=dict)


class Watch:
    """The latest look, and those who wait for the next."""

    def __init__(self, swarms: Mapping[str, People]) -> None:
        self._swarms = swarms
        self._found: dict[str, tuple[list[Asked], int]] = {}
        self._stale: dict[str, str] = {}
        self._viewers: set[asyncio.Event] = set()
        self._look_now = asyncio.Event()
        self._closed = False
        self.latest = b""

    def people(self, swarm: str) -> People | None:
        return self._swarms.get(swarm)

    @property
    def viewers(self) -> int:
        return len(self._viewers)

    @contextmanager
    def viewer(self) -> Iterator[asyncio.Event]:
        """An event that is set whenever `latest` changed, and when the watch is closed."""
        changed = asyncio.Event()
        self._viewers.add(changed)
        self.look_now()
        if self.latest:
            changed.set()
        try:
            yield changed
        finally:
            self._viewers.discard(changed)

    def look_now(self) -> None:
        """Something was answered: do not wait for the next second."""
        self._look_now.set()

    def close(self) -> None:
        """Let every viewer go."""
        self._closed = True
        for changed in self._viewers:
            changed.set()

    @property
    def closed(self) -> bool:
        return self._closed

    async def run(self) -> None:
        """Look while there are viewers; for ever."""
        while True:
            await self._look_now.wait()
            self._look_now.clear()
            while self._viewers:
                await self.look()
                try:
                    async with asyncio.timeout(LOOK_S):
                        await self._look_now.wait()
                    self._look_now.clear()
                except TimeoutError:
                    pass

    async def look(self) -> bytes:
        """Ask every swarm now; the look as JSON. Never raises for a swarm that does not answer."""
        async with asyncio.TaskGroup() as group:
            for swarm, people in self._swarms.items():
                group.create_task(self._ask(swarm, people))
        look = Look(stale=dict(self._stale))
        for found, more in self._found.values():
            look.requests += found
            look.more += more
        encoded = msgspec.json.encode(look)
        if encoded != self.latest:
            self.latest = encoded
            for changed in self._viewers:
                changed.set()
        return encoded

    async def _ask(self, swarm: str, people: People) -> None:
        try:
            found = await people.inbox(limit=SHOWN_MAX)
        except SwarmdError as error:
            self._stale[swarm] = error.message
            return
        self._stale.pop(swarm, None)
        known = {asked.item.id: asked for asked in self._found.get(swarm, ([], 0))[0]}
        shown = [self._asked(swarm, item, known.get(item.id)) for item in found.requests[:SHOWN_MAX]]
        self._found[swarm] = shown, found.total - len(shown)

    def _asked(self, swarm: str, item: InboxItem, known: Asked | None) -> Asked:
        if known is not None and known.item == item:
            return known  # the form of a request never changes
        if item.is_approval:
            shown = json.dumps(item.arguments, indent=2, ensure_ascii=False) if item.arguments is not UNSET else ""
            return Asked(swarm, item, forms.arguments_form(item.schema, item.arguments), shown)
        return Asked(swarm, item, forms.form_of(item.schema, item.default))
