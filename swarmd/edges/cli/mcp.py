"""The command mcp: serve a swarm to MCP clients, over stdio or streamable HTTP on this machine.

Over HTTP every request needs the token, and one that names another host or comes from another site is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from swarmd.edges.cli import flags

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from mcp.server import Server

    from swarmd.edges.cli.session import Session

TOKEN_VARIABLE: Final = "SWARMD_MCP_TOKEN"
TOKEN_CHARS_MIN: Final = 20
HOST: Final = "127.0.0.1"
PATH: Final = "/mcp"


def add(commands: flags.Commands) -> None:
    """Its parser."""
    mcp = commands.add("mcp", _mcp, "serve a swarm to MCP clients", "swarmd mcp --nats nats://127.0.0.1:4222")
    mcp.add_argument(
        "--http",
        type=int,
        metavar="PORT",
        help=f"over HTTP on {HOST} instead of stdio (0: any free port); the token is in {TOKEN_VARIABLE}",
    )
    mcp.add_argument("--by", default="", metavar="NAME", help="who answers and tells (default: USER over mcp)")
    mcp.add_argument("--approve", action="store_true", help="let clients answer approvals of tool calls too")


def _mcp(args: argparse.Namespace) -> int:
    import importlib.util
    import os

    from swarmd.core.errors import Rejected
    from swarmd.edges.cli.session import run

    if importlib.util.find_spec("mcp") is None:
        raise Rejected("missing_extra", "swarmd mcp needs the package mcp: pip install 'swarmd[mcp]'")
    if args.http is None:
        return run(args, lambda session: _serve(session, _over_stdio))
    if not 0 <= args.http <= 65_535:
        raise Rejected("bad_usage", "--http takes a port, 0 to 65535")
    token = os.environ.get(TOKEN_VARIABLE, "")
    if len(token) < TOKEN_CHARS_MIN or not token.isascii():
        how = f"export {TOKEN_VARIABLE}=$(openssl rand -hex 32)"
        raise Rejected("bad_credentials", f"{TOKEN_VARIABLE} must hold {TOKEN_CHARS_MIN} characters or more: {how}")

    async def over_http(session: Session, server: Server[Any]) -> None:
        await _over_http(session, server, args.http, token)

    return run(args, lambda session: _serve(session, over_http))


async def _serve(session: Session, transport: Callable[[Session, Server[Any]], Awaitable[None]]) -> int:
    from swarmd.edges.client import Client
    from swarmd.edges.mcp_server import SwarmTools, server_of

    async with Client.over(session.wire.bus, session.swarm) as client:
        by = session.args.by or _user()
        tools = SwarmTools(client, session.ask, session.swarm, session.settings.memory.name, by)
        tools.may_approve = session.args.approve
        await transport(session, server_of(tools))
    return flags.OK


def _user() -> str:
    import getpass

    try:
        return f"{getpass.getuser()} over mcp"
    except (KeyError, OSError):  # a user without a name, as in some containers
        return "mcp"


async def _over_stdio(_: Session, server: Server[Any]) -> None:
    from mcp.server.stdio import stdio_server

    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())


async def _over_http(session: Session, server: Server[Any], port: int, token: str) -> None:
    import socket

    import uvicorn

    with socket.create_server((HOST, port)) as listener:
        url = f"http://{HOST}:{listener.getsockname()[1]}{PATH}"
        app = guarded(server.streamable_http_app(streamable_http_path=PATH, host=HOST), token)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
        session.tell({"url": url}, url)
        await uvicorn.Server(config).serve([listener])


def guarded(app: Any, token: str) -> Any:
    """The same app for those who send the token; who does not is told 401 and nothing else."""
    import hmac

    wanted = f"Bearer {token}".encode()

    async def guard(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            if not hmac.compare_digest(given, wanted):
                headers = [(b"www-authenticate", b"Bearer"), (b"content-length", b"0")]
                await send({"type": "http.response.start", "status": 401, "headers": headers})
                await send({"type": "http.response.body", "body": b""})
                return
        await app(scope, receive, send)

    return guard
