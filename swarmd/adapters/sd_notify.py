"""Tell systemd how the service fares: ready, stopping, still alive.

Job: the datagrams of the `sd_notify` protocol (man 3 sd_notify), on the standard library alone. Without NOTIFY_SOCKET,
that is outside systemd, every call does nothing. Must not know what ready means.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)


class Notifier:
    """Built from the environment; `watchdog_s` is how often to call `watchdog`, 0 where systemd does not ask for it."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = _watchdog_s(environment)

    def ready(self, status: str = "") -> bool:
        return self._send("READY=1", status)

    def stopping(self, status: str = "") -> bool:
        return self._send("STOPPING=1", status)

    def watchdog(self) -> bool:
        return self._send("WATCHDOG=1")

    def status(self, text: str) -> bool:
        return self._send("", text)

    def _send(self, state: str, status: str = "") -> bool:
        """Whether systemd was told; failing to tell must not end the service, so it is only logged."""
        if not self._address:
            return False
        lines = [line for line in (state, f"STATUS={' '.join(status.split())}" if status else "") if line]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
                notify.setblocking(False)
                notify.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            log.warning("cannot tell systemd %s: %s", lines, error)
            return False
        return True


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """Half the interval that systemd grants, as its manual advises; 0 if it is meant for another process."""
    granted, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not granted.isdigit() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(granted) / 2_000_000
