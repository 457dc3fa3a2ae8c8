"""Budgets: accounts that attempts reserve from before they spend, and settle after.

A task with a budget, a tenant and the swarm have an account each. An attempt draws on those of its task, of all its
ancestors, of its tenant and of the swarm at once. What it may spend without asking is a reservation: a bounded slice of
what is left in all of them, so that attempts running side by side never promise the same amount twice. A reservation is
settled by what the attempt reports and released when the attempt ends. The fold alone moves amounts; nothing here knows
a clock, a leader or a log. `Purse` is the other end: what a member holds of one attempt's reservation.

Amounts are lists in the order of `MEASURES`: tokens, millionths of a US dollar, steps, milliseconds of running.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct, field

from swarmd.core.errors import Rejected
from swarmd.core.events import Budget, Limit, Spending

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MEASURES: Final = ("tokens", "cost_microusd", "steps", "wall_ms")
NO_LIMIT: Final = Budget()
NOTHING: Final = Budget(0, 0, 0, 0)
#: The account of the swarm as a whole; others are `task:ID` and `tenant:NAME`.
SWARM: Final = "swarm"
#: An attempt is offered this part of what is left, or what it needs if that is more. Few share a task's budget, many
#: share a tenant's or the swarm's.
TASK_PART, SHARED_PART, CHILD_SWARM_PART = 4, 64, 2
#: No single report may bill more: a member that babbles must not overflow what adds up.
BILL_MAX: Final = 1 << 40
BUDGET_MAX: Final = 1 << 53

Amounts = list[int]


def _nothing() -> Amounts:
    return [0, 0, 0, 0]


class Account(Struct):
    """Whose spending is limited: `spent` for good, `reserved` by live attempts that have not spent it yet."""

    limit: Limit
    spent: Amounts = field(default_factory=_nothing)
    reserved: Amounts = field(default_factory=_nothing)


class Reservation(Struct):
    """What one live attempt may spend. `granted` counts from its beginning, None is no limit.

    `asked` numbers its wishes for more and `answered` says which have an answer; `wanted` is the total that the open
    one asks for, and `refused` why the last one got nothing.
    """

    accounts: list[str]
    granted: list[int | None]
    used: Amounts = field(default_factory=_nothing)
    asked: int = 0
    answered: int = 0
    wanted: Budget = NO_LIMIT
    refused: str = ""

    def unspent(self, measure: int) -> int:
        """What is reserved and not spent."""
        granted = self.granted[measure]
        return 0 if granted is None else max(0, granted - self.used[measure])

    def total(self) -> Budget:
        """Everything granted so far, for the member."""
        return Budget(*self.granted)


def is_open(held: Reservation) -> bool:
    """Whether the attempt waits for an answer to a wish."""
    return held.asked != held.answered


def amounts_of(budget: Budget) -> tuple[int | None, int | None, int | None, int | None]:
    """A budget's limits in the order of `MEASURES`."""
    return (budget.tokens, budget.cost_microusd, budget.steps, budget.wall_ms)


def bill_of(spent: Spending) -> Amounts:
    """The amounts of what was reported."""
    return bill(spent.tokens, spent.cost_microusd, spent.steps, spent.wall_ms)


def bill(tokens: int, cost_microusd: int, steps: int, wall_ms: int) -> Amounts:
    """What was reported, as amounts that can be added: nothing negative, nothing absurd."""
    if 0 <= tokens < BILL_MAX and 0 <= cost_microusd < BILL_MAX and 0 <= steps < BILL_MAX and 0 <= wall_ms < BILL_MAX:
        return [tokens, cost_microusd, steps, wall_ms]
    return [min(max(amount, 0), BILL_MAX) for amount in (tokens, cost_microusd, steps, wall_ms)]


def bounded(budget: Budget) -> Budget:
    """A budget that somebody else wrote, with numbers that can be added."""
    return Budget(*(None if amount is None else min(max(amount, 0), BUDGET_MAX) for amount in amounts_of(budget)))


def task_account(task_id: str) -> str:
    """The name of a task's account."""
    return f"task:{task_id}"


def tenant_account(tenant: str) -> str:
    """The name of a tenant's account."""
    return f"tenant:{tenant}"


def has_limit(budget: Budget) -> bool:
    """Whether anything is limited."""
    return any(amount is not None for amount in amounts_of(budget))


def is_shared(name: str) -> bool:
    """Whether an account is the swarm's or a tenant's."""
    return name == SWARM or name.startswith("tenant:")


def names_of(accounts: Mapping[str, Account], draws: Sequence[str], tenant: str) -> list[str]:
    """The accounts that a task draws on, of those there are: its own and its ancestors', its tenant's, the swarm's."""
    return [name for name in (*draws, tenant_account(tenant), SWARM) if name in accounts]


def left_in(accounts: Mapping[str, Account], names: Sequence[str]) -> list[int | None]:
    """What all of these accounts have left, neither spent nor reserved; None where none of them has a limit."""
    left: list[int | None] = [None, None, None, None]
    for name in names:
        account = accounts[name]
        for measure, limit in enumerate(amounts_of(account.limit)):
            if limit is not None:
                rest = max(0, limit - account.spent[measure] - account.reserved[measure])
                known = left[measure]
                left[measure] = rest if known is None else min(known, rest)
    return left


# --- what the fold does ----------------------------------------------------------------------------


def reserve(accounts: Mapping[str, Account], names: list[str], offer: Budget) -> Reservation | None:
    """Reserve what is offered, as far as it is left; None when no account sets a limit."""
    if not names:
        return None
    granted: list[int | None] = []
    for rest, offered in zip(left_in(accounts, names), amounts_of(offer), strict=True):
        granted.append(None if rest is None else max(0, min(rest, offered or 0)))
    reservation = Reservation(names, granted)
    _move(accounts, names, [amount or 0 for amount in granted])
    return reservation


def _move(accounts: Mapping[str, Account], names: Sequence[str], more: Amounts) -> None:
    for name in names:
        account = accounts.get(name)
        if account is not None:
            account.reserved = [old + new for old, new in zip(account.reserved, more, strict=True)]


def settle(accounts: Mapping[str, Account], names: Sequence[str], held: Reservation | None, spent: Amounts) -> None:
    """Something was spent: out of the reservation as far as that goes. More than was reserved is owed all the same."""
    freed = _nothing()
    if held is not None:
        names = held.accounts
        before = [held.unspent(measure) for measure in range(4)]
        held.used = [old + new for old, new in zip(held.used, spent, strict=True)]
        freed = [held.unspent(measure) - was for measure, was in enumerate(before)]
    for name in names:
        account = accounts.get(name)
        if account is not None:
            account.spent = [old + new for old, new in zip(account.spent, spent, strict=True)]
            if held is not None:
                account.reserved = [old + new for old, new in zip(account.reserved, freed, strict=True)]


def release(accounts: Mapping[str, Account], held: Reservation) -> None:
    """The attempt is over: what it did not spend is free again."""
    _move(accounts, held.accounts, [-held.unspent(measure) for measure in range(4)])


def top_up(accounts: Mapping[str, Account], held: Reservation, offer: Budget) -> bool:
    """Grant up to the totals of `offer`, at least those that are wanted. False, when these are not left."""
    left = left_in(accounts, [name for name in held.accounts if name in accounts])
    more = _nothing()
    for measure, (want, offered) in enumerate(zip(amounts_of(held.wanted), amounts_of(offer), strict=True)):
        granted, rest = held.granted[measure], left[measure]
        if granted is None:
            continue
        need = max(0, (want or 0) - granted)
        if rest is not None and need > rest:
            return False
        more[measure] = max(need, min((offered or 0) - granted, need if rest is None else rest))
    held.granted = [old if old is None else old + more[measure] for measure, old in enumerate(held.granted)]
    _move(accounts, held.accounts, more)
    return True


def declare(accounts: dict[str, Account], limits: Mapping[str, Limit], new_day: bool) -> None:
    """The swarm and its tenants have these limits from here on; what they spent stays, but for a new day's.

    Nothing is reserved in their accounts then: `redraw` each reservation of a running attempt.
    """
    for name in [name for name in accounts if is_shared(name) and name not in limits]:
        del accounts[name]
    for name, limit in limits.items():
        known = accounts.get(name)
        if known is None:
            accounts[name] = Account(limit)
            continue
        known.limit = limit
        known.reserved = _nothing()
        if new_day and limit.period == "day":
            known.spent = _nothing()


def redraw(accounts: Mapping[str, Account], held: Reservation, names: list[str]) -> None:
    """A running attempt draws on these accounts now, with what it has not spent yet."""
    held.accounts = names
    _move(accounts, [name for name in names if is_shared(name)], [held.unspent(measure) for measure in range(4)])


def shared_limits(accounts: Mapping[str, Account]) -> dict[str, Limit]:
    """The limits of the swarm and its tenants, as they were declared."""
    return {name: account.limit for name, account in accounts.items() if is_shared(name)}


# --- what a leader offers --------------------------------------------------------------------------


def offer(accounts: Mapping[str, Account], names: Sequence[str], own: Budget = NO_LIMIT, child: bool = False) -> Budget:
    """A bounded slice of what is left. `own` is the budget of a task without an account yet; `child`: of a child swarm.

    A child swarm cannot ask for more while it runs the attempt, so it gets half of what is left at once.
    """
    slices: list[int | None] = [None, None, None, None]
    limits = [(name, left_in(accounts, [name])) for name in names]
    if own != NO_LIMIT:
        limits.append(("task:", list(amounts_of(own))))
    for name, left in limits:
        part = CHILD_SWARM_PART if child else TASK_PART if name.startswith("task:") else SHARED_PART
        for measure, rest in enumerate(left):
            if rest is not None:
                share, known = -(-rest // part), slices[measure]
                slices[measure] = share if known is None else min(known, share)
    return Budget(*slices) if any(share is not None for share in slices) else NO_LIMIT


def lacking(accounts: Mapping[str, Account], held: Reservation) -> tuple[str, int]:
    """The first account and measure that cannot give what is wanted now, or ("", 0)."""
    for name in held.accounts:
        account = accounts.get(name)
        if account is None:
            continue
        for measure, (limit, want) in enumerate(zip(amounts_of(account.limit), amounts_of(held.wanted), strict=True)):
            granted = held.granted[measure]
            if limit is None or granted is None:
                continue
            if (want or 0) - granted > max(0, limit - account.spent[measure] - account.reserved[measure]):
                return name, measure
    return "", 0


def is_hopeless(account: Account, measure: int, held: Reservation) -> bool:
    """Whether the wish could not be granted even if everybody else gave back what they hold."""
    limit, want = amounts_of(account.limit)[measure], amounts_of(held.wanted)[measure] or 0
    return limit is not None and want - held.used[measure] > limit - account.spent[measure]


def in_words(name: str, measure: int) -> str:
    """A limit as people know it: "steps of task t", "cost of the swarm"."""
    what = ("tokens", "cost", "steps", "wall time")[measure]
    kind, _, whose = name.partition(":")
    return f"{what} of {kind} {whose}" if whose or kind == "tenant" else f"{what} of the swarm"


def check_limits(where: str, budget: Budget) -> None:
    """Raise `Rejected("bad_field")` for a limit that lets nothing be spent, or is out of bounds."""
    for measure, limit in zip(MEASURES, amounts_of(budget), strict=True):
        if limit == 0:
            raise Rejected(
                "bad_field", f"{where}.{measure} is 0: nothing could ever be spent; leave it out for no limit"
            )
        if limit is not None and not 0 < limit <= BUDGET_MAX:
            raise Rejected("bad_field", f"{where}.{measure} must be from 1 to 2^53, or left out for no limit")


# --- what a member holds ---------------------------------------------------------------------------


class Purse:
    """What one attempt may still spend: `take` before an act, `settle` after it, `wanted` when it does not suffice.

    Built from the grant of `Start`, topped up by `Granted`, both of which say totals since the attempt began: neither
    repeats nor order matter. What acts in flight may cost is held back, so that acts side by side share one purse.
    """

    def __init__(self, grant: Budget = NO_LIMIT) -> None:
        self._granted = list(amounts_of(grant))
        self._used = _nothing()
        self._held = _nothing()
        self.asked = 0
        self.answered = 0
        self.refused = ""

    @property
    def unlimited(self) -> bool:
        """Whether nothing has a limit."""
        return all(amount is None for amount in self._granted)

    def left(self) -> Budget:
        """What may be spent without asking; None is no limit."""
        rest = [
            None if granted is None else max(0, granted - used - held)
            for granted, used, held in zip(self._granted, self._used, self._held, strict=True)
        ]
        return Budget(*rest)

    def can(self, need: Spending) -> bool:
        """Whether so much may be spent now, besides what acts in flight may cost."""
        return all(
            rest is None or amount <= rest for rest, amount in zip(amounts_of(self.left()), bill_of(need), strict=True)
        )

    def take(self, need: Spending) -> bool:
        """Hold so much back for an act that begins; False when it does not suffice."""
        if not self.can(need):
            return False
        self._held = [old + new for old, new in zip(self._held, bill_of(need), strict=True)]
        return True

    def settle(self, need: Spending, spent: Spending) -> None:
        """The act that `need` was held back for is over and cost `spent`; nothing when it did not happen."""
        self._held = [max(0, old - new) for old, new in zip(self._held, bill_of(need), strict=True)]
        self._used = [old + new for old, new in zip(self._used, bill_of(spent), strict=True)]

    def wanted(self, need: Spending) -> Budget:
        """The totals to ask for, so that `need` can be taken: the `total` of the next `GrantWanted`."""
        totals = [
            None if granted is None else max(granted, used + held + more)
            for granted, used, held, more in zip(self._granted, self._used, self._held, bill_of(need), strict=True)
        ]
        return Budget(*totals)

    def ask(self) -> int:
        """The number of a new wish: it is open until `answered` is as high."""
        self.asked += 1
        return self.asked

    def hear(self, answered: int, total: Budget, refused: str = "") -> None:
        """The leader's word on all wishes up to `answered`: the new totals, or why there is no more."""
        for measure, amount in enumerate(amounts_of(total)):
            granted = self._granted[measure]
            if granted is not None and amount is not None:
                self._granted[measure] = max(granted, amount)
        if answered > self.answered:
            self.answered, self.refused = answered, refused
