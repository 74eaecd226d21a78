"""Every event that is possible in a state, and the invariants that hold between the parts.

An event is a name and a number: which owner, or which of the connections that were left. Events of the protocol
are always allowed; each fault takes one from its budget. Activation and the store's return cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.model import claims as cm
from tests.model import client as cl
from tests.model import owner as ow
from tests.model import state as st
from tests.model.rules import Faults, Rules
from tests.model.state import Owner, State, Violation, with_owner

Event = tuple[str, int]

MOST_LEFT = 2
"""Connections that were given up and may still deliver, at a time."""
MOST_OPENS = 12
"""Opens in one schedule; only a broken protocol comes near."""


def successors(state: State, rules: Rules) -> Iterator[tuple[Event, State | Violation]]:
    """Every event that is possible now, and the state after it or the invariant that it breaks."""
    if state.client.phase == st.TOLD:
        return  # The application has its error: nothing more is promised.
    for event in _possible(state):
        try:
            after = apply(state, rules, event)
            if after is not None:
                check(after, rules)
                yield event, after
        except Violation as violation:
            yield event, violation


def apply(state: State, rules: Rules, event: Event) -> State | None:
    """The state after an event; None where it is not possible.

    Raises:
        Violation: What the event did breaks an invariant.
    """
    name, at = event
    if name in Faults._fields:
        count: int = getattr(state.faults, name)
        after = _fault(state, rules, name, at) if count else None
        return after._replace(faults=state.faults._replace(**{name: count - 1})) if after is not None else None
    return _step(state, rules, name, at)


def check(state: State, rules: Rules) -> None:
    """The durability invariant: what the client was told is durable is what the store has.

    Raises:
        Violation: It does not hold.
    """
    client, store = state.client, state.store
    if not client.durable or store.forgot or client.intent != st.STEP or client.phase == st.TOLD:
        return
    record, expected = store.record, client.inputs[: client.durable]
    if not rules.resets_take_positions:
        expected = st.since_mark(expected)
    memory = record.memory if record is not None and record.live else ()
    base = record.base if record is not None else 0
    same = client.changed or (memory[: len(expected)] == expected and base == client.base)
    if not rules.resets_take_positions and st.MARK in client.inputs[client.durable :]:
        return  # It may have begun again since.
    if len(memory) < len(expected) or not same:
        raise Violation("the client was told a durable position that the store does not have")


def finished(state: State, rules: Rules) -> bool:
    """Whether the client has all outputs and the store all inputs, or the application was told why not."""
    client, record = state.client, state.store.record
    if client.phase == st.TOLD:
        return True
    count = len(client.inputs)
    told = state.sync or client.durable == count  # In mode sync a reply says so by itself.
    if client.delivered < count or not told or client.intent != st.STEP or client.owed or client.wanted >= 0:
        return False
    return record is not None and record.live and len(record.memory) == cl.place(rules, client.inputs, count)


def calm(state: State) -> State:
    """The state from which the faults are over: all awake, nothing late on its way."""
    owners = [_woken(owner) if owner.asleep else owner for owner in state.owners]
    store = state.store._replace(away=False, late=None)
    first, second = owners
    return state._replace(left=(), owners=(first, second), store=store, faults=Faults())


STEPS = ("decide", "install", "put", "revalidate", "unpark", "run", "deliver", "write", "capture")
"""What an owner does, in the order in which it does them while nothing fails."""

FAIR: tuple[Event, ...] = (
    ("receive", 0),
    *((name, at) for name in STEPS for at in (0, 1)),
    ("leave", 0),
    ("send", 0),
    ("ask", 0),
    ("acknowledge", 0),
    ("connect", 0),
)
"""The order in which things happen while nothing fails: the first of these that is possible."""


def next_fair(state: State, rules: Rules) -> tuple[Event, State] | None:
    """What happens next while nothing fails; None where nothing is left to do.

    Raises:
        Violation: An invariant does not hold after it.
    """
    for event in FAIR:
        after = apply(state, rules, event)
        if after is not None:
            check(after, rules)
            return event, after
    return None


def _possible(state: State) -> Iterator[Event]:
    """Events that may be possible; `apply` has the last word."""
    wire, client, faults = state.wire, state.client, state.faults
    if wire is None:
        yield "connect", 0
        if state.connections:  # The owners are alike: the first connection may as well be to A.
            yield "connect", 1
    else:
        if wire.down:
            yield "receive", 0
        if wire.up:
            yield "deliver", wire.owner
            if faults.duplicate:
                yield "duplicate", wire.owner
        yield "send", 0
        yield "acknowledge", 0
        yield "ask", 0
        if faults.save:
            yield "save", 0
        if client.moving:
            yield "leave", 0
            yield "stay", 0
        if faults.reset:
            yield "reset", 0
        if faults.delete:
            yield "delete", 0
        if faults.close:
            yield "close", 0
        if faults.restore:
            yield "restore", 0
        if faults.again:
            yield "again", 0
        if faults.cut and client.phase != st.OFF:
            yield "cut", 0
    for at in range(len(state.left)):
        yield "late", at
    for at in (0, 1):
        owner = state.owners[at]
        if owner.asleep:
            yield "wake", at
            continue
        if faults.visit and owner.claim is None:
            yield "visit", at
        if owner == _NOTHING:
            continue
        if owner.claim is not None:
            yield "decide", at
            yield "install", at
            if faults.unary:
                yield "unary", at
        if faults.lost and (owner.claim is not None or owner.unsaid is not None):
            yield "lost", at
        if owner.unsaid is not None:
            yield "put", at
        if owner.parked is not None:
            yield "unpark", at
        if owner.row is not None:
            yield "run", at
            if faults.doze:
                yield "doze", at
            if faults.refuse:
                yield "refuse", at
            if faults.move:
                yield "move", at
            yield "capture", at
            yield "revalidate", at
        if owner.writing is not None:
            yield "write", at
        if faults.crash:
            yield "crash", at
        if faults.sleep and not owner.unsure:
            yield "sleep", at
    if state.store.late is not None:
        yield "land", 0
    if state.store.away:
        yield "return", 0
    elif faults.away:
        yield "away", 0
    if faults.flush:
        yield "flush", 0
    if faults.restart:
        yield "restart", 0
    if faults.change:
        yield "change", 0
    if faults.twin:
        yield "twin", 0


_NOTHING = Owner()


def _woken(owner: Owner) -> Owner:
    return owner._replace(asleep=False, unsure=owner.unsure or owner.row is not None)


def _step(state: State, rules: Rules, name: str, at: int) -> State | None:
    """Events of the protocol."""
    if name == "receive":
        return cl.receive(state, rules)
    if name == "send":
        return cl.send(state, rules)
    if name == "ask":
        return cl.ask(state, rules)
    if name == "acknowledge":
        return cl.acknowledge(state, rules)
    if name == "leave":
        return cl.leave(state) if len(state.left) < MOST_LEFT else None
    if name == "stay":
        return cl.stay(state)
    if name == "connect":
        return cl.connect(state, rules, at) if state.client.incarnation < MOST_OPENS else None
    if name == "deliver":
        return _deliver(state, rules, at, keep=False)
    if name == "late":
        return _late(state, rules, at)
    if name == "return":
        return state._replace(store=state.store._replace(away=False))
    if name == "land":
        return cm.land(state, rules)
    owner = state.owners[at]
    if name == "wake":
        return with_owner(state, at, _woken(owner))
    if owner.asleep:
        return None
    if name == "run":
        return ow.run(state, rules, at)
    if name == "capture":
        return ow.capture(state, rules, at)
    if name == "write":
        return ow.write(state, rules, at)
    if name == "decide":
        return cm.decide(state, rules, at)
    if name == "install":
        return cm.install(state, rules, at)
    if name == "put":
        return cm.put(state, at)
    if name == "unpark":
        return ow.unpark(state, rules, at)
    if name == "revalidate":
        return ow.revalidate(state, rules, at) if rules.replies_are_fenced else None
    raise ValueError(f"no event is called {name!r}")


def _deliver(state: State, rules: Rules, at: int, *, keep: bool) -> State | None:
    wire = state.wire
    if wire is None or wire.owner != at or not wire.up or state.owners[at].asleep:
        return None
    if not keep:
        state = state._replace(wire=wire._replace(up=wire.up[1:]))
    return _taken(state, rules, at, wire.number, wire.up[0])


def _taken(state: State, rules: Rules, at: int, number: int, frame: st.Message) -> State | None:
    if frame[0] in (st.OPEN, st.MAKE):
        return cm.ask(state, rules, at, number, frame)
    return ow.chunk(state, rules, at, number, frame)


def _late(state: State, rules: Rules, at: int) -> State | None:
    wire = state.left[at]
    if not wire.up or state.owners[wire.owner].asleep:
        return None
    rest = (wire._replace(up=wire.up[1:]),) if len(wire.up) > 1 or wire.heard else ()
    state = state._replace(left=state.left[:at] + rest + state.left[at + 1 :])
    return _taken(state, rules, wire.owner, wire.number, wire.up[0])


def _fault(state: State, rules: Rules, name: str, at: int) -> State | None:
    """Events that take one from a budget."""
    owner, store = state.owners[at], state.store
    if name == "cut":
        return cl.disconnected(state) if len(state.left) < MOST_LEFT else None
    if name == "crash":
        return ow.crash(state, at)
    if name == "sleep":
        return with_owner(state, at, owner._replace(asleep=True))
    if name == "flush":
        return _flushed(state, rules)
    if name == "away":
        return state._replace(store=store._replace(away=True))
    if name == "duplicate":
        return _deliver(state, rules, at, keep=True)
    if name == "reset":
        return cl.reset(state, rules)
    if name == "delete":
        return cl.delete(state)
    if name == "close":
        return cl.close(state, rules)
    if name == "save":
        return cl.flush(state, rules)
    if name == "restore":
        return cl.restore(state)
    if name == "again":
        return cl.again(state, rules)
    if name == "lost":
        return cm.lose(state, at)
    if name == "visit":
        return cm.visit(state, rules, at)
    if name == "unary":
        return ow.park(state, at)
    if name == "refuse":
        return ow.refuse(state, at)
    if name == "move":
        return ow.move(state, rules, at)
    if name == "doze":
        return ow.doze(state, at)
    return cl.restarted(state, changed=name != "restart", twin=name == "twin")


def _flushed(state: State, rules: Rules) -> State | None:
    store = state.store
    if store.record is None or store.away or store.buried:
        return None
    forgot = store.forgot or bool(store.record.memory)
    state = state._replace(store=store._replace(record=None, forgot=forgot, taken=0))
    for at in (0, 1):
        owner = state.owners[at]
        if not rules.flushed_rows_are_dirty:
            continue
        if owner.row is not None:
            owner = owner._replace(row=owner.row._replace(dirty=True))
        if owner.claim is not None and owner.claim.verdict >= 0:
            owner = owner._replace(claim=owner.claim._replace(flushed=True))
        state = with_owner(state, at, owner)
    return state
