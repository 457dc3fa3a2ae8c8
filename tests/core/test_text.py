"""Words, sentences, passages and the rankings made of them."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.adapters.extractive_model import (
    GRAPH_SENTENCES_MAX,
    NOTHING_ANSWERS,
    NOTHING_TO_SUMMARISE,
    extract,
)
from swarmd.adapters.html_text import readable
from swarmd.ranking import bm25, cosine, diverse, lexrank, tf_idf
from swarmd.text import STOP_WORDS, paragraphs, sentences, stem, stems, words

# Text as it comes, and text thick with what the splitter looks at.
MARKS = ["**", "_", "e.g. ", "Dr. ", "2.5 ", "The end. ", "Why? ", "a lease ", "U.S. ", "...", "<!-- ", "-->", "<b>"]
BLOCKS = [
    "# Title\n",
    "\n\n",
    "\n",
    " ",
    "- item ",
    "1. ",
    "```\n",
    "| a | b |\n",
    "|---|---|\n",
    "> ",
    "---\n",
    "===\n",
]
OTHERS = [
    "\u3002",
    "\u8a9e",
    "Question: ",
    "[1] s\n",
    "[2] t\n",
    "[a](b) ",
    "`c*d`",
    "![x](y)",
    "\\",
    "\u2019",
    "\u00e9",
]
PIECES = st.sampled_from([*MARKS, *BLOCKS, *OTHERS])
TEXTS = st.one_of(st.text(max_size=300), st.lists(PIECES, max_size=60).map("".join))


def visible(text: str) -> str:
    return "".join(text.split())


def is_subsequence(part: str, whole: str) -> bool:
    rest = iter(whole)
    return all(character in rest for character in part)


def test_words_are_case_folded_and_unicode_aware() -> None:
    assert words("The STRA\u00dfE isn\u2019t 2.15 km, na\u00efve sync_interval!") == [
        "the", "strasse", "isn't", "2.15", "km", "na\u00efve", "sync", "interval",
    ]  # fmt: skip
    assert words("\u6771\u4eac NATS") == ["\u6771", "\u4eac", "nats"]


@given(
    st.text(st.characters(max_codepoint=127), max_size=60), st.lists(st.sampled_from([*"aZ09_'.,\x1f \n"])).map("".join)
)
def test_plain_words_are_those_that_the_pattern_finds(one: str, other: str) -> None:
    """Texts without contractions and decimals go a shorter way."""
    for text in (one, other):
        assert words(text) == words(text + " \u00e4")[:-1]  # not ASCII: the longer way


def test_stems_are_the_same_when_many_words_were_met_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmd.text._STEMS_MAX", 3)
    for _ in range(2):
        assert stems("the deployed deployments of running leases") == ["deploy", "deploy", "run", "leas"]


def test_stems_drop_stop_words_and_endings() -> None:
    assert stems("The running dogs were restarted") == ["run", "dog", "restart"]
    assert stem("leases") == stem("lease")
    assert "the" in STOP_WORDS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Dr. Smith et al. ran it. It works.", ["Dr. Smith et al. ran it.", "It works."]),
        ("It took 2.5 ms (see Fig. 3). J. Doe agreed.", ["It took 2.5 ms (see Fig. 3).", "J. Doe agreed."]),
        ("Use a broker, e.g. NATS. Then go.", ["Use a broker, e.g. NATS.", "Then go."]),
        ("In the U.S. Senate. He left the U.S. The end.", ["In the U.S. Senate.", "He left the U.S.", "The end."]),
        ('"Stop." He left...and then. "No!" she said.', ['"Stop."', "He left...and then.", '"No!" she said.']),
        ("\u540d\u524d\u3002\u6771\u4eac\u3002", ["\u540d\u524d\u3002", "\u6771\u4eac\u3002"]),
        ("wrapped\nline. Next", ["wrapped line.", "Next"]),
        ("# Title\n\nText here.\n\nSub\n---\nMore.", ["Text here.", "More."]),
        ("- first\n- second. Part\n  two\n1. third", ["first", "second.", "Part two", "third"]),
        ("Before.\n```python\nx = 1. Foo\n```\nAfter.", ["Before.", "After."]),
        ("Open.\n~~~\ncode to the end", ["Open."]),
        ("See [the docs](http://x.y/a_(b)) and ![img](i).", ["See the docs and ."]),
        ("| a | b |\n|---|---|\n| No. Yes | x |\n\nAfter.", ["After."]),
        ("a | b\n--- | ---\nNo | x\n\nAfter.", ["After."]),
        ("**Bold** and _em_ and `a*b*c <S>` and snake_case_name.", ["Bold and em and a*b*c <S> and snake_case_name."]),
        ("> Quoted text.\n> More.", ["Quoted text.", "More."]),
        ("---\ntitle: x\n---\nText.", ["Text."]),
        ("One.<!-- Two. -->Three.", ["One.Three."]),
        ("a > b | c. Fine.", ["a > b | c.", "Fine."]),
        ("See appendix C. The rest by J. A. Doe.", ["See appendix C.", "The rest by J. A. Doe."]),
        ("", []),
        ("...\n***\n!!", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@settings(deadline=None)
@given(TEXTS)
def test_sentences_hold_nothing_that_the_text_does_not_and_keep_its_order(text: str) -> None:
    found = sentences(text)
    assert is_subsequence(visible("".join(found)), visible(text))
    assert all(sentence == sentence.strip() and "\n" not in sentence and words(sentence) for sentence in found)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["Alpha beta.", "Gamma 2.5 delta!", "Is it so?", "Mr. Low ran."]), max_size=20))
def test_sentences_of_plain_prose_are_exact(prose: list[str]) -> None:
    assert sentences(" ".join(prose)) == prose
    assert sentences("\n\n".join(prose)) == prose


@settings(deadline=None)
@given(TEXTS, st.integers(min_value=1, max_value=80))
def test_passages_are_short_slices_that_together_are_the_text(text: str, chars_max: int) -> None:
    passages = paragraphs(text, chars_max)
    at = 0
    for passage in passages:
        assert 0 < len(passage) <= chars_max
        found = text.find(passage, at)
        assert found >= 0
        assert not text[at:found].strip()
        at = found + len(passage)
    assert not text[at:].strip()


def test_passages_end_at_headings_and_sentences_where_they_can() -> None:
    text = "# One\n\nShort text of one.\n\n# Two\n\nFirst sentence here. Second sentence here. Third."
    assert paragraphs(text, 60) == [
        "# One\n\nShort text of one.",
        "# Two\n\nFirst sentence here. Second sentence here. Third.",
    ]
    assert paragraphs("First sentence here. Second sentence here.", 25) == [
        "First sentence here.",
        "Second sentence here.",
    ]
    with pytest.raises(ValueError, match="chars_max"):
        paragraphs("x", 0)


HOSTILE = ["[", "<!--", "`", "*a ", "_a", "(", "[a](", ". ", "<a ", "|-", "- - ", "> ", "**a", "![a](", "'a", "&", "</"]


@pytest.mark.parametrize("piece", [*HOSTILE, "<nav></select>", "<a '"])
def test_time_is_linear_whatever_the_text(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    start = time.process_time()
    sentences(text)
    paragraphs(text, 1_000)
    words(text)
    readable(text)
    assert time.process_time() - start < 3  # processor time: a busy machine is no matter; a quadratic one takes minutes


def test_tf_idf_vectors_are_unit_vectors() -> None:
    vectors = tf_idf([["a", "b"], ["a"], []])
    assert cosine(vectors[0], vectors[0]) == pytest.approx(1)
    assert cosine(vectors[0], vectors[2]) == 0


def test_lexrank_prefers_what_many_resemble() -> None:
    ranks = lexrank(tf_idf([["x", "y"], ["x", "z"], ["x", "y", "z"], ["q"]]))
    assert sum(ranks) == pytest.approx(1)
    assert max(ranks) == ranks[2]
    assert min(ranks) == ranks[3]
    assert lexrank([]) == []


def test_bm25_is_positive_exactly_where_a_term_is_shared() -> None:
    scores = bm25(["lease", "lease"], [["lease"], ["lease", "lease", "epoch"], ["epoch"], []])
    assert [score > 0 for score in scores] == [True, True, False, False]
    assert bm25(["x"], []) == []
    assert bm25([], [["x"]]) == [0]


def test_diversity_passes_over_repetition() -> None:
    vectors = tf_idf([["a", "b"], ["a", "b"], ["c", "d"]])
    assert diverse([1.0, 0.99, 0.8], vectors, 2) == [0, 2]


def test_a_summary_of_a_few_short_sentences_leaves_out_the_one_that_stands_alone() -> None:
    texts = [
        "A lease lasts two seconds.",
        "The leader renews it often.",
        "When the leader dies, another one takes the lease.",
        "Cats sleep a lot.",
    ]
    assert extract(" ".join(texts))[0].splitlines() == texts[:3]


def test_summary_is_in_the_order_of_the_text() -> None:
    text = "The log is the truth. " + " ".join(f"The log holds commit {n} of writer {n}." for n in range(30))
    summary = extract(text)[0].split("\n")
    assert 3 <= len(summary) <= 8
    assert [sentences(text).index(sentence) for sentence in summary] == sorted(
        sentences(text).index(sentence) for sentence in summary
    )


@settings(deadline=None)
@given(TEXTS, st.one_of(st.none(), st.integers(min_value=20, max_value=400)))
def test_summaries_consist_of_sentences_of_the_text(text: str, tokens: int | None) -> None:
    summary, finish = extract(f"Start here.\n\n{text}\n\nThat was all.", tokens)
    own = set(sentences(f"Start here.\n\n{text}\n\nThat was all."))
    if finish == "stop":
        assert set(summary.split("\n")) <= own or summary == NOTHING_TO_SUMMARISE
    assert tokens is None or len(summary) <= max(tokens * 4, len(NOTHING_TO_SUMMARISE))


@settings(deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.sampled_from(["What is a lease?", "Why?", "The end of title?"]))
def test_answers_consist_of_cited_sentences_of_their_passages(texts: list[str], question: str) -> None:
    texts = [text.replace("[", "(").replace("uestion:", "uestion") for text in texts]
    turn = f"Question: {question}\n\n" + "\n\n".join(f"[{n}] source {n}\n{text}" for n, text in enumerate(texts, 1))
    answer, finish = extract(turn)
    assert finish == "stop"
    if answer == NOTHING_ANSWERS:
        return
    for line in answer.split("\n"):
        sentence, _, number = line.rpartition(" [")
        assert sentence in sentences(texts[int(number.rstrip("]")) - 1])
        assert set(stems(sentence)) & set(stems(question))


def test_a_question_nobody_answers_is_told_so() -> None:
    turn = "Question: What is the capital of Peru?\n\n[1] a.md\nA lease lasts three heartbeats."
    assert extract(turn) == (NOTHING_ANSWERS, "stop")
    assert extract("Question: anything?") == (NOTHING_ANSWERS, "stop")
    assert extract("Question: what is it?\n\nNothing of the kind.") == (NOTHING_ANSWERS, "stop")


def test_the_question_may_come_last_and_instructions_are_passed_over() -> None:
    passages = "[1] a.md\nA lease lasts three heartbeats.\n\n[2] b.md\nLeases are renewed by heartbeats. Cats sleep."
    for turn in (
        f"Use only the passages.\nQuestion: How long does a lease last?\n\n{passages}",
        f"Say how a lease lasts.\n\n{passages}\n\nQuestion: How long does a lease last?",
    ):
        assert extract(turn)[0].split("\n")[0] == "A lease lasts three heartbeats. [1]"


def test_brackets_within_a_passage_open_no_other() -> None:
    turn = "Question: Who wrote about leases?\n\n[1] a.md\nGray wrote about leases.\n[2] is a reference.\n\n[1] Leases."
    assert extract(turn)[0].endswith("[1]")
    assert "[2] is" not in extract(turn)[0].split("\n")[0]


def test_passages_without_a_question_are_summarised_with_citations() -> None:
    turn = "[1] a.md\nA lease lasts three heartbeats.\n\n[7] b.md\nThe epoch fences an attempt of a task."
    assert extract(turn)[0] == "A lease lasts three heartbeats. [1]\nThe epoch fences an attempt of a task. [7]"


def test_a_token_limit_is_kept_and_named() -> None:
    text = " ".join(f"Sentence number {n} tells of the log and its writers." for n in range(20))
    summary, finish = extract(text, 15)
    assert finish == "length"
    assert len(summary) <= 60
    cut, finish = extract("An exceedingly long sentence about nothing.", 4)
    assert (cut, finish) == ("An exceedingly", "length")


def test_a_text_beyond_the_graph_is_thinned_out_and_quick() -> None:
    text = " ".join(
        f"Writer {n % 97} appends commit {n} to the log while member {n % 31} renews lease {n % 53} in swarm {n % 11}."
        for n in range(1_200)
    )
    assert len(text) > 80_000
    assert len(sentences(text)) > 2 * GRAPH_SENTENCES_MAX
    start = time.process_time()
    summary = extract(text)[0]
    assert time.process_time() - start < 3
    assert summary == extract(text)[0]


def test_readable_text_of_a_page() -> None:
    page = """<!doctype html><title>T &amp; x</title><style>p{}</style><nav><a>menu</a></nav><h1>Head</h1>
    <p>One <b>bold</b> a &lt; b\nwrapped <a href="x>y">link</a>.<script>if (a<b) "</p>"</script><ul><li>i<li>j</ul>
    <!-- no --><p>3 < 4<br/>end <svg><text>no</text></svg>"""
    assert readable(page).split("\n") == ["T & x", "Head", "One bold a < b wrapped link.", "i", "j", "3 < 4", "end"]


@settings(deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from([*HOSTILE, "<p>", "</script>", "<nav>", ">", "x"])).map("".join)))
def test_readable_never_fails(page: str) -> None:
    assert "\n\n" not in readable(page)
