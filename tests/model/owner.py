"""What an owner does: takes frames, runs what is queued, checkpoints, looks at the store after a sleep.

The same decisions as in the server: claims and saves as in stores/rules.py, rows as in placement.py, chunks
as in intake.py, checkpoints as in saver.py. A function returns None where the event is not possible now.
"""

from __future__ import annotations

from typing import Any

from tests.model import state as st
from tests.model.rules import Rules
from tests.model.state import Claim, Copy, Message, Row, State, Violation, with_owner

CREATED, HELD, TAKEN = 0, 1, 2


def answer(state: State, number: int, *messages: Message) -> State:
    """Sends messages to the client, where it still listens on that connection."""
    wire = state.wire
    if wire is None or wire.number != number:
        return state
    return state._replace(wire=wire._replace(down=wire.down + messages))


def deliver(state: State, rules: Rules, at: int, number: int, frame: Any) -> State | None:
    """Owner `at` takes a frame of a connection."""
    owner = state.owners[at]
    if owner.claim is not None and (owner.claim.number == number or frame[0] in (st.OPEN, st.DELETE)):
        return None  # A stream's frames are handled one by one, and one open or delete at a time.
    if frame[0] == st.OPEN:
        return _open(state, rules, at, number, frame)
    row = owner.row
    if owner.unsure and rules.replies_are_fenced:
        return None
    if row is None or (row.bound != number and rules.frames_are_fenced):
        return answer(state, number, (st.ERROR, st.UNKNOWN, frame[1] if frame[0] == st.CHUNK else 0))
    if frame[0] == st.DELETE:
        return _delete(state, rules, at, number, row)
    # What was never applied cannot be acknowledged.
    acked = max(row.acked, min(int(frame[-1]), len(row.memory)))
    row = row._replace(acked=acked, oldest=max(row.oldest, acked))
    if frame[0] == st.ACK:
        return with_owner(state, at, owner._replace(row=row))
    return _chunk(state, rules, at, number, frame, row)


def _chunk(state: State, rules: Rules, at: int, number: int, frame: Any, row: Row) -> State | None:
    _, start, value, _ = frame
    applied, accepted = len(row.memory), row.next
    if start == accepted:
        row = row._replace(queue=(*row.queue, (number, value)), next=accepted + 1)
        return with_owner(state, at, state.owners[at]._replace(row=row))
    if applied <= start < accepted:
        return None  # A duplicate of a chunk that is queued waits until that has run.
    state = with_owner(state, at, state.owners[at]._replace(row=row))
    if start > accepted or not rules.duplicates_are_answered:
        return answer(state, number, (st.ERROR, st.GAP, start))
    if start >= row.oldest and (row.memory[start] == value or not rules.digests_are_compared):
        return answer(state, number, (st.RESULT, row.memory[: start + 1], row.durable))
    if start < row.oldest and start < row.acked:
        return answer(state, number, (st.ERROR, st.APPLIED, start))
    return answer(state, number, (st.ERROR, st.CONFLICT, start))


def run(state: State, rules: Rules, at: int) -> State | None:
    """Applies the oldest queued chunk; its reply leaves."""
    owner = state.owners[at]
    row = owner.row
    if row is None or not row.queue or (owner.unsure and rules.replies_are_fenced):
        return None
    (number, value), queue = row.queue[0], row.queue[1:]
    memory = (*row.memory, value)
    row = row._replace(memory=memory, queue=queue, dirty=True)
    state = with_owner(state, at, owner._replace(row=row))
    client, record = state.client, state.store.record
    highest = max(other.row.epoch for other in state.owners if other.row is not None)
    current = record is not None and record.live and record.epoch == row.epoch == highest
    if current and client.intent == st.STEP and not client.changed and memory != client.inputs[: len(memory)]:
        raise Violation("the session's memory is not the client's inputs, each once and in order")
    if owner.unsure and not current and any(wire.heard and wire.number == number for wire in state.left):
        raise Violation("an owner that slept answered for a session that had moved")
    return answer(state, number, (st.RESULT, memory, row.durable))


def _open(state: State, rules: Rules, at: int, number: int, frame: Any) -> State | None:
    """Claims the session in the store, and makes its row; `stores.rules.decide` and `Placement.install`."""
    if state.store.away:
        return None  # Refused as unavailable and tried again: as if it had come later.
    _, mode, incarnation, seen, replay, _, _ = frame
    owner, stored = state.owners[at], state.store.record
    row = owner.row
    compares = rules.incarnations_are_compared
    if compares and rules.rows_compare_incarnations and row is not None and incarnation < row.incarnation:
        return answer(state, number, (st.ERROR, st.MOVED, 0))
    if row is not None and rules.open_fences_first:
        for older, _ in row.queue:
            state = answer(state, older, (st.ERROR, st.MOVED, 0))
        row = row._replace(queue=())
    owner = owner._replace(row=row, unsure=False)
    state = with_owner(state, at, owner)
    if stored is not None and incarnation < stored.incarnation and compares:
        return answer(state, number, (st.ERROR, st.MOVED, 0))
    live = stored if stored is not None and stored.live else None
    held = row is not None and (stored is None or (live is not None and live.epoch == row.epoch))
    if rules.later_epochs_win:
        # A flushed store may have got a record from an owner that did not know better.
        if row is not None and live is not None and live.epoch < row.epoch:
            live, held = None, True
        if live is not None and live.epoch < seen:
            live = None
        held = held and row is not None and row.epoch >= seen
    anew = mode == st.REPLACE
    current = len(row.memory) if held and row is not None else len(live.memory) if live is not None else 0
    if not anew and current < replay and rules.lost_steps_are_told:
        return answer(state, number, (st.ERROR, st.LOST, current))
    epoch = stored.epoch if stored is not None else 0
    if rules.epochs_exceed_seen:
        epoch = max(epoch, seen, row.epoch if row is not None else 0)
    epoch += 1
    if rules.epochs_reach_incarnations:
        epoch = max(epoch, incarnation)
    kept = live if not anew else None
    record = Copy(True, epoch, incarnation, (), 0, 0)
    if kept is not None:
        record = kept._replace(epoch=epoch, incarnation=incarnation)
    verdict = CREATED if anew or (not held and live is None) else HELD if held else TAKEN
    state = state._replace(store=state.store._replace(record=record))
    claim = Claim(number, frame, verdict, record)
    if not rules.fence_lasts:
        return with_owner(state, at, owner._replace(claim=claim))
    return _install(state, rules, at, claim)


def install(state: State, rules: Rules, at: int) -> State | None:
    """Makes the row of a claim that was granted before (only without `fence_lasts`)."""
    claim = state.owners[at].claim
    if claim is None:
        return None
    return _install(with_owner(state, at, state.owners[at]._replace(claim=None)), rules, at, claim)


def _install(state: State, rules: Rules, at: int, claim: Claim) -> State:
    number, frame, verdict, record = claim
    acked_there, wants = int(frame[5]), bool(frame[6])  # type: ignore[call-overload]
    owner = state.owners[at]
    old = owner.row
    durable = len(record.memory)
    queue = old.queue if old is not None else ()
    if verdict == HELD and old is not None:
        dirty = old.dirty or durable < len(old.memory)
        row = old._replace(
            epoch=record.epoch,
            incarnation=record.incarnation,
            durable=durable,
            dirty=dirty,
            bound=number,
            next=len(old.memory),
        )
    else:
        _, epoch, incarnation, memory, acked, oldest = record
        if not rules.records_hold_replies:
            oldest = len(memory)
        row = Row(epoch, incarnation, memory, acked, oldest, durable, False, number, len(memory), queue)
    acked = max(row.acked, min(acked_there, len(row.memory)))
    row = row._replace(acked=acked, oldest=max(row.oldest, acked))
    state = with_owner(state, at, owner._replace(row=row))
    if old is not None and old.bound != number:
        state = answer(state, old.bound, (st.ERROR, st.MOVED, 0))
    messages: list[Message] = [(st.OPENED, row.epoch, len(row.memory), durable)]
    if wants and rules.unacknowledged_replies_return:
        messages += [(st.RESULT, row.memory[: start + 1], durable) for start in range(row.oldest, len(row.memory))]
    return answer(state, number, *messages)


def _delete(state: State, rules: Rules, at: int, number: int, row: Row) -> State | None:
    if state.store.away or row.queue:
        return None  # What was sent before runs first.
    store, record = state.store, state.store.record
    if record is None or not record.live or record.epoch <= row.epoch:
        store = store._replace(record=_tombstone(rules, record, row), buried=True)
    state = with_owner(state._replace(store=store), at, state.owners[at]._replace(row=None))
    return answer(state, number, (st.CLOSED,))


def _tombstone(rules: Rules, record: Copy | None, row: Row) -> Copy | None:
    """What a delete leaves in the store; `stores.rules.bury`."""
    if not rules.deletes_leave_tombstones:
        return None
    if not rules.tombstones_are_of_the_row:
        return Copy(False, record.epoch, record.incarnation, (), 0, 0) if record is not None else None
    epoch, incarnation = row.epoch, row.incarnation
    if record is not None:
        epoch, incarnation = max(epoch, record.epoch), max(incarnation, record.incarnation)
    return Copy(False, epoch, incarnation, (), 0, 0)


def capture(state: State, at: int) -> State | None:
    """A checkpoint begins: state, position and replies of one instant."""
    owner = state.owners[at]
    row = owner.row
    if row is None or not row.dirty or owner.writing is not None:
        return None
    copy = Copy(True, row.epoch, row.incarnation, row.memory, row.acked, row.oldest)
    return with_owner(state, at, owner._replace(row=row._replace(dirty=False), writing=copy))


def write(state: State, rules: Rules, at: int) -> State | None:
    """The checkpoint arrives at the store, and its owner hears how it went; `may_save` and `Saver._settle`."""
    owner, store = state.owners[at], state.store
    copy, row, stored = owner.writing, owner.row, state.store.record
    if copy is None or store.away:
        return None
    if stored is None or not rules.writes_compare:
        saved = True
    elif stored.live:
        there, mine = stored.epoch, copy.epoch
        saved = there == mine and len(stored.memory) <= len(copy.memory)
        saved = saved or (there < mine and rules.later_epochs_win)
    else:
        saved = stored.epoch < copy.epoch
    owner = owner._replace(writing=None, unsure=False)
    if saved:
        state = state._replace(store=store._replace(record=copy))
    if row is None:
        return with_owner(state, at, owner)
    if row.epoch != copy.epoch:  # Claimed anew meanwhile: what this write did is not about that claim.
        return with_owner(state, at, owner._replace(row=row if saved else row._replace(dirty=True)))
    if saved:
        durable = max(row.durable, len(copy.memory))
        state = with_owner(state, at, owner._replace(row=row._replace(durable=durable)))
        return answer(state, row.bound, (st.DURABLE, durable))
    if owner.claim is not None:
        return with_owner(state, at, owner._replace(row=row._replace(dirty=True)))
    return _drop(with_owner(state, at, owner), at, row)


def revalidate(state: State, rules: Rules, at: int) -> State | None:
    """An owner that slept asks the store whether the session is still its own."""
    owner, stored = state.owners[at], state.store.record
    row = owner.row
    if not owner.unsure or row is None or state.store.away:
        return None
    state = with_owner(state, at, owner._replace(unsure=False))
    if stored is None or (stored.live and stored.epoch == row.epoch):
        return state
    if rules.later_epochs_win and stored.epoch < row.epoch:
        return state
    return _drop(state, at, row)


def _drop(state: State, at: int, row: Row) -> State:
    """The session has moved; whoever has it here hears so."""
    state = with_owner(state, at, state.owners[at]._replace(row=None))
    return answer(state, row.bound, (st.ERROR, st.MOVED, 0))
