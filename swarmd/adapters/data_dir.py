"""One swarmd per data directory: the lock that says so.

The lock is an advisory `flock`: the kernel drops it when its holder dies, however it dies, so a crash never leaves a
stale lock behind. The file holds the pid of its owner only to name it in the error. Knows nothing of what is stored.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from swarmd.core.errors import Rejected

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

LOCK_NAME = "swarmd.lock"


class DataDirLock:
    """A held lock; give it back with `release` or by leaving the `with` block."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the directory back; the file stays, since removing it would race with the next owner."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> DataDirLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


def lock_data_dir(path: Path) -> DataDirLock:
    """Create the directory if needed (0700) and take its lock.

    Raises `Rejected("data_dir_locked")`, naming the pid that holds it, or `Rejected("data_dir_unusable")`.
    """
    file = path / LOCK_NAME
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Rejected(
            "data_dir_unusable",
            f"cannot use the data directory {path}: {error.strerror}; choose another one with --data DIR",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        by = f"by pid {holder}" if holder else "by another process"
        raise Rejected(
            "data_dir_locked",
            f"the data directory {path} is in use {by}; stop that swarmd or choose another one with --data DIR",
        ) from error
    except OSError as error:
        os.close(descriptor)
        raise Rejected(
            "data_dir_unusable",
            f"cannot lock the data directory {path}: {error.strerror}; put it on a file system with locks",
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return DataDirLock(path, descriptor)
