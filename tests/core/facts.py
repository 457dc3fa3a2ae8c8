"""Hypothesis strategies for facts and whole logs."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

from hypothesis import strategies as st
from msgspec import UNSET, Raw

from swarmd.core.events import (
    FACTS,
    Assigned,
    Awaited,
    Budget,
    Cancelled,
    Completed,
    Configured,
    Dropped,
    Elected,
    Escalated,
    Expired,
    Fact,
    Failed,
    Failure,
    Fired,
    Limit,
    MemberJoined,
    MemberLeft,
    MemberLost,
    Paused,
    Quarantined,
    Question,
    Rated,
    Readmitted,
    Recalled,
    Redriven,
    Refused,
    Requeued,
    Resolved,
    RetryPolicy,
    Returned,
    Schedule,
    Scheduled,
    Sent,
    Settled,
    Signalled,
    Spawned,
    Spending,
    Stepped,
    Suspended,
    Told,
    Unpaused,
    Unscheduled,
    Why,
)
from tests.core.history import CHILD, NODE, OTHER, offer, submission

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
numbers = st.integers(min_value=-(2**40), max_value=2**40)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def raws() -> st.SearchStrategy[Raw]:
    import msgspec

    return json_values.map(lambda value: Raw(msgspec.json.encode(value)))


maybe = st.none() | numbers
budgets = st.builds(Budget, tokens=maybe, cost_microusd=maybe, steps=maybe, wall_ms=maybe)
limits = st.builds(Limit, tokens=maybe, cost_microusd=maybe, steps=maybe, wall_ms=maybe)
failures = st.builds(Failure, code=texts, message=texts)
FIELDS: dict[Any, st.SearchStrategy[Any]] = {
    int: numbers,
    str: texts,
    bool: st.booleans(),
    Raw: raws(),
    Failure: failures,
    RetryPolicy: st.builds(RetryPolicy, attempts_max=numbers, backoff_ms=numbers),
    Budget: budgets,
    Limit: limits,
    Spending: st.builds(Spending, tokens=numbers, cost_microusd=numbers, steps=numbers, wall_ms=numbers),
    dict[str, Limit]: st.dictionaries(texts, limits, max_size=2),
    dict[str, int]: st.dictionaries(texts, numbers, max_size=2),
    dict[str, str]: st.dictionaries(texts, texts, max_size=2),
    list[str]: st.lists(texts, max_size=3),
    list[list[str]]: st.lists(st.lists(texts, max_size=3), max_size=3),
    dict[str, list[str]]: st.dictionaries(texts, st.lists(texts, max_size=2), max_size=2),
    float: st.floats(-2, 2),
    Why: st.builds(Why, free=numbers, waited_ms=numbers),
    Question: st.builds(Question, prompt=texts, schema=raws(), default=raws(), timeout_ms=numbers),
}


FIELDS[Schedule] = st.builds(Schedule, id=texts, agent=texts, input=raws(), every_ms=numbers, zone=texts)


def field_values(kind: Any) -> st.SearchStrategy[Any]:
    if kind in FIELDS:
        return FIELDS[kind]
    options = get_args(kind)
    for optional in (Failure, Question, Budget, Why):
        if optional in options:
            return FIELDS[optional] | st.just(UNSET)
    if options == (int, type(None)):
        return maybe
    return st.sampled_from(options)


def any_fact(kind: type[Fact]) -> st.SearchStrategy[Fact]:
    """Any value of one kind of fact."""
    return st.builds(kind, **{name: field_values(hint) for name, hint in get_type_hints(kind).items()})


any_facts = st.sampled_from(sorted(FACTS.values(), key=lambda kind: kind.__name__)).flatmap(any_fact)

# --- logs in which much is likely to be accepted ---------------------------------------------------

TASKS = ("t", "u", "t~1")
WRITERS = (("orchestrator", "o1", "L1"), ("worker", "w1", "b1"), ("worker", "w2", "b2"), ("delegate", "kid", "d1"))
tasks = st.sampled_from(TASKS)
epochs = st.integers(1, 3)
terms = st.sampled_from([1, 1, 1, 2])
members = st.sampled_from([NODE, OTHER, CHILD])
why = Failure("broken", "it broke")


wait_keys = st.sampled_from(["w", "x", "a"])
RECEIVERS = ("task:t", "task:u", "task:t~1", "agent:a", f"member:{NODE}", "family", "nobody", "")


def versioned(member: str) -> MemberJoined:
    """An offer of other versions than the usual one, or of none."""
    fact = offer(member)
    fact.versions = {"a": [] if member == OTHER else ["2", "1"]}
    return fact


def leader_events() -> st.SearchStrategy[tuple[str, Fact]]:
    def about(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, Fact]]:
        return st.tuples(tasks, strategy)

    return st.one_of(
        about(st.builds(Elected, term=terms)),
        about(
            st.builds(
                submission, term=terms, reply=st.sampled_from(["", "box"]), not_before_ms=st.sampled_from([0, 0, 9])
            )
        ),
        about(st.builds(Refused, term=terms, failure=failures)),
        *(about(st.builds(Assigned, term=terms, epoch=epochs, member=members)) for _ in range(4)),
        about(st.builds(Requeued, term=terms, epoch=epochs, reason=st.sampled_from(["undelivered", "retry", "due"]))),
        about(st.builds(Cancelled, term=terms)),
        about(st.builds(Recalled, term=terms)),
        about(st.builds(Rated, term=terms, score=st.floats(-2, 2))),
        about(st.builds(Quarantined, term=terms, member=members)),
        about(st.builds(Readmitted, term=terms, member=members)),
        about(st.builds(Expired, term=terms)),
        about(st.builds(Redriven, term=terms)),
        about(st.builds(MemberLost, term=terms, member=members)),
        about(st.builds(Resolved, term=terms, key=wait_keys, timed_out=st.booleans())),
        about(st.builds(Escalated, term=terms, key=wait_keys, level=st.integers(1, 2), to=st.just("boss"))),
        about(st.builds(Signalled, term=terms, name=st.sampled_from(["rain", "sun"]), task=st.sampled_from(["", "t"]))),
        st.builds(
            lambda name, **fields: (name, Scheduled(schedule=Schedule(id=name, agent="a", every_ms=100), **fields)),
            name=st.sampled_from(["p", "q"]),
            term=terms,
            from_ms=st.integers(0, 9),
        ),
        st.tuples(st.just("p"), st.builds(Unscheduled, term=terms)),
        st.tuples(st.sampled_from(["p", "q"]), st.builds(Fired, term=terms, slot_ms=st.integers(0, 9))),
        about(st.builds(Told, term=terms, text=texts)),
        about(st.builds(Paused, term=terms)),
        about(st.builds(Unpaused, term=terms)),
        about(st.builds(Settled, term=terms, told=st.integers(0, 30), intake=st.integers(0, 3))),
        about(
            st.builds(
                Configured,
                term=terms,
                live_tasks_max=st.just(9),
                remembered_max=st.integers(1, 9),
                dead_max=st.integers(0, 2),
                losses_max=st.integers(0, 2),
            )
        ),
    )


def member_events() -> st.SearchStrategy[tuple[str, Fact]]:
    keys = st.sampled_from(["a", "b"])
    waits = st.lists(st.lists(st.sampled_from(["t~1", "t~2", "w", "x", "a"]), max_size=2), max_size=2)
    return st.one_of(
        members.map(lambda member: (member, offer(member))),
        members.map(lambda member: (member, MemberLeft(member=member))),
        st.tuples(tasks, st.builds(Stepped, epoch=epochs, key=keys, kind=st.just("step"), tokens=numbers)),
        st.tuples(tasks, st.builds(Spawned, epoch=epochs, key=keys, n=st.integers(1, 2), agent=st.just("a"))),
        st.tuples(
            tasks,
            st.builds(
                Awaited,
                epoch=epochs,
                key=wait_keys,
                kind=st.sampled_from(["timer", "event", "message", "human"]),
                name=st.sampled_from(["", "rain", "t"]),
                earlier=st.booleans(),
            ),
        ),
        st.tuples(tasks, st.builds(Sent, epoch=epochs, key=st.sampled_from(["m", "n"]), to=st.sampled_from(RECEIVERS))),
        st.tuples(tasks, st.builds(Dropped, epoch=epochs, key=keys, children=st.lists(st.sampled_from(TASKS)))),
        members.map(lambda member: (member, versioned(member))),
        st.tuples(tasks, st.builds(Suspended, epoch=epochs, waits=waits)),
        st.tuples(tasks, st.builds(Returned, epoch=epochs)),
        st.tuples(tasks, st.builds(Completed, epoch=epochs)),
        st.tuples(tasks, st.builds(Failed, epoch=epochs, failure=st.just(why), retryable=st.booleans())),
    )


commits = st.sampled_from(WRITERS).flatmap(
    lambda writer: st.tuples(
        st.just(writer),
        st.lists(leader_events() if writer[0] == "orchestrator" else member_events(), min_size=1, max_size=3),
    )
)
logs = st.lists(commits, max_size=30)
