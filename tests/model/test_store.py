"""The model's store decides as the server's rules do, over every claim, save and delete of small numbers."""

from __future__ import annotations

import itertools

import pytest

from statestream_server.stores import rules as server
from statestream_server.stores.base import Claim as Asked
from statestream_server.stores.base import Key, Mode, Record, Verdict
from tests.model import state as st
from tests.model import store as model
from tests.model.rules import ALL
from tests.model.state import Claim, Copy, Row

KEY = Key("", "m", "s")
WRITERS = (bytes(16), bytes([1] * 16))
"""The client, and another one."""
OWNERS = ("A", "B")
VERDICTS = {st.CREATED: Verdict.CREATED, st.HELD: Verdict.HELD, st.TAKEN: Verdict.TAKEN}
REASONS = {
    st.MOVED: Verdict.REFUSED,
    st.EXISTS: Verdict.EXISTS,
    st.LOST: Verdict.LOST,
    st.UNKNOWN: Verdict.MISSING,
}
MODES = {st.CREATE: Mode.CREATE, st.RESUME: Mode.RESUME, st.EITHER: Mode.EITHER, st.REPLACE: Mode.REPLACE}


def _stored() -> list[Copy | None]:
    live = [
        Copy(True, epoch, fence, incarnation, 0, tuple(range(position)), 0, 0, owner, writer=writer)
        for epoch, incarnation, position, owner, writer in itertools.product(
            (1, 2, 3), (1, 2), (0, 1, 2), (0, 1), (0, 1)
        )
        for fence in range(1, epoch + 1)
    ]
    buried = [Copy(False, epoch, epoch, incarnation, 0, (), 0, 0, -1) for epoch in (1, 3) for incarnation in (1, 2)]
    return [None, *live, *buried]


def _columns(copy: Copy | None) -> server.Columns | None:
    if copy is None:
        return None
    owner = OWNERS[copy.owner] if copy.owner >= 0 else ""
    return server.Columns(
        copy.live,
        1,
        copy.epoch,
        len(copy.memory),
        WRITERS[copy.writer],
        copy.incarnation,
        False,
        0.0,
        owner,
        copy.fence,
    )


STORED = _stored()


@pytest.mark.parametrize("mode", MODES)
def test_claims_are_decided_alike(mode: int) -> None:
    for stored, incarnation, seen, replay, held, begin in itertools.product(
        STORED, (1, 2), (0, 2, 4), (0, 2), (0, 1, 2, 3), (None, (0, (7,)))
    ):
        claim = Claim((st.OPEN, mode, incarnation, seen, replay, 0, False, begin), 1, 0, held, min(held, 2))
        found = model.decide(ALL, stored, claim)
        asked = Asked(
            KEY, MODES[mode], WRITERS[0], incarnation, seen, replay, held, min(held, 2), owner="A",
            position=len(begin[1]) if begin else 0, blob=b"7" if begin else None,
        )  # fmt: skip
        decided = server.decide(asked, _columns(stored), 0.0)
        if isinstance(found, model.Refused):
            assert decided.verdict is REASONS[found.reason], (stored, claim)
            continue
        assert decided.verdict is VERDICTS[found.verdict], (stored, claim)
        expected = _columns(found.record)
        assert decided.columns == expected, (stored, claim)


def test_saves_are_decided_alike() -> None:
    for stored, epoch, position in itertools.product(STORED, (1, 2, 3, 4), (0, 1, 2)):
        # An epoch is of one claim.
        same = stored is not None and stored.live and stored.epoch == epoch
        incarnation, owner, writer = (2, 0, 0)
        if stored is not None and same:
            incarnation, owner, writer = stored.incarnation, stored.owner, stored.writer
        copy = Copy(True, epoch, epoch, incarnation, 0, tuple(range(position)), 0, 0, owner, writer=writer)
        record = Record(KEY, 1, epoch, position, WRITERS[writer], incarnation, blob=b"x", owner=OWNERS[owner])
        expected = model.save(ALL, stored, copy)
        assert server.saved(_columns(stored), record, 0.0) == _columns(expected), (stored, copy)


def test_deletes_are_decided_alike() -> None:
    for stored, epoch, incarnation in itertools.product(STORED, (1, 2, 3, 4), (1, 2)):
        row = Row(epoch, epoch, incarnation, 0, (), 0, 0, 0, False, 1, 0)
        changed, tombstone = model.bury(ALL, stored, row)
        _, columns = server.bury(_columns(stored), epoch, incarnation, 0.0)
        expected = _columns(tombstone)
        if not changed or stored == tombstone:
            assert columns is None, (stored, row)
        elif columns is not None and expected is not None:
            assert columns._replace(version=1, position=0, owner="") == expected, (stored, row)
