"""The rules of the protocol as switches, and the faults that a search may use. Nothing happens here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple


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
    open_fences_first: bool = True
    """Open drops what older claims have queued before it reads the position."""
    fence_lasts: bool = True
    """Between that and the answer of the store nothing of an older claim is accepted."""
    rows_compare_incarnations: bool = True
    """An owner compares with its row too, before anything else: a refused open drops nothing that is queued."""
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
    """A save of another epoch, or of a lower position, changes nothing."""
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
    inputs_kept_until_durable: bool = True
    """The client forgets an input when it is answered and durable, not when it is answered."""
    flushed_rows_are_dirty: bool = True
    """After the store was emptied, every live row is written again."""

    def without(self, name: str) -> Rules:
        """These rules but for one."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Rules(**{**values, name: False})


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


class Setting(NamedTuple):
    """One search: how many chunks the client has, which faults may happen, how deep to look."""

    chunks: int
    faults: Faults
    depth: int = 100


SHOWN_BY: dict[str, Setting] = {
    "records_hold_replies": Setting(1, Faults(crash=1)),
    "duplicates_are_answered": Setting(1, Faults(cut=1)),
    "digests_are_compared": Setting(1, Faults(change=1)),
    "unacknowledged_replies_return": Setting(1, Faults(restart=1)),
    "open_fences_first": Setting(1, Faults(cut=1)),
    "fence_lasts": Setting(1, Faults(cut=1)),
    "rows_compare_incarnations": Setting(1, Faults(cut=1)),
    "frames_are_fenced": Setting(1, Faults(cut=1, reset=1)),
    "incarnations_are_compared": Setting(1, Faults(cut=1)),
    "incarnations_rise": Setting(1, Faults(cut=1)),
    "lost_steps_are_told": Setting(1, Faults(crash=1, flush=1)),
    "epochs_exceed_seen": Setting(1, Faults(flush=1, duplicate=1, reset=1)),
    "writes_compare": Setting(2, Faults(cut=1)),
    "later_epochs_win": Setting(1, Faults(cut=1, flush=1)),
    "epochs_reach_incarnations": Setting(1, Faults(cut=1, crash=1, flush=1)),
    "replies_are_fenced": Setting(1, Faults(sleep=1, twin=1)),
    "deletes_leave_tombstones": Setting(1, Faults(cut=1, delete=1)),
    "tombstones_are_of_the_row": Setting(1, Faults(flush=1, delete=1)),
    "inputs_kept_until_durable": Setting(1, Faults(crash=1)),
    "flushed_rows_are_dirty": Setting(1, Faults(flush=1)),
}
"""The least faults under which leaving a rule out shows."""

HOLDS: tuple[Setting, ...] = (
    Setting(2, Faults(cut=1)),
    Setting(2, Faults(crash=2)),
    Setting(1, Faults(cut=2)),
    Setting(1, Faults(duplicate=1, crash=1, sleep=1)),
    Setting(1, Faults(cut=1, crash=1, sleep=1)),
    Setting(1, Faults(cut=1, sleep=1, delete=1)),
    Setting(1, Faults(cut=1, flush=1, away=1)),
    Setting(1, Faults(cut=1, flush=1, reset=1)),
    Setting(1, Faults(sleep=1, flush=1, duplicate=1, delete=1)),
    Setting(1, Faults(sleep=1, twin=1)),
    Setting(1, Faults(crash=1, restart=1)),
    Setting(1, Faults(crash=1, change=1)),
    Setting(1, Faults(crash=1, flush=1, restart=1)),
)
"""Searches that end within seconds, every reachable state seen."""

HOLDS_LONGER: tuple[Setting, ...] = (
    Setting(2, Faults(cut=1, crash=1)),
    Setting(2, Faults(cut=1, flush=1)),
    Setting(1, Faults(cut=1, crash=1, sleep=1, flush=1)),
    Setting(1, Faults(cut=1, sleep=1, twin=1)),
    Setting(1, Faults(cut=1, sleep=1, restart=1, reset=1)),
    Setting(3, Faults(crash=1, sleep=1)),
    Setting(2, Faults(cut=1, crash=1, sleep=1), 28),
)
"""Searches that take minutes; the last one up to a depth."""
