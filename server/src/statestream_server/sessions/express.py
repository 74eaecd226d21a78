"""Express: steps of callers without a stream whose session is here and has nothing to do; they need no wait.

Those of one turn of the loop go to the engine as columns, like single chunks of streams, and those that have to be
durable are saved together. Whatever is not as usual is left to unary.py, which also says what is wrong with it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array
from statestream_server.engine.lengths import Lengths
from statestream_server.engine.table import UNBOUND, Table
from statestream_server.sessions.admission.accounts import COPIES, OVERHEAD, Budget
from statestream_server.sessions.admission.coalescer import Coalescer
from statestream_server.sessions.admission.complaints import OVERTAKEN
from statestream_server.sessions.checkpointer import Checkpointer
from statestream_server.sessions.ownership.sessions import Sessions
from statestream_server.sessions.ownership.streams import Streams
from statestream_server.sessions.ownership.tasks import Tasks
from statestream_server.sessions.ownership.turns import Turns
from statestream_server.settings import Durability
from statestream_server.stores.base import Key

log = logging.getLogger(__name__)


class Asker(Protocol):
    """Who asked for a step; hears of it once, by one of these methods, on the loop."""

    def applied(self, step: Applied) -> None:
        """The chunk was applied."""

    def refused(self, error: errors.StatestreamError) -> None:
        """The chunk was not applied, or its reply may not leave."""


class Applied(NamedTuple):
    """A chunk that was applied.

    Attributes:
        table: The table of its session.
        position: Where the session stands behind it.
        durable: What survives a crash.
        epoch: The claim under which it ran.
        steps: The steps of the chunk.
        outputs: The bytes [steps, ...one step] of every output.
    """

    table: Table
    position: int
    durable: int
    epoch: int
    steps: int
    outputs: Sequence[bytes]


class Express:
    """Takes steps that need no wait."""

    def __init__(
        self,
        sessions: Sessions,
        streams: Streams,
        coalescer: Coalescer,
        checkpointer: Checkpointer,
        order: Turns,
        budget: Budget,
        tasks: Tasks,
    ) -> None:
        """Who stands in a line of `order` comes first; `budget` is what the chunks of such calls may hold."""
        self._sessions = sessions
        self._streams = streams
        self._coalescer = coalescer
        self._checkpointer = checkpointer
        self._order = order
        self._budget = budget
        self._tasks = tasks
        self._stores = checkpointer.mode != Durability.NONE
        """Whether the store has anything of what is applied, so that a chunk can wait for that."""
        self._unsaved = list[tuple[_Chunk, Sequence[bytes]]]()

    def find(self, key: Key, version: int) -> tuple[Table, int] | None:
        """The table and row of a session that callers without a stream have here, and that has nothing to do.

        None where that is not so, or another call comes first.

        Raises:
            ModelNotFound: The model is not served.
        """
        found = self._sessions.find(key)
        if found is None:
            return None
        table, row = found
        return found if version in (0, table.model.version) and self.is_free(table, row, key) else None

    def is_free(self, table: Table, row: int, key: Key) -> bool:
        """Whether a session in memory is that of callers without a stream, and has nothing to do."""
        return (
            table.owner.item(row) == UNBOUND
            and table.epoch.item(row) != 0
            and not table.claiming.item(row)
            and table.queued.item(row) == table.position.item(row)
            and not self._order.has(key)
        )

    def put(
        self,
        table: Table,
        row: int,
        steps: int,
        inputs: Sequence[bytes],
        asker: Asker,
        *,
        position: int | None,
        acked: int = 0,
        request: int = 0,
        durable: bool = False,
    ) -> bool:
        """Takes a chunk of a session that `find` found just now.

        Args:
            table: The table.
            row: The session's row.
            steps: The steps of the chunk; not more than a chunk may have.
            inputs: The bytes of every input, as the signature says.
            asker: Who hears of it.
            position: Where the chunk starts; None for where the session stands. The chunk is durable then before
                `asker` hears of it, because the caller could not tell a repeated step from a new one after a crash.
            acked: The position up to which the caller has the replies.
            request: The digest of the caller's name for the call, 0 for none.
            durable: Whether the chunk is durable before `asker` hears of it, though the caller says where it starts.

        Returns:
            False where it is not taken, and nothing happened: it is no new one, or there is no room for it now.
        """
        start: int = table.position.item(row)
        if position is None:
            if request and table.request.item(row) | 1 == request:
                return False
        elif position != start:
            return False
        size, budget = OVERHEAD + steps * (COPIES * table.input_bytes + table.output_bytes), self._budget
        if budget.held and budget.held + size > budget.most:
            return False
        chunk = _Chunk(
            row, self._streams.bind_one(table, row), start, max(acked, start), steps, inputs,
            table, table.serial.item(row), table.epoch.item(row), size,
            self._stores and (durable or position is None), asker, self,
        )  # fmt: skip
        if not self._coalescer.put(table, chunk, request):
            return False
        budget.held += size
        return True

    def save(self, chunk: _Chunk, outputs: Sequence[bytes]) -> None:
        """Saves the session of a chunk before it is answered, together with others of this turn of the loop."""
        if not self._unsaved:
            self._tasks.begin(self._save())
        self._unsaved.append((chunk, outputs))

    def give(self, size: int) -> None:
        """Counts bytes that are not under way any more."""
        self._budget.held -= size

    async def _save(self) -> None:
        unsaved, self._unsaved = self._unsaved, []
        tables = {id(chunk.table): chunk.table for chunk, _ in unsaved}
        for table in tables.values():
            some = [each for each in unsaved if each[0].table is table] if len(tables) > 1 else unsaved
            rows = np.array([chunk.row for chunk, _ in some], np.int64)
            claims = (
                np.array([chunk.serial for chunk, _ in some], np.int64),
                np.array([chunk.epoch for chunk, _ in some], np.uint64),
            )
            try:
                failures = await self._checkpointer.flush_each(table, rows)
            except Exception as error:  # Those of other tables are saved and answered all the same.
                log.exception("a save of unary steps failed in a way that was not expected")
                failed = errors.InternalError(f"the server failed to save the session: {type(error).__name__}")
                failures = dict[int, errors.StatestreamError].fromkeys(range(len(some)), failed)
            ours = table.are_claimed(rows, claims).tolist()
            durable = table.durable[rows].tolist()
            for place, (chunk, outputs) in enumerate(some):
                if place in failures:
                    chunk.refused(failures[place])
                elif not ours[place]:
                    chunk.overtaken()
                else:
                    chunk.answer(durable[place], outputs)


class _Chunk(NamedTuple):
    """One chunk; takes its reply."""

    row: int
    binding: int
    start: int
    acked: int
    steps: int
    inputs: Sequence[bytes]
    table: Table
    serial: int
    epoch: int
    size: int
    saved: bool
    asker: Asker
    express: Express

    def result(self, durable: int, outputs: Sequence[bytes], *, alone: bool = False) -> None:
        if self.saved:
            self.express.save(self, outputs)
        else:
            self.answer(durable, outputs)

    def large(self, durable: int, lengths: Lengths, outputs: Sequence[Array]) -> None:
        self.result(durable, [array.tobytes() for array in outputs])

    def answer(self, durable: int, outputs: Sequence[bytes]) -> None:
        """Tells who asked that it was applied, and how far the session is durable."""
        self.express.give(self.size)
        self.asker.applied(Applied(self.table, self.start + self.steps, durable, self.epoch, self.steps, outputs))

    def refused(self, error: errors.StatestreamError) -> None:
        self.express.give(self.size)
        self.asker.refused(error)

    def overtaken(self) -> None:
        self.refused(errors.SessionMoved(OVERTAKEN))
