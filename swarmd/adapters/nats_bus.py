"""Bus on a NATS connection: subjects in, bytes out, library errors translated.

Messages are handed over on the connection's read loop, without a queue and a task per subscription: the
handler must return at once. Must not know what the payloads mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from nats import errors

from swarmd.core.errors import Fault, Rejected
from swarmd.ports import Received

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription as NatsSubscription

RawHandler = Callable[["Msg"], None]
_Asked = ParamSpec("_Asked")
_Answer = TypeVar("_Answer")

#: A cluster whose leader died has another one after 4 to 9 seconds; meanwhile nobody answers for its streams.
PATIENCE_S: Final = 30.0
PAUSE_S, PAUSE_S_MAX = 0.1, 1.0
#: Faults that asking again does not mend.
_FINAL: Final = frozenset({"missing_sequence", "gap"})


#: Marks a header that a message has more than once; with its space it cannot be a name that was sent.
REPEATED: Final = "{} (repeated)"


def parse_headers(raw: bytes) -> dict[str, str]:
    """The header lines of a message; of a repeated name the last value, and a mark that it was repeated.

    On a direct read the broker adds headers of its own after the stored ones. The library keeps the last of each
    name and drops the fact that there were others, by which a copy of a message is told from the message.
    A line named `Status` is left out: the broker's own status is no line, and no sender may imitate it.
    """
    headers: dict[str, str] = {}
    for line in raw.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if not colon or not name.isascii():
            continue
        key = name.strip().decode("ascii")
        if not key or key == "Status" or any(letter.isspace() for letter in key):
            continue
        if key in headers:
            headers[REPEATED.format(key)] = headers[key]
        headers[key] = value.strip().decode("utf-8", "replace")
    return headers


class _Direct:
    """Stands in for a subscription's queue: hands each message to `handler` as it is parsed.

    A queue and a task per subscription cost 5 µs a message, this costs 3.5; above all it keeps the
    order between a subscription's messages and everything else that happens on the read loop.
    """

    def __init__(self, handler: RawHandler) -> None:
        self.put_nowait = handler

    def empty(self) -> bool:
        return True

    async def join(self) -> None:
        return None


def _cancellations() -> int:
    """How often the running task was told to end."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


class BusSubscription:
    """Ends with `close`; closing twice is harmless."""

    def __init__(self, subscription: NatsSubscription) -> None:
        self._subscription = subscription

    async def close(self) -> None:
        try:
            await self._subscription.unsubscribe()
        except (errors.BadSubscriptionError, errors.ConnectionClosedError):
            return


class NatsBus:
    """The Bus of one connection. The connection's owner opens and closes it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        client._parse_header_lines = parse_headers  # type: ignore[method-assign]
        self._bug: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def watch(self) -> None:
        """Raise what a handler raised. On the read loop it would leave a connection that looks alive and is deaf."""
        await asyncio.shield(self._bug)

    @property
    def connected(self) -> bool:
        return self.client.is_connected

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        await self.publish_raw(subject, payload, reply, None)

    async def publish_raw(self, subject: str, payload: bytes, reply: str, headers: dict[str, str] | None) -> None:
        """Hand one message to the connection. Raises `Fault("disconnected")` or `Rejected("too_large")`."""
        try:
            await self.client.publish(subject, payload, reply, headers)
        except errors.MaxPayloadError:
            raise Rejected("too_large", f"a message of {len(payload)} bytes is over the broker's limit") from None
        except (errors.ConnectionClosedError, errors.ConnectionDrainingError, errors.OutboundBufferLimitError) as error:
            raise Fault("disconnected", f"the broker cannot be reached: {type(error).__name__}") from None

    async def request(self, subject: str, payload: bytes, timeout_ms: int) -> bytes:
        message = await self.request_raw(subject, payload, timeout_ms)
        return bytes(message.data)

    async def request_raw(
        self, subject: str, payload: bytes, timeout_ms: int, headers: dict[str, str] | None = None
    ) -> Msg:
        """One answer with its headers. Raises `Fault("no_responders" | "timeout" | "disconnected")`."""
        cancelled = _cancellations()
        try:
            return await self.client.request(subject, payload, timeout=timeout_ms / 1000, headers=headers)
        except errors.NoRespondersError:
            raise Fault("no_responders", f"nobody serves {subject}: is the swarm running?") from None
        except (TimeoutError, errors.TimeoutError):
            raise Fault("timeout", f"no answer on {subject} within {timeout_ms} ms") from None
        except errors.MaxPayloadError:
            raise Rejected("too_large", f"a message of {len(payload)} bytes is over the broker's limit") from None
        except (errors.ConnectionClosedError, errors.ConnectionDrainingError, errors.OutboundBufferLimitError) as error:
            raise Fault("disconnected", f"the broker cannot be reached: {type(error).__name__}") from None
        finally:
            if _cancellations() > cancelled:
                # The library waits with `asyncio.wait_for`, which before Python 3.12 drops a cancellation that comes
                # together with the answer; a loop that asks again and again would then never end.
                raise asyncio.CancelledError

    async def subscribe(self, subject: str, on_message: Callable[[Received], None], queue: str = "") -> BusSubscription:
        def deliver(message: Msg) -> None:
            on_message(Received(message.subject, message.data, message.reply))

        return await self.subscribe_raw(subject, deliver, queue)

    async def subscribe_raw(self, subject: str, handler: RawHandler, queue: str = "") -> BusSubscription:
        """As `subscribe`, with the library's message, for adapters that need its headers."""
        try:
            subscription = await self.client.subscribe(subject, queue=queue, pending_bytes_limit=0)
        except (errors.ConnectionClosedError, errors.ConnectionDrainingError) as error:
            raise Fault("disconnected", f"the broker cannot be reached: {type(error).__name__}") from None

        def guarded(message: Msg) -> None:
            try:
                handler(message)
            except Exception as error:  # a bug of ours: whoever watches this bus stops its role
                if not self._bug.done():
                    self._bug.set_exception(error)

        subscription._pending_queue = _Direct(guarded)  # type: ignore[assignment]
        return BusSubscription(subscription)

    def inbox(self) -> str:
        """A fresh subject that only this connection's role may read."""
        return self.client.new_inbox()

    async def api(self, verb: str, body: bytes, timeout_ms: int = 5_000) -> dict[str, Any]:
        """One JetStream API request; the decoded answer, with errors as `ApiRefused`."""
        import msgspec

        answer: dict[str, Any] = msgspec.json.decode(await self.request(f"$JS.API.{verb}", body, timeout_ms))
        error = answer.get("error")
        if error:
            raise ApiRefused(int(error.get("err_code", 0)), str(error.get("description", "")))
        return answer


class ApiRefused(Exception):
    """JetStream said no; `code` is its `err_code`."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"{description} ({code})")
        self.code = code
        self.description = description


async def patiently(ask: Callable[_Asked, Awaitable[_Answer]], *args: _Asked.args, **kwargs: _Asked.kwargs) -> _Answer:
    """What `ask` returns, asked again while it raises `Fault`: a cluster may be electing. Raises the last `Fault`.

    What is asked must be the same whether it is done once or twice.
    """
    loop = asyncio.get_running_loop()
    gives_up_at, pause_s = loop.time() + PATIENCE_S, PAUSE_S
    while True:
        try:
            return await ask(*args, **kwargs)
        except Fault as error:
            if error.code in _FINAL or loop.time() + pause_s > gives_up_at:
                raise
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, PAUSE_S_MAX)
