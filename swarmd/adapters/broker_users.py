"""Who may do what on the broker: a user per role, and an account apart for those without credentials.

Job: from the names of swarms and memories make the configuration text for nats-server, and keep the passwords.
Invariants: a role gets the subjects it needs and no others; no role reads another role's replies; passwords live in
files with mode 0600 and survive restarts. Must not know how the broker is started.

Why `client` has an account of its own: permissions bind what a user publishes, not what the *broker* publishes for
it. A client could name `swarm.S.log.orchestrator.x` as the reply subject of a request, and the broker would put its
receipt or, by a direct get, any stored message there, into the log. In another account that subject means nothing:
requests cross by service imports, and the broker invents the reply subject on our side.

Why each swarm has a worker user besides the one for all: what members of a swarm may see in a memory is told by the
subject they ask on, and answers come to an inbox; so a swarm's workers have subjects and an inbox of their own.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from swarmd.core import subjects
from swarmd.core.errors import Rejected
from swarmd.core.memory_wire import PUBLIC_VERBS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

ROLES = ("orchestrator", "worker", "delegate", "observer", "memory", "admin")
CLIENT = "client"
PRIVATE_ACCOUNT = "SWARMD"
CLIENT_ACCOUNT = "CLIENT"
REPLY_WAIT = "24h"
"""How long the broker remembers whom to answer across accounts: bounds the wait of one `ctl.result` request."""
READ_WAIT = "5s"
"""The same for reads with many answers; it forgets these by age only, so the time is short."""
ANSWER_WAIT = "1m"
"""How long a worker may take to answer what it was asked."""
MEMORY_WAIT = "2m"
"""The same for a memory: as long as a recall waits for its store, or a look for matches."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_API_PREFIX = "SWARMD.API"  # where the client account's JetStream reads are mapped to before they cross


class Credentials(Struct, frozen=True):
    """What one role connects with; `inbox_prefix` is the only inbox that it may read."""

    user: str
    password: str
    inbox_prefix: str

    def __repr__(self) -> str:
        return f"Credentials(user={self.user!r}, inbox_prefix={self.inbox_prefix!r})"


class Permissions(Struct, frozen=True):
    """Subjects, with NATS wildcards, that a user may publish and subscribe."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    answers: bool = False
    """Whether it may answer a request on the subject that this names, once. Only for who is asked by trusted users."""


def inbox_prefix(user: str) -> str:
    """A token of its own, since NATS wildcards match whole tokens only."""
    return "_INBOX" if user == CLIENT else f"_INBOX_{user.replace('.', '_')}"


def member_user(swarm: str) -> str:
    """The user of one swarm's workers."""
    return f"worker.{swarm}"


def reply_prefix(swarm: str) -> str:
    """Put before a reply subject that a client chose: the broker takes it off again on the client's side.

    So nothing that a client names is ever published among the roles' subjects.
    """
    return f"swarm.{swarm}.reply."


def permissions(role: str, swarms: Sequence[str], memories: Sequence[str], user: str = "") -> Permissions:
    """What `role` may do for these swarms and memories, under the name of `user`, or its own.

    Raises `Rejected("bad_name" | "unknown_role")`.
    """
    for name in (*swarms, *memories):
        if not _NAME.fullmatch(name):
            raise Rejected("bad_name", f"{name!r} cannot be part of a subject: use letters, digits, - and _")
    rules = _RULES.get(role)
    if rules is None:
        raise Rejected("unknown_role", f"no such role: {role!r}; there are {', '.join(ROLES)}")
    publish, subscribe = rules(swarms, memories)
    # Workers may not publish to inboxes at will, or one could answer in the name of another.
    return Permissions(tuple(publish), (*subscribe, f"{inbox_prefix(user or role)}.>"), answers=role == "worker")


def users_config(passwords: Mapping[str, str], swarms: Sequence[str], memories: Sequence[str]) -> str:
    """The accounts section for nats-server; `passwords` by user name, for every role and `client`.

    Those of `member_user`s are not needed: without one, a swarm's workers are the user for all swarms.
    """
    lines = ["accounts {", f"  {PRIVATE_ACCOUNT} {{", "    jetstream: enabled", "    users: ["]
    for role in ROLES:
        lines += _user(role, passwords[role], permissions(role, swarms, memories))
    for swarm in swarms:
        user = member_user(swarm)
        if user in passwords:
            lines += _user(user, passwords[user], permissions("worker", [swarm], memories, user))
    lines += ["    ]", "    exports: ["]
    services = _client_services(swarms)
    lines += [
        f"      {{service: {_q(subject)}, response_type: {kind}, response_threshold: {_q(wait)}}}"
        for subject, _, kind, wait in services
    ]
    # The plain inbox is no role's: what is published there is an outcome for a client that named it as its `reply`.
    feeds = ["swarm.*.event.>", "swarm.*.delta.>", "swarm.*.beat", "swarm.*.health.>", "_INBOX.>", "swarm.*.reply.>"]
    lines += [f"      {{stream: {_q(feed)}}}" for feed in feeds]
    lines += ["    ]", "  }", f"  {CLIENT_ACCOUNT} {{", "    mappings: {"]
    lines += [
        f"      {_q(f'$JS.API.{verb}.*')}: {_q(f'{_API_PREFIX}.{verb}.$1')}"
        for verb in ("STREAM.INFO", "STREAM.MSG.GET")
    ]
    lines += ["    }", "    users: ["]
    lines += _user(CLIENT, passwords[CLIENT], _client_permissions(services))
    lines += ["    ]", "    imports: ["]
    for subject, local, _, _ in services:
        to = f", to: {_q(local)}" if local != subject else ""
        lines.append(f"      {{service: {{account: {PRIVATE_ACCOUNT}, subject: {_q(subject)}}}{to}}}")
    for feed in feeds[:-1]:
        lines.append(f"      {{stream: {{account: {PRIVATE_ACCOUNT}, subject: {_q(feed)}}}}}")
    for swarm in swarms:
        source = _q(f"{reply_prefix(swarm)}>")
        lines.append(f'      {{stream: {{account: {PRIVATE_ACCOUNT}, subject: {source}}}, to: ">"}}')
    lines += ["    ]", "  }", "}", f"no_auth_user: {_q(CLIENT)}"]
    return "\n".join(lines) + "\n"


def keep_credentials(directory: Path, swarms: Sequence[str] = ()) -> dict[str, Credentials]:
    """Read `<user>.json` for every role, `client`, and the workers of these swarms.

    Those that are missing are made (0600, in a 0700 directory).
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory.chmod(0o700)
    kept = {}
    for user in (*ROLES, CLIENT, *map(member_user, swarms)):
        file = directory / f"{user}.json"
        if not file.exists():
            _write_private(file, Credentials(user, secrets.token_urlsafe(24), inbox_prefix(user)))
        kept[user] = read_credentials(file)
    return kept


def read_credentials(file: Path) -> Credentials:
    """Raises `Rejected("bad_credentials")` for a file that is missing, open to others, or not ours."""
    try:
        mode = file.stat().st_mode
        content = file.read_bytes()
    except OSError as error:
        raise Rejected("bad_credentials", f"cannot read the credentials {file}: {error.strerror}") from error
    if mode & 0o077:
        raise Rejected("bad_credentials", f"{file} is open to other users: run `chmod 600 {file}`")
    try:
        return msgspec.json.decode(content, type=Credentials)
    except msgspec.DecodeError as error:
        raise Rejected("bad_credentials", f"{file} is damaged: remove it and restart `swarmd up`") from error


def _write_private(file: Path, credentials: Credentials) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as stream:
        stream.write(msgspec.json.format(msgspec.json.encode(credentials)) + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


# The broker's request API, by what it lets a user do with one stream.


def _read(*streams: str) -> list[str]:
    """Single messages and the state of a stream; no consumer, whose deliveries could be aimed at any subject."""
    verbs = ("DIRECT.GET.{}", "DIRECT.GET.{}.>", "STREAM.MSG.GET.{}", "STREAM.INFO.{}")
    return [f"$JS.API.{verb.format(stream)}" for stream in streams for verb in verbs]


def _follow(*streams: str) -> list[str]:
    """Reading by consumer."""
    verbs = ("CREATE.{}", "CREATE.{}.>", "DURABLE.CREATE.{}.>", "MSG.NEXT.{}.>", "INFO.{}.>", "DELETE.{}.>")
    api = [f"$JS.API.CONSUMER.{verb.format(stream)}" for stream in streams for verb in verbs]
    return [*_read(*streams), *api, *(f"$JS.ACK.{stream}.>" for stream in streams)]


def _own(*streams: str) -> list[str]:
    """Everything with a stream but deleting it, which is the admin's."""
    verbs = ("CREATE.{}", "UPDATE.{}", "PURGE.{}")
    return [*_follow(*streams), *(f"$JS.API.STREAM.{verb.format(stream)}" for stream in streams for verb in verbs)]


def _inboxes(swarms: Sequence[str]) -> list[str]:
    """Wherever a requester may wait: each user's inbox, the plain one, and the broker's own across accounts."""
    users = (*ROLES, CLIENT, *map(member_user, swarms))
    return [*(f"{inbox_prefix(user)}.>" for user in users), "_R_.>"]


Rules = tuple[list[str], list[str]]


def _each(names: Iterable[str], *patterns: str) -> list[str]:
    return [pattern.format(name) for name in names for pattern in patterns]


def _orchestrator(swarms: Sequence[str], memories: Sequence[str]) -> Rules:
    streams = [
        name(swarm)
        for swarm in swarms
        for name in (
            subjects.log_stream,
            subjects.intake_stream,
            subjects.blob_stream,
            subjects.snapshot_stream,
            subjects.lease_stream,
            subjects.rate_stream,
        )
    ]
    publish = _each(
        swarms,
        "swarm.{}.log.orchestrator.>",
        "swarm.{}.dispatch.>",
        "swarm.{}.beat",
        "swarm.{}.leader",
        "swarm.{}.lease",
        "swarm.{}.blob.>",
        "swarm.{}.snap",
        "swarm.{}.reply.>",
    )
    subscribe = _each(swarms, "swarm.{}.ctl.>", "swarm.{}.health.>", "swarm.{}.beat", "swarm.{}.leader")
    return [*publish, *_own(*streams), "$JS.API.INFO", *_inboxes(swarms)], subscribe


def _member(role: str, swarms: Sequence[str], memories: Sequence[str]) -> Rules:
    publish = _each(
        swarms,
        f"swarm.{{}}.log.{role}.>",
        "swarm.{}.health.>",
        "swarm.{}.blob.>",
        "swarm.{}.ctl.>",
        "swarm.{}.delta.>",
        "swarm.{}.msg.>",
    )
    for swarm in swarms:
        publish += _read(subjects.log_stream(swarm), subjects.blob_stream(swarm))
    subscribe = _each(swarms, f"swarm.{{}}.dispatch.{role}.>", "swarm.{}.beat", "swarm.{}.msg.>")
    return publish, subscribe


def _worker(swarms: Sequence[str], memories: Sequence[str]) -> Rules:
    publish, subscribe = _member("worker", swarms, memories)
    subscribe += _each(swarms, "swarm.{}.node.>")  # each node's own subject
    publish += _each(swarms, "swarm.{}.rate.*")  # leases of what a provider of models allows in a minute
    publish += [subjects.memory_verb_of(memory, swarm, "*") for memory in memories for swarm in swarms]
    return [*publish, *(f"$JS.API.STREAM.MSG.GET.{subjects.rate_stream(swarm)}" for swarm in swarms)], subscribe


def _delegate(swarms: Sequence[str], memories: Sequence[str]) -> Rules:
    publish, subscribe = _member("delegate", swarms, memories)
    # Outcomes of a child come to the delegates' own inbox, behind the prefix that keeps clients' replies apart.
    return [*publish, "swarm.*.ctl.>"], [*subscribe, "swarm.*.beat", f"swarm.*.reply.{inbox_prefix('delegate')}.>"]


def _observer(swarms: Sequence[str], memories: Sequence[str]) -> Rules:
    publish = _each(swarms, "swarm.{}.event.>", "swarm.{}.health.>", "swarm.{}.snap", "swarm.{}.blob.>")
    for swarm in swarms:
        publish += _follow(subjects.log_stream(swarm))
        publish += _read(subjects.snapshot_stream(swarm), subjects.blob_stream(swarm), subjects.intake_stream(swarm))
        publish.append(f"$JS.API.STREAM.PURGE.{subjects.blob_stream(swarm)}")  # snapshots that newer ones replaced
    subscribe = _each(swarms, "swarm.{}.find.>", "swarm.{}.tend.>", "swarm.{}.beat", "swarm.{}.health.>")
    return [*publish, *_inboxes(swarms)], subscribe


def _memory(swarms: Sequence[str], memories: Sequence[str]) -> Rules:
    publish = _each(memories, "memory.{}.log.memory.>", "memory.{}.lease", "memory.{}.event.>", "memory.{}.beat")
    publish += _own(*map(subjects.memory_stream, memories), *map(subjects.memory_lease_stream, memories))
    return [*publish, "$JS.API.INFO", *_inboxes(swarms)], _each(memories, "memory.{}.>")


def _admin(swarms: Sequence[str], memories: Sequence[str]) -> Rules:
    publish = ["swarm.>", "memory.>", "$JS.API.>", "$JS.ACK.>", *_inboxes(swarms)]
    return publish, ["swarm.>", "memory.>", "$JS.EVENT.ADVISORY.>"]


_RULES = {
    "orchestrator": _orchestrator,
    "worker": _worker,
    "delegate": _delegate,
    "observer": _observer,
    "memory": _memory,
    "admin": _admin,
}


def _client_services(swarms: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """(subject among the roles, subject on the client's side, kind of answer, how long an answer may take)."""
    # Large inputs: a blob is named by its hash and written once, so a client can add but neither change nor remove.
    asked = ["swarm.*.submit", "swarm.*.blob.>", "swarm.*.ctl.>", "swarm.*.find.>"]
    asked += ["swarm.*.node.*.ping", "swarm.*.node.*.status"]
    services = [(subject, subject, "singleton", REPLY_WAIT) for subject in asked]
    services += [(f"memory.*.{verb}",) * 2 + ("singleton", MEMORY_WAIT) for verb in PUBLIC_VERBS]
    read = [("$JS.API.STREAM.INFO.*", f"{_API_PREFIX}.STREAM.INFO.*")]
    for swarm in swarms:
        for stream in (subjects.log_stream(swarm), subjects.blob_stream(swarm)):
            verb = f"STREAM.MSG.GET.{stream}"
            read.append((f"$JS.API.{verb}", f"{_API_PREFIX}.{verb}"))
            for tail in ("", ".>"):
                direct = f"$JS.API.DIRECT.GET.{stream}{tail}"
                services.append((direct, direct, "stream", READ_WAIT))
    return services + [(subject, local, "singleton", REPLY_WAIT) for subject, local in read]


def _client_permissions(services: Sequence[tuple[str, str, str, str]]) -> Permissions:
    """Any subject may be read: the account holds nothing but what is imported into it."""
    return Permissions(tuple(local for _, local, _, _ in services), (">",))


def _user(name: str, password: str, allowed: Permissions) -> list[str]:
    lines = [f"      {{user: {_q(name)}, password: {_q(password)}, permissions: {{"]
    for verb, listed in (("publish", allowed.publish), ("subscribe", allowed.subscribe)):
        lines.append(f"        {verb}: {{allow: [")
        lines += [f"          {_q(subject)}" for subject in dict.fromkeys(listed)]
        lines.append("        ]}")
    if allowed.answers:
        lines.append("        allow_responses: {max: 1, expires: " + _q(ANSWER_WAIT) + "}")
    return [*lines, "      }}"]


def _q(text: str) -> str:
    return json.dumps(text)
