"""The rules of the protocol as switches, and the faults that a search may use. Nothing happens here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final, NamedTuple


@dataclass(frozen=True, slots=True)
class Rules:
    """What the protocol asks for; a rule that is False is left out."""

    records_hold_replies: bool = True
    """A record holds every reply above the acknowledged position, not only the state."""
    duplicates_are_answered: bool = True
    """A late duplicate gets the kept reply again; it is not refused as out of order."""
    digests_are_compared: bool = True
    """The same position with other bytes is a conflict."""
    unacknowledged_replies_return: bool = True
    """Open returns the replies above the acknowledged position where the caller asks for them."""
    open_waits_for_queued: bool = True
    """Open waits until what older claims have queued has run, before it reads the position."""
    fence_lasts: bool = True
    """Between that and the answer of the store nothing of an older claim is accepted."""
    rows_compare_incarnations: bool = True
    """An owner compares with its row too: the store may have forgotten the claim that made it."""
    frames_are_fenced: bool = True
    """Frames of connections whose claim is over are refused."""
    incarnations_are_compared: bool = True
    """A claim with a lower incarnation than the last one is refused."""
    incarnations_rise: bool = True
    """Every open that is sent has a higher incarnation, a repeated first one too."""
    lost_steps_are_told: bool = True
    """A position below the oldest that the client can replay is STATE_LOST."""
    epochs_exceed_seen: bool = True
    """A new epoch is above the stored one, the held one and the one that the client saw."""
    writes_compare: bool = True
    """A save of a row that another has followed, or of a lower position, changes nothing."""
    later_epochs_win: bool = True
    """A save, or a row, of a later epoch goes before a stored record of an earlier one (after a flush)."""
    epochs_reach_incarnations: bool = True
    """A new epoch is no less than its claim's incarnation: after a flush epochs do not begin again."""
    replies_are_fenced: bool = True
    """An owner that slept looks at the stored epoch before it answers anything."""
    deletes_leave_tombstones: bool = True
    """A deleted session leaves its epoch and incarnation behind."""
    tombstones_are_of_the_row: bool = True
    """They are those of the row that is deleted: also where the store forgot the session, or has an older record."""
    refused_deletes_are_told: bool = True
    """A delete that the store refuses, because a later claim stands, is not answered as done."""
    inputs_kept_until_durable: bool = True
    """The client forgets an input when it is answered and durable, not when it is answered."""
    flushed_rows_are_dirty: bool = True
    """After the store was emptied, every live row is written again."""
    claims_carry_state: bool = True
    """A session that begins with a state (given, forked, restored) has it in the record that its claim writes."""
    claims_spare_their_row: bool = True
    """A claim fences the rows of others, not the one that it goes on with: whether its answer comes or not."""
    owners_spare_their_row: bool = True
    """Nor does a claim of the same owner that says, late, that it has no row."""
    sleepers_hear_of_claims: bool = True
    """A claim that does not go on with a row is told to whoever had the session here while it was not in memory."""
    rows_ahead_are_saved: bool = True
    """A row that a claim goes on with is saved where its record is behind: a save on its way is of the claim before."""
    chunks_name_their_claim: bool = True
    """A chunk that waited out a claim is compared with the claim that it came under, not only with its row."""
    other_handles_are_told: bool = True
    """A claim by the same connection under another handle moves the session too: the first handle hears so."""
    replies_wait_for_their_save: bool = True
    """In mode sync a reply leaves when its step is written, not when the save that was to write it is over."""
    returned_replies_wait: bool = True
    """Those that an open returns, too."""
    poison_is_quarantined: bool = True
    """What was running in two deaths of an owner is not run a third time."""
    resets_take_positions: bool = True
    """A reset is a mark among the chunks: it takes one position and is kept, saved and replayed as they are. Without
    the rule it takes the session back to position 0, in its turn."""
    moves_are_asked: bool = True
    """An owner that wants its session to be elsewhere asks its client, and has it until the client opens it there."""
    cursors_are_of_the_state: bool = True
    """The cursor that is saved is that of the last chunk that was applied, not of the last that came."""
    kept_replies_stop_no_reading: bool = True
    """A chunk whose reply has no room beside those that are kept is refused; what comes behind it is read."""
    detaches_are_durable: bool = True
    """A close is answered when all that was applied is in the store: who closed sends nothing again."""
    closes_name_their_position: bool = True
    """A close stands behind the steps that were sent before it: it closes nothing where one of them was refused."""
    flushes_name_their_position: bool = True
    """So does a flush: it is not answered as done where one of them was refused."""
    deletes_name_their_epoch: bool = True
    """A delete ends the claim that it was asked under; what a later one has stays."""
    claims_spare_what_they_never_saw: bool = True
    """A claim that goes on (mode either, or resume) names the last epoch that its client saw. A later one of another
    client is not overtaken by it, however high its incarnation is: it was sent by a library, not by a caller."""

    def without(self, *names: str) -> Rules:
        """These rules but for some."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Rules(**{**values, **dict.fromkeys(names, False)})


ALL = Rules()
"""The protocol."""
NAMES = tuple(field.name for field in fields(Rules))
"""The rules by name."""


class Faults(NamedTuple):
    """How often each fault may happen; what a state has left of it is a part of the state."""

    cut: int = 0
    """The client gives its connection up; what it sent may still arrive, what comes back is lost."""
    crash: int = 0
    """An owner is killed and starts again: its row, its queue and its connections are gone."""
    sleep: int = 0
    """An owner is stopped; it wakes at any later time."""
    flush: int = 0
    """The store forgets everything."""
    away: int = 0
    """The store does not answer; it comes back at any later time."""
    duplicate: int = 0
    """A frame is delivered twice."""
    restart: int = 0
    """The client is killed and started again; it asks for the replies that it had not acknowledged."""
    change: int = 0
    """The same, but it sends its inputs again, and those without a reply are others than before."""
    twin: int = 0
    """It hangs with its connection open, and is started a second time, with other inputs."""
    reset: int = 0
    """The application starts the session anew: position 0, other inputs."""
    delete: int = 0
    """The application deletes the session and opens it again, with other inputs."""
    lost: int = 0
    """The answer to a claim is lost (deadline, cancel, error); the claim may have been decided, or be decided later."""
    visit: int = 0
    """Another client opens the session, and leaves."""
    restore: int = 0
    """The application restores the session from a snapshot; where that fails it goes on with what it finds."""
    unary: int = 0
    """A chunk comes as a call of its own while the session is being claimed, and waits for the end of that."""
    doze: int = 0
    """A session that the store knows as it is leaves the memory of its owner; the connection keeps it."""
    again: int = 0
    """Another task of the client opens the session over the same connection, under another handle."""
    refuse: int = 0
    """An owner refuses a chunk, and what is queued behind it; the application sends it again."""
    move: int = 0
    """An owner wants its session to be elsewhere."""
    close: int = 0
    """The application closes the session, right behind its last chunk, and ends once that is answered."""
    save: int = 0
    """It asks, behind what it has sent, that all be made durable, and goes on."""


PLAIN: Final = 0
"""The session starts from the model's start values."""
STATES: Final = 1
"""It is opened with initial states."""
FORK: Final = 2
"""It is made by a fork of another one, and opened then."""


class Setting(NamedTuple):
    """One search: how many chunks the client has, which faults may happen, how deep to look.

    Attributes:
        chunks: Inputs of the client.
        faults: What may happen.
        depth: Events to look at.
        born: How the session begins: `PLAIN`, `STATES` or `FORK`.
        sync: Whether replies wait for their save.
        poison: Whether the first input ends the process that runs it.
        mark: The place among the inputs where a reset is, -1 for none.
        ahead: How many chunks are on their way at a time, at most.
        kept: How many replies an owner keeps for the session, at most; 0 for any number.
    """

    chunks: int
    faults: Faults
    depth: int = 100
    born: int = PLAIN
    sync: bool = False
    poison: bool = False
    mark: int = -1
    ahead: int = 2
    kept: int = 0
