"""What the demo's agents ask a model for; an extractive model heeds the numbered passages only."""

from __future__ import annotations

from typing import Final

from swarmd.core.turns import ModelRequest, Turn

SUMMARISE: Final = (
    "Summarise the text in three to five plain sentences. Use only what it says. Write no preamble and no headings."
)
ANSWER: Final = (
    "Answer the question in at most five sentences, from the numbered passages only. End each sentence with the "
    "number of its passage in square brackets, such as [2]. If they do not answer it, say so."
)
REPORT: Final = (
    "In at most six sentences, say what the numbered passages have to say about {theme}: where they agree, and what "
    "each adds. End each sentence with the number of its passage in square brackets, such as [2]."
)


def request(instructions: str, content: str) -> ModelRequest:
    """Instructions for the system turn, the text to work on as the user's."""
    return ModelRequest([Turn("system", instructions), Turn("user", content)])
