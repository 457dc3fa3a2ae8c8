"""How long connecting to `mcp-server-time` and calling it takes: `python -m tests.contract.mcp_times`."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time

from swarmd.adapters.mcp_session import McpServerSettings, McpSession, load_sdk

CONNECTS, CALLS = 5, 500


async def measure() -> dict[str, float]:
    settings = McpServerSettings("time", (sys.executable, "-m", "mcp_server_time"), environ=dict(os.environ))
    await load_sdk()
    connects, calls = [], []
    for _ in range(CONNECTS):
        started = time.perf_counter()
        await McpSession(settings).look()
        connects.append(time.perf_counter() - started)
    session = McpSession(settings)
    async with asyncio.TaskGroup() as group:
        keeper = group.create_task(session.keep())
        await session.listed()
        for _ in range(CALLS):
            started = time.perf_counter()
            await session.call("time__get_current_time", {"timezone": "Europe/Berlin"})
            calls.append(time.perf_counter() - started)
        started = time.perf_counter()
        await asyncio.gather(
            *(session.call("time__get_current_time", {"timezone": "Europe/Berlin"}) for _ in range(CALLS))
        )
        side_by_side = time.perf_counter() - started
        keeper.cancel()
    return {
        "connect_list_close_p50_s": round(statistics.median(connects), 3),
        "call_p50_ms": round(statistics.median(calls) * 1000, 2),
        "call_p99_ms": round(statistics.quantiles(calls, n=100)[98] * 1000, 2),
        "calls_side_by_side_per_s": round(CALLS / side_by_side),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure())))
