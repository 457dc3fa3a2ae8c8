"""Log lines for people and machines, and the canary: a secret appears in none of them."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING

import pytest

from swarmd.adapters.logs import configure_logs
from swarmd.core.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterator

CANARY = 'sk-canary"\\ü-1234'
log = logging.getLogger("swarmd.test")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def test_text_names_what_a_line_is_about(stream: io.StringIO) -> None:
    configure_logs("text", "info", stream=stream, role="worker")
    log.info("took %s", "it", extra={"task": "t1", "seq": 7})
    log.debug("unseen")
    assert stream.getvalue().endswith(" INFO    swarmd.test: took it [role=worker task=t1 seq=7]\n")


def test_json_is_one_object_per_line_even_with_a_traceback(stream: io.StringIO) -> None:
    configure_logs("json", "debug", stream=stream, role="worker")
    log.info("two\nlines", extra={"task": "t1", "seq": 7, "member": "m"})
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("failed")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first["message"] == "two\nlines"
    assert (first["level"], first["role"], first["task"], first["seq"]) == ("info", "worker", "t1", 7)
    assert "ValueError: broken" in second["error"]


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_secret_is_hidden_wherever_it_comes_from(format: str, stream: io.StringIO) -> None:
    configure_logs("json" if format == "json" else "text", "debug", secrets=[CANARY, "ab"], stream=stream)
    log.info("plain %s, abrupt", CANARY, extra={"task": CANARY})
    log.info("shown %r", {"key": CANARY})
    try:
        raise ValueError(CANARY)
    except ValueError:
        log.exception("failed")
    assert "canary" not in stream.getvalue()
    assert stream.getvalue().count("[hidden]") >= 4
    assert "abrupt" in stream.getvalue()


def test_libraries_do_not_tell_of_each_request(stream: io.StringIO) -> None:
    configure_logs("text", "info", stream=stream)
    logging.getLogger("httpx2").info("GET https://example.com/?key=secret")
    logging.getLogger("httpx2").warning("odd")
    assert "secret" not in stream.getvalue()
    assert "odd" in stream.getvalue()


def test_a_second_call_replaces_the_first(stream: io.StringIO) -> None:
    configure_logs("text", "info", stream=io.StringIO())
    configure_logs("text", "info", stream=stream)
    log.info("once")
    assert stream.getvalue().count("once") == 1


def test_settings_that_do_not_exist_are_refused() -> None:
    with pytest.raises(Rejected, match="none of debug, info"):
        configure_logs("text", "loud")
    with pytest.raises(Rejected, match="none of text, json"):
        configure_logs("xml")  # type: ignore[arg-type]
    with pytest.raises(Rejected, match="no log field 'colour'"):
        configure_logs("text", "info", colour="red")
