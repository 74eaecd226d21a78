"""Which searches are made: with all rules, with each one taken away, and with those of one cure taken away."""

from __future__ import annotations

from tests.model.rules import FORK, STATES, Faults, Setting

CURES: dict[str, tuple[str, Setting]] = {
    "initial states are lost by a kill": ("claims_carry_state", Setting(1, Faults(crash=1), born=STATES)),
    "initial states are lost by a lost connection": ("claims_carry_state", Setting(1, Faults(cut=1), born=STATES)),
    "another client's open that fails takes steps away": (
        "claims_spare_their_row",
        Setting(1, Faults(visit=1, lost=1)),
    ),
    "so does an own one": ("claims_spare_their_row", Setting(1, Faults(cut=1, lost=1))),
    "a fork is empty after a kill": ("claims_carry_state", Setting(1, Faults(crash=1), born=FORK)),
    "a fork is empty after a deadline": ("claims_carry_state", Setting(1, Faults(lost=1), born=FORK)),
    "a restore that is killed destroys the session": ("claims_carry_state", Setting(1, Faults(crash=1, restore=1))),
    "so does one whose caller gives up": ("claims_carry_state", Setting(1, Faults(restore=1, lost=1))),
    "a call that waits out a claim steps the next one's": (
        "chunks_name_their_claim",
        Setting(1, Faults(cut=1, unary=1)),
    ),
    "a step never answers": ("other_handles_are_told", Setting(1, Faults(again=1), sync=True)),
    "poison is sent again for ever": ("poison_is_quarantined", Setting(1, Faults(), poison=True)),
}
"""Faults that the code had, the rule that cures each, and where the search finds it without."""

SHOWN_BY: dict[str, Setting] = {
    "records_hold_replies": Setting(1, Faults(crash=1)),
    "duplicates_are_answered": Setting(1, Faults(cut=1)),
    "digests_are_compared": Setting(1, Faults(change=1)),
    "unacknowledged_replies_return": Setting(1, Faults(restart=1)),
    "open_waits_for_queued": Setting(1, Faults(cut=1)),
    "fence_lasts": Setting(1, Faults(cut=1)),
    "rows_compare_incarnations": Setting(1, Faults(cut=1, flush=1)),
    "frames_are_fenced": Setting(1, Faults(cut=1, reset=1)),
    "incarnations_are_compared": Setting(1, Faults(cut=1)),
    "incarnations_rise": Setting(1, Faults(cut=1)),
    "lost_steps_are_told": Setting(1, Faults(crash=1, flush=1)),
    "epochs_exceed_seen": Setting(1, Faults(flush=1, duplicate=1, reset=1)),
    "writes_compare": Setting(1, Faults(restore=1)),
    "later_epochs_win": Setting(1, Faults(cut=1, flush=1)),
    "epochs_reach_incarnations": Setting(1, Faults(flush=2, restart=1)),
    "replies_are_fenced": Setting(1, Faults(sleep=1, twin=1)),
    "deletes_leave_tombstones": Setting(1, Faults(cut=1, delete=1)),
    "tombstones_are_of_the_row": Setting(1, Faults(flush=1, delete=1)),
    "refused_deletes_are_told": Setting(1, Faults(visit=1, delete=1)),
    "inputs_kept_until_durable": Setting(1, Faults(crash=1)),
    "flushed_rows_are_dirty": Setting(1, Faults(flush=1)),
    "claims_carry_state": Setting(1, Faults(crash=1), born=FORK),
    "claims_spare_their_row": Setting(1, Faults(visit=1, lost=1)),
    "owners_spare_their_row": Setting(1, Faults(cut=1, visit=1, lost=1), 17),
    "rows_ahead_are_saved": Setting(1, Faults(cut=1)),
    "chunks_name_their_claim": Setting(1, Faults(cut=1, unary=1)),
    "other_handles_are_told": Setting(1, Faults(again=1), sync=True),
    "replies_wait_for_their_save": Setting(1, Faults(visit=2), sync=True),
    "returned_replies_wait": Setting(1, Faults(restart=1), sync=True),
    "poison_is_quarantined": Setting(1, Faults(), poison=True),
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
