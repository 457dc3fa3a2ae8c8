"""A tool as the settings want it called: what `[tool.<name>]` says goes before what its author declared.

Must not know: who calls it, how limits are kept (`roles/tool_calls`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from swarmd.core.errors import Rejected

if TYPE_CHECKING:
    from swarmd.config import ToolTable
    from swarmd.core.turns import ToolSpec
    from swarmd.ports import Tool, ToolOutput


class DeclaredTool:
    """The same tool under another policy."""

    def __init__(self, tool: Tool, table: ToolTable) -> None:
        """Raises `Rejected("bad_config")` for retries of a tool whose author says that it may be called once only."""
        self._tool = tool
        self.output_bytes_max = tool.output_bytes_max
        self.timeout_ms = table.timeout_ms or tool.timeout_ms
        self.side_effects = table.side_effects or tool.side_effects
        is_once = self.side_effects == "at_most_once"
        if is_once and table.retries:
            why = f"tool.{tool.spec.name}.retries: the tool is at_most_once, so it is never called again"
            raise Rejected("bad_config", why)
        author = tool.policy
        self.policy = replace(
            author,
            approval=author.approval or table.approval,
            approver=table.approver or author.approver,
            timeout_s=table.approval_timeout_s if table.approval else author.timeout_s,
            on_timeout=table.on_timeout if table.approval else author.on_timeout,
            escalate_to=table.escalate_to if table.approval else author.escalate_to,
            retries=0 if is_once else author.retries if table.retries is None else table.retries,
            concurrency=table.concurrency or author.concurrency,
        )

    @property
    def spec(self) -> ToolSpec:
        """The newest: an MCP server may list another one later."""
        return self._tool.spec

    async def call(self, arguments: dict[str, Any], key: str = "") -> str | ToolOutput:
        """As the tool itself."""
        return await self._tool.call(arguments, key)
