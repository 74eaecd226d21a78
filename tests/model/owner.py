"""What an owner does: takes frames, runs what is queued, checkpoints, looks at the store after a sleep.

The same decisions as in the server: chunks as in intake.py, checkpoints as in checkpointer.py, looks at the store as in
lease.py; claims are in claims.py. A function returns None where the event is not possible now.
"""

from __future__ import annotations

from typing import Any

from tests.model import state as st
from tests.model import store as rs
from tests.model.rules import Rules
from tests.model.state import Copy, Message, Owner, Parked, Row, Sleeper, State, Violation, Wire, with_owner

MOST_DEATHS = 2
"""Deaths after which an input is not run any more."""
LOST_STEPS = "steps that an owner has applied are lost, though it lives and no other has the session"


def answer(state: State, number: int, *messages: Message) -> State:
    """Sends messages to the client, where it still listens on that connection."""
    wire = state.wire
    if wire is None:
        return state
    if wire.number == number:
        return state._replace(wire=wire._replace(down=wire.down + messages))
    owed = state.client.owed
    if number and wire.before == number and owed and any(ends(message, owed) for message in messages):
        return state._replace(wire=wire._replace(down=(*wire.down, (st.OTHER,))))
    return state


def ends(message: Any, end: int) -> bool:
    """Whether a message is the last that a caller waits for who has sent the chunks before `end`."""
    return message[0] == st.ERROR or (message[0] == st.RESULT and len(message[2]) >= end)


def reply(state: State, at: int, number: int, start: int, *, wait: bool = True) -> State:
    """Sends the reply to the chunk at `start`, or has it wait for its save.

    Raises:
        Violation: It would leave before it may.
    """
    owner = state.owners[at]
    row = owner.row
    assert row is not None
    if state.sync and wait and row.durable <= start:
        waiting = (*owner.waiting, (number, row.epoch, start))
        return with_owner(state, at, owner._replace(waiting=waiting))
    output, record = row.memory[: start + 1], state.store.record
    saved = record is not None and record.live and record.memory[: start + 1] == output
    listens = state.wire is not None and state.wire.number == number
    if state.sync and listens and not saved and not state.store.forgot:
        raise Violation("in mode sync a reply left before its step was in the store")
    return answer(state, number, (st.RESULT, row.base, output, row.durable))


def chunk(state: State, rules: Rules, at: int, number: int, frame: Any) -> State | None:
    """Owner `at` takes a frame of a connection that is about its row: a chunk, an acknowledgement, a delete."""
    owner = state.owners[at]
    row = owner.row
    if owner.unsure and rules.replies_are_fenced:
        return None
    if owner.claim is not None and (rules.fence_lasts or frame[0] in (st.DELETE, st.CLOSE, st.FLUSH)):
        return None  # It waits to see whose the session is.
    if row is None and any(sleeper.number == number for sleeper in owner.sleepers):
        return wake(state, rules, at, number, frame)
    if row is None or (row.bound != number and rules.frames_are_fenced):
        return answer(state, number, (st.ERROR, st.UNKNOWN, frame[1] if frame[0] == st.CHUNK else 0))
    if frame[0] == st.DELETE:
        # An open that arrives twice raises it too.
        if row.epoch > frame[1] and row.writer and rules.deletes_name_their_epoch:
            return answer(state, number, (st.ERROR, st.MOVED, -1))
        return _delete(state, rules, at, number, row)
    if frame[0] in (st.CLOSE, st.FLUSH):
        saved = not row.dirty and row.durable == len(row.memory)
        if row.queue:
            return None  # What was sent before runs first.
        named = rules.closes_name_their_position if frame[0] == st.CLOSE else rules.flushes_name_their_position
        if len(row.memory) < frame[1] and named:
            return answer(state, number, (st.ERROR, st.BEHIND, -1))
        if not saved and (frame[0] == st.FLUSH or rules.detaches_are_durable):
            return None
        if frame[0] == st.FLUSH:
            return answer(state, number, (st.FLUSHED,))
        return answer(with_owner(state, at, owner._replace(row=row._replace(bound=0))), number, (st.CLOSED,))
    # What was never applied cannot be acknowledged.
    acked = max(row.acked, min(int(frame[-1]), len(row.memory)))
    row = row._replace(acked=acked, oldest=max(row.oldest, acked))
    if frame[0] == st.ACK:
        return with_owner(state, at, owner._replace(row=row))
    if frame[2] == 0 and state.deaths >= MOST_DEATHS and rules.poison_is_quarantined:
        return answer(state, number, (st.ERROR, st.POISONED, frame[1]))
    return _chunk(state, rules, at, number, frame[1], frame[2], row)


def _chunk(state: State, rules: Rules, at: int, number: int, start: int, value: int, row: Row) -> State | None:
    applied, accepted = len(row.memory), row.next
    if start == accepted and state.kept and accepted - row.oldest >= state.kept:
        if not rules.kept_replies_stop_no_reading:
            return None
        state = with_owner(state, at, state.owners[at]._replace(row=row))
        return answer(state, number, (st.ERROR, st.FULL, start))
    if start == accepted:
        back = value == st.MARK and not rules.resets_take_positions
        row = row._replace(queue=(*row.queue, (number, value)), next=0 if back else accepted + 1)
        return with_owner(state, at, state.owners[at]._replace(row=row))
    if applied <= start < accepted:
        return None  # A duplicate of a chunk that is queued waits until that has run.
    state = with_owner(state, at, state.owners[at]._replace(row=row))
    if start > accepted or not rules.duplicates_are_answered:
        return answer(state, number, (st.ERROR, st.GAP, start))
    if start >= row.oldest and (row.memory[start] == value or not rules.digests_are_compared):
        return reply(state, at, number, start)
    if start < row.oldest and start < row.acked:
        return answer(state, number, (st.ERROR, st.APPLIED, start))
    return answer(state, number, (st.ERROR, st.CONFLICT, start))


def doze(state: State, at: int) -> State | None:
    """A session that the store knows as it is leaves memory; who has it keeps it."""
    owner = state.owners[at]
    row, busy = owner.row, (owner.claim, owner.writing, owner.unsaid, owner.parked)
    if row is None or row.dirty or row.queue or row.durable < len(row.memory) or owner.waiting or owner.going:
        return None
    if owner.unsure or any(item is not None for item in busy):
        return None
    store = state.store._replace(holder=-1) if state.store.holder == at else state.store
    sleepers = (*owner.sleepers, Sleeper(row.bound, row.epoch)) if row.bound else owner.sleepers
    return with_owner(state._replace(store=store), at, owner._replace(row=None, sleepers=sleepers))


def wake(state: State, rules: Rules, at: int, number: int, frame: Any) -> State | None:
    """A frame is about a session that left memory: it is brought back, for the connection that has it."""
    owner, record = state.owners[at], state.store.record
    if state.store.away:
        return None
    sleeper = next(sleeper for sleeper in owner.sleepers if sleeper.number == number)
    left = tuple(other for other in owner.sleepers if other is not sleeper)
    state = with_owner(state, at, owner._replace(sleepers=left))
    if record is None or not record.live or not rs.fence(rules, record) <= sleeper.epoch <= record.epoch:
        return answer(state, number, (st.ERROR, st.UNKNOWN if record is None else st.MOVED, -1))
    if any(other.epoch > sleeper.epoch for other in left):
        raise Violation("a session is brought back for a claim that is over")
    _, epoch, _, incarnation, base, memory, acked, oldest, *_ = record
    count = len(memory)
    row = Row(epoch, epoch, incarnation, base, memory, acked, oldest, count, False, number, count, writer=record.writer)
    state = with_owner(state._replace(store=state.store._replace(holder=at)), at, state.owners[at]._replace(row=row))
    return chunk(state, rules, at, number, frame)


def park(state: State, at: int) -> State | None:
    """A chunk comes as a call of its own, for a session that is being claimed."""
    owner, wire = state.owners[at], state.wire
    row = owner.row
    if owner.claim is None or row is None or owner.parked is not None:
        return None
    if wire is not None and _may_park(wire, at, row):
        frame: Any = wire.up[0]
        state = state._replace(wire=wire._replace(up=wire.up[1:]))
    else:
        found = next((other for other in state.left if _may_park(other, at, row)), None)
        if found is None:
            return None
        frame = found.up[0]
        rest = tuple(other._replace(up=other.up[1:]) if other is found else other for other in state.left)
        state = state._replace(left=tuple(other for other in rest if other.up or other.heard))
    return with_owner(state, at, owner._replace(parked=Parked(row.bound, row.epoch, frame[1], frame[2])))


def _may_park(wire: Wire, at: int, row: Row) -> bool:
    return wire.owner == at and wire.number == row.bound and bool(wire.up) and wire.up[0][0] == st.CHUNK


def unpark(state: State, rules: Rules, at: int) -> State | None:
    """A chunk has waited out a claim."""
    owner = state.owners[at]
    parked, row = owner.parked, owner.row
    if parked is None or owner.claim is not None or (owner.unsure and rules.replies_are_fenced):
        return None
    number, epoch, start, value = parked
    state = with_owner(state, at, owner._replace(parked=None))
    if row is None or (row.epoch != epoch and rules.chunks_name_their_claim):
        return answer(state, number, (st.ERROR, st.MOVED, start))
    if start == row.next and row.epoch != epoch:
        raise Violation("a chunk of an older claim is applied after a newer one stands")
    return _chunk(state, rules, at, number, start, value, row)


def run(state: State, rules: Rules, at: int) -> State | None:
    """Applies the oldest queued chunk; its reply leaves, or waits for its save."""
    owner = state.owners[at]
    row = owner.row
    if row is None or not row.queue or (owner.unsure and rules.replies_are_fenced):
        return None
    (number, value), queue = row.queue[0], row.queue[1:]
    if value == 0 and state.deaths >= 0:
        return crash(state._replace(deaths=state.deaths + 1), at)
    memory = (*row.memory, value)
    row = row._replace(memory=memory, queue=queue, dirty=True)
    if value == st.MARK and not rules.resets_take_positions:
        memory = ()
        row = row._replace(memory=(), acked=0, oldest=0, durable=0)
    state = with_owner(state, at, owner._replace(row=row))
    client, record = state.client, state.store.record
    highest = max(other.row.epoch for other in state.owners if other.row is not None)
    current = record is not None and record.live and record.epoch == row.epoch == highest
    right = is_prefix(rules, memory, client.inputs)
    if current and client.intent == st.STEP and not client.changed and not right:
        raise Violation("the session's memory is not the client's inputs, each once and in order")
    if owner.unsure and not current and any(wire.heard and wire.number == number for wire in state.left):
        raise Violation("an owner that slept answered for a session that had moved")
    return reply(state, at, number, len(memory) - 1)


def is_prefix(rules: Rules, memory: st.Memory, inputs: st.Memory) -> bool:
    """Whether a memory is that of the first so many inputs."""
    if rules.resets_take_positions:
        return memory == inputs[: len(memory)]
    return any(memory == st.since_mark(inputs[:end]) for end in range(len(inputs) + 1))


def refuse(state: State, at: int) -> State | None:
    """The oldest queued chunk is refused, and those behind it, which cannot be applied either."""
    owner = state.owners[at]
    row = owner.row
    if row is None or not row.queue or owner.unsure:
        return None
    applied = len(row.memory)
    queue, row = row.queue, row._replace(queue=(), next=applied)
    state = with_owner(state, at, owner._replace(row=row))
    for behind, (number, _) in enumerate(queue):
        state = answer(state, number, (st.ERROR, st.GAP if behind else st.REFUSED, applied + behind))
    return state


def move(state: State, rules: Rules, at: int) -> State | None:
    """An owner wants its session to be elsewhere."""
    owner = state.owners[at]
    row = owner.row
    if row is None or not row.bound or owner.claim is not None or owner.asleep:
        return None
    return answer(state, row.bound, (st.MOVE,)) if rules.moves_are_asked else _drop(state, at, row)


def _delete(state: State, rules: Rules, at: int, number: int, row: Row) -> State | None:
    if state.store.away or row.queue:
        return None  # What was sent before runs first.
    store = state.store
    buried, tombstone = rs.bury(rules, store.record, row)
    record = store.record
    if buried and record is not None and record.live and record.writer and record.fence > row.epoch:
        raise Violation("a delete ended a session that another client had taken since")
    if buried:
        store = store._replace(record=tombstone, buried=True, holder=-1)
    state = with_owner(state._replace(store=store), at, state.owners[at]._replace(row=None, waiting=(), going=()))
    told = buried or not rules.refused_deletes_are_told
    return answer(state, number, (st.CLOSED,) if told else (st.ERROR, st.MOVED, -1))


def capture(state: State, rules: Rules, at: int) -> State | None:
    """A checkpoint begins: state, position and replies of one instant."""
    owner = state.owners[at]
    row = owner.row
    if row is None or not row.dirty or owner.writing is not None:
        return None
    copy = Copy(
        True, row.epoch, row.began, row.incarnation, row.base, row.memory, row.acked, row.oldest, at, writer=row.writer
    )
    if not rules.cursors_are_of_the_state and row.next > len(row.memory):
        copy = copy._replace(cursor=row.next)
    owner = owner._replace(row=row._replace(dirty=False), writing=copy, waiting=(), going=owner.waiting)
    return with_owner(state, at, owner)


def write(state: State, rules: Rules, at: int) -> State | None:
    """The checkpoint arrives at the store, and its owner hears how it went; `may_save` and `Checkpointer._settle`."""
    owner, store = state.owners[at], state.store
    copy, row = owner.writing, owner.row
    if copy is None or store.away:
        return None
    record = rs.save(rules, store.record, copy)
    owner = owner._replace(writing=None, unsure=False)
    if record is not None:
        state = state._replace(store=store._replace(record=record))
    state = with_owner(state, at, owner)
    if row is None:
        return with_owner(state, at, owner._replace(going=()))
    if row.epoch == copy.epoch and record is None and owner.claim is None:
        return _drop(state, at, row)
    if record is None:
        row = row._replace(dirty=True)
    elif row.epoch == copy.epoch:
        row = row._replace(durable=max(row.durable, len(copy.memory)))
        if not state.sync:
            state = answer(state, row.bound, (st.DURABLE, row.durable))
    # A row that was claimed anew meanwhile has another epoch: what this save did is not about that claim.
    state = with_owner(state, at, owner._replace(row=row))
    state = _said(state, at, row) if record is not None else state
    return _released(state, rules, at)


def _said(state: State, at: int, row: Row) -> State:
    """Tells who waited for the row to be saved, where it is."""
    owner = state.owners[at]
    unsaid = owner.unsaid
    if unsaid is None or unsaid.begin is not None or row.dirty:
        return state
    return answer(with_owner(state, at, owner._replace(unsaid=None)), unsaid.number, unsaid.message)


def _released(state: State, rules: Rules, at: int) -> State:
    """Lets replies leave whose save is over, and those that have come since, where there is nothing more to save."""
    owner = state.owners[at]
    row = owner.row
    assert row is not None
    over, waiting = owner.going, owner.waiting
    if not row.dirty:
        over, waiting = over + waiting, ()
    kept = list[tuple[int, int, int]]()
    state = with_owner(state, at, owner._replace(going=(), waiting=()))
    for number, epoch, start in over:
        if row.epoch != epoch:
            continue  # Who had it hears of it by the claim that followed.
        if row.durable <= start and rules.replies_wait_for_their_save:
            kept.append((number, epoch, start))
        else:
            state = reply(state, at, number, start, wait=False)
    return with_owner(state, at, state.owners[at]._replace(waiting=(*kept, *waiting)))


def revalidate(state: State, rules: Rules, at: int) -> State | None:
    """An owner that slept asks the store whether the session is still its own."""
    owner = state.owners[at]
    row = owner.row
    if not owner.unsure or row is None or state.store.away or owner.claim is not None:
        return None
    state = with_owner(state, at, owner._replace(unsure=False))
    return _drop(state, at, row) if rs.moved(rules, state.store.record, row) else state


def _drop(state: State, at: int, row: Row) -> State:
    """The session has moved; whoever has it here hears so."""
    record = state.store.record
    there = len(record.memory) if record is not None and record.live else 0
    if state.store.holder == at and len(row.memory) > there:
        raise Violation(LOST_STEPS)
    state = with_owner(state, at, state.owners[at]._replace(row=None, waiting=(), going=(), unsaid=None))
    return answer(state, row.bound, (st.ERROR, st.MOVED, -1))


def crash(state: State, at: int) -> State:
    """The process dies and starts again, empty."""
    if state.wire is not None and state.wire.owner == at:
        state = state._replace(wire=None, client=state.client._replace(phase=st.OFF, owed=0, moving=False, asked=False))
    left = tuple(wire for wire in state.left if wire.owner != at)
    store = state.store
    record, late = store.record, store.late
    if store.holder == at:
        store = store._replace(holder=-1)
    if record is not None and record.owner == at:
        store = store._replace(record=record._replace(owner=-1))
    if late is not None and late.owner == at:
        store = store._replace(late=late._replace(owner=-1))
    return with_owner(state._replace(left=left, store=store), at, Owner())
