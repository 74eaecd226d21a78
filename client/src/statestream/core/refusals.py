"""Opens that the server refused: asked for again, later, alone or under a higher incarnation; or told."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from statestream.contract import errors
from statestream.contract.errors import StatestreamError
from statestream.core.log import Log
from statestream.core.opening import Opening, indices
from statestream.core.reopened import Reopened
from statestream.core.results import TRANSIENT
from statestream.core.table import Group, State, Table
from statestream.core.tickets import JoinedTicket, again

MAX_CLAIMS = 8
"""How often a first open is repeated with a higher incarnation."""

"""Refusals after which a session that was open before is tried again."""

TOGETHER = 3_600_000_000
"""Claims whose incarnations are of one hour, in microseconds, may share a frame when they are repeated.

The server refuses a frame whose incarnation is far ahead of its clock: who made it has not made that of the others.
"""


class Refusals:
    """What becomes of them; those that are asked for again join the others that wait."""

    def __init__(
        self, table: Table, log: Log, reopened: Reopened, ask: Callable[[Opening], None], retry_seconds: float
    ) -> None:
        self.on_refused: Callable[[int, Opening, Group, StatestreamError | None], None] = lambda *_: None
        """Hears of a session that was refused to its caller, or not revived, and why; None where its caller left."""
        self.on_draining: Callable[[], None] = lambda: None
        """Hears that the server is leaving, and this stream of no use."""
        self._table = table
        self._log = log
        self._reopened = reopened
        self._ask = ask
        self._retry_seconds = retry_seconds

    def frame(self, opening: Opening, error: StatestreamError, now: float) -> None:
        """A frame was refused as a whole."""
        if not self._apart(opening, error):
            self.rows(opening, {handle: again(error) for handle in sorted(opening.left)}, now)

    def rows(self, opening: Opening, refusals: dict[int, StatestreamError], now: float) -> None:
        """Tries refused sessions again, all of a frame together, or fails them."""
        table = self._table
        opening.since = opening.since or now
        # Where time is over before the next bid, the caller hears who has it, not that the server did not answer.
        bids = now + _held_back(opening) - opening.since < self._retry_seconds
        later: list[int] = []
        moved: dict[int, list[int]] = {}
        done: list[int] = []
        wait = 0.0
        for handle, error in refusals.items():
            if handle not in opening.left:
                continue
            opening.left.discard(handle)
            first = opening.ticket is not None
            if table.state[handle] != (State.OPENING if first else State.LOST):
                continue  # It waited too long, and failed.
            again_soon = opening.claims < MAX_CLAIMS if first else now - opening.since < self._retry_seconds
            if first and not opening.revival and not table.holders[handle]:
                self.tell(opening, handle, error, left=True)  # Nobody waits for another try.
            elif first and isinstance(error, errors.SessionMoved) and again_soon and bids:
                # Somebody opened it since this client connected. The caller asks for it now, so it may have it.
                newest = int(error.metadata.get("incarnation", "0"))
                table.incarnation[handle] = max(int(table.incarnation[handle]), newest) + 1
                if opening.revival:  # Whose it is now is known to the caller, who wants it back.
                    taken = int(error.metadata.get("epoch", "0"))
                    table.epoch[handle] = max(table.epoch.item(handle), taken)
                moved.setdefault(newest // TOGETHER, []).append(handle)
            elif first and opening.uncertain and error.metadata.get("untouched") and again_soon:
                done.append(handle)
            elif isinstance(error, errors.Unavailable if first else TRANSIENT) and again_soon:
                pause = self._pause(opening, error)
                over = now + pause - opening.since >= self._retry_seconds
                if first and over and isinstance(error, errors.StoreUnavailable):
                    self.tell(opening, handle, error)  # Which says more than that time is over.
                    continue
                later.append(handle)
                wait = max(wait, pause)
            elif first:
                self.tell(opening, handle, error)
            else:
                self._log.fail(handle, error)
        for handles in moved.values():
            table.incarnation[handles] = table.incarnation[handles].max()
            self._repeat(opening, handles, now + _held_back(opening))
        if done:
            self._repeat(opening, done, 0.0, done=True)
        if later and opening.ticket is None:
            for waiting in self._reopened.openings(np.array(later, np.int64), now + wait):
                waiting.claims = min(opening.claims + 1, MAX_CLAIMS)
                waiting.since = opening.since
                self._ask(waiting)
        elif later:
            # Of what a server could not do, or a store behind it, something may have been done, or be done yet, even
            # for another server than the one that is asked next: it must count as the older claim.
            table.incarnation[later] += 1
            self._repeat(opening, later, now + wait, uncertain=True)

    def _pause(self, opening: Opening, error: StatestreamError) -> float:
        """Seconds until it is asked for again; on the next stream at once, where this server is leaving."""
        if isinstance(error, errors.Draining):
            self.on_draining()
            return 0.0
        return error.retry_after or min(2.0, 0.1 * 2**opening.claims)

    def _apart(self, opening: Opening, error: StatestreamError) -> bool:
        """Whether a frame that cannot be served as a whole is asked for in two parts: one may be what is wrong with it.

        It is another caller's, or another session's, and the others must not pay for it.
        """
        if opening.claims and isinstance(error, errors.BadFrame) and error.metadata.get("field") == "incarnation":
            for handle in sorted(opening.left):
                if opening.ticket is not None:
                    self.tell(opening, handle, _beyond(self._table, handle, error))
            return opening.ticket is not None
        several = len(opening.left) > 1 and (opening.ticket is None or isinstance(opening.ticket, JoinedTicket))
        if not several or not isinstance(error, errors.InvalidRequest | errors.TooManySessions):
            return False
        left = np.flatnonzero(np.isin(opening.handles, np.fromiter(opening.left, np.int64)))
        for half in (left[: len(left) // 2], left[len(left) // 2 :]):
            part = opening.part(half)
            part.apart, part.not_before = True, 0.0
            self._ask(part)
        return True

    def _repeat(
        self,
        opening: Opening,
        handles: list[int],
        not_before: float,
        *,
        done: bool = False,
        uncertain: bool = False,
    ) -> None:
        part = opening.part(indices(opening.handles, np.array(handles, np.int64)))
        part.claims += 1
        part.not_before = not_before
        part.done = done
        part.uncertain |= uncertain
        self._ask(part)

    def tell(self, opening: Opening, handle: int, error: StatestreamError, *, left: bool = False) -> None:
        """Tells whoever asked for a session that there is none; or drops it, where they have `left`."""
        ticket, table = opening.ticket, self._table
        assert ticket is not None
        rows = opening.rows[indices(opening.handles, np.array([handle]))]
        group = table.groups[table.group.item(handle)]
        ticket.refuse(int(rows[0]), error)
        if opening.revival:
            self._log.fail(handle, error, heard=True)
        else:
            table.release(np.array([handle]))
        ticket.count(rows)
        self.on_refused(handle, opening, group, None if left else error)


def _held_back(opening: Opening) -> float:
    """Seconds until the next bid for what others claimed.

    The first time nobody waits for nothing; again and again it is a fight, in which each side holds back.
    """
    return 0.05 * (2.0**opening.claims - 1)


def _beyond(table: Table, handle: int, error: StatestreamError) -> errors.SessionMoved:
    return errors.SessionMoved(
        f"session {table.ids[handle]!r} was claimed with incarnation {int(table.incarnation[handle]) - 1}, so far "
        f"ahead that no caller can take it over: {error.message}. Whoever made that claim has a clock that is wrong; "
        "delete the session, or use another id",
        metadata={"incarnation": str(int(table.incarnation[handle]) - 1)},
    )
