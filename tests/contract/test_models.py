"""One suite over every model: the offline one, and the OpenAI-compatible one against an independent server (llmock).

What that server does not do wrong is done wrong by a scripted one.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import traceback
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd import config
from swarmd.adapters.chat_format import decode_body, error_text, parse_answer
from swarmd.adapters.extractive_model import MODEL_NAME, NOTHING_ANSWERS, ExtractiveModel
from swarmd.adapters.models import ModelSettings, open_model
from swarmd.adapters.openai_client import Endpoint, retry_after_ms
from swarmd.adapters.openai_model import OpenAIModel
from swarmd.core.errors import Fault, Rejected, SwarmdError
from swarmd.core.model_profile import PROFILES, Profile
from swarmd.core.turns import ModelReply, ModelRequest, ToolCall, ToolSpec, Turn
from swarmd.edges.open_models import OpenModels
from swarmd.edges.settings import model_settings
from swarmd.structured import Structured, complete_structured, read_json
from tests.contract.scripted_http import Asked, ScriptedServer, http, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from swarmd.ports import Model

HAS_OPENAI = importlib.util.find_spec("openai") is not None
HAS_LLMOCK = HAS_OPENAI and importlib.util.find_spec("llmock") is not None
needs_openai = pytest.mark.skipif(not HAS_OPENAI, reason="needs openai: pip install 'swarmd[models]'")
needs_llmock = pytest.mark.skipif(not HAS_LLMOCK, reason="needs llmock: pip install 'swarmd[models,test]'")

KEY = "sk-canary-0123456789"
TEXT = "The log is the truth. State is a fold of the log. Members append their reports to the log. Cats sleep a lot."
WEATHER = ToolSpec(
    name="weather",
    description="The weather of a city.",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}


def model_at(url: str, model: str = "m", **settings: Any) -> OpenAIModel:
    return OpenAIModel(model, Endpoint("openai", url, settings.pop("key", KEY), **settings))


def request(text: str = TEXT, **settings: Any) -> ModelRequest:
    return ModelRequest(turns=[Turn("system", "Be brief."), Turn("user", text)], **settings)


@pytest.fixture(params=["offline", pytest.param("openai", marks=needs_llmock)])
async def model(request: pytest.FixtureRequest) -> AsyncIterator[Model]:
    opened: Model
    if request.param == "offline":
        opened = ExtractiveModel()
    else:
        opened = model_at(request.getfixturevalue("llmock").base_url(), "gpt-4o-mini")
    yield opened
    await opened.close()


class TestEveryModel:
    async def test_answers_with_text_a_finish_and_usage(self, model: Model) -> None:
        reply = await model.complete(request())
        assert reply.text.strip()
        assert reply.finish == "stop"
        assert reply.model.startswith(model.name.split(":")[0] + ":")
        assert reply.usage.input_tokens > 0
        assert reply.usage.output_tokens > 0

    async def test_takes_a_whole_conversation(self, model: Model) -> None:
        turns = [
            Turn("system", "Be brief."),
            Turn("user", "What is the weather in Paris?"),
            Turn("assistant", tool_calls=[ToolCall("call_1", "weather", {"city": "Paris"})]),
            Turn("tool", "Sunny.", tool_call_id="call_1"),
            Turn("assistant", "Sunny."),
            Turn("user", TEXT),
        ]
        assert (await model.complete(ModelRequest(turns=turns, temperature=0.0))).text.strip()

    async def test_replies_survive_the_log(self, model: Model) -> None:
        reply = await model.complete(request())
        assert msgspec.json.decode(msgspec.json.encode(reply), type=ModelReply) == reply

    async def test_serves_concurrent_calls_and_closes_twice(self, model: Model) -> None:
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(model.complete(request(max_output_tokens=50))) for _ in range(8)]
        assert all(call.result().text for call in calls)
        await model.close()
        await model.close()


class TestOffline:
    async def test_is_deterministic_and_names_itself(self) -> None:
        first, second = [await ExtractiveModel().complete(request()) for _ in range(2)]
        assert first == second
        assert first.model == ExtractiveModel().name == MODEL_NAME
        assert first.usage.estimated

    async def test_long_input_gives_the_same_as_short_and_leaves_the_loop_free(self) -> None:
        long = request("\n\n".join(f"{TEXT} Passage {n} speaks of member {n}." for n in range(200)))
        assert await ExtractiveModel().complete(long) == await ExtractiveModel().complete(long)

    async def test_ignores_tools_and_reads_the_last_user_turn(self) -> None:
        asked = ModelRequest(turns=[Turn("user", "First."), Turn("user", "Question: who?\n\nNobody.")], tools=[WEATHER])
        reply = await ExtractiveModel().complete(asked)
        assert (reply.text, reply.tool_calls) == (NOTHING_ANSWERS, [])

    async def test_refuses_what_it_cannot_read(self) -> None:
        with pytest.raises(Rejected, match="user turn") as caught:
            await ExtractiveModel().complete(ModelRequest(turns=[Turn("system", "x")]))
        assert caught.value.code == "no_user_turn"
        with pytest.raises(Rejected, match="split the text"):
            await ExtractiveModel().complete(request("x" * 2_000_001))


@needs_llmock
class TestIndependentServer:
    """Against llmock, which also judges the client: no retries of its own, no truncated answer accepted."""

    async def ask(self, llmock: Any, **settings: Any) -> ModelReply:
        model = model_at(llmock.base_url(), "gpt-4o-mini")
        try:
            return await model.complete(request(**settings))
        finally:
            await model.close()

    async def test_tool_call(self, llmock: Any) -> None:
        llmock.call_tool("weather", {"city": "Paris"})
        reply = await self.ask(llmock, tools=[WEATHER])
        assert reply.finish == "tool_calls"
        assert [(call.name, call.arguments) for call in reply.tool_calls] == [("weather", {"city": "Paris"})]
        assert reply.tool_calls[0].id

    async def test_malformed_tool_arguments(self, llmock: Any) -> None:
        llmock.break_tool_call("malformed_arguments")
        reply = await self.ask(llmock, tools=[WEATHER])
        assert reply.finish == "tool_calls"
        assert reply.tool_calls[0].arguments == {}
        assert "not valid JSON" in reply.tool_calls[0].problem

    async def test_rate_limit_is_reported_once_with_its_wait(self, llmock: Any) -> None:
        llmock.rate_limit(times=1, retry_after=2)
        with pytest.raises(Fault) as caught:
            await self.ask(llmock)
        assert caught.value.code == "rate_limited"
        assert caught.value.retry_after_ms == 2_000
        assert len(llmock.requests) == 1

    @pytest.mark.parametrize("status", [500, 502, 503, 529])
    async def test_outage(self, llmock: Any, status: int) -> None:
        llmock.fail(status)
        with pytest.raises(Fault) as caught:
            await self.ask(llmock)
        assert caught.value.code == "model_unavailable"
        assert len(llmock.requests) == 1

    @pytest.mark.parametrize(
        ("status", "code"),
        [
            (400, "bad_request"),
            (401, "unauthorized"),
            (403, "forbidden"),
            (404, "model_not_found"),
            (422, "bad_request"),
        ],
    )
    async def test_refusals(self, llmock: Any, status: int, code: str) -> None:
        llmock.fail(status, message="not like this")
        with pytest.raises(Rejected, match="not like this") as caught:
            await self.ask(llmock)
        assert caught.value.code == code
        assert len(llmock.requests) == 1

    async def test_context_overflow(self, llmock: Any) -> None:
        llmock.context_overflow()
        with pytest.raises(Rejected) as caught:
            await self.ask(llmock)
        assert caught.value.code == "context_too_long"

    async def test_the_judge_is_content_when_the_caller_waits_as_told(self, llmock: Any) -> None:
        llmock.rate_limit(times=1, retry_after=0.2)
        with pytest.raises(Fault) as caught:
            await self.ask(llmock)
        await asyncio.sleep((caught.value.retry_after_ms or 0) / 1000)
        assert (await self.ask(llmock)).text
        llmock.assert_resilient()


def choice(content: Any = "Fine.", finish: str | None = "stop", **message: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}]}


def calling(arguments: Any, finish: str = "tool_calls", **call: Any) -> dict[str, Any]:
    calls = [{"type": "function", "function": {"name": "weather", "arguments": arguments}, **call}]
    return choice(None, finish, tool_calls=calls)


@asynccontextmanager
async def scripted(answer: Any, **settings: Any) -> AsyncIterator[tuple[OpenAIModel, ScriptedServer]]:
    async with serving(answer) as server:
        model = model_at(f"{server.url}/v1/", **settings)
        try:
            yield model, server
        finally:
            await model.close()


async def outcome(answer: Any, asked: ModelRequest | None = None, **settings: Any) -> ModelReply | SwarmdError:
    async with scripted(answer, **settings) as (model, _):
        try:
            return await model.complete(asked or request())
        except SwarmdError as error:
            return error


@needs_openai
class TestForeignAnswers:
    @pytest.mark.parametrize(
        ("body", "kind", "code"),
        [
            ({"error": {"message": "upstream died"}}, Fault, "model_unavailable"),
            ({"error": {"message": "slow down", "code": 429}}, Fault, "rate_limited"),
            ({"error": {"message": "no", "code": "400"}}, Rejected, "bad_request"),
            ({"error": {"message": "pay", "code": "insufficient_quota"}}, Rejected, "insufficient_quota"),
            ({}, Fault, "bad_answer"),
            ([], Fault, "bad_answer"),
            ("null", Fault, "bad_answer"),
            ({"choices": []}, Fault, "bad_answer"),
            ({"choices": None}, Fault, "bad_answer"),
            ({"choices": [{}]}, Fault, "bad_answer"),
            ({"choices": [{"message": None, "finish_reason": "stop"}]}, Fault, "bad_answer"),
            ("<html>Welcome</html>", Fault, "bad_answer"),
            (b"\xff\xfe", Fault, "bad_answer"),
            ("", Fault, "bad_answer"),
            (choice(finish=None), Fault, "bad_answer"),
            (choice(finish="error"), Fault, "bad_answer"),
            (choice(content=""), Fault, "bad_answer"),
            (choice(content=7), Fault, "bad_answer"),
            (choice(finish="tool_calls"), Fault, "bad_answer"),
            (choice(finish="content_filter"), Rejected, "content_filtered"),
            (calling('{"city": ', finish="length"), Rejected, "output_cut"),
        ],
    )
    async def test_what_is_no_answer_is_an_error(self, body: Any, kind: type, code: str) -> None:
        result = await outcome(http(body, kind="text/html" if isinstance(body, str) else "application/json"))
        assert isinstance(result, kind)
        assert isinstance(result, SwarmdError)
        assert result.code == code

    async def test_absent_usage_is_estimated(self) -> None:
        reply = await outcome(http(choice()))
        assert isinstance(reply, ModelReply)
        assert reply.usage.estimated
        assert reply.usage.input_tokens == -(-len("Be brief." + TEXT) // 4)
        assert (reply.text, reply.model) == ("Fine.", "openai:m")

    async def test_billed_usage_and_the_answering_model_are_taken_over(self) -> None:
        body = choice() | {"usage": {"prompt_tokens": 7, "completion_tokens": 2}, "model": "m-2026"}
        reply = await outcome(http(body))
        assert isinstance(reply, ModelReply)
        assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.usage.estimated) == (7, 2, False)
        assert reply.model == "openai:m-2026"

    @pytest.mark.parametrize("arguments", ['{"city":"Paris"}', {"city": "Paris"}])
    async def test_tool_arguments_as_text_or_object_and_absent_ids(self, arguments: Any) -> None:
        reply = await outcome(http(calling(arguments, finish="stop")), request(tools=[WEATHER]))
        assert isinstance(reply, ModelReply)
        assert (reply.finish, reply.tool_calls[0].arguments) == ("tool_calls", {"city": "Paris"})
        assert reply.tool_calls[0].id == "call_2_0"

    @pytest.mark.parametrize("arguments", ["", None, "null", "{}"])
    async def test_a_tool_without_arguments(self, arguments: Any) -> None:
        reply = await outcome(http(calling(arguments, id="a")))
        assert isinstance(reply, ModelReply)
        assert reply.tool_calls == [ToolCall("a", "weather", {})]

    @pytest.mark.parametrize(
        ("arguments", "words"), [('{"city": ', "not valid JSON"), ('["Paris"]', "JSON object"), (7, "JSON object")]
    )
    async def test_unreadable_arguments_are_told_to_the_model(self, arguments: Any, words: str) -> None:
        reply = await outcome(http(calling(arguments)))
        assert isinstance(reply, ModelReply)
        assert reply.tool_calls[0].arguments == {}
        assert words in reply.tool_calls[0].problem

    @pytest.mark.parametrize(
        ("code", "ours"), [("content_filter", "content_filtered"), ("context_length_exceeded", "context_too_long")]
    )
    async def test_codes_say_more_than_the_status(self, code: str, ours: str) -> None:
        result = await outcome(http({"error": {"code": code, "message": "no"}}, 400))
        assert isinstance(result, Rejected)
        assert result.code == ours

    async def test_a_bill_in_the_usage_is_taken_over(self) -> None:
        body = choice() | {"usage": {"prompt_tokens": 7, "completion_tokens": 2, "cost": 0.0001231}}
        reply = await outcome(http(body))
        assert isinstance(reply, ModelReply)
        assert reply.usage.cost_microusd == 124

    async def test_content_in_parts_and_refusals(self) -> None:
        parts = await outcome(http(choice(content=[{"type": "text", "text": "Fi"}, {"type": "text", "text": "ne."}])))
        refused = await outcome(http(choice(content=None, refusal="I will not.")))
        assert isinstance(parts, ModelReply)
        assert isinstance(refused, ModelReply)
        assert parts.text == "Fine."
        assert (refused.text, refused.finish) == ("I will not.", "content_filter")

    @pytest.mark.parametrize(
        ("body", "words"),
        [({"detail": [{"loc": ["body", "x"], "msg": "bad x"}]}, "bad x"), ({"error": "plain words"}, "plain words")],
    )
    async def test_foreign_error_shapes_keep_their_words(self, body: Any, words: str) -> None:
        result = await outcome(http(body, status=422))
        assert isinstance(result, Rejected)
        assert words in result.message

    async def test_quota_is_final_and_rate_limit_is_not(self) -> None:
        quota = await outcome(http({"error": {"code": "insufficient_quota", "message": "pay"}}, status=429))
        limit = await outcome(http({"error": {"message": "wait"}}, 429, retry_after="3"))
        assert isinstance(quota, Rejected)
        assert isinstance(limit, Fault)
        assert (limit.code, limit.retry_after_ms) == ("rate_limited", 3_000)

    async def test_silence_and_a_closed_port(self) -> None:
        silent = await outcome(None, timeout_ms=100)
        assert isinstance(silent, Fault)
        assert silent.code == "model_timeout"
        async with serving(b"") as server:
            url = server.url
        closed = model_at(url)
        with pytest.raises(Fault) as caught:
            await closed.complete(request())
        assert caught.value.code == "model_unreachable"
        await closed.close()

    async def test_a_cancelled_call_ends_at_once_and_hangs_up(self) -> None:
        asked, gone = asyncio.Event(), asyncio.Event()

        async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.set()
            await reader.read()  # until the caller hangs up
            gone.set()
            writer.close()

        server = await asyncio.start_server(hold, "127.0.0.1", 0)
        model = model_at(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        calling = asyncio.get_running_loop().create_task(model.complete(request(), lambda text: None))
        async with asyncio.timeout(30):
            await asked.wait()
        calling.cancel()
        async with asyncio.timeout(1.0):
            with pytest.raises(asyncio.CancelledError):
                await calling
            await gone.wait()
        await model.close()
        server.close()

    async def test_the_connection_breaks_within_the_answer(self) -> None:
        result = await outcome(http(choice())[:-5])
        assert isinstance(result, Fault)
        assert result.code == "model_unreachable"


@needs_openai
class TestTokenParameter:
    @pytest.mark.parametrize("refusal", ["openai", "fastapi"])
    async def test_falls_back_once_and_remembers(self, refusal: str) -> None:
        def answer(asked: Asked) -> bytes:
            if "max_tokens" not in asked.json():
                return http(choice())
            if refusal == "openai":
                return http({"error": {"code": "unsupported_parameter", "param": "max_tokens", "message": "no"}}, 400)
            return http({"detail": [{"loc": ["body", "max_tokens"], "msg": "extra"}]}, 422)

        async with scripted(answer) as (model, server):
            await model.complete(request(max_output_tokens=5))
            await model.complete(request(max_output_tokens=6))
        limits = [{k: v for k, v in asked.json().items() if k.startswith("max_")} for asked in server.asked]
        assert limits == [{"max_tokens": 5}, {"max_completion_tokens": 5}, {"max_completion_tokens": 6}]

    async def test_other_refusals_and_absent_limits_are_not_repeated(self) -> None:
        async with scripted(http({"error": {"message": "max_tokens"}}, 400)) as (model, server):
            with pytest.raises(Rejected):
                await model.complete(request())
        assert len(server.asked) == 1
        assert "max_tokens" not in server.asked[0].json()

    async def test_when_neither_works_the_first_reason_stands(self) -> None:
        def answer(asked: Asked) -> bytes:
            name = next(key for key in asked.json() if key.startswith("max_"))
            return http({"error": {"message": f"{name} refused", "param": name}}, 400)

        async with scripted(answer) as (model, server):
            with pytest.raises(Rejected, match="max_tokens refused"):
                await model.complete(request(max_output_tokens=5))
        assert len(server.asked) == 2


@needs_openai
class TestProfiles:
    """What is sent follows the profile, and what a server refuses by name is left out from then on."""

    async def sent(self, profile: Profile, asked: ModelRequest, reply: Any = None) -> dict[str, Any]:
        async with scripted(http(reply or choice("{}")), profile=profile) as (model, server):
            await model.complete(asked)
        body: dict[str, Any] = server.asked[0].json()
        return body

    async def test_roles_limits_and_bills(self) -> None:
        plain = await self.sent(Profile(), request(max_output_tokens=5, temperature=0.5))
        assert set(plain) == {"model", "messages", "max_tokens", "temperature"}
        other = Profile(system_role="developer", temperature=False, cost_in_usage=True, parallel_tools=False)
        body = await self.sent(other, request(temperature=0.5, tools=[WEATHER]))
        assert [message["role"] for message in body["messages"]] == ["developer", "user"]
        assert "temperature" not in body
        assert (body["usage"], body["parallel_tool_calls"]) == ({"include": True}, False)
        assert (await self.sent(PROFILES["openai"], request(max_output_tokens=5)))["max_completion_tokens"] == 5

    async def test_tools_are_refused_before_the_call_where_there_are_none(self) -> None:
        result = await outcome(http(choice()), request(tools=[WEATHER]), profile=Profile(tools=False))
        assert isinstance(result, Rejected)
        assert result.code == "tools_unsupported"

    async def test_a_schema_goes_as_the_profile_says(self) -> None:
        asked = request(schema=PERSON)
        body = await self.sent(Profile(), asked)
        assert body["response_format"]["json_schema"] == {"name": "final_answer", "schema": PERSON, "strict": True}
        called = calling('{"name": "Ada"}')
        called["choices"][0]["message"]["tool_calls"][0]["function"]["name"] = "final_answer"
        body = await self.sent(Profile(structured="tool"), asked, called)
        assert body["tools"][0]["function"]["parameters"] == PERSON
        assert body["tool_choice"]["function"]["name"] == "final_answer"
        body = await self.sent(Profile(structured="prompt"), asked)
        assert "JSON Schema" in body["messages"][0]["content"]
        assert not {"tools", "response_format"} & set(body)

    @pytest.mark.parametrize("structured", ["json_schema", "tool"])
    async def test_a_schema_of_no_object_is_boxed_and_unboxed(self, structured: Any) -> None:
        boxed = choice('{"value": [1, 2]}')
        if structured == "tool":
            boxed = calling({"value": [1, 2]})
            boxed["choices"][0]["message"]["tool_calls"][0]["function"]["name"] = "final_answer"
        asked = request(schema={"type": "array", "items": {"type": "integer"}})
        reply = await outcome(http(boxed), asked, profile=Profile(structured=structured))
        assert isinstance(reply, ModelReply)
        assert (reply.text, reply.finish, reply.tool_calls) == ("[1,2]", "stop", [])

    async def test_a_refused_way_of_asking_is_replaced_by_the_next(self) -> None:
        def answer(asked: Asked) -> bytes:
            for name in ("response_format", "tool_choice", "temperature"):
                if name in asked.json():
                    return http({"detail": [{"loc": ["body", name], "msg": "extra"}]}, 422)
            return http(choice('{"name": "Ada"}'))

        async with scripted(answer) as (model, server):
            for _ in range(2):
                reply = await model.complete(request(schema=PERSON, temperature=0.1))
                assert reply.text == '{"name": "Ada"}'
        assert len(server.asked) == 5


class TestStructuredAnswers:
    """The loop of repairs: each is a call of its own, the model is told what is wrong, and it ends."""

    async def ask(self, *answers: str, schema: Any = None) -> tuple[Any, list[ModelRequest]]:
        asked: list[ModelRequest] = []

        async def call(wanted: ModelRequest) -> ModelReply:
            asked.append(wanted)
            return ModelReply(answers[len(asked) - 1], "stop", "x:y")

        return await complete_structured(request(schema=schema or PERSON), call), asked

    async def test_a_wrong_answer_is_repaired(self) -> None:
        result, asked = await self.ask("Sure!", '{"name": 1}', '```json\n{"name": "Ada"}\n```')
        assert isinstance(result, Structured)
        assert (result.value, len(result.replies)) == ({"name": "Ada"}, 3)
        assert "not valid JSON" in asked[1].turns[-1].content
        assert "$.name: must be string" in asked[2].turns[-1].content
        assert len(asked[1].turns) == len(asked[2].turns) == 4

    async def test_it_ends(self) -> None:
        with pytest.raises(Rejected, match=r"\$\.name: is missing") as caught:
            await self.ask("{}", "{}", "{}")
        assert caught.value.code == "schema_mismatch"

    async def test_a_bad_schema_costs_no_call(self) -> None:
        with pytest.raises(Rejected) as caught:
            await self.ask(schema={"type": "persno"})
        assert caught.value.code == "bad_schema"

    @pytest.mark.parametrize(
        "text", ['{"a": 1}', 'Here: {"a": 1}. Done.', '```\n{"a": 1}\n```', '```json\n{"a": 1}```']
    )
    def test_json_is_found_in_prose(self, text: str) -> None:
        assert read_json(text) == {"a": 1}

    @needs_llmock
    async def test_against_an_independent_server(self, llmock: Any) -> None:
        llmock.reply("no JSON at all")
        model = model_at(llmock.base_url(), "gpt-4o-mini")
        result = await complete_structured(request(schema=PERSON), model.complete)
        await model.close()
        assert isinstance(result, Structured)
        assert isinstance(result.value["name"], str)
        assert len(result.replies) == 2


@needs_openai
class TestTheKeyStaysSecret:
    @pytest.mark.parametrize("status", [200, 400, 401, 500])
    @pytest.mark.parametrize("shape", ["json", "text", "choice"])
    async def test_a_server_that_echoes_it(self, status: int, shape: str) -> None:
        def answer(asked: Asked) -> bytes:
            echoed = asked.headers["authorization"]
            assert echoed == f"Bearer {KEY}"
            body: Any = {"error": {"message": f"bad key {echoed}", "code": echoed}}
            return http({"json": body, "text": f"no {echoed}", "choice": choice(finish=echoed)}[shape], status)

        async with scripted(answer) as (model, _):
            with pytest.raises(SwarmdError) as caught:
                await model.complete(request())
            shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(model)
        assert KEY not in shown
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None

    @pytest.mark.parametrize("key", ["sk-canary\n1", "sk canary", "sk-canar\u00fc"])
    def test_a_key_that_no_header_can_carry(self, key: str) -> None:
        with pytest.raises(Rejected) as caught:
            model_at("http://127.0.0.1:1", key=key)
        assert "canar" not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://x/v1", "x", "http://", "http://u:p@x/v1", "http://x:y/v1", "http://x/v1?a=b"])
def test_a_bad_base_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(Rejected) as caught:
        model_at(url)
    assert caught.value.code == "bad_base_url"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "1.5"}, 1_500),
        ({"retry-after-ms": "20", "retry-after": "9"}, 20),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "1e9"}, 3_600_000),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:47 GMT", "date": "Sun, 06 Nov 1994 08:49:37 GMT"}, 10_000),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:47 GMT"}, None),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:47 GMT", "date": "Sun, 06 Nov 1994 08:49:37"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], expected: int | None) -> None:
    assert retry_after_ms(headers) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.sampled_from(["stop", "tool_calls", "{}"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "message",
                    "content",
                    "finish_reason",
                    "tool_calls",
                    "function",
                    "name",
                    "arguments",
                    "usage",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=30,
)


@settings(deadline=None)
@given(JSON)
def test_any_json_is_a_sound_reply_or_a_named_error(body: Any) -> None:
    assert isinstance(error_text(body), str)
    with suppress(Fault, Rejected):
        reply = parse_answer(body, request(), "m")
        assert reply.text.strip() or reply.tool_calls or reply.finish != "stop"


@settings(deadline=None)
@given(st.binary(max_size=50))
def test_any_bytes_are_json_or_a_fault(payload: bytes) -> None:
    with suppress(Fault):
        assert decode_body(payload) == json.loads(payload)


class TestOpenModel:
    def test_offline(self) -> None:
        assert isinstance(open_model(ModelSettings("offline:extractive"), {}), ExtractiveModel)

    @pytest.mark.parametrize("name", ["offline:gpt", "openai:", "gpt-4o", "", "other:x"])
    def test_unknown_names(self, name: str) -> None:
        with pytest.raises(Rejected, match="offline:extractive") as caught:
            open_model(ModelSettings(name), {"OPENAI_API_KEY": KEY})
        assert caught.value.code == "unknown_model"

    @needs_openai
    @pytest.mark.parametrize(
        ("name", "url"),
        [
            ("openai:m", "https://api.openai.com/v1"),
            ("ollama:llama3.2:1b", "http://127.0.0.1:11434/v1"),
            ("vllm:org/m", "http://127.0.0.1:8000/v1"),
            ("llamacpp:m", "http://127.0.0.1:8080/v1"),
            ("litellm:m", "http://127.0.0.1:4000/v1"),
            ("openrouter:org/m", "https://openrouter.ai/api/v1"),
        ],
    )
    def test_known_providers(self, name: str, url: str) -> None:
        model = open_model(ModelSettings(name), {"OPENAI_API_KEY": KEY, "OPENROUTER_API_KEY": KEY})
        assert isinstance(model, OpenAIModel)
        assert (model.name, model.base_url) == (name, url)

    @needs_openai
    async def test_a_key_goes_to_its_own_provider_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for variable in ("OPENAI_API_KEY", "MINE_KEY", "VLLM_API_KEY"):
            monkeypatch.setenv(variable, f"sk-of-{variable}")
        async with serving(http(choice())) as server:
            tables = "".join(
                f'[provider.{name}]\nbase_url = "{server.url}/v1"\n{more}\n'
                for name, more in [("openai", ""), ("mine", 'api_key_env = "MINE_KEY"'), ("vllm", ""), ("ollama", "")]
            )
            models = OpenModels(model_settings(config.load(tables, {})))
            for provider in ("openai", "mine", "vllm", "ollama"):
                await models(f"{provider}:m").complete(request())
            await models.close()
        sent = [asked.headers["authorization"].removeprefix("Bearer ") for asked in server.asked]
        assert sent == ["sk-of-OPENAI_API_KEY", "sk-of-MINE_KEY", "sk-of-VLLM_API_KEY", "none"]

    def test_a_providers_table_changes_its_profile(self) -> None:
        text = '[provider.ollama]\nstructured = "tool"\nstream = false\ntokens_per_minute = 9\n[model]\ntimeout_ms = 7'
        found = model_settings(config.load(text, {}))("ollama:m")
        assert found.profile == msgspec.structs.replace(PROFILES["ollama"], structured="tool", stream=False)
        assert (found.rate.tokens_per_minute, found.timeout_ms) == (9, 7)

    @needs_openai
    def test_key_and_endpoint_from_environment_file_and_settings(self, tmp_path: Any) -> None:
        with pytest.raises(Rejected, match="OPENAI_API_KEY") as caught:
            open_model(ModelSettings("openai:m"), {})
        assert caught.value.code == "missing_api_key"
        model = open_model(ModelSettings("openai:m"), {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": "http://env/v1"})
        assert isinstance(model, OpenAIModel)
        assert (model.base_url, model.name) == ("http://env/v1", "openai:m")
        model = open_model(ModelSettings("openai:m", base_url="http://given/v1"), {"OPENAI_BASE_URL": "http://env/v1"})
        assert isinstance(model, OpenAIModel)
        assert model.base_url == "http://given/v1"
        file = tmp_path / "key"
        file.write_text(f"{KEY}\n")
        assert open_model(ModelSettings("openai:m", api_key_file=str(file)), {}).name == "openai:m"
        with pytest.raises(Rejected, match="cannot read"):
            open_model(ModelSettings("openai:m", api_key_file=str(tmp_path / "none")), {})
        file.write_text("")
        with pytest.raises(Rejected, match="must hold the key"):
            open_model(ModelSettings("openai:m", api_key_file=str(file)), {})

    def test_a_missing_package_says_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(Rejected, match=r"swarmd\[models\]") as caught:
            open_model(ModelSettings("openai:m"), {"OPENAI_API_KEY": KEY})
        assert caught.value.code == "missing_extra"
