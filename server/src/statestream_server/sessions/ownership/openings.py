"""What a caller who opens sessions asks for and gets, and why some are refused. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Final, NamedTuple

import numpy as np

from statestream.contract import errors
from statestream.contract.signature import numpy_dtype, row_shape
from statestream_server.arrays import Array, Bools, Ints, Positions
from statestream_server.engine.table import UNBOUND, Table
from statestream_server.sessions.ownership.held import Held
from statestream_server.stores.base import Claim, Claimed, Key, Mode, Record, Verdict
from statestream_server.stores.rules import CLAIM_LIMIT

MAX_ID_BYTES = 256
MOST_AHEAD: Final = 3600.0
"""Seconds by which an incarnation may be ahead of the server's clock: whoever claims has to outbid it."""
_LIMIT: Final = CLAIM_LIMIT - (1 << 40)
"""Numbers of callers stay below this: a claim raises the epoch above them, and there is room for many claims more."""


class Carried(NamedTuple):
    """The state that one claim carries.

    Attributes:
        blob: As a record has it.
        position: Where it stands.
        base: The epoch of the session that moves with it, 0 for a new one.
    """

    blob: bytes | None = None
    position: int = 0
    base: int = 0


NOTHING: Final = Carried()


class Start(NamedTuple):
    """States of new sessions that do not start as their model says; columns have N items.

    Attributes:
        values: One array [N, ...] for every column of the slab.
        positions: [N] where they stand.
        requests: [N] digests of what made them, 0 for nothing.
        origins: [N] the positions behind their last resets.
        cursors: [N] their callers' cursors; no items where none has one.
    """

    values: Sequence[Array]
    positions: Positions
    requests: Positions
    origins: Positions
    cursors: Sequence[bytes] = ()

    def some(self, places: Sequence[int] | Ints) -> Start:
        """Those at some places."""
        return Start(
            [array[places] for array in self.values],
            self.positions[places],
            self.requests[places],
            self.origins[places],
            [self.cursors[place] for place in places] if self.cursors else (),
        )


@dataclass(frozen=True, slots=True)
class Opening:
    """A wish to open N sessions of one tenant and model; columns have N items.

    Attributes:
        tenant: Whose they are.
        model: Its name.
        version: 0 for the sessions' own.
        ids: Their ids.
        mode: Whether they must be new, must exist, or may be either.
        writer: 16 bytes that stand for the caller.
        incarnation: Orders claims.
        seen_epochs: [N] the last epoch that the caller saw.
        replay_positions: [N] the oldest position from which it can replay.
        acked_positions: [N] the position up to which it has the replies.
        ephemeral: Whether they end with their caller.
        initial_states: For every state of new sessions an array [N, ...], or None where it starts as the model says;
            None where all do.
        start: The whole state of new sessions, or None.
        replays: Whether the caller can send again what it sent before: it had them open, and lost them with a stream.
        owner: The stream that opens them, or UNBOUND.
        handles: [N] what that stream calls them.
        upgrade: Whether sessions that are pinned to another version move to this one.
        replies: Whether the caller wants the replies that nobody acknowledged.
        fresh: The version of new sessions, and of those that move, where that is not the one of all; 0 for the default.
    """

    tenant: str
    model: str
    version: int
    ids: Sequence[str]
    mode: Mode
    writer: bytes
    incarnation: int
    seen_epochs: Positions
    replay_positions: Positions
    acked_positions: Positions
    ephemeral: bool = False
    initial_states: Sequence[Array | None] | None = None
    owner: int = UNBOUND
    handles: Array | None = None
    upgrade: bool = False
    replies: bool = False
    start: Start | None = None
    replays: bool = False
    fresh: int = 0

    def keys(self, places: Iterable[int]) -> list[Key]:
        """The sessions at some places, as the store calls them."""
        ids = [self.ids[place] for place in places]
        return list(map(Key._make, zip(repeat(self.tenant), repeat(self.model), ids)))

    def some(self, places: Sequence[int], version: int) -> Opening:
        """Those at some places; of a version that is not the caller's choice they are there, or else not new."""
        found = version != self.version and self.mode is Mode.EITHER
        return replace(
            self,
            ids=[self.ids[place] for place in places],
            mode=Mode.RESUME if found else self.mode,
            seen_epochs=self.seen_epochs[places],
            replay_positions=self.replay_positions[places],
            acked_positions=self.acked_positions[places],
            initial_states=[None if array is None else array[places] for array in self.initial_states or ()] or None,
            handles=self.handles[places] if self.handles is not None else None,
            start=self.start.some(places) if self.start is not None else None,
        )


@dataclass(frozen=True, slots=True)
class Opened:
    """Sessions that are open now, all of one version.

    Attributes:
        table: Their table.
        rows: [n] their rows.
        places: [n] which of the opening's columns they are.
        bindings: [n] what their frames are checked against.
        created: [n] whether they are new.
        claims: What the rows are claimed as: by the time that the caller goes on they may be others'.
    """

    table: Table
    rows: Ints
    places: Ints
    bindings: Ints
    created: Bools
    claims: tuple[Ints, Positions]

    def some(self, which: Bools) -> Opened:
        """Those of the mask [n]."""
        return Opened(
            self.table,
            self.rows[which],
            self.places[which],
            self.bindings[which],
            self.created[which],
            (self.claims[0][which], self.claims[1][which]),
        )


def check_initial_states(table: Table, states: Mapping[str, Array], count: int) -> None:
    """Checks start values that a caller sent, arrays [N, ...] by the names of states.

    Raises:
        BadTensor: One has the wrong dtype or shape.
    """
    for spec in table.model.signature.states:
        array, expected = states.get(spec.input), (count, *row_shape(spec))
        if array is None:
            continue
        if array.shape != expected or array.dtype != numpy_dtype(spec.dtype):
            raise errors.BadTensor(
                f"initial state {spec.input!r} is {array.dtype}{list(array.shape)};"
                f" expected {spec.dtype}{list(expected)}",
                metadata={"field": "initial_states"},
            )


def check_ids(ids: Sequence[str]) -> None:
    """Checks the ids of one opening.

    Raises:
        BadFrame: One comes twice, is empty or is too long.
    """
    if len(set(ids)) != len(ids):
        twice = next(session for session, count in Counter(ids).items() if count > 1)
        raise errors.BadFrame(f"session id {twice!r} comes twice; each may come once", metadata={"field": "ids"})
    # No character has more than four bytes: most ids need no look at their bytes.
    if "" not in ids and 4 * max(map(len, ids), default=0) <= MAX_ID_BYTES:
        return
    for session in ids:
        if not 1 <= len(session.encode()) <= MAX_ID_BYTES:
            raise errors.BadFrame(
                f"a session id has {len(session.encode())} bytes; expected 1 to {MAX_ID_BYTES}",
                metadata={"field": "ids"},
            )


def check_numbers(opening: Opening, now: float) -> None:
    """Checks what the store compares, so that one caller's numbers never fail another's batch, or claim.

    Args:
        opening: What is asked for.
        now: Unix time.

    Raises:
        BadFrame: A number is out of range, or the incarnation is of a time that is far ahead.
    """
    ahead = opening.incarnation / 1e6 - now
    if ahead > MOST_AHEAD and opening.incarnation < _LIMIT:
        raise errors.BadFrame(
            f"incarnation has {opening.incarnation}, {ahead:,.0f} seconds ahead of this server's clock; expected the"
            f" time in microseconds, at most {MOST_AHEAD:,.0f} seconds ahead. Set the caller's clock",
            metadata={"field": "incarnation", "most": str(int((now + MOST_AHEAD) * 1e6))},
        )
    for field, most in (
        ("incarnation", opening.incarnation),
        ("seen_epochs", int(opening.seen_epochs.max(initial=0))),
        ("replay_positions", int(opening.replay_positions.max(initial=0))),
    ):
        if most >= _LIMIT:
            raise errors.BadFrame(f"{field} has {most}; expected less than {_LIMIT}", metadata={"field": field})


def claims_of(
    opening: Opening,
    version: int,
    places: Ints,
    held: Held,
    owner: str,
    carried: Mapping[int, Carried] | None = None,
) -> list[Claim]:
    """The claims of some of an opening's sessions, for the server process `owner`.

    Those that go on from the store must be of `version`, or move there with what is carried for their place: another
    one is not claimed. `held` says where the opening's sessions are in memory.
    """
    chosen = places.tolist()
    states = [carried.get(place, NOTHING) for place in chosen] if carried else []
    columns = zip(
        opening.keys(chosen),
        repeat(opening.mode),
        repeat(opening.writer),
        repeat(opening.incarnation),
        opening.seen_epochs[places].tolist(),
        opening.replay_positions[places].tolist(),
        held.column(lambda table: table.epoch)[places].tolist(),
        held.column(lambda table: table.position)[places].tolist(),
        repeat(version),
        repeat(opening.ephemeral),
        repeat(owner),
        repeat(True),
        [state.position for state in states] or repeat(0),
        [state.base for state in states] or repeat(0),
        [state.blob for state in states] or repeat(None),
    )
    return list(map(Claim._make, columns))


def pinned_to_others(opening: Opening, places: Ints, answers: Sequence[Claimed]) -> dict[int, list[int]]:
    """Sessions that were not claimed because they are pinned to a version that the claims did not name, by version.

    Only where the caller asked for the sessions' own: another one may then be claimed in their name.
    """
    found: dict[int, list[int]] = {}
    for place, (verdict, record) in zip(places.tolist(), answers, strict=True) if not opening.version else ():
        if verdict is Verdict.OTHER and record is not None:
            found.setdefault(record.version, []).append(place)
    return found


def unloadable(opening: Opening, place: int, version: int, error: errors.StatestreamError) -> errors.StatestreamError:
    """What the caller is told of a session that was not claimed because its version could not be loaded."""
    if version == opening.version or not isinstance(error, errors.ModelNotFound):
        return error
    return errors.ModelNotFound(
        f"session {opening.ids[place]!r} is pinned to version {version}: {error.message}. Put that version back into"
        " the models folder, or move the session to another with upgrade"
    )


def pinned_elsewhere(opening: Opening, held: Held) -> dict[int, errors.StatestreamError]:
    """Sessions in memory that are pinned to another version than the one asked for."""
    if not opening.version or opening.mode is Mode.REPLACE or opening.upgrade:
        return {}
    return {
        place: other_version(opening, place, table.model.version)
        for table, places, _ in held.by_table()
        if table.model.version != opening.version
        for place in places.tolist()
    }


def other_version(opening: Opening, place: int, version: int) -> errors.ModelChanged:
    """What the caller is told who asked for another version than the session's."""
    return pinned(opening.ids[place], version, opening.version)


def pinned(session: str, version: int, asked: int) -> errors.ModelChanged:
    """What the caller is told who asked for something of a session in another version than the session's."""
    return errors.ModelChanged(
        f"session {session!r} is pinned to version {version}, {asked} was asked for; open it without a version, move it"
        " with upgrade, or replace it",
        metadata={"version": str(version)},
    )


def newer_record(model: str, session: str) -> errors.StoreUnavailable:
    """What the caller is told of a session whose record a newer release wrote."""
    return errors.StoreUnavailable(
        f"the record of session {session!r} of model {model!r} is of a format that this release does not know; nothing"
        " is lost: open the session on a server of the release that wrote it"
    )


def outbid(opening: Opening, held: Held) -> dict[int, errors.StatestreamError]:
    """Sessions in memory that a claim with a higher incarnation has; the store may have forgotten it."""
    newest = held.column(lambda table: table.incarnation)
    late = np.flatnonzero(newest > opening.incarnation)
    if not len(late):
        return {}
    epochs = held.column(lambda table: table.epoch)
    return {place: _outbid(opening, place, int(newest[place]), int(epochs[place])) for place in late.tolist()}


def _outbid(opening: Opening, place: int, newest: int, epoch: int) -> errors.SessionMoved:
    return errors.SessionMoved(
        f"session {opening.ids[place]!r} was claimed with incarnation {newest}; this claim has {opening.incarnation}",
        metadata={"incarnation": str(newest), "epoch": str(epoch)},
    )


def _untouched(opening: Opening, claim: Claim, record: Record | None) -> dict[str, str]:
    """Tells a caller that the session it finds is its own and was never stepped: an open whose answer was lost."""
    mine = record is not None and record.writer == opening.writer and not record.position and not claim.held_position
    return {"untouched": "true"} if mine else {}


def refusal(opening: Opening, place: int, claim: Claim, answer: Claimed) -> errors.StatestreamError:
    """What the caller is told of a claim that was not granted."""
    session, record = opening.ids[place], answer.record
    if answer.verdict is Verdict.EXISTS:
        return errors.SessionExists(
            f"session {session!r} exists already; choose another id, or open it with mode either or resume",
            metadata=_untouched(opening, claim, record),
        )
    if answer.verdict is Verdict.MISSING:
        return errors.SessionNotFound(f"no session {session!r} of model {opening.model!r}; create it first")
    if answer.verdict is Verdict.OTHER:
        return other_version(opening, place, record.version if record else 0)
    if answer.verdict is Verdict.UNKNOWN:
        return newer_record(opening.model, session)
    if answer.verdict is Verdict.REFUSED:
        return _outbid(opening, place, record.incarnation if record else 0, record.epoch if record else 0)
    position = record.position if record else 0
    if claim.held_epoch and (record is None or record.fence <= claim.held_epoch):
        position = claim.held_position  # The row in memory is newer than its record.
    return errors.StateLost(
        f"session {session!r} is at position {position} here; the caller can replay from"
        f" {int(opening.replay_positions[place])} only, so steps between are lost. Replay your inputs from"
        f" {position}, or start the session anew",
        metadata={"position": str(position)},
    )
