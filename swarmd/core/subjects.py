"""Every subject and stream name, in one place (docs/protocol.md describes what travels on each)."""

from __future__ import annotations


def log_stream(swarm: str) -> str:
    return f"LOG_{swarm}"


def intake_stream(swarm: str) -> str:
    return f"INTAKE_{swarm}"


def blob_stream(swarm: str) -> str:
    return f"BLOB_{swarm}"


def snapshot_stream(swarm: str) -> str:
    return f"SNAP_{swarm}"


def lease_stream(swarm: str) -> str:
    return f"LEASE_{swarm}"


def memory_stream(memory: str) -> str:
    return f"MEM_{memory}"


def rate_stream(swarm: str) -> str:
    return f"RATE_{swarm}"


def log(swarm: str, role: str, writer: str) -> str:
    return f"swarm.{swarm}.log.{role}.{writer}"


def log_all(swarm: str) -> str:
    return f"swarm.{swarm}.log.>"


def submit(swarm: str) -> str:
    return f"swarm.{swarm}.submit"


def blob(swarm: str, digest: str, chunk: int | str) -> str:
    return f"swarm.{swarm}.blob.{digest}.{chunk}"


def snapshot(swarm: str) -> str:
    return f"swarm.{swarm}.snap"


def lease(swarm: str) -> str:
    return f"swarm.{swarm}.lease"


def rate(swarm: str, provider: str) -> str:
    return f"swarm.{swarm}.rate.{provider}"


def ctl(swarm: str, verb: str) -> str:
    return f"swarm.{swarm}.ctl.{verb}"


def find(swarm: str, verb: str) -> str:
    return f"swarm.{swarm}.find.{verb}"


def tend(swarm: str, verb: str) -> str:
    """Requests of an admin to the observers."""
    return f"swarm.{swarm}.tend.{verb}"


def dispatch(swarm: str, role: str, writer: str, boot: str) -> str:
    return f"swarm.{swarm}.dispatch.{role}.{writer}.{boot}"


def health(swarm: str, writer: str, boot: str) -> str:
    return f"swarm.{swarm}.health.{writer}.{boot}"


def node(swarm: str, node: str, verb: str) -> str:
    return f"swarm.{swarm}.node.{node}.{verb}"


def beat(swarm: str) -> str:
    return f"swarm.{swarm}.beat"


def incumbent(swarm: str) -> str:
    """Where only the holder of the leader's lease listens, and never answers."""
    return f"swarm.{swarm}.leader"


def event(swarm: str, task: str, kind: str) -> str:
    return f"swarm.{swarm}.event.{task}.{kind}"


def delta(swarm: str, task: str) -> str:
    return f"swarm.{swarm}.delta.{task}"


def memory_log(memory: str, role: str, writer: str) -> str:
    return f"memory.{memory}.log.{role}.{writer}"


def memory_verb(memory: str, verb: str) -> str:
    return f"memory.{memory}.{verb}"


def memory_verb_of(memory: str, swarm: str, verb: str) -> str:
    """Where members of a swarm ask: what may be seen there is that swarm's."""
    return f"memory.{memory}.of.{swarm}.{verb}"


def memory_ctl(memory: str, verb: str) -> str:
    """Where admins ask."""
    return f"memory.{memory}.ctl.{verb}"


def memory_lease(memory: str) -> str:
    return f"memory.{memory}.lease"


def memory_lease_stream(memory: str) -> str:
    return f"MEMLEASE_{memory}"
