"""Reading what clients write: bytes to a sound submission, or `Rejected` with what to do.

Everything a client can get wrong is found here, before anything is decided.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, TypeVar

import msgspec
from msgspec import Raw, Struct

from swarmd.core.budgets import check_limits
from swarmd.core.codec import too_deep
from swarmd.core.errors import Rejected
from swarmd.core.events import Submitted
from swarmd.core.ids import check_name, check_reply, check_task_id, is_plain
from swarmd.core.wire import Feedback, Submission, TaskQuery

#: Inputs and outputs up to this many bytes travel in events; larger ones are stored as blobs.
INLINE_BYTES_MAX: Final = 256 * 1024
#: No request, submission or event may be larger; the broker's limit per message is 1 MiB.
MESSAGE_BYTES_MAX: Final = 768 * 1024
BATCH_MAX: Final = 1024
INPUT_DEPTH_MAX: Final = 100
TIMEOUT_MS_MAX: Final = 10 * 366 * 86_400_000
TIME_MS_MAX: Final = 253_402_300_799_000  #: the end of the year 9999
#: How many labels a task bears or requires, and how long they are; a member bears no others, since none would match.
LABELS_MAX: Final = 32
LABEL_NAME_CHARS_MAX, LABEL_CHARS_MAX = 64, 256

_T = TypeVar("_T")


class _Replied(Struct):
    reply: str = ""


_one: Final = msgspec.json.Decoder(Submission)
_many: Final = msgspec.json.Decoder(list[Submission])
_query: Final = msgspec.json.Decoder(TaskQuery)
_feedback: Final = msgspec.json.Decoder(Feedback)
_DEFAULTS: Final = (Submission("x").retry, Submission("x").budget)
_DIGEST: Final = re.compile("[0-9a-f]{64}")
#: What may be a number beyond all bounds: JSON knows none, who reads it does.
_LARGE: Final = re.compile(rb"[eE]\+?[0-9]{3}|[0-9]{300}")


def parse_submissions(payload: bytes) -> tuple[list[Submission], bool]:
    """The submissions in a request and whether it was a batch (a JSON array). Each still wants `check`."""
    if len(payload) > MESSAGE_BYTES_MAX:
        raise Rejected(
            "too_large",
            f"a request of {len(payload)} bytes is over {MESSAGE_BYTES_MAX}: send fewer tasks at once, or a large "
            "input as a blob",
        )
    batch = payload.lstrip()[:1] == b"["
    if not batch:
        return [_decode(_one, payload)], False
    submissions = _decode(_many, payload)
    if not 0 < len(submissions) <= BATCH_MAX:
        raise Rejected("bad_batch", f"a batch holds 1 to {BATCH_MAX} submissions, not {len(submissions)}")
    return submissions, True


def parse_raw(payload: bytes) -> tuple[Submission | Rejected, str]:
    """A raw submission, or why it cannot be a task; and where to send its outcome, even when it is refused."""
    try:
        submissions, is_batch = parse_submissions(payload)
        if is_batch:
            raise Rejected("bad_batch", "a raw submission is one object; send a batch to ctl.submit")
        return check(submissions[0]), submissions[0].reply
    except Rejected as error:
        return error, _reply_of(payload)


def _reply_of(payload: bytes) -> str:
    """The reply subject in something that is no sound submission, if it names a usable one."""
    try:
        reply = msgspec.json.decode(payload, type=_Replied).reply
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    return reply if reply and is_plain(reply) else ""


def parse_query(payload: bytes) -> TaskQuery:
    """The task a request names."""
    query = _decode(_query, payload)
    check_task_id(query.task)
    return query


def parse_feedback(payload: bytes) -> Feedback:
    """A judgement of a task."""
    feedback = _decode(_feedback, payload)
    check_task_id(feedback.task)
    if not -1 <= feedback.score <= 1:
        raise Rejected("bad_field", "score must be from -1 (bad) to 1 (good)")
    if len(feedback.comment) > 2_000 or len(feedback.by) > 200:
        raise Rejected("bad_field", "comment holds at most 2,000 characters, by at most 200")
    return feedback


def parse_as(kind: type[_T], payload: bytes) -> _T:
    """A request of this kind. Raises `Rejected` with what is wrong with it."""
    return _decode(msgspec.json.Decoder(kind), payload)


def _decode(decoder: msgspec.json.Decoder[_T], payload: bytes) -> _T:
    try:
        if not payload.isascii():
            payload.decode()  # the decoder leaves `Raw` fields unread, bytes that are no text too
        return decoder.decode(payload)
    except msgspec.ValidationError as error:
        raise Rejected("bad_field", f"{error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Rejected("bad_json", f"not JSON: {error}") from None
    except RecursionError:
        raise Rejected("too_deep", f"its JSON is nested deeper than {INPUT_DEPTH_MAX}") from None


def check(submission: Submission) -> Submission:
    """Return a sound submission unchanged; raise `Rejected` for the first thing that is wrong with it."""
    check_name("agent", submission.agent)
    if submission.id:
        check_task_id(submission.id)
    if submission.reply:
        check_reply(submission.reply)
    if len(submission.input) > INLINE_BYTES_MAX:
        raise Rejected(
            "too_large",
            f"an input of {len(submission.input)} bytes is over {INLINE_BYTES_MAX}: store it as a blob and submit "
            "its hash as input_blob (the SDK and `swarmd submit` do)",
        )
    if len(submission.input) > 2 * INPUT_DEPTH_MAX and too_deep(bytes(submission.input), INPUT_DEPTH_MAX):
        raise Rejected("too_deep", f"the input is nested deeper than {INPUT_DEPTH_MAX}: flatten it or send it as text")
    if _LARGE.search(submission.input):
        try:
            msgspec.json.decode(submission.input)
        except msgspec.MsgspecError as error:
            raise Rejected("bad_field", f"the input cannot be read: {error}") from None
    if submission.retry is not _DEFAULTS[0] or submission.budget is not _DEFAULTS[1]:
        _check_bounds(submission)
    if not -1000 <= submission.priority <= 1000:
        raise Rejected("bad_field", "priority must be from -1000 to 1000")
    if not 0 <= submission.not_before_ms <= TIME_MS_MAX:
        raise Rejected("bad_field", f"not_before_ms must be 0 (at once) to {TIME_MS_MAX}, in milliseconds since 1970")
    if not 0 <= submission.timeout_ms <= TIMEOUT_MS_MAX:
        raise Rejected("bad_field", f"timeout_ms must be 0 (none) to {TIMEOUT_MS_MAX} (ten years)")
    if submission.labels or submission.requires:
        _check_labels("labels", submission.labels)
        _check_labels("requires", submission.requires)
    if submission.input_blob:
        if not _DIGEST.fullmatch(submission.input_blob):
            raise Rejected("bad_field", "input_blob must be the SHA-256 of a stored blob, 64 of 0-9 a-f")
        if bytes(submission.input) != b"null":
            raise Rejected("bad_field", "give either input or input_blob, not both")
    if len(submission.tenant) > 64:
        raise Rejected("bad_field", "tenant holds at most 64 characters")
    check_key(submission.concurrency_key)
    return submission


def check_key(key: str) -> str:
    """Return `key` if it can be a concurrency key ("": none); raise `Rejected` otherwise."""
    if len(key) > 128:
        raise Rejected("bad_field", "concurrency_key holds at most 128 characters")
    return key


def _check_labels(what: str, labels: dict[str, str]) -> None:
    if len(labels) > LABELS_MAX:
        raise Rejected("bad_field", f"{what} holds at most {LABELS_MAX} entries")
    for name, value in labels.items():
        if not 1 <= len(name) <= LABEL_NAME_CHARS_MAX or len(value) > LABEL_CHARS_MAX:
            said = f"names have 1 to {LABEL_NAME_CHARS_MAX} characters, values at most {LABEL_CHARS_MAX}"
            raise Rejected("bad_field", f"{what}: {said}")


def _check_bounds(submission: Submission) -> None:
    retry, budget = submission.retry, submission.budget
    if not 1 <= retry.attempts_max <= 1000:
        raise Rejected("bad_field", "retry.attempts_max must be from 1 to 1000")
    if retry.backoff_ms < 0 or retry.backoff_ms_max < retry.backoff_ms:
        raise Rejected("bad_field", "retry.backoff_ms must be at least 0 and at most retry.backoff_ms_max")
    if retry.backoff_ms_max > 1 << 53:
        raise Rejected("bad_field", "retry takes numbers up to 2^53")
    check_limits("budget", budget)


def digest(submission: Submission) -> str:
    """What makes two submissions under one id the same wish: agent and input."""
    content = b"%b\0%b\0%b" % (submission.agent.encode(), submission.input_blob.encode(), bytes(submission.input))
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def to_fact(submission: Submission, content: str, term: int, now_ms: int, packed: bool) -> Submitted:
    """The event that accepts a submission; its timeout becomes a point in time here, once."""
    not_before = submission.not_before_ms if submission.not_before_ms > now_ms else 0
    return Submitted(
        term=term,
        agent=submission.agent,
        digest=content,
        input=Raw(submission.input),
        input_blob=submission.input_blob,
        priority=submission.priority,
        deadline_at_ms=max(now_ms, not_before) + submission.timeout_ms if submission.timeout_ms else 0,
        not_before_ms=not_before,
        tenant=submission.tenant,
        retry=submission.retry,
        budget=submission.budget,
        labels=submission.labels,
        requires=submission.requires,
        reply=submission.reply,
        packed=packed,
        concurrency_key=submission.concurrency_key,
    )
