"""`swarmd bench retrieval`: a sound set, honest counting, and what the offline default is chosen by."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from swarmd.core.errors import Fault, Rejected
from swarmd.edges import cli
from swarmd.edges.bench_retrieval import Bm25, measure, read_set, recalls
from swarmd.hash_embedder import HashEmbedder

if TYPE_CHECKING:
    from collections.abc import Sequence


def test_the_set_is_large_enough_and_each_question_stands_for_itself() -> None:
    passages, questions = read_set()
    asked = [one for one in questions if one.kind == "asked"]
    assert len(asked) >= 150
    assert len(questions) >= 500
    assert len({one.id for one in passages}) == len({one.text for one in passages}) == len(passages)
    assert len({(one.kind, one.query) for one in questions}) >= len(questions) - 5
    assert all(one.answers and one.query.strip() for one in questions)
    assert {one.kind for one in questions} == {"asked", "heading", "docstring"}


def test_words_find_what_holds_them() -> None:
    index = Bm25(["a lease expires", "the lease of the lease", "a broker", ""], str.split)
    assert index.best("lease", 5) == [1, 0]
    assert index.best("broker expires", 1) == [2]
    assert index.best("nothing", 5) == []
    assert Bm25([], str.split).best("a", 3) == []


def test_recall_is_the_share_that_was_found_in_time() -> None:
    found = recalls(["a", "a", "b"], [{1}, {2, 7}, {3}], [[1, 5], [9, 9, 9, 7], [0] * 9 + [3]])
    assert found == {"all": [0.333, 0.667, 1.0], "a": [0.5, 1.0, 1.0], "b": [0.0, 0.0, 1.0]}


class Down(HashEmbedder):
    """Does not answer."""

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise Fault("model_unavailable", "nobody answers at this address")


class Refused(HashEmbedder):
    """Will never answer."""

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise Rejected("bad_key", "the key is wrong")


def test_the_default_and_its_figures() -> None:
    """What ADR 0025 says of them: stems pay, vectors without a model find less than words do, both together no less."""
    result = measure([("hash", HashEmbedder()), ("far:away", Down())])
    rows = {(row["way"], row["name"]): row for row in result["rows"]}
    plain, stemmed = rows["lexical", "bm25, no stems"]["all"], rows["lexical", "bm25, stems"]["all"]
    assert stemmed[2] > plain[2] + 0.03
    assert rows["dense", "hash"]["all"][2] > 0.36
    assert rows["hybrid", "bm25, stems + hash"]["all"][2] > stemmed[2] - 0.03
    assert rows["dense", "hash"]["embedder"] == HashEmbedder().id
    named = {one["embedder"]: one["why"] for one in result["absent"]}
    assert named["far:away"] == "nobody answers at this address"
    assert "model:DIRECTORY" in named
    with pytest.raises(Rejected, match="mine:e: the key is wrong"):
        measure([("mine:e", Refused())])


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "retrieval", "--embedder", "hash:64", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in told["rows"] if row["way"] == "dense"][-1] == "hash:64"
    assert cli.main(["bench", "retrieval", "--embedder", "model:/nowhere/at/all"]) != 0
    assert "no directory" in capsys.readouterr().err
