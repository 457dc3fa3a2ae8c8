"""Budgets on the command line: `--budget KEY=N` as it is typed, limits and spending as they are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from swarmd.core.events import Budget, Spending
    from swarmd.core.wire import AccountStatus

#: What may be typed → the field, and how many of its units one of them is.
_KEYS: Final = {
    "tokens": ("tokens", 1),
    "cost_usd": ("cost_microusd", 1_000_000),
    "steps": ("steps", 1),
    "wall_s": ("wall_ms", 1000),
}
HELP: Final = "limit what it and its children may spend: tokens, cost_usd, steps or wall_s; may be repeated"


def budget_of(given: list[str]) -> Budget:
    """The budget that was typed. Raises `Rejected("bad_usage")`."""
    from swarmd.core.errors import Rejected
    from swarmd.core.events import Budget

    limits: dict[str, int] = {}
    for one in given:
        key, sign, value = one.partition("=")
        if key not in _KEYS or not sign:
            raise Rejected("bad_usage", f"--budget {one}: write KEY=NUMBER, KEY one of {', '.join(_KEYS)}")
        field, unit = _KEYS[key]
        try:
            amount = float(value) * unit
            limits[field] = int(amount)
        except (ValueError, OverflowError):
            raise Rejected("bad_usage", f"--budget {one}: {value!r} is no number") from None
        if not 1 <= amount <= 1 << 53:
            raise Rejected("bad_usage", f"--budget {one}: nothing could ever be spent; leave it out for no limit")
    return Budget(**limits)


def spending_text(spent: Spending) -> str:
    """What was spent, in words."""
    cost = f", {_usd(spent.cost_microusd)}" if spent.cost_microusd else ""
    return f"{spent.tokens} tokens{cost}, {spent.steps} steps, ran for {_seconds(spent.wall_ms)}"


def account_text(account: AccountStatus) -> str:
    """Whose budget, and what is left of it, in one line."""
    parts = [
        f"{_amount(field, getattr(account.spent, field))} of {_amount(field, limit)} {what}"
        + (f" ({_amount(field, reserved)} reserved)" if reserved else "")
        for field, what in (("tokens", "tokens"), ("cost_microusd", "spent"), ("steps", "steps"), ("wall_ms", "run"))
        if (limit := getattr(account.limit, field)) is not None
        for reserved in [getattr(account.reserved, field)]
    ]
    daily = " a day" if account.limit.period == "day" else ""
    return f"of {account.account}: {', '.join(parts) or 'no limit'}{daily}"


def _amount(field: str, amount: int) -> str:
    if field == "cost_microusd":
        return _usd(amount)
    return _seconds(amount) if field == "wall_ms" else str(amount)


def _usd(microusd: int) -> str:
    return f"${microusd / 1_000_000:.6f}".rstrip("0").rstrip(".")


def _seconds(ms: int) -> str:
    return f"{ms / 1000:.3f}".rstrip("0").rstrip(".") + " s"
