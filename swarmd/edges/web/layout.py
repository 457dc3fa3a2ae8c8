"""What all rooms share: the frame of a page, its files, and the headers that keep strangers' text harmless.

Invariants: a page holds no text of an agent, only its scripts fetch it and write it as text; nothing is loaded from
elsewhere; no script or style stands in a page. Must not know what a room shows.
"""

from __future__ import annotations

import html
from functools import cache
from importlib import resources
from typing import Final

from msgspec import Struct

#: For every answer. `require-trusted-types-for` makes a browser refuse to parse text as HTML, whatever a script does.
HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class Place(Struct, frozen=True):
    """An entry of the menu."""

    path: str
    title: str


@cache
def static(name: str) -> bytes | None:
    """A file of the page; None for anything but the plain name of one that is packaged."""
    if "/" in name or "\\" in name or name.startswith(".") or name.endswith(".py"):
        return None
    file = resources.files(__package__).joinpath("static", name)
    return file.read_bytes() if file.is_file() else None


def page(title: str, places: list[Place], here: str, csrf: str) -> str:
    """The frame around the room at `here`; its body is `static/<room>.html`."""
    room = here.strip("/")
    menu = "\n".join(
        f'<li><a href="{html.escape(place.path)}"{" aria-current=page" if place.path == here else ""}>'
        f"{html.escape(place.title)}</a></li>"
        for place in places
    )
    return _filled(
        "layout.html",
        title=html.escape(title),
        menu=menu,
        csrf=html.escape(csrf),
        room=html.escape(room),
        body=_text(f"{room}.html"),
    )


def sign_in(problem: str) -> str:
    """The page for whoever has no session."""
    return _filled("sign-in.html", problem=html.escape(problem))


def _filled(name: str, **parts: str) -> str:
    text = _text(name)
    for key, value in parts.items():
        text = text.replace(f"{{{{{key}}}}}", value)
    return text


def _text(name: str) -> str:
    content = static(name)
    assert content is not None, name
    return content.decode()
