"""The secret that signs in to the page: made once, kept in a private file beside the broker's credentials.

Must not know who asks for it, nor what it opens.
"""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from swarmd.core.errors import Rejected

if TYPE_CHECKING:
    from pathlib import Path

FILE: Final = "users/web.token"
TOKEN_BYTES: Final = 32


def keep_token(data: Path) -> str:
    """The token of this data directory, made on first use (0600 in a 0700 directory).

    Raises `Rejected("bad_credentials")` for a file that cannot be read or is open to others.
    """
    file = data / FILE
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file.parent.chmod(0o700)
    if not file.exists():
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as stream:
            stream.write(f"{secrets.token_urlsafe(TOKEN_BYTES)}\n")
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(temporary, file)  # the first of two that start at once wins, and both read the same
        except FileExistsError:
            pass
        temporary.unlink()
    return read_token(data)


def read_token(data: Path) -> str:
    """The token that was made before. Raises `Rejected("bad_credentials")`."""
    file = data / FILE
    try:
        mode = file.stat().st_mode
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise Rejected("bad_credentials", f"cannot read the token of the page, {file}: {why}") from None
    if mode & 0o077:
        raise Rejected("bad_credentials", f"{file} is open to other users: run `chmod 600 {file}`")
    if len(token) < TOKEN_BYTES:
        raise Rejected("bad_credentials", f"{file} is damaged: remove it and start again")
    return token


def sign_in_url(address: str, data: Path) -> str:
    """The address that signs in: good for whoever has it, so it is for its reader only."""
    return f"{address}/?token={quote(read_token(data))}"
