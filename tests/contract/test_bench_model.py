"""`swarmd bench model`: sound questions, honest counting, any endpoint."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from swarmd.adapters.extractive_model import ExtractiveModel
from swarmd.core.errors import Fault
from swarmd.core.turns import ModelReply, ModelRequest, ToolCall
from swarmd.edges.bench_model import TOOL_CALLS, measure, sample

if TYPE_CHECKING:
    from collections.abc import Callable

HAS_LLMOCK = all(importlib.util.find_spec(name) is not None for name in ("openai", "llmock"))


class Clever:
    """Knows every answer, but fails every third call."""

    name = "test:clever"

    def __init__(self) -> None:
        self.calls = 0

    async def complete(self, request: ModelRequest, on_delta: Callable[[str], None] | None = None) -> ModelReply:
        self.calls += 1
        if request.tools:
            return ModelReply("", "tool_calls", self.name, [ToolCall("1", "weather", {"city": "Oslo"})])
        if self.calls % 3 == 0:
            raise Fault("model_unavailable", "busy")
        item = next(item for item in sample() if item.question in request.turns[-1].content)
        return ModelReply(f"It is {item.right[0]}.", "stop", self.name)

    async def close(self) -> None:
        return None


def test_the_questions_can_be_answered_from_their_texts() -> None:
    items = sample()
    assert len(items) >= 20
    assert len({item.question for item in items}) == len(items)
    for item in items:
        assert item.accepts(item.right[0])
        assert not item.accepts(item.text) or not item.wrong
        assert not any(item.accepts(f"{item.right[0]} {wrong}") for wrong in item.wrong)


async def test_answers_and_failures_are_counted() -> None:
    result = await measure(Clever(), concurrency=1, repeat=3)
    assert result["errors"] == {"model_unavailable": 20}
    assert (result["answered"], result["accuracy"], result["tool_call"]) == (40, 0.667, "ok")
    assert result["tool_calls_ratio"] > TOOL_CALLS / 4


async def test_the_offline_model_is_measured_too() -> None:
    result = await measure(ExtractiveModel(), concurrency=2, repeat=1)
    assert result["accuracy"] >= 0.5
    assert (result["errors"], result["cost_usd"], result["tool_call"]) == ({}, 0.0, "none")


def bench(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "swarmd", "bench", "model", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.skipif(not HAS_LLMOCK, reason="needs llmock: pip install 'swarmd[models,test]'")
def test_the_command_against_an_independent_server(llmock: Any) -> None:
    done = bench("--json", "--model", "openai:gpt-4o-mini", "--base-url", llmock.base_url())
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["model"], result["answered"], result["errors"]) == ("openai:gpt-4o-mini", 20, {})
    assert result["first_token_p50_ms"] > 0
    assert result["cost_usd"] > 0
    assert result["tool_call"] == "ok"
    assert not result["tokens_estimated"]


@pytest.mark.skipif(not HAS_LLMOCK, reason="needs llmock: pip install 'swarmd[models,test]'")
def test_an_endpoint_that_answers_nothing_is_an_error() -> None:
    done = bench("--model", "vllm:m", "--base-url", "http://127.0.0.1:9/v1")
    assert done.returncode != 0
    assert "cannot reach http://127.0.0.1:9/v1" in done.stderr
