"""The room of the inbox: what agents ask people, live, and the answers.

Must not know how a request is validated or who may answer it: that is the swarm's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from aiohttp import web

from swarmd.core.errors import Rejected
from swarmd.edges.web.layout import HEADERS
from swarmd.edges.web.server import Room, body_of, encoded, session_of, told

if TYPE_CHECKING:
    from swarmd.edges.web.watch import Watch

log = logging.getLogger(__name__)

STREAMS_MAX: Final = 64
BEAT_S: Final = 15.0
"""A stream that says nothing for longer may be cut by what stands between."""


def inbox_room(watch: Watch) -> Room:
    """The room, over a watch that somebody runs."""

    async def listed(request: web.Request) -> web.StreamResponse:
        return web.Response(body=await watch.look(), content_type="application/json")

    async def stream(request: web.Request) -> web.StreamResponse:
        return await _stream(request, watch)

    async def answer(request: web.Request) -> web.StreamResponse:
        return await _answer(request, watch)

    routes = (
        ("GET", "/api/inbox", listed),
        ("GET", "/api/inbox/stream", stream),
        ("POST", "/api/inbox/answer", answer),
    )
    return Room("/inbox", "Inbox", routes)


async def _stream(request: web.Request, watch: Watch) -> web.StreamResponse:
    """Server-sent events: the whole look each time that it changed."""
    if watch.viewers >= STREAMS_MAX:
        return told(503, "too_many", f"{STREAMS_MAX} pages are open already: close one")
    session = session_of(request)
    response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    with watch.viewer() as changed, contextlib.suppress(ConnectionError):
        while not session.ended:
            try:
                async with asyncio.timeout(BEAT_S):
                    await changed.wait()
            except TimeoutError:
                await response.write(b": still here\n\n")
                continue
            if watch.closed:
                break
            changed.clear()
            await response.write(b"data: " + watch.latest + b"\n\n")
    return response


async def _answer(request: web.Request, watch: Watch) -> web.StreamResponse:
    body, session = await body_of(request), session_of(request)
    swarm, id = body.get("swarm"), body.get("id")
    people = watch.people(swarm) if isinstance(swarm, str) else None
    if people is None or not isinstance(id, str) or "value" not in body:
        raise Rejected("bad_request", "an answer has swarm, id and value, and the swarm is one of this page")
    if not session.name:
        raise Rejected("no_name", "say who you are first: your name is kept with the answer")
    by = f"{session.name} ({request.remote})"
    try:
        task = await people.answer(id, body["value"], by=by)
    finally:
        watch.look_now()
    log.info("request %s of swarm %s answered by %s", id, swarm, by)
    return encoded({"task": task})
