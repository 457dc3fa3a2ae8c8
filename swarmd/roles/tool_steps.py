"""An agent's tool calls: approved where that is declared, made once, recorded, shown as somebody else's words.

A call of an `at_most_once` tool is announced in the journal before it is made: when its outcome is unknown after a
crash, a person decides what holds. Must not know which tools there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Raw

from swarmd.core.events import Question, Stepped
from swarmd.core.tool_text import untrusted
from swarmd.roles.allowance import ONE_STEP
from swarmd.roles.attempt import TimedOut
from swarmd.roles.model_steps import ModelSteps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmd.ports import Tool
    from swarmd.roles.waits import Asking

#: What a person says of a call whose outcome nobody knows.
LOST_CALL_SCHEMA: Final = {
    "type": "object",
    "properties": {
        "it": {"enum": ["was not made", "was made", "is unknown"]},
        "result": {"type": "string"},
    },
    "required": ["it"],
    "additionalProperties": False,
}
NOT_MADE: Final[dict[str, Any]] = {"it": "was not made"}


class ToolSteps(ModelSteps):
    """The context's side of tools."""

    async def tool(self, name: str, arguments: Mapping[str, Any], *, key: str = "") -> str:
        """Call a tool, as a step; a failing tool returns its error as text, for a model to act on.

        Its output comes in a frame that marks it as data. A tool with `approval` first asks a person.
        """
        tool, given = self._ports.tools(name), dict(arguments)
        step = self._key(key or f"tool:{name}")  # before its approval: that may come in another order than the calls
        if tool.policy.approval:
            policy = tool.policy
            decision = await self.approve(
                name,
                given,
                schema=tool.spec.parameters,
                to=policy.approver,
                timeout_s=policy.timeout_s,
                on_timeout=policy.on_timeout,
                escalate_to=policy.escalate_to,
            )
            if decision.decision == "reject":
                by = f" by {decision.by}" if decision.by else ""
                return f"error: rejected{by}: {decision.reason}\nhint: do not make this call again; find another way"
            given = decision.arguments
        return await self._tool_step(step, tool, given)

    async def _tool_step(self, key: str, tool: Tool, arguments: dict[str, Any]) -> str:
        """The recorded result, or a call; of a call that was begun and has no result only what a person says of it."""
        begun, tries, lost = f"{key}!begun", 1, NOT_MADE
        if key in self._journal:
            self._pass_over(key)
        else:
            while lost["it"] == NOT_MADE["it"] and begun in self._journal:
                self._unread.pop(begun, None)
                lost = await self._lost_call(key, tool, arguments)
                tries += 1
                begun = f"{key}!begun{tries}"

        async def act() -> str:
            if lost["it"] == NOT_MADE["it"]:
                return await self._perform(key, tool, arguments, begun)
            return _said_of_it(tool.spec.name, lost)

        return str(await self._journaled(key, "tool", act))

    async def _perform(self, key: str, tool: Tool, arguments: dict[str, Any], begun: str) -> str:
        if tool.side_effects == "at_most_once":
            await self._afford(begun, ONE_STEP)
            note = Raw(msgspec.json.encode({"tool": tool.spec.name, "arguments": arguments}))
            await self._record(Stepped(epoch=self.epoch, key=begun, kind="tool_begun", result=note))
        outcome = await self._ports.run_tool(tool, arguments, f"{self.task}/{key}")
        name = tool.spec.name
        self._ports.meter.count("swarmd_tool_calls_total", name, "error" if outcome.error else "ok")
        return outcome.told() if outcome.error else untrusted(name, outcome.text)

    async def _lost_call(self, key: str, tool: Tool, arguments: dict[str, Any]) -> dict[str, Any]:
        """Ask a person what became of a call that a crash cut off; once that is recorded, nobody asks again."""
        name, policy = tool.spec.name, tool.policy
        prompt = (
            f"A worker was lost while it called {name}, which must not be called twice. "
            "If the call was not made it is made now; if it was, give its result."
        )
        question = Question(prompt, tool=name, arguments=Raw(msgspec.json.encode(arguments)))
        try:
            how: Asking = {"schema": LOST_CALL_SCHEMA, "to": policy.approver, "timeout_s": policy.timeout_s}
            answer = await self._ask_as(f"{key}!lost", question, **how)
        except TimedOut:
            return {"it": "is unknown"}
        return dict(answer.value)


def _said_of_it(name: str, lost: dict[str, Any]) -> str:
    """What a model is told of a call that a person knows of."""
    if lost["it"] == "was made":
        return untrusted(name, str(lost.get("result", "")))
    hint = "hint: do not call it again with these arguments; find out whether it had its effect"
    return f"error: outcome_unknown: a worker was lost while it called {name}\n{hint}"
