"""A research swarm: one reader for each file of a folder, and a report that is published when a person agrees."""

from pathlib import Path

import swarmd

RULES = "Answer from the given text only, in at most five sentences. Cite numbered passages as [1]."


@swarmd.agent
async def research(ctx, wanted):
    """Answers `{"question": …, "folder": …}` from the folder's texts."""
    question = wanted["question"]
    files = await ctx.step("list files", texts_in, wanted["folder"])
    if not files:
        raise swarmd.AgentFailed("no_files", f"{wanted['folder']} holds no .md or .txt file", retryable=False)

    # One child task for each file, on any worker. While they read, this task takes no slot.
    readers = [await ctx.spawn("reader", {"file": file, "question": question, "study": ctx.task}) for file in files]
    noted = await ctx.gather(*readers)

    # Recall what they remembered: only of this study, and not before the last note has arrived.
    notes = await ctx.recall(question, k=5, labels={"study": ctx.task}, at_least_seq=max(noted))
    numbered = [f"[{number}] {note.source}\n{note.text}" for number, note in enumerate(notes, 1)]
    answer = await ctx.model(ask(question, "\n\n".join(numbered)))

    # A person must approve this call (swarm.toml). It may take days; the task sleeps in the log until then.
    sources = "\n".join(f"{number}. {note.source}" for number, note in enumerate(notes, 1))
    report = {"title": question, "text": f"{answer.text}\n\nSources:\n{sources}"}
    said = await ctx.tool("publish_report", report)
    return {"read": len(files), "published": not said.startswith("error: ")}


@swarmd.agent
async def reader(ctx, wanted):
    """Reads one file and remembers what it says on the question; returns the number of the memory."""
    text = await ctx.step("read", Path(wanted["file"]).read_text)
    found = await ctx.model(ask(wanted["question"], text))
    kept = await ctx.remember(found.text, source=wanted["file"], labels={"study": wanted["study"]})
    return kept.seq


@swarmd.tool(side_effects="at_most_once")
def publish_report(title: str, text: str) -> str:
    """Append a report to report.md.

    Args:
        title: one line
        text: the report, in Markdown
    """
    with open("report.md", "a") as file:
        file.write(f"# {title}\n\n{text}\n\n")
    return f"published: {title}"


def texts_in(folder):
    return sorted(str(file) for file in Path(folder).rglob("*") if file.suffix in (".md", ".txt"))


def ask(question, text):
    """The offline model knows this form, too: rules in the system turn, then the question and what to answer from."""
    return [swarmd.Turn("system", RULES), swarmd.Turn("user", f"Question: {question}\n\n{text}")]
