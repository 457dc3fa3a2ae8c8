"""`swarmd demo`: the main job on real files, from an empty data directory to a report with sources.

Job: the flags, and the order of things: find documents, start the hive, submit one macro-task, show how it goes, kill
a worker if asked to, write the report, say what was counted. What is shown comes from the logs of the swarms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the demo."""
    parser.add_argument("paths", nargs="*", metavar="PATH", help="files and folders (default: the project's documents)")
    parser.add_argument("--question", action="append", metavar="TEXT", help="a question to answer; may be repeated")
    parser.add_argument("--out", default="report.md", metavar="FILE", help="the report (default: report.md)")
    parser.add_argument("--crash", action="store_true", help="kill a worker with SIGKILL in mid-run")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes that read (default: 2)")
    parser.add_argument("--model", default="", metavar="PROVIDER:NAME", help="openai:… (default: offline:extractive)")
    parser.add_argument("--base-url", default="", metavar="URL", help="endpoint of the model")
    parser.add_argument("--keep", action="store_true", help="keep the data directory, to look into it afterwards")


async def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 when everything finished and nothing that was recorded was done again.

    Raises `Rejected` for what cannot be read or started, `Fault` when the swarms do not get ready.
    """
    from swarmd.edges.demo.job import Wish, perform

    wish = Wish(
        paths=tuple(args.paths),
        questions=tuple(args.question or ()),
        out=args.out,
        crash=args.crash,
        workers=args.workers,
        model=args.model,
        base_url=args.base_url,
        keep=args.keep,
        data=getattr(args, "data", ""),
        as_json=bool(getattr(args, "json", False)),
    )
    return await perform(wish)
