"""Moves that several transitions share: a task waits again, an attempt ends without a verdict, a task ends for good."""

from __future__ import annotations

from typing import Final

from swarmd.core import budgets
from swarmd.core import effects as fx
from swarmd.core.events import Completed, Limit, Spending
from swarmd.core.ids import match_uuid7
from swarmd.core.outcomes import PARENT_ENDED
from swarmd.core.state import EMPTY, Attempt, Place, SwarmState, Task, TaskState, Tombstone, Untold, Use, Wait

Sink = list[fx.Effect]
#: Closed questions that are remembered, for those who answer late.
CLOSED_MAX: Final = 10_000
#: The `spent` of reports that add nothing.
NOTHING_SPENT: Final = Completed(epoch=0).spent
BILL_MAX: Final = budgets.BILL_MAX


def queue(state: SwarmState, task: Task, out: Sink) -> None:
    """The task waits for a slot; a paused one waits to be resumed."""
    task.waits = ()
    if task.paused:
        task.state = "paused"
        return
    task.state = "queued"
    out.append(fx.Queued(task))


def wake(state: SwarmState, task: Task, name: str, out: Sink) -> None:
    """A child or wait that a suspended task may wait for is resolved."""
    for group in task.waits:
        if name in group:
            del group[name]
            if not group:
                queue(state, task, out)
                return


def record(attempt: Attempt, key: str, place: Place) -> None:
    """A step of the attempt is done; the event at `place` says how."""
    if attempt.journal:
        attempt.journal[key] = place
    else:
        attempt.journal = {key: place}


def retire(state: SwarmState, task: Task, epoch: int) -> Attempt:
    """End an attempt without a verdict; its branch becomes the journal that the next one starts from."""
    attempt = task.attempts.pop(epoch)
    if attempt.held is not None:
        _release(state, task, epoch, attempt.held)
    if not task.attempts:
        task.attempts, task.journal = EMPTY, attempt.journal
        state.idle[task.id] = None
    member = state.members.get(attempt.member)
    if member is not None:
        member.running.pop(task.id, None)
    occupy(state, task, -1)
    return attempt


def occupy(state: SwarmState, task: Task, slots: int) -> None:
    """A task takes so many slots more (or gives them back) in the name of its tenant and its concurrency key."""
    state.tenants[task.tenant].slots += slots
    if task.concurrency_key:
        used = state.keys.get(task.concurrency_key, 0) + slots
        if used:
            state.keys[task.concurrency_key] = used
        else:
            del state.keys[task.concurrency_key]


def enter(state: SwarmState, task: Task) -> None:
    """A task is live from here on."""
    state.tasks[task.id] = task
    use = state.tenants.get(task.tenant)
    if use is None:
        use = state.tenants[task.tenant] = Use()
    use.live += 1


def spend(state: SwarmState, task: Task, attempt: Attempt, tokens: int = 0, cost: int = 0, ran_ms: int = 0) -> None:
    """Charge a step to the task and its parents, and to whoever limits them; nothing negative, nothing absurd."""
    if not 0 <= tokens | cost | ran_ms < BILL_MAX:  # a power of two, so that one comparison does for all
        tokens, cost, _, ran_ms = budgets.bill(tokens, cost, 1, ran_ms)
    counters = state.counters
    counters.steps += 1
    if tokens:
        counters.tokens += tokens
    if cost:
        counters.cost_microusd += cost
    kin: Task | None = task
    while kin is not None:
        kin.spent_steps += 1
        if tokens:
            kin.spent_tokens += tokens
        if cost:
            kin.spent_microusd += cost
        if ran_ms:
            kin.ran_ms += ran_ms
        kin = state.tasks.get(kin.parent) if kin.parent else None
    if state.accounts:
        _settle(state, task, attempt, [tokens, cost, 1, ran_ms])


def spend_last(state: SwarmState, task: Task, attempt: Attempt, spent: Spending) -> None:
    """Charge what the last report of an attempt adds to its steps."""
    bill = budgets.bill_of(spent)
    kin: Task | None = task
    while kin is not None:
        kin.spent_tokens += bill[0]
        kin.spent_microusd += bill[1]
        kin.spent_steps += bill[2]
        kin.ran_ms += bill[3]
        kin = state.tasks.get(kin.parent) if kin.parent else None
    state.counters.tokens += bill[0]
    state.counters.cost_microusd += bill[1]
    if state.accounts:
        _settle(state, task, attempt, bill)


def _settle(state: SwarmState, task: Task, attempt: Attempt, bill: budgets.Amounts) -> None:
    names = budgets.names_of(state.accounts, task.draws, task.tenant) if attempt.held is None else ()
    budgets.settle(state.accounts, names, attempt.held, bill)


def wish_key(task_id: str, epoch: int) -> str:
    """An attempt among those that wait for a grant."""
    return f"{task_id} {epoch}"


def _release(state: SwarmState, task: Task, epoch: int, held: budgets.Reservation) -> None:
    """An attempt is over: what it did not spend is free, and it wishes for nothing any more."""
    budgets.release(state.accounts, held)
    state.wishes.pop(wish_key(task.id, epoch), None)
    state.releases += 1


def open_account(state: SwarmState, task: Task, draws: tuple[str, ...]) -> None:
    """A task draws on the accounts of its ancestors, and on its own if it has a budget."""
    task.draws = draws
    if task.budget != budgets.NO_LIMIT:
        name = budgets.task_account(task.id)
        state.accounts[name] = budgets.Account(Limit(*budgets.amounts_of(task.budget)))
        task.draws = (*draws, name)


def end(state: SwarmState, ended: fx.Ended, out: Sink, reporter: int = 0) -> None:
    """Give a task its verdict: attempts other than `reporter`'s are stopped, live descendants cancelled."""
    task = ended.task
    _close(state, ended, out, reporter)
    if task.parent:
        _resolve(state, task, ended.place, out)
    if not task.children:
        return
    parents = [task]
    while parents:  # no recursion: how deep tasks nest is up to agents
        parent = parents.pop()
        for child_name, verdict in parent.children.items():
            child = state.tasks.get(child_name)
            if verdict is not None or child is None:
                continue
            parent.children[child_name] = ended.place  # a redriven parent must not wait for it
            _close(state, fx.Ended(child, "cancelled", ended.place, failure=PARENT_ENDED), out)
            parents.append(child)


def _close(state: SwarmState, ended: fx.Ended, out: Sink, reporter: int = 0) -> None:
    """End one task and nothing around it."""
    task, place, attempts = ended.task, ended.place, ended.task.attempts
    task.state = ended.state
    if task.awaited:
        forget_waits(state, task, place)
    for epoch, attempt in attempts.items():
        if attempt.held is not None:
            _release(state, task, epoch, attempt.held)
        member = state.members.get(attempt.member)
        if member is None:
            continue
        member.running.pop(task.id, None)
        if epoch != reporter:
            out.append(fx.Stopped(task.id, epoch, member))
    doer = ""
    use = state.tenants[task.tenant]
    use.live -= 1
    if attempts:
        if task.concurrency_key:
            occupy(state, task, -len(attempts))
        else:
            use.slots -= len(attempts)
        last = attempts[reporter or max(attempts)]
        doer, task.journal, task.attempts = last.member, last.journal, EMPTY
    else:
        state.idle.pop(task.id, None)
    if state.accounts:
        state.accounts.pop(budgets.task_account(task.id), None)
    del state.tasks[task.id]
    if not use.live:
        del state.tenants[task.tenant]
    _bury(state, task, ended.state, place, doer)
    if task.reply:
        state.untold.append(Untold(task.id, task.reply, task.packed, place[0]))
    out.append(ended)


def forget_waits(state: SwarmState, task: Task, place: Place) -> None:
    """Nobody need answer or signal any more what an ended task waited for."""
    for key, wait in task.awaited.items():
        if wait.resolved is None:
            close_wait(state, task, key, wait, place)


def close_wait(state: SwarmState, task: Task, key: str, wait: Wait, place: Place) -> None:
    """Take a wait out of the indexes that find it; `place` says why to whoever comes late."""
    if wait.kind == "human":
        state.questions.pop(wait.question, None)
        state.closed[wait.question] = place
        if len(state.closed) > CLOSED_MAX:
            del state.closed[next(iter(state.closed))]
    elif wait.kind == "event":
        waiting = state.listeners.get(wait.name, {})
        keys = waiting.get(task.id, [])
        if key in keys:
            keys.remove(key)
            if not keys:
                del waiting[task.id]
            if not waiting:
                del state.listeners[wait.name]


def _bury(state: SwarmState, task: Task, verdict: TaskState, place: Place, doer: str) -> None:
    """Leave a tombstone; two generations are kept, so that forgetting is one pointer, not a scan."""
    counters = state.counters
    if verdict == "completed":
        counters.completed += 1
    elif verdict == "dead":
        counters.dead += 1
        state.dead[task.id] = task
        if len(state.dead) > state.limits.dead_max:
            del state.dead[next(iter(state.dead))]
    elif verdict == "cancelled":
        counters.cancelled += 1
    else:
        counters.expired += 1
    task_id, tombstones = task.id, state.tombstones
    tombstones[task_id] = Tombstone(task.digest, verdict, place, task.agent, doer)
    if task_id > state.youngest and match_uuid7(task_id):
        state.youngest = task_id
    if len(tombstones) * 2 >= state.limits.remembered_max:
        state.forgotten = max(state.forgotten, state.older_youngest)
        state.older_tombstones, state.tombstones = state.tombstones, {}
        state.older_youngest, state.youngest = state.youngest, ""


def _resolve(state: SwarmState, task: Task, place: Place, out: Sink) -> None:
    """Tell a live parent that a child has its verdict.

    That of a child that was redriven is its second: the parent may have acted on the first, and must find it again.
    """
    parent = state.tasks.get(task.parent)
    if parent is None or parent.children.get(task.id) is not None:
        return
    parent.children[task.id] = place
    if parent.attempts:
        out.append(fx.ChildEnded(parent, task.id, place))
    elif parent.state == "suspended":
        wake(state, parent, task.id, out)
