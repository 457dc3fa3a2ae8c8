"""An LLM agent as a machine: its next move follows from the turns alone."""

from __future__ import annotations

from swarmd.core.agent import (
    REPEATS_MAX,
    AgentSpec,
    Answer,
    CallModel,
    CallTools,
    GiveUp,
    after_instructions,
    after_objection,
    after_reply,
    after_tools,
    begin,
    next_move,
)
from swarmd.core.turns import ModelReply, ToolCall, ToolSpec, Turn

SPEC = AgentSpec("reader", "Read.", tools=["read_file"], turns_max=5, temperature=0.5)
TOOLS = [ToolSpec("read_file", "reads", {"type": "object"})]


def asks(path: str, call: str = "1") -> ModelReply:
    return ModelReply("", "tool_calls", "m", [ToolCall(call, "read_file", {"path": path})])


def test_it_begins_with_its_instructions_and_the_input_as_text() -> None:
    assert begin(SPEC, "hello") == [Turn("system", "Read."), Turn("user", "hello")]
    assert begin(SPEC, {"a": [1]})[1] == Turn("user", '{"a":[1]}')


def test_a_conversation_with_a_tool_ends_in_an_answer() -> None:
    turns = begin(SPEC, "hello")
    first = next_move(SPEC, turns, TOOLS)
    assert isinstance(first, CallModel)
    assert (first.request.turns, first.request.tools, first.request.temperature) == (turns, TOOLS, 0.5)
    turns = after_reply(turns, asks("x"))
    wanted = next_move(SPEC, turns, TOOLS)
    assert wanted == CallTools([ToolCall("1", "read_file", {"path": "x"})])
    turns = after_tools(turns, [(wanted.calls[0], "content")])
    assert turns[-1] == Turn("tool", "content", tool_call_id="1")
    assert isinstance(next_move(SPEC, turns, TOOLS), CallModel)
    turns = after_reply(turns, ModelReply("done", "stop", "m"))
    assert next_move(SPEC, turns, TOOLS) == Answer("done")


def test_the_same_turns_give_the_same_move() -> None:
    turns = after_reply(begin(SPEC, "hello"), asks("x"))
    assert next_move(SPEC, turns, TOOLS) == next_move(SPEC, list(turns), TOOLS)


def test_the_same_call_again_and_again_is_a_loop_but_another_one_is_progress() -> None:
    turns = begin(SPEC, "hello")
    for n in range(REPEATS_MAX):
        turns = after_reply(turns, asks("x", f"call{n}"))
        move = next_move(SPEC, turns, TOOLS)
        assert isinstance(move, GiveUp if n == REPEATS_MAX - 1 else CallTools)
        turns = after_tools(turns, [(turns[-1].tool_calls[0], "content")])
    turns = after_reply(turns, asks("y"))
    assert isinstance(next_move(SPEC, turns, TOOLS), CallTools)


def test_it_gives_up_after_so_many_model_calls() -> None:
    turns = begin(SPEC, "hello")
    for n in range(SPEC.turns_max):
        assert isinstance(next_move(SPEC, turns, TOOLS), CallModel)
        turns = after_tools(after_reply(turns, asks(f"{n}")), [(ToolCall("1", "read_file"), "content")])
    move = next_move(SPEC, turns, TOOLS)
    assert isinstance(move, GiveUp)
    assert move.failure.code == "turns_max"


def test_calls_that_go_round_in_a_circle_are_a_loop() -> None:
    """A B A B A B brings nothing new; A B A C A D does."""
    spec = AgentSpec("reader", "Read.", turns_max=50)
    for paths, ends in (("abababab", True), ("abcabcabc", True), ("abacadaeaf", False), ("abcdefgh", False)):
        turns = begin(spec, "hello")
        moves = []
        for path in paths:
            turns = after_tools(after_reply(turns, asks(path)), [])
            moves.append(next_move(spec, turns[: len(turns)], TOOLS))
        gave_up = [move for move in moves if isinstance(move, GiveUp)]
        assert bool(gave_up) == ends, paths
        assert all(move.failure.code == "loop" and "circle" in move.failure.message for move in gave_up)


def test_instructions_and_objections_are_turns_of_the_user() -> None:
    turns = after_instructions(begin(SPEC, "hello"), ["hurry", "up"])
    assert turns[2:] == [Turn("user", "hurry"), Turn("user", "up")]
    turns = after_objection(after_reply(turns, ModelReply("done", "stop", "m")), "no sources")
    assert turns[-1].role == "user"
    assert "no sources" in turns[-1].content
    assert isinstance(next_move(SPEC, turns, TOOLS), CallModel)
