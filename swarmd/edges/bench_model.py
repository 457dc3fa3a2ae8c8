"""`swarmd bench model`: what an endpoint answers and how fast, and what running tool calls in parallel is worth.

Job: ask the checked-in questions, streamed; offer a tool; run ten calls of a 50 ms tool in parallel and one by one.
A model that answers nothing is an error; single failures are counted by their codes. Nothing is tried again.
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import tomllib
from collections import Counter
from importlib import resources
from time import perf_counter  # the loop's own clock counts milliseconds under uvloop
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from swarmd.core.errors import Fault, Rejected, SwarmdError
from swarmd.core.turns import ModelReply, ModelRequest, ToolSpec, Turn
from swarmd.edges.cli.flags import settings_of
from swarmd.edges.open_models import OpenModels
from swarmd.edges.settings import model_settings
from swarmd.ports import SideEffects, ToolPolicy
from swarmd.roles.tool_calls import ToolCalls

if TYPE_CHECKING:
    import argparse

    from swarmd.ports import Model

SYSTEM: Final = "Answer the question from the passage, in one short sentence. Say nothing that is not asked."
OUTPUT_TOKENS_MAX: Final = 200
TOOL_CALLS: Final = 10
TOOL_MS: Final = 50
WEATHER: Final = ToolSpec(
    "weather",
    "The weather of a city.",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
)


class Item(Struct, frozen=True, forbid_unknown_fields=True):
    """A question; an answer is right when it holds one of `right` and none of `wrong`, as whole words."""

    text: str
    question: str
    right: tuple[str, ...]
    wrong: tuple[str, ...] = ()

    def accepts(self, answer: str) -> bool:
        return any(_holds(answer, words) for words in self.right) and not any(
            _holds(answer, words) for words in self.wrong
        )


class Asked(Struct):
    """One question asked: whether it was answered rightly, and how long that took."""

    right: bool = False
    error: SwarmdError | None = None
    reply: ModelReply | None = None
    took_s: float = 0.0
    first_s: float = 0.0


class Nap:
    """A tool that takes its time and does nothing."""

    spec = ToolSpec("nap", "Waits.", {"type": "object", "properties": {}})
    timeout_ms = 5_000
    output_bytes_max = 100
    side_effects: SideEffects = "none"
    policy = ToolPolicy(concurrency=TOOL_CALLS)

    async def call(self, arguments: dict[str, Any], key: str = "") -> str:
        await asyncio.sleep(TOOL_MS / 1000)
        return "slept"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `bench model`."""
    parser.add_argument("--model", default="", help="provider:model (default: that of the settings)")
    parser.add_argument("--base-url", default="", help="of the endpoint, such as http://127.0.0.1:8000/v1")
    parser.add_argument("--concurrency", type=int, default=4, help="questions at a time (default: 4)")
    parser.add_argument("--repeat", type=int, default=1, help="rounds of all questions (default: 1)")


async def run(args: argparse.Namespace) -> int:
    """Measure and print; one JSON object with `--json`."""
    if min(args.concurrency, args.repeat) < 1:
        raise Rejected("bad_usage", "concurrency and repeat must be at least 1")
    settings = settings_of(args)
    name = args.model or settings.model.name
    if args.base_url:
        provider = name.partition(":")[0]
        own = settings.provider.get(provider)
        if own is not None:
            own = msgspec.structs.replace(own, base_url=args.base_url)
            settings = msgspec.structs.replace(settings, provider={**settings.provider, provider: own})
        table = msgspec.structs.replace(settings.model, name=name, base_url=args.base_url)
        settings = msgspec.structs.replace(settings, model=table)
    models = OpenModels(model_settings(settings))
    try:
        result = await measure(models(name), args.concurrency, args.repeat)
    finally:
        await models.close()
    if getattr(args, "json", False):
        print(msgspec.json.encode(result).decode())
    else:
        for key, value in result.items():
            print(f"{key:24} {value}")
    return 0


async def measure(model: Model, concurrency: int, repeat: int) -> dict[str, Any]:
    """All figures of one model. Raises what the model raises when not one question was answered."""
    items, found = sample() * repeat, list[Asked]()
    waiting = iter(items)

    async def ask_on() -> None:
        for item in waiting:
            found.append(await _ask(model, item))

    started = perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(ask_on())
    took_s = perf_counter() - started
    failures = [asked.error for asked in found if asked.error is not None]
    if len(failures) == len(found):
        raise failures[0]
    return (
        {"model": model.name}
        | _account(found, took_s)
        | await _offer_tool(model)
        | await _tool_calls()
        | {"questions": len(items), "concurrency": concurrency, "cpus": os.cpu_count()}
    )


def sample() -> list[Item]:
    """The checked-in questions."""
    text = resources.files("swarmd.edges").joinpath("bench_sample.toml").read_text("utf-8")
    return msgspec.convert(tomllib.loads(text)["item"], list[Item])


async def _ask(model: Model, item: Item) -> Asked:
    heard: list[float] = []
    turns = [Turn("system", SYSTEM), Turn("user", f"Question: {item.question}\n\n[1] passage\n{item.text}")]
    request = ModelRequest(turns, max_output_tokens=OUTPUT_TOKENS_MAX)
    started = perf_counter()
    try:
        reply = await model.complete(request, lambda text: heard.append(perf_counter()))
    except (Fault, Rejected) as error:
        return Asked(error=error)
    ended = perf_counter()
    first = heard[0] if heard else ended
    return Asked(item.accepts(reply.text), None, reply, ended - started, first - started)


def _account(found: list[Asked], took_s: float) -> dict[str, Any]:
    replies = [asked for asked in found if asked.reply is not None]
    usages = [asked.reply.usage for asked in replies if asked.reply is not None]
    tokens = sum(usage.output_tokens for usage in usages)
    writing_s = sum(asked.took_s - asked.first_s for asked in replies)
    known = [usage.cost_microusd for usage in usages if usage.cost_microusd is not None]
    return {
        "accuracy": round(sum(asked.right for asked in found) / len(found), 3),
        "answered": len(replies),
        "errors": dict(Counter(asked.error.code for asked in found if asked.error is not None)),
        "first_token_p50_ms": _p50([asked.first_s for asked in replies]),
        "first_token_max_ms": round(max((asked.first_s for asked in replies), default=0.0) * 1000, 2),
        "call_p50_ms": _p50([asked.took_s for asked in replies]),
        "tokens_per_s": round(tokens / took_s, 1),
        "tokens_per_s_per_stream": round(tokens / writing_s, 1) if writing_s > 0.001 else None,
        "input_tokens": sum(usage.input_tokens for usage in usages),
        "output_tokens": tokens,
        "tokens_estimated": any(usage.estimated for usage in usages),
        "cost_usd": sum(known) / 1_000_000 if len(known) == len(usages) else None,
    }


async def _offer_tool(model: Model) -> dict[str, Any]:
    """Whether the model calls a tool that it needs, with readable and complete arguments."""
    turns = [Turn("system", "Use the tools that you are given."), Turn("user", "What is the weather in Oslo?")]
    try:
        reply = await model.complete(ModelRequest(turns, [WEATHER], max_output_tokens=OUTPUT_TOKENS_MAX))
    except (Fault, Rejected) as error:
        return {"tool_call": error.code}
    calls = reply.tool_calls
    if not calls:
        return {"tool_call": "none"}
    sound = all(not call.problem and call.name == "weather" and "city" in call.arguments for call in calls)
    return {"tool_call": "ok" if sound else "malformed"}


async def _tool_calls() -> dict[str, Any]:
    """Ten calls of a tool that takes 50 ms, one by one and at once, as the runtime carries them out."""
    calls, nap = ToolCalls(), Nap()
    started = perf_counter()
    for _ in range(TOOL_CALLS):
        await calls(nap, {})
    serial_s, started = perf_counter() - started, perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(TOOL_CALLS):
            group.create_task(calls(nap, {}))
    parallel_s = perf_counter() - started
    return {
        "tool_calls_serial_ms": round(serial_s * 1000, 1),
        "tool_calls_parallel_ms": round(parallel_s * 1000, 1),
        "tool_calls_ratio": round(serial_s / parallel_s, 2),
    }


def _holds(answer: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", answer, re.IGNORECASE) is not None


def _p50(samples: list[float]) -> float:
    return round(statistics.median(samples) * 1000, 2) if samples else 0.0
