"""The embedded vector store: one Milvus Lite server as a supervised child process on loopback.

Job: start it, say when it is ready, restart it on the same port when it dies, stop it.
Invariants: the child dies with this process; it listens on loopback only; it has one worker thread, so two writes can
never overlap, not even when a caller gave up on the first (overlapping writers destroy each other's log); every wait is
bounded; only the data directory is written.
What it holds is a projection. Its log reaches the disk only when it is closed, so after an unclean end of the whole
machine the directory is dropped and the projection rebuilt: old rows beside a newer claim would be worse than none.
Must not know what is stored: collections, embedders, memories.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import logging
import os
import shutil
import signal
import socket
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from swarmd.core.errors import Fault, Rejected
from swarmd.supervised import Child, Supervised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

HOST = "127.0.0.1"  # the server's own default is every interface, without authentication
READY_S = 120.0
"""Opening replays what was not flushed and reads the segments: seconds for 100,000 rows, more on a busy machine."""
LOCK_WAIT_S = 3.0
"""A server whose parent was killed dies at once, but its lock may outlive it by a moment."""
RESTARTS_MAX = 5
"""Deaths in a row, each soon after its start, before the supervisor gives up."""
LOG_BYTES_MAX = 10 * 1024 * 1024
_POLL_S = 0.02

# SIGTERM ends it in order: flushed and closed.
_SERVE = """
import signal, sys
signal.signal(signal.SIGTERM, signal.default_int_handler)
signal.signal(signal.SIGINT, signal.default_int_handler)
from milvus_lite.cmdline import main
sys.exit(main(sys.argv[1:]))
"""


class MilvusServer:
    """One Milvus Lite server under `data_dir`; `port` 0 takes any free one and keeps it on restarts."""

    def __init__(self, data_dir: Path, port: int = 0) -> None:
        self.port = port
        self.directory = data_dir / "milvus"
        self.rows_directory = self.directory / "rows"
        self.log_file = self.directory / "milvus.log"
        self._boot_file = self.directory / "boot"
        self._reservation: socket.socket | None = None
        self._child = Supervised(
            # killed when it is orphaned: its log survives that, and its lock is free at once
            Child("milvus-lite", "milvus_server", (self.log_file,), ready_s=READY_S, orphan=signal.SIGKILL)
        )

    @property
    def uri(self) -> str:
        """The address for clients; known once started."""
        return f"http://{HOST}:{self.port}"

    @property
    def is_started(self) -> bool:
        """Whether `supervise` can keep it running: it was started, and not stopped."""
        return self._reservation is not None

    @property
    def pid(self) -> int:
        """The process id, 0 while it is not running."""
        return self._child.pid

    async def start(self) -> None:
        """Start and wait until clients can connect; after a `Fault`, it may be called again.

        Raises `Rejected` ("no_milvus_lite", "port_in_use", "directory_locked"), or `Fault` ("milvus_server_died",
        "milvus_server_slow") with the last lines of its log, or with what is wrong with the disk.
        """
        if importlib.util.find_spec("milvus_lite") is None or importlib.util.find_spec("pymilvus") is None:
            raise Rejected(
                "no_milvus_lite",
                "Milvus Lite is not installed: run `pip install 'swarmd[memory]'`, or name a Milvus server by its URL",
            )
        self._child.rearm()
        self._reserve_port()
        try:
            with _disk_told():
                self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                await self._wait_unlocked()
                self._drop_after_power_loss()
            await self._launch()
        except BaseException:
            self._release_port()
            raise

    async def supervise(self, on_restart: Callable[[int], None] | None = None) -> None:
        """Restart the server whenever it dies, until `stop`; call `on_restart(pid)` after each.

        Raises `Fault("milvus_server_died")` when it dies again and again; it may then be called once more.
        """
        await self._child.supervise(self._launch, RESTARTS_MAX, on_restart)

    async def stop(self) -> None:
        """End the server: in order by SIGTERM, then SIGKILL when that takes too long. Idempotent."""
        was_running = self.pid != 0
        await self._child.stop()
        self._release_port()
        if was_running and self._child.exit_code == 0:
            self._boot_file.unlink(missing_ok=True)  # closed and synced: good on any later day

    async def _launch(self) -> None:
        where = ["--data-dir", str(self.rows_directory), "--host", HOST, "--port", str(self.port)]
        with _disk_told():
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)  # somebody may have deleted it
            self._boot_file.write_text(_boot_id(), encoding="ascii")
            with self._open_output() as output:
                argv = [sys.executable, "-c", _SERVE, "server", *where, "--max-workers", "1"]
                await self._child.launch(argv, output, cwd=self.directory)
        try:
            await self._child.until_ready(self._is_ready)
        except Fault as fault:
            if fault.code == "milvus_server_died" and self._is_locked():
                raise self._locked() from fault
            raise

    async def _is_ready(self) -> bool:
        """The port opens once the directory is recovered; until then, nobody else can listen on it."""
        return await _accepts(self.port)

    def _open_output(self) -> BinaryIO:
        if self.log_file.exists() and self.log_file.stat().st_size > LOG_BYTES_MAX:
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
        return open(self.log_file, "ab")

    def _reserve_port(self) -> None:
        """Hold the port without listening on it, from before the first start until `stop`.

        gRPC servers bind with SO_REUSEPORT: two of them on one port both start, and clients land on either (measured).
        While this socket is bound, no search for a free port returns ours and no probe like `_refuse_used_port` passes.
        """
        if self.port:
            _refuse_used_port(self.port)
        reservation = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reservation.bind((HOST, self.port))
        except OSError as error:
            reservation.close()
            raise _port_in_use(self.port, error) from error
        self.port = reservation.getsockname()[1]
        self._reservation = reservation

    def _release_port(self) -> None:
        if self._reservation is not None:
            self._reservation.close()
            self._reservation = None

    async def _wait_unlocked(self) -> None:
        for _ in range(int(LOCK_WAIT_S / _POLL_S)):
            if not self._is_locked():
                return
            await asyncio.sleep(_POLL_S)
        raise self._locked()

    def _is_locked(self) -> bool:
        """Whether a living server holds the directory: it keeps an advisory lock on a file there."""
        try:
            descriptor = os.open(self.rows_directory / "LOCK", os.O_RDWR)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)  # gives the lock back
        return False

    def _locked(self) -> Rejected:
        return Rejected(
            "directory_locked",
            f"another process uses {self.rows_directory}: stop it, or choose another data directory with --data",
        )

    def _drop_after_power_loss(self) -> None:
        """Drop the rows when the machine ended under a running server: another boot, and no orderly stop since."""
        if self._boot_file.exists() and self._boot_file.read_text(encoding="ascii", errors="replace") != _boot_id():
            log.warning("the machine stopped while milvus-lite ran: dropping %s to rebuild it", self.rows_directory)
            if self.rows_directory.exists():
                shutil.rmtree(self.rows_directory)


@contextmanager
def _disk_told() -> Iterator[None]:
    """A full disk, or files that went, are no reason to end: the next start may find them in order."""
    try:
        yield
    except OSError as error:
        raise Fault("milvus_server_died", f"milvus-lite cannot be started: {error}") from error


def _boot_id() -> str:
    """One value per start of the machine; the same empty one always where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _refuse_used_port(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise _port_in_use(port, error) from error


def _port_in_use(port: int, error: OSError) -> Rejected:
    return Rejected(
        "port_in_use",
        f"cannot listen on {HOST}:{port} ({error.strerror}): stop what uses it, or let swarmd choose with port 0",
    )


async def _accepts(port: int) -> bool:
    try:
        async with asyncio.timeout(1.0):
            _, writer = await asyncio.open_connection(HOST, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
