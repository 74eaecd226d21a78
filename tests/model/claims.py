"""How an owner claims a session: asked, decided by the store, heard, installed; or the answer is lost between.

The same decisions as in the server's openings.py, claims.py, placement.py and copies.py. A function returns
None where the event is not possible now.
"""

from __future__ import annotations

from tests.model import state as st
from tests.model import store as rs
from tests.model.owner import LOST_STEPS, answer, reply
from tests.model.rules import Rules
from tests.model.state import Claim, Message, Row, State, Unsaid, Violation, with_owner


def ask(state: State, rules: Rules, at: int, number: int, frame: Message) -> State | None:
    """An open or a call that makes a session has come: the claim leaves for the store."""
    owner = state.owners[at]
    row = owner.row
    if state.store.away or owner.claim is not None:
        return None  # Refused as unavailable and tried again, or one at a time: as if it had come later.
    claim = Claim(frame, number, at, row.epoch if row is not None else 0, len(row.memory) if row is not None else 0)
    compares = rules.incarnations_are_compared and rules.rows_compare_incarnations
    if row is not None and compares and rs.wish(claim).incarnation < row.incarnation:
        return answer(state, number, (st.ERROR, st.MOVED, 0))
    if row is not None and row.queue and rules.open_waits_for_queued:
        return None
    return with_owner(state, at, owner._replace(claim=claim))


def visit(state: State, rules: Rules, at: int) -> State | None:
    """Another client opens the session, and does not wait for the answer."""
    frame = (st.OPEN, st.EITHER, state.client.incarnation + 1, 0, 0, 0, False, None)
    return ask(state, rules, at, 0, frame) if state.owners[at].row is not None or state.store.record else None


def decide(state: State, rules: Rules, at: int) -> State | None:
    """The store decides what an owner has asked for."""
    owner = state.owners[at]
    claim = owner.claim
    if claim is None or claim.verdict >= 0 or state.store.away:
        return None
    state, decided = _decided(state, rules, claim)
    if isinstance(decided, Claim):
        return with_owner(state, at, owner._replace(claim=decided))
    state = with_owner(state, at, owner._replace(claim=None))
    reason, position = decided
    record = state.store.record
    if reason == st.EXISTS and record is not None and (record.base, record.memory) == rs.wish(claim).begin:
        return answer(state, claim.number, (st.MADE,))  # It was this very call that made it.
    return answer(state, claim.number, (st.ERROR, reason, position))


def _decided(state: State, rules: Rules, claim: Claim) -> tuple[State, Claim | rs.Refused]:
    decided = rs.decide(rules, state.store.record, claim)
    if isinstance(decided, rs.Refused):
        return state, decided
    verdict, record = decided
    holder = state.store.holder
    if rs.wish(claim).mode == st.REPLACE or (verdict != st.HELD and holder != claim.owner):
        holder = -1
    store = state.store._replace(record=record, holder=holder)
    if not claim.number:
        store = store._replace(visited=True, taken=record.epoch)
    state = state._replace(store=store)
    return state, claim._replace(verdict=verdict, record=record)


def install(state: State, rules: Rules, at: int) -> State | None:
    """The store's answer has come: the row is made, or goes on under the new claim."""
    owner = state.owners[at]
    claim = owner.claim
    if claim is None or claim.record is None:
        return None
    asked, record, old = rs.wish(claim), claim.record, owner.row
    durable, number = len(record.memory), claim.number
    bound = number if claim.frame[0] == st.OPEN else 0
    queue = old.queue if old is not None else ()
    if claim.verdict == st.HELD and old is not None:
        row = old._replace(
            epoch=record.epoch,
            incarnation=record.incarnation,
            writer=record.writer,
            durable=durable,
            dirty=old.dirty or (durable < len(old.memory) and rules.rows_ahead_are_saved),
            bound=bound,
            next=len(old.memory),
        )
    else:
        if old is not None and state.store.holder == at and len(old.memory) > len(record.memory):
            raise Violation(LOST_STEPS)
        _, epoch, _, incarnation, base, memory, acked, oldest, *_ = record
        if not rules.records_hold_replies:
            oldest = durable
        row = Row(
            epoch, epoch, incarnation, base, memory, acked, oldest, durable, False, bound, durable, queue, record.writer
        )
    acked = max(row.acked, min(asked.acked, len(row.memory)))
    row = row._replace(acked=acked, oldest=max(row.oldest, acked))
    behind = record.cursor if claim.verdict == st.TAKEN else -1
    later = claim.verdict == st.CREATED and asked.begin is not None and not rules.claims_carry_state
    if later and asked.begin is not None and bound:
        row = row._replace(base=asked.begin[0], dirty=True)
    row = row._replace(dirty=row.dirty or claim.flushed)
    owner = owner._replace(row=row, claim=None, unsure=False, unsaid=None)
    stored, other = state.store.record, state.owners[1 - at].row
    newest = other is None or other.epoch < row.epoch if stored is None else stored.live and stored.fence <= row.epoch
    if newest:
        state = state._replace(store=state.store._replace(holder=at))
    state = with_owner(state, at, owner)
    if rules.sleepers_hear_of_claims:
        for number_asleep in {sleeper.number for sleeper in owner.sleepers} - {number}:
            state = answer(state, number_asleep, (st.ERROR, st.MOVED, -1))
        state = with_owner(state, at, owner._replace(sleepers=()))
    elif number:
        kept = tuple(sleeper for sleeper in owner.sleepers if sleeper.number != number)
        state = with_owner(state, at, owner._replace(sleepers=kept))
    wire = state.wire
    if old is not None and old.bound != number:
        same = wire is not None and (wire.before, wire.number) == (old.bound, number)
        if rules.other_handles_are_told or not same:
            state = answer(state, old.bound, (st.ERROR, st.MOVED, -1))
    opened: Message = (
        (st.MADE,) if not bound else (st.OPENED, row.epoch, len(row.memory), durable, row.base, row.memory, behind)
    )
    if later:
        unsaid = Unsaid(number, opened, asked.begin if not bound else None)
        return with_owner(state, at, state.owners[at]._replace(unsaid=unsaid))
    state = answer(state, number, opened)
    if asked.wants and rules.unacknowledged_replies_return:
        for start in range(row.oldest, len(row.memory)):
            state = reply(state, at, number, start, wait=rules.returned_replies_wait)
    return state


def put(state: State, at: int) -> State | None:
    """A state is put into the row that was made for it (only without `claims_carry_state`)."""
    owner = state.owners[at]
    if owner.unsaid is None or owner.unsaid.begin is None or owner.row is None:
        return None
    base, memory = owner.unsaid.begin
    count = len(memory)
    row = owner.row._replace(base=base, memory=memory, acked=count, oldest=count, next=count, dirty=True)
    return with_owner(state, at, owner._replace(row=row, unsaid=owner.unsaid._replace(begin=None)))


def lose(state: State, at: int) -> State | None:
    """Nobody waits for the store's answer any more; it may come to decide the claim all the same, at any later time."""
    owner, store = state.owners[at], state.store
    claim = owner.claim
    if claim is not None:
        if claim.verdict < 0:
            if store.late is not None:
                return None
            state = state._replace(store=store._replace(late=claim))
        state = with_owner(state, at, owner._replace(claim=None))
        return answer(state, claim.number, (st.ERROR, st.UNAVAILABLE, 0))
    if owner.unsaid is None:
        return None
    state = with_owner(state, at, owner._replace(unsaid=None))
    return answer(state, owner.unsaid.number, (st.ERROR, st.UNAVAILABLE, 0))


def land(state: State, rules: Rules) -> State | None:
    """The store decides a claim for which nobody waits any more."""
    claim = state.store.late
    if claim is None or state.store.away:
        return None
    state = state._replace(store=state.store._replace(late=None))
    return _decided(state, rules, claim)[0]
