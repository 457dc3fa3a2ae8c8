"""What a test needs to run a page as a reader would: its marked blocks, its commands, and a shell that has them."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from tests.system.ups import PLAIN, main_here

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
COMMAND_S = 60
#: What asks a running swarm and does no more: it loads no agents and needs no process of its own.
ASKING = frozenset(
    "agents cancel feedback inbox log members memory pause redrive replay result resume schedule signal status "
    "submit tasks tell verify watch".split()
)


def marked(page: str, mark: str) -> list[tuple[str, str]]:
    """(value of the mark, content) of each fenced block below `<!-- mark: value -->` or `<!-- mark -->`."""
    pattern = rf"<!-- {mark}(?:: ([^\n]*?))? -->\n```\w*\n(.*?)```"
    return re.findall(pattern, (DOCS / page).read_text(), re.DOTALL)


def commands(page: str) -> list[tuple[str, list[str]]]:
    """Each command of a page that can be run as it stands, with the output that is promised below it."""
    found: list[tuple[str, list[str]]] = []
    for _, content in marked(page, "run"):
        for line in content.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def files_of(page: str, folder: Path) -> None:
    """Write the files that a page shows."""
    for name, content in marked(page, "file"):
        (folder / name).write_text(content)


def environment(folder: Path, **more: str) -> dict[str, str]:
    """The variables of a shell in `folder` that has `swarmd` and `python3` on its path, and imports what lies there."""
    binaries = folder / "bin"
    binaries.mkdir()
    for name, command in (("swarmd", f'{sys.executable} -m swarmd "$@"'), ("python3", f'{sys.executable} "$@"')):
        (binaries / name).write_text(f"#!/bin/sh\nexec {command}\n")
        (binaries / name).chmod(0o755)
    return {"PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}:{folder}", **more}


def plain_words(command: str) -> list[str]:
    """The arguments of a `swarmd` that only asks a swarm, without anything that takes a shell; or nothing."""
    unquoted = re.sub(r"'[^']*'", "''", command)
    if not command.startswith("swarmd ") or re.search(r"[$`\\|&;<>()*?\[\]{}~#!\n]", unquoted):
        return []
    words = shlex.split(command)[1:]
    return words if words and words[0] in ASKING else []


def shell(command: str, folder: Path, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """One command as a shell runs it; within this process if that is the same, since that is ten times as fast."""
    if words := plain_words(command):
        with contextlib.chdir(folder), ThreadPoolExecutor(1) as threads:  # a command brings its own event loop
            told = threads.submit(main_here, words, "", environ).result()
        return subprocess.CompletedProcess(words, told.code, told.out, told.err)
    return subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env={**PLAIN, **environ},
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
