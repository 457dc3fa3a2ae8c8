"""The JetStream streams of a swarm and of a memory: created when missing, brought up to date when not.

The log stream allows no roll-up, no per-message TTL, no schedules and no deletes: on streams that do,
whoever may publish one subject can wipe or forge others by headers. Its neighbours hold what is not
the truth (intake, blobs, snapshots, the lease), each with its own size limit.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from swarmd.adapters.nats_bus import ApiRefused, NatsBus
from swarmd.core import subjects
from swarmd.core.errors import Fault, Rejected

NOT_FOUND: Final = 10059
#: No leader of the cluster now, or too few servers of it are up yet: JetStream's err_codes for "ask again".
_NOT_NOW: Final = frozenset({10005, 10008, 10009})
_NO_CLUSTER: Final = 10074
#: The broker forgets message ids after this long; the fold's numbering does not.
DEDUP_WINDOW_S: Final = 30


class StreamLimits(Struct, frozen=True):
    """Bytes that each store of a swarm may take, and how often the streams are replicated."""

    log_bytes_max: int = 8 * 1024**3
    intake_bytes_max: int = 256 * 1024**2
    blob_bytes_max: int = 8 * 1024**3
    replicas: int = 1


def swarm_streams(swarm: str, limits: StreamLimits) -> list[dict[str, Any]]:
    """The configurations of a swarm's streams, the log first."""
    return [
        _stream(subjects.log_stream(swarm), subjects.log_all(swarm), limits.log_bytes_max, limits.replicas)
        | {"deny_delete": True},
        _stream(subjects.intake_stream(swarm), subjects.submit(swarm), limits.intake_bytes_max, limits.replicas),
        _stream(subjects.blob_stream(swarm), f"swarm.{swarm}.blob.>", limits.blob_bytes_max, limits.replicas)
        | {"max_msgs_per_subject": 1, "discard_new_per_subject": True},
        _stream(subjects.snapshot_stream(swarm), subjects.snapshot(swarm), 1024**2, limits.replicas)
        | {"max_msgs_per_subject": 2, "discard": "old"},
        _stream(subjects.lease_stream(swarm), subjects.lease(swarm), 1024**2, limits.replicas)
        | {"max_msgs_per_subject": 1, "allow_msg_ttl": True},
        _stream(subjects.rate_stream(swarm), subjects.rate(swarm, "*"), 1024**2, limits.replicas)
        | {"max_msgs_per_subject": 1, "storage": "memory"},
    ]


def memory_stream(memory: str, bytes_max: int, replicas: int = 1) -> dict[str, Any]:
    """The configuration of a memory's log stream."""
    subject = f"memory.{memory}.log.>"
    return _stream(subjects.memory_stream(memory), subject, bytes_max, replicas) | {"deny_delete": True}


def memory_streams(memory: str, bytes_max: int, replicas: int = 1) -> list[dict[str, Any]]:
    """The configurations of a memory's streams: its log and the lease of the node that serves it."""
    lease = _stream(subjects.memory_lease_stream(memory), subjects.memory_lease(memory), 1024**2, replicas)
    return [memory_stream(memory, bytes_max, replicas), lease | {"max_msgs_per_subject": 1, "allow_msg_ttl": True}]


def _stream(name: str, subject: str, bytes_max: int, replicas: int) -> dict[str, Any]:
    return {
        "name": name,
        "subjects": [subject],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "max_bytes": bytes_max,
        "max_msgs": -1,
        "max_age": 0,
        "num_replicas": replicas,
        "duplicate_window": DEDUP_WINDOW_S * 1_000_000_000,
        "allow_direct": True,
        "allow_rollup_hdrs": False,
    }


async def ensure_stream(bus: NatsBus, config: dict[str, Any]) -> dict[str, Any]:
    """Create the stream or update its limits; return its info.

    Raises `Rejected("stream_refused" | "no_cluster" | "no_jetstream")`, or `Fault` when another try may help.
    """
    name, body = config["name"], msgspec.json.encode(config)
    try:
        try:
            info = await bus.api(f"STREAM.INFO.{name}", b"")
        except ApiRefused as error:
            if error.code != NOT_FOUND:
                raise
            return await bus.api(f"STREAM.CREATE.{name}", body)
        held = info["config"]
        if all(held.get(key, False if value is False else None) == value for key, value in config.items()):
            return info
        return await bus.api(f"STREAM.UPDATE.{name}", body)
    except ApiRefused as error:
        if error.code in _NOT_NOW:
            why = f"stream {name}: {error}; are as many servers of the cluster up as [limits] replicas says?"
            raise Fault("broker_error", why) from None
        if error.code == _NO_CLUSTER:
            why = (
                f"[limits] replicas is {config['num_replicas']}, and the broker is one server: set 1, or run a cluster"
            )
            raise Rejected("no_cluster", why) from None
        raise Rejected(
            "stream_refused",
            f"the broker refused stream {name}: {error}; check JetStream's limits and this user's rights",
        ) from None
    except Fault as error:
        if error.code == "no_responders":
            raise Rejected("no_jetstream", "the broker has no JetStream: start it with `-js`") from None
        raise


async def stream_state(bus: NatsBus, name: str) -> dict[str, Any]:
    """`messages`, `bytes`, `first_seq`, `last_seq` of a stream, with its `max_bytes` and `created` time.

    `replicas` is how many servers shall hold it, `copies` how many of them are up and have all of it.

    Raises `Rejected("no_stream")` when there is none, `Fault` when the broker cannot say just now.
    """
    try:
        info = await bus.api(f"STREAM.INFO.{name}", b"")
    except ApiRefused as error:
        if error.code != NOT_FOUND:
            raise Fault("broker_error", f"stream {name}: {error}") from None
        raise Rejected("no_stream", f"stream {name}: {error}") from None
    state: dict[str, Any] = info["state"]
    config, peers = info["config"], info.get("cluster", {}).get("replicas", [])
    current = sum(1 for peer in peers if peer.get("current") and not peer.get("offline"))
    about = {"max_bytes": config["max_bytes"], "replicas": config["num_replicas"], "copies": 1 + current}
    return state | about | {"created": info["created"]}
