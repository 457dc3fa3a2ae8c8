"""Serves the rooms over HTTP: the guard before every request, sign-in, static files, and an orderly end.

Invariants: no route is reached without the Host check, none but the sign-in and static files without a session, none
that changes something without Origin and CSRF token; bodies, headers and open streams are bounded. Must not know what
the rooms do.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web

from swarmd.core.errors import Conflict, Fault, Rejected, SwarmdError
from swarmd.edges.web import layout
from swarmd.edges.web.guard import NAME_CHARS_MAX, Guard, Session, host_names, is_csrf
from swarmd.roles.tool_calls import clean

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp.typedefs import Handler as Answering

log = logging.getLogger(__name__)

BODY_BYTES_MAX: Final = 1024 * 1024
SHUTDOWN_S: Final = 2.0
SAFE: Final = ("GET", "HEAD")
SESSION: Final = web.RequestKey("session", Session)
#: What a code means in HTTP; any other `Rejected` is 400.
STATUS: Final = {"invalid_answer": 422, "closed": 409, "unknown_request": 404, "unknown_task": 404, "too_large": 413}


class Room(msgspec.Struct, frozen=True):
    """One part of the page: its place in the menu, and its routes (method, path, what answers)."""

    path: str
    title: str
    routes: Sequence[tuple[str, str, Callable[[web.Request], Awaitable[web.StreamResponse]]]]


class Pages:
    """The application: its rooms behind one guard."""

    def __init__(self, guard: Guard, rooms: Sequence[Room]) -> None:
        self._guard, self._rooms = guard, rooms
        self._places = [layout.Place(room.path, room.title) for room in rooms]
        self._cookie = "swarmd"

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._headed, self._guarded], client_max_size=BODY_BYTES_MAX)
        app.router.add_get("/", self._front)
        app.router.add_get("/static/{name}", self._static)
        app.router.add_post("/sign-in", self._sign_in)
        app.router.add_post("/api/sign-out", self._sign_out)
        app.router.add_get("/api/session", self._session)
        app.router.add_post("/api/session", self._name)
        for room in self._rooms:
            app.router.add_get(room.path, self._room(room))
            for method, path, answering in room.routes:
                app.router.add_route(method, path, answering)
        return app

    def serve_as(self, hosts: Sequence[str], port: int) -> None:
        """Cookies do not tell ports apart, so each page of a machine has one with a name of its own."""
        self._guard.serve(hosts)
        self._cookie = f"swarmd_{port}"

    # --- before every request ---

    @web.middleware
    async def _headed(self, request: web.Request, handler: Answering) -> web.StreamResponse:
        """Headers on every answer, errors as JSON without a trace."""
        try:
            response = await handler(request)
        except web.HTTPException as error:
            error.headers.update(layout.HEADERS)
            raise
        except SwarmdError as error:
            response = refused(error)
        if not response.prepared:
            response.headers.update(layout.HEADERS)
        return response

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Answering) -> web.StreamResponse:
        host = request.headers.get("Host", "")
        if not self._guard.knows_host(host):
            raise web.HTTPMisdirectedRequest(text="this page is not served under that name: see [web] hosts\n")
        if request.method not in SAFE and not self._guard.is_own_origin(request.headers.get("Origin", ""), host):
            raise web.HTTPForbidden(text="a request that changes something must come from the page itself\n")
        if request.path.startswith("/static/") or (request.method, request.path) == ("POST", "/sign-in"):
            return await handler(request)
        if request.method == "GET" and request.path == "/" and "token" in request.query:
            return self._admit(request, request.query["token"])
        session = self._guard.session(request.cookies.get(self._cookie, ""))
        if session is None:
            if request.path.startswith("/api/"):
                return told(401, "signed_out", "sign in again: the session has ended")
            return _html(layout.sign_in(""), 401)
        if request.method not in SAFE and not is_csrf(session, request.headers.get("X-CSRF-Token", "")):
            return told(403, "bad_csrf", "load the page again: its token is not that of the session")
        request[SESSION] = session
        return await handler(request)

    # --- signing in ---

    def _admit(self, request: web.Request, token: str) -> web.StreamResponse:
        address = request.remote or ""
        wait_s = self._guard.wait_s(address)
        if wait_s:
            response = _html(layout.sign_in("Too many wrong tokens. Wait a minute."), 429)
            response.headers["Retry-After"] = str(int(wait_s) + 1)
            return response
        session = self._guard.admit(token, address)
        if session is None:
            log.warning("a wrong token from %s", address)
            return _html(layout.sign_in("That is not the token."), 401)
        # The token leaves the address bar and the history with this redirect.
        response = web.Response(status=303, headers={"Location": "/"})
        response.set_cookie(self._cookie, session.id, httponly=True, samesite="Strict", path="/", secure=request.secure)
        return response

    async def _sign_in(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        token = form.get("token", "")
        return self._admit(request, token if isinstance(token, str) else "")

    async def _sign_out(self, request: web.Request) -> web.StreamResponse:
        self._guard.end(session_of(request))
        response = web.json_response({})
        response.del_cookie(self._cookie, path="/")
        return response

    # --- what all rooms share ---

    async def _front(self, request: web.Request) -> web.StreamResponse:
        raise web.HTTPSeeOther(self._rooms[0].path)

    def _room(self, room: Room) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def show(request: web.Request) -> web.StreamResponse:
            return _html(layout.page(room.title, self._places, room.path, session_of(request).csrf))

        return show

    async def _static(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        kind = layout.TYPES.get(f".{name.rpartition('.')[2]}")
        content = layout.static(name) if kind else None
        if content is None:
            raise web.HTTPNotFound(text="there is no such file\n")
        return web.Response(body=content, content_type=kind, charset="utf-8")

    async def _session(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"name": session_of(request).name})

    async def _name(self, request: web.Request) -> web.StreamResponse:
        body = await body_of(request)
        name = body.get("name")
        if not isinstance(name, str):
            raise Rejected("bad_request", "name must be a text")
        session_of(request).name = " ".join(clean(name).split())[:NAME_CHARS_MAX]
        return web.json_response({"name": session_of(request).name})


# --- for rooms -------------------------------------------------------------------------------------


def session_of(request: web.Request) -> Session:
    """The session that the guard found."""
    return request[SESSION]


async def body_of(request: web.Request) -> dict[str, Any]:
    """The JSON object of a request. Raises `Rejected("bad_request")`, and 413 for one that is too large."""
    if request.content_type != "application/json":
        raise Rejected("bad_request", "send application/json")
    try:
        return msgspec.json.decode(await request.read(), type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected("bad_request", f"the body is no JSON object: {error}") from None


def refused(error: SwarmdError) -> web.Response:
    """An error for a script of ours."""
    status = 503 if isinstance(error, Fault) else STATUS.get(error.code, 409 if isinstance(error, Conflict) else 400)
    return told(status, error.code, error.message)


def told(status: int, code: str, message: str) -> web.Response:
    return encoded({"error": {"code": code, "message": message}}, status)


def encoded(value: Any, status: int = 200) -> web.Response:
    """JSON, also of structs."""
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def _html(text: str, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, content_type="text/html", charset="utf-8")


# --- running ---------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(pages: Pages, host: str, port: int, more_hosts: Sequence[str] = ()) -> AsyncIterator[str]:
    """Listen on `host:port` (0: any free one); yields the address. Raises `Rejected("port_in_use")`."""
    runner = web.AppRunner(
        pages.application(), access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_S, max_field_size=16_384
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            raise Rejected(
                "port_in_use",
                f"cannot serve the page on {host}:{port} ({why}): choose another port with [web] port or --web-port, "
                "0 for any",
            ) from None
        bound = int(runner.addresses[0][1])
        pages.serve_as(host_names(host, bound, more_hosts), bound)
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        yield f"http://[{shown}]:{bound}" if ":" in shown else f"http://{shown}:{bound}"
    finally:
        async with asyncio.timeout(SHUTDOWN_S * 2):
            await runner.cleanup()
