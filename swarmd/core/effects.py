"""What a fold made necessary or possible. Only a leader acts on effects; replay drops them.

An effect is produced when its event is folded and accepted, never when it is stored.
"""

from __future__ import annotations

from msgspec import UNSET, Raw, Struct, UnsetType

from swarmd.core.events import NULL, Failure
from swarmd.core.state import Attempt, Member, Place, Task, TaskState, Wait


class Queued(Struct, gc=False):
    """The task waits for a slot; `new` when it has only now come to be."""

    task: Task
    new: bool = False


class Delayed(Struct, gc=False):
    """The task waits for its back-off, or (`new`) for its time to begin."""

    task: Task
    new: bool = False


class Parked(Struct, gc=False):
    """A paused task no longer waits for a slot."""

    task: Task


class PauseWanted(Struct, gc=False):
    """A running task shall stop at its next step."""

    task: Task


class Instructed(Struct, gc=False):
    """A running task has an instruction at `place`."""

    task: Task
    place: Place


class WaitOpened(Struct, gc=False):
    """A wait began, or got another end."""

    task: Task
    key: str
    wait: Wait


class WaitEnded(Struct, gc=False):
    """A wait of a running task is resolved by what stands at `place`."""

    task: Task
    key: str
    place: Place


class GrantAsked(Struct, gc=False):
    """A running attempt needs more than it was granted."""

    task: Task
    attempt: Attempt


class GrantAnswered(Struct, gc=False):
    """A wish of a running attempt has its answer."""

    task: Task
    attempt: Attempt


class Started(Struct, gc=False):
    """The attempt is to be handed to its member."""

    task: Task
    attempt: Attempt


class Stopped(Struct, gc=False):
    """An attempt lost its right to go on; its member should stop it."""

    task: str
    epoch: int
    member: Member


class Ended(Struct, gc=False):
    """A verdict. `output`, `output_blob` and `failure` are the event's own."""

    task: Task
    state: TaskState
    place: Place
    output: Raw = NULL
    output_blob: str = ""
    failure: Failure | UnsetType = UNSET


class ChildEnded(Struct, gc=False):
    """A child's verdict reached its parent, which has a live attempt."""

    parent: Task
    child: str
    place: Place


class Offered(Struct, gc=False):
    """A member joined or changed its offer; `moved` when another process now speaks for a child swarm."""

    member: Member
    moved: bool


class Gone(Struct, gc=False):
    """A member left or was declared lost; `member.running` are the attempts that were taken from it."""

    member: Member


class Freed(Struct, gc=False):
    """A task that has a concurrency key sleeps: its slot is free."""

    task: Task


class Judged(Struct, gc=False):
    """A member was quarantined or readmitted."""

    member: Member


class Refusal(Struct, gc=False):
    """A submission was turned away for good."""

    subject: str
    failure: Failure
    reply: str


class Rescheduled(Struct, gc=False):
    """A schedule is new, changed, gone, or has fired."""

    schedule: str


class NewTerm(Struct, gc=False):
    """Somebody won an election."""

    term: int
    writer: str
    boot: str


Effect = (
    Queued
    | Delayed
    | Parked
    | PauseWanted
    | Instructed
    | WaitOpened
    | WaitEnded
    | GrantAsked
    | GrantAnswered
    | Started
    | Stopped
    | Ended
    | ChildEnded
    | Offered
    | Gone
    | Freed
    | Judged
    | Refusal
    | Rescheduled
    | NewTerm
)
