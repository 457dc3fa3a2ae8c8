"""Commands that the memory node works at for a while: rebuild, verify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swarmd.edges.cli import flags
from swarmd.edges.cli.memory_asking import reach

if TYPE_CHECKING:
    import argparse

    from swarmd.core.memory_wire import Job
    from swarmd.edges.cli.progress import Progress
    from swarmd.edges.cli.session import Session
    from swarmd.edges.memory_client import MemoryClient


def add(group: flags.Commands) -> None:
    """Their parsers."""
    example = "swarmd memory rebuild --embedder openai:text-embedding-3-small"
    rebuild = group.add("rebuild", _rebuild, "fill a new store from the log, and switch to it", example)
    rebuild.add_argument(
        "--as-of", default="", metavar="SEQ|TIME", help="a view of the past beside it: a sequence, 2h ago, or a time"
    )
    rebuild.add_argument("--embedder", default="", metavar="SPEC", help="what makes the vectors from now on")
    reach(rebuild, admin=False)
    verify = group.add("verify", _verify, "compare the store with the log", "swarmd memory verify --repair")
    verify.add_argument("--repair", action="store_true", help="put right what differs")
    reach(verify, admin=False)


# --- rebuild ---------------------------------------------------------------------------------------


def _rebuild(args: argparse.Namespace) -> int:
    from swarmd.core.errors import Rejected
    from swarmd.edges.cli import memory_asking as asking

    if args.as_of and args.embedder:
        raise Rejected("bad_usage", "a view of the past has the embedder in service: give --as-of or --embedder")
    fields: dict[str, Any] = {"embedder": args.embedder, **_as_of(args.as_of)}

    async def act(session: Session, client: MemoryClient) -> int:
        from swarmd.edges.cli.progress import progress

        with progress("rebuilding", "memories", quiet=session.json) as bar:
            job = await client.rebuild(on_progress=lambda job: _tell(bar, job), **fields)
        if job.kind == "view":
            how = f"ask it with `swarmd memory recall --as-of {job.as_of}`"
            session.tell(job, f"the view as of sequence {job.as_of} holds {job.rows} memories: {how}")
            return flags.OK
        stats = await client.stats()
        where = f"generation {stats.generation}, with the vectors of {stats.embedder}"
        session.tell(job, f"{job.rows} memories are in a new store: recalls are answered from {where}")
        return flags.OK

    return asking.ask(args, act, admin=True, patience_ms=asking.LONG_PATIENCE_MS)


def _as_of(text: str) -> dict[str, int]:
    from swarmd.edges.cli import memory_asking as asking

    if not text:
        return {}
    if text.isascii() and text.isdecimal():
        asking.within("--as-of", int(text), 1, asking.SEQ_MAX)
        return {"as_of_seq": int(text)}
    return {"as_of_ms": asking.ago_ms("--as-of", text)}


def _tell(bar: Progress, job: Job) -> None:
    bar.at(job.done, job.total, job.rows)


# --- verify ----------------------------------------------------------------------------------------


def _verify(args: argparse.Namespace) -> int:
    from swarmd.edges.cli import memory_asking as asking

    async def act(session: Session, client: MemoryClient) -> int:
        from swarmd.edges.cli.progress import progress
        from swarmd.edges.cli.session import note

        with progress("comparing", "memories", quiet=session.json) as bar:
            job = await client.verify(repair=args.repair, on_progress=lambda job: _tell(bar, job))
        session.tell(job, _found(job))
        if job.examples and not session.json:
            note(f"such as {', '.join(job.examples)}")
        left = job.missing + job.extra + job.differing - job.repaired
        if left > 0 and not args.repair:
            note("--repair puts it right")
        return flags.DIFFERENT if left > 0 else flags.OK

    return asking.ask(args, act, admin=True, patience_ms=asking.LONG_PATIENCE_MS)


def _found(job: Job) -> str:
    kinds = ((job.missing, "missing"), (job.extra, "left over"), (job.differing, "said something else"))
    said = ", ".join(f"{count} {words}" for count, words in kinds if count)
    if not said:
        return f"the store agrees with the log: {job.rows} memories"
    return f"of {job.rows} memories in the store: {said}; {job.repaired} were put right"
