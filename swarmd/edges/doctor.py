"""What can be wrong around swarmd, looked at from here: broker, JetStream, fsync, disk, rights, clock.

Job: a list of findings, each ok, warn or fail, with what to do. It changes nothing but a stream of its own, which it
removes. Must not repair.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from typing import TYPE_CHECKING, Final, Literal

import msgspec
from msgspec import Struct

from swarmd.adapters.nats_bus import ApiRefused, NatsBus
from swarmd.adapters.nats_connect import redact_url
from swarmd.adapters.nats_server import OLDEST
from swarmd.adapters.streams import stream_state
from swarmd.core import subjects
from swarmd.core.errors import Fault, Rejected, SwarmdError
from swarmd.core.wire import SwarmStatus
from swarmd.edges.settings import admin_of, data_dir
from swarmd.edges.wiring import CLOCK, connected, mint

if TYPE_CHECKING:
    from pathlib import Path

    from swarmd.config import Settings

PUBLISHES: Final = 50
ANSWER_MS: Final = 2_000
FAST_MS, SLOW_MS = 5.0, 25.0
"""A receipt after an fsync takes 0.1 to 2 ms on a good disk; beyond these the disk bounds everything."""
FREE_WARN, FREE_FAIL = 0.10, 0.02
SKEW_WARN_MS: Final = 2_000


class Finding(Struct):
    """One thing looked at."""

    check: str
    state: Literal["ok", "warn", "fail"]
    found: str


async def examine(settings: Settings, swarm: str) -> list[Finding]:
    """Look at everything that can be looked at from here; what needs the broker is left out when it is not there."""
    findings = [_disk(data_dir(settings))]
    try:
        async with connected(admin_of(settings), "swarmd-doctor") as wire:
            findings += _broker(wire.bus)
            findings += await _jetstream(wire.bus, swarm)
            findings.append(await _fsync(wire.bus, settings, swarm))
            findings += await _swarm(wire.bus, swarm)
            findings.append(_permissions(str(wire.bus.client.options.get("user") or "client"), findings))
    except SwarmdError as error:
        findings.append(Finding("broker", "fail", f"{error.message} ({error.code})"))
    return findings


def _permissions(user: str, findings: list[Finding]) -> Finding:
    """What this user may do, by what was possible just now."""
    states = {finding.check: finding for finding in findings}

    def worked(check: str) -> bool:
        return check in states and states[check].state != "fail"

    timed = "fsync" in states and not states["fsync"].found.startswith("this user")
    answers = "observer" in states and states["observer"].state == "ok"
    may = {"use ctl": worked("swarm"), "read the log": worked("log"), "use find": answers, "make streams": timed}
    can = ", ".join(what for what, possible in may.items() if possible) or "nothing here"
    cannot = ", ".join(what for what, possible in may.items() if not possible)
    state: Literal["ok", "warn", "fail"] = "ok" if worked("swarm") and worked("log") else "warn"
    return Finding("permissions", state, f"{user} can {can}" + (f"; could not {cannot}" if cannot else ""))


def _disk(folder: Path) -> Finding:
    at = folder
    while not at.exists() and at != at.parent:
        at = at.parent
    usage = shutil.disk_usage(at)
    share = usage.free / usage.total
    state: Literal["ok", "warn", "fail"] = "ok" if share > FREE_WARN else "warn" if share > FREE_FAIL else "fail"
    free_gib = usage.free / 1024**3
    return Finding("disk", state, f"{free_gib:,.1f} GiB ({share:.0%}) free for {folder}")


def _broker(bus: NatsBus) -> list[Finding]:
    info = bus.client._server_info
    version = str(info.get("version", "?"))
    url = redact_url(bus.client.connected_url.geturl()) if bus.client.connected_url else "?"
    parts = [int(part) for part in re.findall(r"\d+", version)[:2]]
    need = ".".join(map(str, OLDEST))
    old = tuple(parts) < OLDEST
    found = [
        Finding("broker", "fail" if old else "ok", f"{url}, nats-server {version}" + (f", needs {need}" if old else ""))
    ]
    payload = int(info.get("max_payload", 0))
    if payload < 1024 * 1024:
        found.append(Finding("payload", "fail", f"max_payload is {payload} bytes: set it to 1 MiB or more"))
    return found


async def _jetstream(bus: NatsBus, swarm: str) -> list[Finding]:
    """Whether the log is there and how full its stores are."""
    found = []
    for what, stream in (("log", subjects.log_stream(swarm)), ("blobs", subjects.blob_stream(swarm))):
        try:
            state = await stream_state(bus, stream)
        except Rejected as error:
            hint = f"start its orchestrator, or name another with --swarm ({error.message})"
            found.append(Finding(what, "fail", f"swarm {swarm} has no {what} here: {hint}"))
            continue
        except Fault as fault:
            return [Finding("jetstream", "fail", f"no answer from JetStream: turn it on with `-js` ({fault.message})")]
        limit = state["max_bytes"]
        share = state["bytes"] / limit if limit > 0 else 0.0
        text = f"{state['messages']:,} messages, {state['bytes'] / 1024**2:,.1f} MiB, {share:.0%} of its limit"
        if state["replicas"] > 1:
            text += f"; {state['copies']} of {state['replicas']} copies are up to date"
        short = share >= 0.8 or state["copies"] < state["replicas"]
        found.append(Finding(what, "fail" if share >= 0.9 else "warn" if short else "ok", text))
    return [Finding("jetstream", "ok", "on"), *found]


async def _fsync(bus: NatsBus, settings: Settings, swarm: str) -> Finding:
    """Time receipts on a stream of our own, and read the embedded broker's configuration where it is at hand."""
    stream = f"DOCTOR_{mint()}"
    subject = f"swarm.{swarm}.doctor.{stream}"
    config = {"name": stream, "subjects": [subject], "storage": "file", "max_bytes": 1024**2, "num_replicas": 1}
    try:
        await bus.api(f"STREAM.CREATE.{stream}", msgspec.json.encode(config), ANSWER_MS)
    except (ApiRefused, Fault):
        why = "this user may not make a stream, so receipts were not timed: use --data DIR or --user-file"
        return Finding("fsync", "warn", why)
    try:
        took_ms = []
        loop = asyncio.get_running_loop()
        for _ in range(PUBLISHES):
            started = loop.time()
            await bus.request(subject, b"x" * 256, ANSWER_MS)
            took_ms.append((loop.time() - started) * 1000)
    finally:
        await bus.api(f"STREAM.DELETE.{stream}", b"", ANSWER_MS)
    middle, worst = sorted(took_ms)[PUBLISHES // 2], max(took_ms)
    setting = _sync_setting(data_dir(settings))
    text = f"receipts take {middle:.2f} ms (median), {worst:.1f} ms (worst); sync_interval {setting}"
    if setting == "2m":
        return Finding("fsync", "warn", f"{text}: a power failure loses up to two minutes of acknowledged work")
    return Finding("fsync", "ok" if middle < FAST_MS else "warn" if middle < SLOW_MS else "fail", text)


def _sync_setting(folder: Path) -> str:
    try:
        found = re.search(r'sync_interval: "?(\w+)"?', (folder / "nats" / "nats.conf").read_text())
    except OSError:
        found = None
    return found[1] if found else "unknown from here"


async def _swarm(bus: NatsBus, swarm: str) -> list[Finding]:
    """Rights by what answers: a leader for `ctl`, an observer for `find`; and the leader's clock against ours."""
    findings = []
    try:
        answer = await bus.request(subjects.ctl(swarm, "status"), b"", ANSWER_MS)
        status = msgspec.json.decode(answer, type=SwarmStatus)
        members, silent = status.crew.members, status.crew.members - status.crew.reachable
        state: Literal["ok", "warn", "fail"] = "ok" if members and not silent and not status.refusing else "warn"
        text = f"{status.leader} leads in term {status.term}; {members} members, {silent} of them silent"
        findings.append(
            Finding("swarm", state, f"{text}{'; refuses work: ' + status.refusing if status.refusing else ''}")
        )
    except Fault as fault:
        text = f"no leader answers for swarm {swarm} ({fault.code}): it is down, or this user may not use ctl"
        findings.append(Finding("swarm", "fail", text))
    try:
        await bus.request(subjects.find(swarm, "tasks"), b'{"limit":1}', ANSWER_MS)
        findings.append(Finding("observer", "ok", "answers"))
    except Fault:
        findings.append(Finding("observer", "warn", "none answers: `swarmd tasks` will not work"))
    findings.append(await _clock(bus, swarm))
    return findings


async def _clock(bus: NatsBus, swarm: str) -> Finding:
    """The broker's clock as it stamps a fresh answer of JetStream, against ours."""
    try:
        info = await bus.api(f"STREAM.INFO.{subjects.log_stream(swarm)}", b"", ANSWER_MS)
    except (ApiRefused, Fault):
        return Finding("clock", "warn", "could not be compared: the log's state cannot be read")
    stamp = str(info.get("ts", ""))
    if not stamp:
        return Finding("clock", "warn", "the broker does not say its time")
    theirs_ms = _epoch_ms(stamp)
    skew_ms = abs(CLOCK.now_ms() - theirs_ms)
    state: Literal["ok", "warn", "fail"] = "ok" if skew_ms < SKEW_WARN_MS else "warn"
    return Finding("clock", state, f"{skew_ms} ms apart from the broker's")


def _epoch_ms(stamp: str) -> int:
    """RFC 3339 with nanoseconds to milliseconds."""
    from datetime import datetime

    whole = re.sub(r"(\.\d{6})\d+", r"\1", stamp).replace("Z", "+00:00")
    return int(datetime.fromisoformat(whole).timestamp() * 1000)
