"""Strategies: ordinary agents that put other agents to work.

Each is configured by its input, and is also a function of (context, input) for agents of your own. They hold no state
but the journal of their task. Inside one task call them one after another, not at once: a journal has one order.
"""

from __future__ import annotations

from swarmd.strategies.agreeing import agreed, consensus
from swarmd.strategies.boards import blackboard
from swarmd.strategies.debating import debate
from swarmd.strategies.mapping import map_reduce
from swarmd.strategies.orchestrating import orchestrator_workers
from swarmd.strategies.routing import routed, router
from swarmd.strategies.voting import quorum

__all__ = [
    "agreed",
    "blackboard",
    "consensus",
    "debate",
    "map_reduce",
    "orchestrator_workers",
    "quorum",
    "routed",
    "router",
]
