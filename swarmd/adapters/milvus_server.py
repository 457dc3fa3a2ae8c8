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
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from swarmd.core.errors import Fault, Rejected

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

HOST = "127.0.0.1"  # the server's own default is every interface, without authentication
READY_S = 120.0
"""Opening replays what was not flushed and reads the segments: seconds for 100,000 rows, more on a busy machine."""
STOP_S = 20.0
LOCK_WAIT_S = 3.0
"""A server whose parent was killed dies at once, but its lock may outlive it by a moment."""
RESTARTS_MAX = 5
"""Deaths in a row, each within `STEADY_S` of its start, before the supervisor gives up."""
STEADY_S = 30.0
LOG_BYTES_MAX = 10 * 1024 * 1024
_POLL_S = 0.02

# Ask the kernel for SIGKILL when the parent dies (its log survives that), then serve under the same pid. A parent that
# died before the request was made is noticed by comparing its pid. SIGTERM ends it in order: flushed and closed.
_LAUNCHER = """
import ctypes, os, signal, sys
parent, arguments = int(sys.argv[1]), sys.argv[2:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != parent:
    sys.exit(1)
signal.signal(signal.SIGTERM, signal.default_int_handler)
signal.signal(signal.SIGINT, signal.default_int_handler)
from milvus_lite.cmdline import main
sys.exit(main(arguments))
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
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    @property
    def uri(self) -> str:
        """The address for clients; known once started."""
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The process id, 0 while it is not running."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def start(self) -> None:
        """Start and wait until clients can connect.

        Raises `Rejected` ("no_milvus_lite", "port_in_use", "directory_locked"), or `Fault` ("milvus_server_died",
        "milvus_server_slow") with the last lines of its log.
        """
        if importlib.util.find_spec("milvus_lite") is None or importlib.util.find_spec("pymilvus") is None:
            raise Rejected(
                "no_milvus_lite",
                "Milvus Lite is not installed: run `pip install 'swarmd[memory]'`, or name a Milvus server by its URL",
            )
        self._stopping = False
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        await self._wait_unlocked()
        self._drop_after_power_loss()
        self._reserve_port()
        try:
            await self._launch()
        except BaseException:
            self._release_port()
            raise

    async def supervise(self, on_restart: Callable[[int], None] | None = None) -> None:
        """Restart the server whenever it dies, until `stop`; call `on_restart(pid)` after each.

        Raises `Fault("milvus_server_died")` when it dies again and again.
        """
        loop = asyncio.get_running_loop()
        failures = 0
        while not self._stopping:
            process = self._process
            if process is None:
                raise RuntimeError("supervise() needs a started server")
            started = loop.time()
            code = await process.wait()
            if self._stopping:
                return
            failures = failures + 1 if loop.time() - started < STEADY_S else 1
            log.error("milvus-lite (pid %d) ended with code %s; restarting on port %d", process.pid, code, self.port)
            if failures > RESTARTS_MAX:
                raise Fault("milvus_server_died", f"milvus-lite died {failures} times in a row: {self._last_words()}")
            await asyncio.sleep(min(0.1 * 2 ** (failures - 1), 2.0))
            if self._stopping:
                return
            try:
                await self._launch()
            except Fault as fault:
                log.error("restart failed: %s", fault.message)
                continue
            if on_restart is not None:
                on_restart(self.pid)

    async def stop(self) -> None:
        """End the server: in order by SIGTERM, then SIGKILL after `STOP_S`. Idempotent."""
        self._stopping = True
        was_running = self.pid != 0
        await self._end()
        self._release_port()
        if was_running and self._process is not None and self._process.returncode == 0:
            self._boot_file.unlink(missing_ok=True)  # closed and synced: good on any later day

    async def _end(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            log.warning("milvus-lite (pid %d) ignored SIGTERM for %.0f s; killing it", process.pid, STOP_S)
            process.kill()
            await process.wait()

    async def _launch(self) -> None:
        arguments = ["server", "--data-dir", str(self.rows_directory), "--host", HOST, "--port", str(self.port)]
        self._boot_file.write_text(_boot_id(), encoding="ascii")
        with self._open_output() as output:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-c", _LAUNCHER, str(os.getpid()), *arguments, "--max-workers", "1"),
                cwd=self.directory,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C at the terminal is for swarmd, which then stops the server last.
            )
        try:
            async with asyncio.timeout(READY_S):
                await self._wait_ready(self._process)
        except TimeoutError as error:
            await self._end()
            raise Fault(
                "milvus_server_slow", f"milvus-lite not ready in {READY_S:.0f} s: {self._last_words()}"
            ) from error
        except asyncio.CancelledError:
            await self._end()
            raise

    def _open_output(self) -> BinaryIO:
        if self.log_file.exists() and self.log_file.stat().st_size > LOG_BYTES_MAX:
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
        return open(self.log_file, "ab")

    async def _wait_ready(self, process: asyncio.subprocess.Process) -> None:
        """The port opens once the directory is recovered; until then, nobody else can listen on it."""
        while not await _accepts(self.port):
            if process.returncode is not None:
                if self._is_locked():
                    raise self._locked()
                raise Fault("milvus_server_died", f"milvus-lite ended at its start: {self._last_words()}")
            await asyncio.sleep(_POLL_S)

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

    def _last_words(self) -> str:
        """The tail of what the server wrote."""
        try:
            with open(self.log_file, "rb") as file:
                file.seek(max(0, self.log_file.stat().st_size - 4096))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return " | ".join(lines[-3:]) if lines else f"it said nothing; see {self.log_file}"


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
