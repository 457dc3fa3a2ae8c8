"""Commands about the swarm as a whole: agents, members, watch."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from swarmd.edges.cli import flags

if TYPE_CHECKING:
    import argparse

    from swarmd.core.wire import MemberStatus, SwarmStatus
    from swarmd.edges.cli.session import Session
    from swarmd.ports import Received


def add(commands: flags.Commands) -> None:
    """Their parsers."""
    commands.add("agents", _agents, "list the agents that members offer", "swarmd agents --swarm research")
    commands.add("members", _members, "list worker nodes and child swarms", "swarmd members --json")
    watch = commands.add("watch", _watch, "watch the swarm live", "swarmd watch --interval 0.5")
    watch.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between two looks")
    watch.add_argument("--count", type=int, default=0, metavar="N", help="stop after so many looks (0: never)")
    watch.add_argument("--events", action="store_true", help="follow the feed of events ([observer] feed = true)")


# --- agents and members ----------------------------------------------------------------------------


def _agents(args: argparse.Namespace) -> int:
    from swarmd.edges.cli.session import run

    async def act(session: Session) -> int:
        from swarmd.edges.cli.session import as_json, table

        agents = offered(await session.status())
        if session.json:
            for agent in agents:
                print(as_json(agent))
            return flags.OK
        columns = ["agent", "members", "slots", "free", "waiting"]
        print(table(columns, [[str(agent[name]) for name in columns] for agent in agents]))
        return flags.OK

    return run(args, act)


def offered(status: SwarmStatus) -> list[dict[str, Any]]:
    """Who offers what: one entry per agent, those that are only waited for included."""
    from swarmd.core.wire import Crew

    found = []
    for name in sorted({*status.waiting, *status.offers}):
        offer = status.offers.get(name, Crew())
        found.append(
            {
                "agent": name,
                "members": offer.members,
                "slots": offer.slots,
                "free": max(0, offer.slots - offer.used),
                "waiting": status.waiting.get(name, 0),
            }
        )
    return found


def _members(args: argparse.Namespace) -> int:
    from swarmd.edges.cli.session import run

    async def act(session: Session) -> int:
        from swarmd.edges.cli.session import as_json, table

        members = await session.members()
        if session.json:
            for member in members:
                print(as_json(member))
            return flags.OK
        columns = ["member", "kind", "node", "running", "capacity", "heard", "state", "agents"]
        print(table(columns, [_member_row(member) for member in members]))
        return flags.OK

    return run(args, act)


def _member_row(member: MemberStatus) -> list[str]:
    state = "draining" if member.capacity == 0 else "up" if member.reachable else "silent"
    if member.quarantined:
        state = f"set apart: {member.quarantined}"
    heard = f"{member.heard_ms} ms ago" if member.heard_ms >= 0 else "never"
    counts = [str(member.running), str(member.capacity)]
    return [member.member, member.kind, member.node, *counts, heard, state, ", ".join(member.agents)]


# --- watch -----------------------------------------------------------------------------------------


def _watch(args: argparse.Namespace) -> int:
    from swarmd.core.errors import Rejected
    from swarmd.edges.cli.session import run

    if args.interval <= 0:
        raise Rejected("bad_usage", "--interval must be more than 0 seconds")
    if args.events:
        return run(args, _watch_events)
    return run(args, _watch_plain if flags.wants_json(args) or not sys.stdout.isatty() else _watch_live)


async def _look(session: Session) -> SwarmStatus | str:
    """The swarm now, or why it cannot be seen: a watch outlives a restart of what it watches."""
    from swarmd.core.errors import Fault

    try:
        return await session.status()
    except Fault as fault:
        return fault.message


async def _watch_plain(session: Session) -> int:
    """One line a look: JSON, or where no terminal is, a text line."""
    import asyncio

    from swarmd.edges.cli.session import as_json, note

    looks = 0
    while True:
        seen = await _look(session)
        if isinstance(seen, str):
            note(f"cannot see swarm {session.swarm}: {seen}")
        elif session.json:
            print(as_json(seen), flush=True)
        else:
            live = sum(count for state, count in seen.tasks.items() if state != "dead")
            done = seen.counters.get("completed", 0)
            crew = f"members={seen.crew.members} live={live} running={seen.crew.used}"
            print(f"{seen.swarm} seq={seen.seq} {crew} done={done}")
        looks += 1
        if looks == session.args.count:
            return flags.OK
        await asyncio.sleep(session.args.interval)


async def _watch_live(session: Session) -> int:
    """A live view in the terminal."""
    import asyncio

    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    looks, before = 0, None
    with Live(Text("looking …"), auto_refresh=False) as live:
        while True:
            seen = await _look(session)
            if isinstance(seen, str):
                live.update(Group(Text(f"cannot see swarm {session.swarm}: {seen}")), refresh=True)
            else:
                live.update(_picture(seen, before, session.args.interval), refresh=True)
                before = seen
            looks += 1
            if looks == session.args.count:
                return flags.OK
            await asyncio.sleep(session.args.interval)


def _picture(status: SwarmStatus, before: SwarmStatus | None, interval: float) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from swarmd.edges.cli.tasks import swarm_text

    done = status.counters.get("completed", 0) - (before.counters.get("completed", 0) if before else 0)
    rate = f"\nrate     {done / interval:,.0f} tasks completed per second" if before else ""
    members = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("member", "kind", "node", "running", "capacity", "heard", "state", "agents"):
        members.add_column(column, overflow="fold")
    for member in status.members:
        members.add_row(*map(Text, _member_row(member)))
    if status.crew.members > len(status.members):
        members.add_row(Text(f"and {status.crew.members - len(status.members)} more: swarmd members"))
    return Group(Text(swarm_text(status) + rate), Text(), members)


async def _watch_events(session: Session) -> int:
    """Every folded event as its observer publishes it; the feed is lossy under load, the log is not."""
    import asyncio

    from swarmd.edges.cli.session import note
    from swarmd.roles.tool_calls import clean

    arrived: asyncio.Queue[Received] = asyncio.Queue(10_000)
    lost = 0

    def take(message: Received) -> None:
        nonlocal lost
        if arrived.full():
            lost += 1
        else:
            arrived.put_nowait(message)

    await session.wire.bus.subscribe(f"swarm.{session.swarm}.event.>", take)
    note(f"following the events of swarm {session.swarm}; an observer publishes them when [observer] feed is true")
    seen = 0
    while True:
        message = await arrived.get()
        text = message.payload.decode("utf-8", "replace")
        print(text if session.json else clean(text), flush=arrived.empty())
        seen += 1
        if lost:
            note(f"{lost} events were not shown: this terminal is too slow")
            lost = 0
        if seen == session.args.count:
            return flags.OK
