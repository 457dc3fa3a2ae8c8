"""Tools that run in another process; such a process imports them from here."""

from __future__ import annotations

import os
import signal
import sys
import time
from array import array

from swarmd.core.errors import Fault, Rejected
from swarmd.sdk_tools import tool


@tool(sync="process", concurrency=2, timeout_s=20, output_bytes_max=1_000)
def act(how: str, idempotency_key: str = "") -> str:
    """Do what the test says.

    Args:
        how: what to do
    """
    match how:
        case "pid":
            return str(os.getpid())
        case "key":
            return idempotency_key
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "leave":
            sys.exit(3)
        case "hang":
            while True:
                time.sleep(60)
        case "large":
            return "x" * 50_000_000
        case "rejected":
            raise Rejected("no", "not so")
        case "fault":
            raise Fault("down", "later", retry_after_ms=7)
        case _:
            raise KeyError(how)
    return "nothing"


@tool(sync="process", concurrency=1, timeout_s=20)
def hang(path: str) -> str:
    """Say who hangs, and hang."""
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    while True:
        time.sleep(60)


def embed_by_pid(dimension: int, texts: list[str]) -> bytes:
    """Vectors that say which process made them."""
    return array("f", [float(os.getpid()), 1.0] * len(texts)).tobytes()


def embed_never(dimension: int, texts: list[str]) -> bytes:
    """Ends its process."""
    os._exit(3)
