"""The text work of a survey: headings, themes, questions, citations, the report."""

from __future__ import annotations

from swarmd.adapters.extractive_model import extract
from swarmd.demo_agents.texts import (
    Cited,
    Digest,
    Sources,
    headings,
    headline,
    passages_prompt,
    plan,
    render,
    terms,
    themes,
)


def digest(name: str, text: str) -> Digest:
    titles = headings(text)
    return Digest(name, name, "One line.", "A summary.", 1, len(text), "m", 1, titles, terms(text, titles))


LEASES = "# Leases\n\nA lease lapses after three heartbeats. A new lease is a new epoch. Renew each lease early.\n"
HEALTH = "# Health and leases\n\nThe lease of a silent member lapses. The detector watches heartbeats.\n"
COLOURS = "# Colours\n\nRed is a colour. Blue is a colour.\n"


def test_headings_of_markdown_and_restructuredtext_in_order() -> None:
    text = "# The `first` one\n\ntext\n\nSecond\n======\n\n```\n# no heading\n```\n\n### [Third](x.md) ###\n\n---\n"
    assert headings(text) == ["The first one", "Second", "Third"]


def test_a_headline_is_one_sentence_on_one_line() -> None:
    assert headline("A lease\nlapses. It is renewed.") == "A lease lapses."
    long = headline("word " * 100)
    assert len(long) <= 162
    assert long.endswith(" …")


def test_themes_are_what_several_documents_name_in_headings() -> None:
    found = themes([digest("a", LEASES), digest("b", HEALTH), digest("c", COLOURS), digest("d", COLOURS)], 3)
    assert found[:2] == ["lease", "colour"] or found[:2] == ["colour", "lease"]
    assert len({word for theme in found for word in theme.split()}) == sum(len(theme.split()) for theme in found)


def test_given_questions_are_taken_and_headings_that_ask_are_used() -> None:
    digests = [digest("a", LEASES), digest("b", "# Why leases?\n\nA lease fences a member.\n")]
    assert plan(digests, ["Who renews?"])[0] == ["Who renews?"]
    questions, _ = plan(digests, [])
    assert questions[0] == "Why leases?"
    assert all(question.endswith("?") for question in questions)


def test_the_prompt_is_what_the_offline_model_reads() -> None:
    prompt = passages_prompt([("a.md", LEASES), ("b.md", "Colours are bright.")], "When does a lease lapse?")
    text, _ = extract(prompt)
    assert text.splitlines()[0] == "A lease lapses after three heartbeats. [1]"


def test_citations_point_to_documents_in_the_order_in_which_they_are_cited() -> None:
    sources = Sources()
    assert (
        sources.renumbered(Cited("q", "One [2]. Two [1][3]. None [9].", ["a", "b", "b"]))
        == "One [1]. Two [2][1]. None ."
    )
    assert sources.names == ["b", "a"]


def test_the_report_holds_answers_sources_and_what_was_not_read() -> None:
    answer, section = Cited("Who?", "Somebody. [1]", ["a.md"]), Cited("leases", "They lapse. [2]", ["a.md", "b|c.md"])
    text = render([digest("b|c.md", LEASES)], [answer], [section], {"x.bin": "binary"}, "Made by hand.")
    assert "### Who?\n\nSomebody. [1]" in text
    assert "### Leases\n\nThey lapse. [2]" in text
    assert "1. a.md\n2. b|c.md" in text
    assert "| b\\|c.md |" in text
    assert "- x.bin: binary" in text
