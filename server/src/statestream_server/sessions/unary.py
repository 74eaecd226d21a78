"""Steps without a stream: whose session a call means, and which claim its chunk runs under."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array, Ints, Positions
from statestream_server.engine import digests
from statestream_server.engine.engine import Engine
from statestream_server.engine.lengths import Lengths
from statestream_server.engine.marks import Marks, ends
from statestream_server.engine.table import UNBOUND, Table
from statestream_server.sessions.admission.accounts import COPIES, Budget, Coming
from statestream_server.sessions.admission.chunks import Chunks, Refusal, error_at
from statestream_server.sessions.admission.coalescer import Coalescer
from statestream_server.sessions.admission.complaints import OVERTAKEN
from statestream_server.sessions.admission.intake import Intake
from statestream_server.sessions.checkpointer import Checkpointer
from statestream_server.sessions.lease import Lease
from statestream_server.sessions.ownership.sessions import Sessions
from statestream_server.sessions.ownership.turns import Turns
from statestream_server.stores.base import Key, Mode


class Target(NamedTuple):
    """A session as a call found it, or claimed it.

    Attributes:
        table: Its table.
        row: Its row.
        claims: What the row is claimed as: the chunk runs under this claim, or not at all.
    """

    table: Table
    row: int
    claims: tuple[Ints, Positions]


class Step(NamedTuple):
    """A chunk that was applied.

    Attributes:
        position: Where the session stands behind it.
        durable: What survives a crash.
        epoch: The claim under which it ran.
        outputs: One packed array for every output.
    """

    position: int
    durable: int
    epoch: int
    outputs: Sequence[Array]


class Unary:
    """Steps sessions for callers that hold none."""

    def __init__(
        self,
        sessions: Sessions,
        engine: Engine,
        checkpointer: Checkpointer,
        intake: Intake,
        coalescer: Coalescer,
        order: Turns,
        budget: Budget,
        coming: Coming,
        lease: Lease,
        writer: bytes,
        *,
        most_steps: int,
    ) -> None:
        """Claims are made as `writer`; `budget` is what the chunks of such calls may hold, of `most_steps` at most.

        `coming` counts the sessions that they bring into memory.
        Calls of one session come one after the other, in the lines of `order`.
        """
        self._budget = budget
        self._most_steps = most_steps
        self._sessions = sessions
        self._lease = lease
        self._engine = engine
        self._checkpointer = checkpointer
        self._intake = intake
        self._writer = writer
        self._order = order
        self._coalescer = coalescer
        self._coming = coming

    async def target(self, key: Key, version: int, mode: Mode, alias: str = "") -> Target:
        """The session of a call: the row where callers without a stream have it, else claimed anew.

        An `alias` in place of a version is that of a new session: see `Sessions.fresh`.

        Raises:
            StatestreamError: It is not to be had; see `Sessions.open`.
        """
        where = self._sessions.find(key)
        if where is not None and mode in (Mode.EITHER, Mode.RESUME):
            table, row = where
            if int(table.owner[row]) == UNBOUND and table.epoch[row] and version in (0, table.model.version):
                return _target(table, row)
        return await self._claim(key, version, mode, alias)

    async def moved(self, target: Target) -> bool:
        """Whether a session has gone to another server since it was stepped here: then it stands elsewhere.

        Callers are spread over servers by connections, and none of these hears of it before it writes.
        """
        rows = np.asarray([target.row])
        await self._lease.check(target.table, rows)
        return not self._is_there(target)

    def check_steps(self, steps: int) -> None:
        """Checks how long a chunk is, before its inputs are looked at.

        Raises:
            BadFrame: It has too many steps, or none.
        """
        if not 1 <= steps <= self._most_steps:
            raise errors.BadFrame(
                f"the chunk has {steps} steps; expected 1 to {self._most_steps}", metadata={"field": "inputs"}
            )

    async def _claim(self, key: Key, version: int, mode: Mode, alias: str) -> Target:
        while True:
            with self._coming.one(key.tenant):
                opened = await self._sessions.open_one(key, version, mode, self._writer, alias=alias)
            target = Target(opened.table, int(opened.rows[0]), opened.claims)
            if self._is_there(target) or self._sessions.find(key) is not None:
                return target
            mode = Mode.RESUME  # Its row was needed for another session before this call had its turn.

    @staticmethod
    def _is_there(target: Target) -> bool:
        return bool(target.table.are_claimed(np.asarray([target.row]), target.claims).all())

    async def step(
        self,
        target: Target,
        key: Key,
        steps: int,
        inputs: Sequence[Array],
        *,
        position: int | None,
        acked: int,
        request_id: str,
        mark: int = 0,
        cursor: bytes = b"",
        scored: bool = False,
        durable: bool = False,
    ) -> Step:
        """Applies one chunk, or a mark, in the order of the calls.

        Args:
            target: The session.
            key: Which one it is.
            steps: The steps of the chunk; see `check_steps`.
            inputs: One packed array for every input, each as the signature says.
            position: Where the chunk starts; None for where the session stands. The chunk is durable then before this
                returns, because the caller could not tell a repeated step from a new one after a crash.
            acked: The position up to which the caller has the replies.
            request_id: The caller's name for the call, "" for none: one that comes twice is answered twice.
            mark: A mark in place of a chunk, which has no steps and no inputs.
            cursor: The caller's, b"" to leave it as it is.
            scored: Whether the chunk is to be scored.
            durable: Whether the chunk is durable before this returns, though the caller says where it starts: of a
                caller that cannot replay.

        Raises:
            SessionMoved: The session was opened anew: the chunk was not applied, or is and its reply may not leave.
            StatestreamError: The chunk was not applied.
        """
        table, row, claims = target
        rows, answer = np.asarray([row]), _Answer()
        with self._budget.holding(steps * (COPIES * table.input_bytes + table.output_bytes)):
            # One call after the other: the chunk before this one says where it starts.
            turn = self._order.take(key.tenant, key.model, [key.id])
            try:
                await turn.come()
                await self._settled(target)
                self._check(target, key)
                request = digests.of_text(request_id) if request_id else 0
                start = position if position is not None else self._start(table, row, request)
                # Without an acknowledgement, asking for the next chunk acknowledges the replies before it.
                acks, starts = np.asarray([max(acked, start)], np.uint64), np.asarray([start], np.uint64)
                marks = None
                if mark or cursor or scored:
                    marks = Marks(np.asarray([mark], np.uint8), [cursor] if cursor else (), scored)
                lengths = Lengths(1, steps)
                self._intake.accept(
                    Chunks(
                        rows,
                        lengths,
                        inputs,
                        marks=marks,
                        table=table,
                        handles=np.zeros(1, np.uint32),
                        starts=starts,
                        ends=ends(starts, lengths),
                        acked=acks,
                        receiver=answer,
                        requests=np.asarray([request], np.uint64) if request else None,
                    )
                )
            finally:
                turn.end()
            outputs = await answer.outputs
        if position is None or durable:
            await self._checkpointer.flush(table, rows)
            if not table.are_claimed(rows, claims).all():
                raise errors.SessionMoved(OVERTAKEN)
        return Step(start + max(1, steps), int(table.durable[row]), int(claims[1][0]), outputs)

    async def _settled(self, target: Target) -> None:
        """Returns when nothing is queued for a session and no claim of it is on its way, or when it is claimed anew."""
        table, row, claims = target
        rows = np.asarray([row])
        if self._coalescer.holds(table, row):
            self._coalescer.empty()
        while table.are_claimed(rows, claims).all() and (table.claiming[row] or not table.lane.idle(rows).all()):
            await self._sessions.undisputed(table, rows)
            await self._engine.settled(table, rows)

    def _check(self, target: Target, key: Key) -> None:
        """Checks that a session is claimed as it was when its call came."""
        if self._is_there(target):
            return
        if self._sessions.find(key) is not None:
            raise errors.SessionMoved(f"session {key.id!r} was opened anew meanwhile; send the chunk again")
        # Deleted, with another server, or asleep because memory is short: who sends it again finds out.
        raise errors.SessionMoved(f"session {key.id!r} left memory meanwhile; the chunk was not applied, send it again")

    @staticmethod
    def _start(table: Table, row: int, request: int) -> int:
        """Where a chunk starts whose caller does not say: where the session stands, or where it did for that call.

        Raises:
            AlreadyApplied: The call was applied, and its reply is not kept: others came behind it.
        """
        last = int(table.request[row])
        if not request or last | 1 != request:
            return int(table.position[row])
        kept = table.replies.replies(row)
        if last == request and kept:
            return kept[-1].start
        raise errors.AlreadyApplied(
            "a call with this request_id was applied, and its answer is not kept any more: a step without a request_id"
            " came behind it, or acknowledged it. Go on with a new request_id; where several callers step one session,"
            " each should name its calls, or positions",
            metadata={"expected_position": str(int(table.position[row]))},
        )


def _target(table: Table, row: int) -> Target:
    return Target(table, row, table.claims(np.asarray([row])))


class _Answer:
    """Takes the reply."""

    def __init__(self) -> None:
        self.outputs: asyncio.Future[Sequence[Array]] = asyncio.get_running_loop().create_future()

    def results(self, chunks: Chunks, outputs: Sequence[Array]) -> None:
        if not self.outputs.done():
            self.outputs.set_result(outputs)

    def repeated(self, chunks: Chunks, entries: Ints) -> None:
        if not self.outputs.done():
            self.outputs.set_result(chunks.table.replies.views(int(entries[0]))[1])

    def refused(self, chunks: Chunks, refusal: Refusal) -> None:
        if not self.outputs.done():
            self.outputs.set_exception(error_at(refusal, 0))

    def overtaken(self, chunks: Chunks) -> None:
        self.refused(chunks, errors.SessionMoved(OVERTAKEN))
