"""What the store decides: claims, saves, deletes; the same decisions as in the server's stores/rules.py."""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.model import state as st
from tests.model.rules import Rules
from tests.model.state import Begin, Claim, Copy, Row


class Wish(NamedTuple):
    """What a claim asks for."""

    mode: int
    incarnation: int
    seen: int
    replay: int
    acked: int
    wants: bool
    begin: Begin | None


class Refused(NamedTuple):
    """A claim that is not granted: why, and where the session stands."""

    reason: str
    position: int = 0


class Granted(NamedTuple):
    """A claim that is granted: how, and the record after it."""

    verdict: int
    record: Copy


def wish(claim: Claim) -> Wish:
    """What a claim asks for, whichever call it came with."""
    frame: Any = claim.frame
    if frame[0] == st.MAKE:
        _, mode, incarnation, begin = frame
        return Wish(mode, incarnation, 0, 0, 0, False, begin)
    return Wish(*frame[1:])


def fence(rules: Rules, record: Copy) -> int:
    """The lowest epoch of a row that may go on."""
    return record.fence if rules.claims_spare_their_row else record.epoch


def decide(rules: Rules, stored: Copy | None, claim: Claim) -> Refused | Granted:
    """How a claim goes."""
    asked, seen, writer = wish(claim), wish(claim).seen, int(not claim.number)
    if stored is not None and asked.incarnation < stored.incarnation and rules.incarnations_are_compared:
        return Refused(st.MOVED)
    if stored is not None and stored.live and stored.writer != writer:
        if asked.incarnation == stored.incarnation and rules.incarnations_are_compared:
            return Refused(st.MOVED)
        goes_on = asked.mode in (st.RESUME, st.EITHER)
        if goes_on and 0 < seen < stored.epoch and rules.claims_spare_what_they_never_saw:
            return Refused(st.MOVED)
    live = stored if stored is not None and stored.live else None
    held = claim.held > 0 and (
        stored is None or (live is not None and fence(rules, live) <= claim.held <= max(live.epoch, claim.held))
    )
    if not rules.later_epochs_win:
        held = held and (live is None or claim.held <= live.epoch)
    else:
        # A flushed store may have got a record from an owner that did not know better.
        if live is not None and live.epoch < max(claim.held, seen):
            live = None
        held = held and claim.held >= seen
    if asked.mode == st.CREATE and (live is not None or held):
        return Refused(st.EXISTS)
    if asked.mode == st.RESUME and live is None and not held:
        return Refused(st.UNKNOWN)
    anew = asked.mode == st.REPLACE
    current = claim.position if held else len(live.memory) if live is not None else 0
    if not anew and current < asked.replay and rules.lost_steps_are_told:
        return Refused(st.LOST, current)
    epoch = stored.epoch if stored is not None else 0
    if rules.epochs_exceed_seen:
        epoch = max(epoch, seen, claim.held)
    epoch += 1
    if rules.epochs_reach_incarnations:
        epoch = max(epoch, asked.incarnation)
    if anew or (live is None and not held):
        base, memory = asked.begin if asked.begin is not None and rules.claims_carry_state else (0, ())
        count = len(memory)
        record = Copy(True, epoch, epoch, asked.incarnation, base, memory, count, count, claim.owner, writer=writer)
        return Granted(st.CREATED, record)
    verdict = st.HELD if held else st.TAKEN
    if live is None:
        return Granted(
            verdict, Copy(True, epoch, claim.held, asked.incarnation, 0, (), 0, 0, claim.owner, writer=writer)
        )
    own = rules.owners_spare_their_row and live.owner == claim.owner >= 0
    kept = live.fence if verdict == st.HELD or own else epoch
    record = live._replace(epoch=epoch, fence=kept, incarnation=asked.incarnation, owner=claim.owner, writer=writer)
    return Granted(verdict, record)


def save(rules: Rules, stored: Copy | None, copy: Copy) -> Copy | None:
    """The record after a save; None where it changes nothing."""
    if stored is None or not rules.writes_compare:
        return copy
    if not stored.live:
        return copy if stored.epoch < copy.epoch else None
    if copy.epoch > stored.epoch:
        return copy if rules.later_epochs_win else None
    if copy.epoch < fence(rules, stored) or len(copy.memory) < len(stored.memory):
        return None
    # What a later claim has put there stays.
    _, _, _, _, base, memory, acked, oldest, _, cursor, _ = copy
    return stored._replace(base=base, memory=memory, acked=acked, oldest=oldest, cursor=cursor)


def moved(rules: Rules, stored: Copy | None, row: Row) -> bool:
    """Whether the store knows that another row has followed this one."""
    if stored is None or (rules.later_epochs_win and stored.epoch < row.epoch):
        return False
    return not stored.live or not fence(rules, stored) <= row.epoch <= stored.epoch


def bury(rules: Rules, stored: Copy | None, row: Row) -> tuple[bool, Copy | None]:
    """Whether a delete changes what is stored, and the tombstone."""
    if stored is not None and stored.live and fence(rules, stored) > row.epoch and rules.deletes_name_their_epoch:
        return False, stored
    if not rules.deletes_leave_tombstones:
        return True, None
    if not rules.tombstones_are_of_the_row:
        return True, _tombstone(stored.epoch, stored.incarnation, stored.writer) if stored is not None else None
    epoch, incarnation, writer = row.epoch, row.incarnation, 0
    if stored is not None:
        epoch, incarnation = max(epoch, stored.epoch), max(incarnation, stored.incarnation)
        writer = stored.writer
    return True, _tombstone(epoch, incarnation, writer)


def _tombstone(epoch: int, incarnation: int, writer: int) -> Copy:
    return Copy(False, epoch, epoch, incarnation, 0, (), 0, 0, -1, writer=writer)
