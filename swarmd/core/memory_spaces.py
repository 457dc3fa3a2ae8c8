"""Who may see which memories: spaces, and who asks.

A space is "shared", "swarm/<S>", "swarm/<S>/agent/<A>" or "swarm/<S>/task/<T>". Who asks is told by the subject, which
the broker's rights guard: `memory.<M>.<verb>` is for anybody, `memory.<M>.of.<S>.<verb>` for members of a swarm, and
`memory.<M>.ctl.<verb>` for admins. Which of a swarm's agents and tasks asks is said by its workers, which run them all.
Pure. Must not know the bus or the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

from swarmd.core.errors import Rejected
from swarmd.core.ids import check_name, check_task_id
from swarmd.core.memory import SHARED

if TYPE_CHECKING:
    from collections.abc import Sequence

Kind = Literal["client", "member", "admin"]
FORMS: Final = "shared, swarm, agent, task, or a full name such as swarm/main/agent/desk"


class Caller(Struct, frozen=True):
    """Who asks: a client, a member of `swarm` on behalf of `agent` and `task` (where it said so), or an admin."""

    kind: Kind = "client"
    swarm: str = ""
    agent: str = ""
    task: str = ""

    @property
    def reader(self) -> str:
        """The task that reads, as lineage names it; "" where no task does."""
        return f"{self.swarm}/{self.task}" if self.swarm and self.task else ""


CLIENT: Final = Caller()
ADMIN: Final = Caller("admin")


def caller_of(subject: str, agent: str = "", task: str = "") -> Caller:
    """Who asks, by the subject of a request. Raises `Rejected("bad_name" | "bad_id")`."""
    parts = subject.split(".")
    if len(parts) == 5 and parts[2] == "of":
        return on_behalf(Caller("member", check_name("swarm", parts[3])), agent, task)
    return ADMIN if len(parts) == 4 and parts[2] == "ctl" else CLIENT


def on_behalf(caller: Caller, agent: str, task: str) -> Caller:
    """A member as it asks for an agent and a task; others say nothing by naming one. Raises as `caller_of`."""
    if caller.kind != "member":
        return caller
    if agent:
        check_name("agent", agent)
    if task:
        check_task_id(task)
    return Caller("member", caller.swarm, agent, task)


def own(caller: Caller) -> list[str]:
    """The spaces that a caller may write, and read without naming them; an admin's are those it names."""
    if caller.kind != "member":
        return [SHARED]
    spaces = [SHARED, f"swarm/{caller.swarm}"]
    if caller.agent:
        spaces.append(f"swarm/{caller.swarm}/agent/{caller.agent}")
    if caller.task:
        spaces.append(f"swarm/{caller.swarm}/task/{caller.task}")
    return spaces


def readable(caller: Caller) -> list[str]:
    """Its own ones, and those of the tasks that its task descends from."""
    spaces = own(caller)
    if caller.kind == "member" and caller.task:
        parts = caller.task.split("~")
        ancestors = ["~".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]
        spaces += [f"swarm/{caller.swarm}/task/{task}" for task in ancestors]
    return spaces


def space_for_writing(caller: Caller, wanted: str) -> str:
    """The full name of a space that the caller may write; raises `Rejected("unknown_space" | "not_allowed")`."""
    space = _full(caller, wanted)
    if caller.kind != "admin" and space not in own(caller):
        raise _not_allowed(space, caller, "write")
    return space


def spaces_for_reading(caller: Caller, wanted: Sequence[str]) -> list[str]:
    """The full names of spaces to look into; none of them for an admin who names none: it may see all.

    Raises `Rejected("unknown_space" | "not_allowed")`.
    """
    if not wanted:
        return [] if caller.kind == "admin" else readable(caller)
    spaces = list(dict.fromkeys(_full(caller, name) for name in wanted))
    if caller.kind != "admin":
        allowed = readable(caller)
        for space in spaces:
            if space not in allowed:
                raise _not_allowed(space, caller, "read")
    return spaces


def may_read(caller: Caller, space: str) -> bool:
    """Whether a memory of this space may be shown to the caller."""
    return caller.kind == "admin" or space in readable(caller)


def may_drop(caller: Caller, swarm: str, author: str, task: str) -> bool:
    """Whether the caller may drop what this task or author of `swarm` remembered; for clients the swarm is ""."""
    if caller.kind == "admin":
        return True
    if caller.swarm != swarm:
        return False
    return (bool(author) and caller.agent == author) or (bool(task) and caller.task == task)


def may_update(caller: Caller, space: str, swarm: str, author: str, task: str) -> bool:
    """Whether the caller may let it say something else: whoever may drop it and, in a swarm's own spaces, all writers.

    What is shared goes by its author's name everywhere, so that others put their own beside it.
    """
    if caller.kind == "admin" or space not in own(caller):
        return caller.kind == "admin"
    return space != SHARED or may_drop(caller, swarm, author, task)


def _full(caller: Caller, wanted: str) -> str:
    if wanted == SHARED:
        return SHARED
    if wanted in ("swarm", "agent", "task"):
        missing = [name for name in ("swarm", wanted) if not getattr(caller, name)]
        if missing:
            raise Rejected("unknown_space", f"space {wanted!r} needs a caller with a {missing[0]}: name it in full")
        return f"swarm/{caller.swarm}" + ("" if wanted == "swarm" else f"/{wanted}/{getattr(caller, wanted)}")
    parts = wanted.split("/")
    if parts[0] == "swarm" and len(parts) in (2, 4):
        try:
            check_name("swarm", parts[1])
            if len(parts) == 4 and parts[2] == "agent":
                check_name("agent", parts[3])
            if len(parts) == 2 or parts[2] == "agent" or (parts[2] == "task" and check_task_id(parts[3])):
                return wanted
        except Rejected:
            pass
    raise Rejected("unknown_space", f"space {wanted[:100]!r} is none: there is {FORMS}")


def _not_allowed(space: str, caller: Caller, verb: str) -> Rejected:
    whose = f"a member of swarm {caller.swarm}" if caller.kind == "member" else "a client"
    return Rejected("not_allowed", f"{whose} may not {verb} space {space[:200]!r}: ask as an admin")
