"""A delegate as a process of its own, for tests that kill it: `delegate_process URL PARENT CHILD`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from swarmd.adapters.nats_connect import NatsSettings
from swarmd.adapters.telemetry import Telemetry
from swarmd.edges.wiring import DelegateOptions, run_delegate


async def main(url: str, parent: str, child: str) -> None:
    """Run until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = NatsSettings(
        url=url, user="delegate", password=os.environ["DELEGATE_PASSWORD"], inbox_prefix="_INBOX_delegate"
    )
    await run_delegate(settings, DelegateOptions(parent, child), Telemetry("delegate", parent), stop, lambda: None)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
