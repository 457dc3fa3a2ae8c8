"""What a member may offer. Whoever advertises nonsense stays a member, is given nothing, and `status` says why.

Members are written by anybody who may write the log as a worker, in any language, so an offer is checked where it is
believed. It is not refused by the fold: then its process would be asked to join again for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from swarmd.core.commands import LABEL_CHARS_MAX, LABEL_NAME_CHARS_MAX, LABELS_MAX
from swarmd.core.errors import Rejected
from swarmd.core.ids import check_name

if TYPE_CHECKING:
    from swarmd.core.events import MemberJoined
    from swarmd.core.state import Member

CAPACITY_MAX: Final = 100_000
AGENTS_MAX: Final = 1_000
VERSIONS_MAX: Final = 32


def nonsense_in(member: Member | MemberJoined) -> str:
    """What is wrong with the member's offer, and what it may be; "" when it makes sense."""
    if member.capacity > CAPACITY_MAX:
        return f"its capacity is {member.capacity}: at most {CAPACITY_MAX} attempts run at once on a member"
    if len(member.agents) > AGENTS_MAX:
        return f"it offers {len(member.agents)} agents: at most {AGENTS_MAX} are allowed"
    try:
        for agent in member.agents:
            check_name("agent", agent)
    except Rejected as error:
        return f"it offers {error.message}"
    if len(member.labels) > LABELS_MAX:
        return f"it bears {len(member.labels)} labels: at most {LABELS_MAX} are allowed"
    for name, value in member.labels.items():
        if not 1 <= len(name) <= LABEL_NAME_CHARS_MAX or len(value) > LABEL_CHARS_MAX:
            said = f"names have 1 to {LABEL_NAME_CHARS_MAX} characters, values at most {LABEL_CHARS_MAX}"
            return f"its label {name[:80]!r}: {said}"
    for agent, versions in member.versions.items():
        if not 1 <= len(versions) <= VERSIONS_MAX or not all(versions):
            return f"it has no readable versions of agent {agent[:80]!r}: list 1 to {VERSIONS_MAX}, none empty"
    return ""
