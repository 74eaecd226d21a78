"""The coalescer: single chunks that arrive before the engine's next turn, laid out as columns and passed on as one.

A thousand streams with a session each send a thousand frames; the intake compares columns. No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import add, attrgetter
from typing import Any, Final

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import counting, same
from statestream_server.engine.engine import Engine
from statestream_server.engine.lengths import Lengths, alike
from statestream_server.engine.table import Table
from statestream_server.sessions.admission.chunks import Chunks
from statestream_server.sessions.admission.intake import Intake
from statestream_server.sessions.admission.senders import Senders, Single

_COLUMNS: Final = attrgetter("row", "binding", "start", "acked", "steps", "inputs")


class Coalescer:
    """What arrived since the last batch began, by table."""

    def __init__(self, intake: Intake, engine: Engine) -> None:
        """Nothing arrived. The engine asks for what came before it chooses a batch."""
        self._intake = intake
        self._engine = engine
        engine.feeds.append(self.empty)
        engine.lone = self._lone
        self._arrived: dict[int, tuple[Table, dict[int, Single]]] = {}
        self._requests: dict[tuple[int, int], int] = {}
        """The digests of request ids, by table and row; few have one."""
        self._unders: dict[int, list[Any]] = {}
        """By table: the frames that they came with, where these are traced."""

    def put(self, table: Table, single: Single, request: int = 0) -> bool:
        """Takes a chunk, which goes on with the next turn of the engine; `request` is the digest of a request id.

        Returns:
            False where one of its session lies here already: then `empty` comes before this one.
        """
        arrived = self._arrived.get(id(table))
        if arrived is None:
            arrived = self._arrived[id(table)] = table, {}
        singles = arrived[1]
        if single.row in singles:
            return False
        singles[single.row] = single
        if request:
            self._requests[id(table), single.row] = request
        if self._engine.tracer is not None:
            self._unders.setdefault(id(table), []).extend(self._engine.tracer.queued())
        self._engine.wake(1)
        return True

    def empty(self) -> None:
        """Passes on what arrived. Call it before anything that must come after."""
        arrived, self._arrived = self._arrived, {}
        requests, self._requests = self._requests, {}
        tracer = self._engine.tracer
        for table, singles in arrived.values():
            if tracer is None:
                self._pass_on(table, tuple(singles.values()), requests)
                continue
            unders = self._unders.pop(id(table), [])
            with tracer.within(unders):
                self._pass_on(table, tuple(singles.values()), requests)
            tracer.ended(unders)

    def holds(self, table: Table, row: int) -> bool:
        """Whether a chunk of a session arrived and was not passed on."""
        arrived = self._arrived.get(id(table))
        return arrived is not None and row in arrived[1]

    def _lone(self) -> bool:
        """Has the step that arrived run at once, where it is the only one and as usual; whether it did."""
        arrived = self._arrived
        if len(arrived) != 1 or self._requests:
            return False
        ((table, singles),) = arrived.values()
        if len(singles) != 1:
            return False
        (single,) = singles.values()
        # What its sender does, once it has the answer, comes behind it.
        self._arrived = {}
        if self._intake.step(table, single):
            return True
        self._arrived = arrived
        return False

    def _pass_on(self, table: Table, singles: Sequence[Single], requests: Mapping[tuple[int, int], int]) -> None:
        numbers, bindings, starts, acked, steps, inputs = zip(*map(_COLUMNS, singles), strict=True)
        rows = np.array(numbers, np.int64)
        if not same(table.binding[rows], np.array(bindings, np.int64)):
            here = table.binding[rows] == bindings
            moved = errors.SessionMoved("the session was opened anew, or left, before the chunk ran")
            for place in np.flatnonzero(~here).tolist():
                singles[place].refused(moved)
            singles = [singles[place] for place in np.flatnonzero(here).tolist()]
            if singles:
                self._pass_on(table, singles, requests)
            return
        if self._engine.line.several:
            # Each tenant has a place of its own in the line.
            apart = dict[str, list[Single]]()
            for tenant, single in zip(table.tenant[rows].tolist(), singles, strict=True):
                apart.setdefault(tenant, []).append(single)
            if len(apart) > 1:
                for theirs in apart.values():
                    self._pass_on(table, theirs, requests)
                return
        uniform = steps.count(steps[0]) == len(steps)
        named = [requests.get((id(table), row), 0) for row in numbers] if requests else ()
        self._intake.accept(
            Chunks(
                rows,
                alike(len(steps), steps[0]) if uniform else Lengths.of(np.array(steps, np.int64)),
                [
                    np.frombuffer(b"".join(parts), dtype).reshape(-1, *shape)
                    for (dtype, shape), parts in zip(table.inputs, zip(*inputs, strict=True), strict=True)
                ],
                table=table,
                handles=counting(len(rows)),
                starts=np.array(starts, np.uint64),
                ends=np.array(list(map(add, starts, steps)), np.uint64),
                acked=np.array(acked, np.uint64),
                receiver=Senders(singles),
                requests=np.array(named, np.uint64) if any(named) else None,
            )
        )
