"""Streams: what an independent server breaks, what no sane server sends, and the pure parser under any split."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.adapters.chat_format import parse_answer
from swarmd.adapters.chat_stream import EventLines, StreamedAnswer, StreamRefused
from swarmd.adapters.openai_client import Endpoint
from swarmd.adapters.openai_model import OpenAIModel
from swarmd.core.errors import Fault, Rejected, SwarmdError
from swarmd.core.model_profile import Profile
from swarmd.core.turns import ModelReply, ModelRequest, ToolSpec, Turn
from tests.contract.scripted_http import Asked, http, serving, streaming

HAS_OPENAI = importlib.util.find_spec("openai") is not None
HAS_LLMOCK = HAS_OPENAI and importlib.util.find_spec("llmock") is not None
needs_openai = pytest.mark.skipif(not HAS_OPENAI, reason="needs openai: pip install 'swarmd[models]'")
needs_llmock = pytest.mark.skipif(not HAS_LLMOCK, reason="needs llmock: pip install 'swarmd[models,test]'")

KEY = "sk-canary-0123456789"
WEATHER = ToolSpec("weather", "The weather.", {"type": "object", "properties": {"city": {"type": "string"}}})
REQUEST = ModelRequest([Turn("user", "Say something long about logs.")])


def chunk(content: str | None = None, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content, **delta}, "finish_reason": finish}], "model": "m-1"}


USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
GOOD = (b": WORKING\n\n", chunk("Fi"), chunk("ne."), chunk(finish="stop"), USAGE)


class Listener:
    """Keeps what was said."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def __call__(self, text: str) -> None:
        self.heard.append(text)


async def streamed(
    url: str, asked: ModelRequest = REQUEST, **endpoint: Any
) -> tuple[ModelReply | SwarmdError, list[str]]:
    model, listener = OpenAIModel("m", Endpoint("openai", f"{url}/v1", KEY, **endpoint)), Listener()
    try:
        return await model.complete(asked, listener), listener.heard
    except SwarmdError as error:
        return error, listener.heard
    finally:
        await model.close()


async def outcome(answer: Any, asked: ModelRequest = REQUEST, **endpoint: Any) -> Any:
    async with serving(answer) as server:
        return await streamed(server.url, asked, **endpoint)


@needs_openai
class TestStreams:
    @pytest.mark.parametrize("done", [True, False])
    async def test_pieces_arrive_and_make_the_answer(self, done: bool) -> None:
        reply, heard = await outcome(streaming(*GOOD, done=done))
        assert heard == ["Fi", "ne."]
        assert (reply.text, reply.finish, reply.model) == ("Fine.", "stop", "openai:m-1")
        assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.usage.estimated) == (3, 2, False)
        assert reply.first_token_ms is not None
        assert reply.took_ms >= reply.first_token_ms

    @pytest.mark.parametrize(
        ("pieces", "kind", "code"),
        [
            ([chunk("Fi")], Fault, "truncated"),
            ([], Fault, "truncated"),
            ([chunk("Fi"), b"data: {oops\n\n"], Fault, "bad_answer"),
            ([chunk("Fi"), b"data: [1]\n\n"], Fault, "bad_answer"),
            ([chunk("Fi"), {"error": {"message": "upstream died"}}], Fault, "model_unavailable"),
            ([{"error": {"message": "slow down", "code": 429}}], Fault, "rate_limited"),
            ([{"error": {"message": "pay", "code": "insufficient_quota"}}], Rejected, "insufficient_quota"),
            ([chunk("Fi"), chunk(finish="content_filter")], Rejected, "content_filtered"),
            ([chunk(finish="stop")], Fault, "bad_answer"),
            ([chunk("x", finish="eerie")], Fault, "bad_answer"),
        ],
    )
    async def test_what_is_no_answer_is_an_error(self, pieces: list[Any], kind: type, code: str) -> None:
        result, _ = await outcome(streaming(*pieces))
        assert isinstance(result, kind)
        assert isinstance(result, SwarmdError)
        assert result.code == code

    async def test_a_server_that_does_not_stream_is_heard_all_at_once(self) -> None:
        whole = {"choices": [{"message": {"content": "Fine."}, "finish_reason": "stop"}]}
        reply, heard = await outcome(http(whole))
        assert (reply.text, heard, reply.first_token_ms) == ("Fine.", ["Fine."], None)
        result, heard = await outcome(http("<html>hello</html>", kind="text/html"))
        assert (result.code, heard) == ("bad_answer", [])

    async def test_a_profile_without_streams_is_asked_for_none(self) -> None:
        asked: list[Any] = []

        def answer(request: Asked) -> bytes:
            asked.append(request.json())
            return http({"choices": [{"message": {"content": "Fine."}, "finish_reason": "stop"}]})

        _, heard = await outcome(answer, profile=Profile(stream=False))
        assert heard == ["Fine."]
        assert "stream" not in asked[0]

    async def test_tool_calls_in_pieces(self) -> None:
        def part(index: int | None = None, name: str | None = None, arguments: Any = "", **more: Any) -> dict[str, Any]:
            function = {"name": name, "arguments": arguments}
            return chunk(tool_calls=[{"index": index, "function": function, **more}])

        pieces = (part(0, "weather", '{"ci', id="a"), part(0, None, 'ty":"X"}'), part(1, "weather", {"city": "Y"}))
        reply, _ = await outcome(streaming(*pieces, chunk(finish="tool_calls")), ModelRequest(REQUEST.turns, [WEATHER]))
        assert [call.arguments for call in reply.tool_calls] == [{"city": "X"}, {"city": "Y"}]
        assert len({call.id for call in reply.tool_calls}) == 2

    async def test_silence_within_a_stream_is_a_stall_and_a_silent_server_a_timeout(self) -> None:
        async def never(reader: Any, writer: Any) -> None:
            writer.write(streaming(chunk("Fi"), done=False))
            await reader.read(100_000)
            await reader.read()
            writer.close()

        import asyncio

        server = await asyncio.start_server(never, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        result, heard = await streamed(url, stall_ms=150)
        server.close()
        assert isinstance(result, Fault)
        assert (result.code, heard) == ("model_stalled", ["Fi"])
        result, _ = await outcome(None, stall_ms=5_000, timeout_ms=150)
        assert isinstance(result, Fault)
        assert result.code == "model_timeout"

    async def test_refused_stream_options_are_left_out_from_then_on(self) -> None:
        def answer(asked: Asked) -> bytes:
            if "stream_options" in asked.json():
                return http({"error": {"message": "unknown field stream_options"}}, 400)
            return streaming(*GOOD)

        async with serving(answer) as server:
            model = OpenAIModel("m", Endpoint("openai", f"{server.url}/v1", KEY))
            for _ in range(2):
                assert (await model.complete(REQUEST, lambda text: None)).text == "Fine."
            await model.close()
        assert len(server.asked) == 3

    async def test_a_key_that_is_echoed_is_blotted_out(self) -> None:
        reply, heard = await outcome(streaming(chunk(f"Bearer {KEY}!"), chunk(finish="stop")))
        assert KEY not in reply.text + "".join(heard)


@needs_llmock
class TestIndependentServer:
    """llmock breaks its streams in four ways; each is one call that fails by name, and the next one works."""

    async def test_a_whole_stream(self, llmock: Any) -> None:
        llmock.reply("Logs are long.")
        reply, heard = await streamed(llmock.base_url().removesuffix("/v1"))
        assert isinstance(reply, ModelReply)
        assert "".join(heard) == reply.text == "Logs are long."
        assert not reply.usage.estimated

    @pytest.mark.parametrize(
        ("breaking", "codes"),
        [
            ("truncate", {"truncated"}),
            ("disconnect", {"truncated", "model_unreachable"}),
            ("corrupt", {"bad_answer"}),
        ],
    )
    async def test_broken_streams(self, llmock: Any, breaking: str, codes: set[str]) -> None:
        llmock.reply("one two three four five six seven eight", times=None)
        getattr(llmock, breaking)(after_chunks=2)
        url = llmock.base_url().removesuffix("/v1")
        result, _ = await streamed(url)
        assert isinstance(result, Fault)
        assert result.code in codes
        reply, _ = await streamed(url)
        assert isinstance(reply, ModelReply)
        llmock.assert_resilient()

    async def test_a_stall(self, llmock: Any) -> None:
        llmock.stall(after_chunks=2, seconds=2.0)
        result, _ = await streamed(llmock.base_url().removesuffix("/v1"), stall_ms=200)
        assert isinstance(result, Fault)
        assert result.code == "model_stalled"

    async def test_a_slow_first_token_is_measured(self, llmock: Any) -> None:
        llmock.slow_first_token(0.3)
        reply, _ = await streamed(llmock.base_url().removesuffix("/v1"))
        assert isinstance(reply, ModelReply)
        assert reply.first_token_ms is not None
        assert reply.first_token_ms >= 290


def whole(data: bytes, cuts: list[int]) -> list[str]:
    lines, found, last = EventLines(), list[str](), 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        found += lines.feed(data[last:cut])
        last = cut
    return found + lines.end()


@given(st.lists(st.integers(min_value=0), max_size=12), st.sampled_from(["\n", "\r\n", "\r"]))
def test_any_split_gives_the_same_events(cuts: list[int], end: str) -> None:
    text = f": hi{end}{end}data: a{end}data:b{end}{end}event: x{end}data: \u20acuro{end}{end}data: last"
    assert whole(text.encode(), cuts) == ["a\nb", "\u20acuro", "last"]


CHUNKS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.sampled_from(["stop", "tool_calls"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from("choices delta content finish_reason tool_calls index id function name arguments".split()),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(st.lists(CHUNKS, max_size=5))
def test_any_chunks_are_a_sound_reply_or_a_named_error(chunks: list[Any]) -> None:
    answer = StreamedAnswer()
    try:
        for one in chunks:
            answer.add(json.dumps(one))
        reply = parse_answer(answer.body(), REQUEST, "m")
    except (Fault, Rejected, StreamRefused):
        return
    assert reply.text.strip() or reply.tool_calls or reply.finish != "stop"
