"""A data directory belongs to one swarmd at a time, and to none once its owner is dead."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from swarmd.adapters.data_dir import lock_data_dir
from swarmd.core.errors import Rejected

if TYPE_CHECKING:
    from pathlib import Path


def test_a_data_directory_has_one_owner(tmp_path: Path) -> None:
    with lock_data_dir(tmp_path / "data"):
        with pytest.raises(Rejected, match=rf"in use by pid {os.getpid()}; stop that swarmd") as raised:
            lock_data_dir(tmp_path / "data")
        assert raised.value.code == "data_dir_locked"
    lock_data_dir(tmp_path / "data").release()


def test_an_unusable_data_directory_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Rejected, match="choose another one with --data DIR"):
        lock_data_dir(tmp_path / "file")


def test_a_killed_owner_leaves_no_lock(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, signal, sys\n"
        "from swarmd.adapters.data_dir import lock_data_dir\n"
        "held = lock_data_dir(pathlib.Path(sys.argv[1]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == -9
    lock_data_dir(tmp_path).release()
