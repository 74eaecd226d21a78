"""Chunk frames: what a stream's frames with steps ask for, and who hears how they ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from statestream.contract import errors
from statestream.v1 import inference_pb2 as pb
from statestream_server.arrays import Array, Ints, Positions, counting, some
from statestream_server.edges.grpc import answers, wire
from statestream_server.edges.grpc.answers import Results
from statestream_server.edges.grpc.bindings import Bindings
from statestream_server.edges.grpc.handles import UNKNOWN, Resolved, read_handles, unknown_places
from statestream_server.edges.grpc.outbox import Outbox
from statestream_server.engine.lengths import Lengths
from statestream_server.engine.marks import CURSOR, Marks
from statestream_server.engine.marks import ends as ends_of
from statestream_server.engine.replies import Kept
from statestream_server.engine.table import Table
from statestream_server.server import Server
from statestream_server.sessions.admission.accounts import OVERHEAD, Account, Window
from statestream_server.sessions.admission.chunks import Chunks, Refusal
from statestream_server.shapes import unscored

_RETRY_SECONDS = 0.1


class ChunkFrames:
    """The chunk frames of one stream."""

    def __init__(
        self, server: Server, bindings: Bindings, outbox: Outbox, account: Account, windows: Callable[[Table], Window]
    ) -> None:
        """Frames about the sessions of `bindings`, answered through `outbox`; `account` has what is under way.

        `windows` gives the stream's window of a table's model.
        """
        self._server = server
        self._account = account
        self._window = windows
        self._handles = bindings.handles
        self._outbox = outbox
        self._wake = bindings.wake
        self._most_steps = server.settings.limits.max_chunk_steps

    async def take(self, frame: int, request: pb.ChunkFrame) -> None:
        """Takes a frame once its sessions are awake, nobody is claiming them, and no same chunks are queued.

        Raises:
            BadFrame, BadTensor: The frame cannot be read; nothing of it was applied.
        """
        handles = read_handles(request.handles)
        await self._wake(handles)
        while not self.take_now(frame, request):
            starts = np.frombuffer(request.positions, "<u8")
            for table, rows, places in self._handles.resolve(handles):
                racing = self._server.intake.racing(table, rows, starts[places])
                await self._server.sessions.undisputed(table, rows)
                await self._server.engine.settled(table, racing)
            await self._wake(handles)

    def take_now(self, frame: int, request: pb.ChunkFrame) -> bool:
        """Takes a frame of sessions that are awake; False where it has to wait: then nothing of it is done.

        Raises:
            BadFrame, BadTensor: The frame cannot be read; nothing of it was applied.
        """
        handles = read_handles(request.handles)
        count = len(handles)
        if not count:
            raise errors.BadFrame("a chunk frame has no rows; expected one at least", metadata={"field": "handles"})
        starts = wire.column(request.positions, "<u8", count, "positions")
        acked = wire.optional_column(request.acked_positions, "<u8", count, "acked_positions")
        marks = self._marks(request, count)
        lengths = self._lengths(request, count, marks)
        groups = self._handles.resolve(handles)
        if self._disputed(groups, starts):
            return False
        # Nothing is awaited here: the claims that were checked now are those that the chunks run under.
        ends, accepted = ends_of(starts, lengths), list[tuple[Chunks, _Receiver]]()
        for table, rows, places in groups:
            inputs = list[Array]()
            if lengths.total or request.inputs:
                inputs = wire.packed_inputs(table.model.signature.inputs, request.inputs, lengths.total)
            if request.score and not table.is_scored:
                self._outbox.refuse(frame, handles[places], starts[places], unscored(table.model.name))
                continue
            receiver = _Receiver(self._outbox, self._account, self._window(table), frame)
            whole = len(places) == count
            chunks = Chunks(
                rows,
                lengths.take(places),
                lengths.pack(inputs, places),
                marks=marks if whole or marks is None else marks.take(places),
                table=table,
                handles=handles if whole else handles[places],
                starts=starts if whole else starts[places],
                ends=ends if whole else ends[places],
                acked=acked if whole else acked[places],
                receiver=receiver,
            )
            accepted.append((chunks, receiver))
        taken = sum([array.nbytes for chunks, _ in accepted for array in chunks.inputs])
        self._server.turns.note(count, nbytes=taken)
        strange = unknown_places(groups, count)
        if len(strange):
            self._outbox.refuse(frame, handles[strange], starts[strange], UNKNOWN)
        for chunks, receiver in accepted:
            within = self._within(chunks, receiver.window, frame)
            if within is not None:
                receiver.begin(within)
                self._server.intake.accept(within)
        return True

    def _within(self, chunks: Chunks, window: Window, frame: int) -> Chunks | None:
        """As many chunks of a frame, from its first one on, as there is room for; the others are refused."""
        each = _each(chunks)
        if window.held + OVERHEAD + each * chunks.lengths.total <= window.most:
            return chunks
        # What is refused is not applied, but what came with it is known.
        self._server.intake.acknowledge(chunks.table, chunks.rows, chunks.acked)
        beyond = window.held + OVERHEAD + each * np.cumsum(chunks.lengths.column) > window.most
        if not window.held:
            beyond[0] = False
        if some(beyond):
            error = errors.Overloaded(
                f"the stream has more than {window.most:,} bytes of model {chunks.table.model.name!r} under way, which"
                " is its window (OpenedFrame.window_bytes); send on when answers have come",
                retry_after=_RETRY_SECONDS,
            )
            self._outbox.refuse(frame, chunks.handles[beyond], chunks.starts[beyond], error)
        return None if beyond[0] else chunks.take(np.flatnonzero(~beyond))

    def _disputed(self, groups: Sequence[Resolved], starts: Positions) -> bool:
        """Whether a chunk frame must wait: for sessions that are being claimed, for the same chunks that are queued."""
        for table, rows, places in groups:
            if some(table.claiming[rows]):
                return True
            if len(self._server.intake.racing(table, rows, starts[places] if len(places) < len(starts) else starts)):
                return True
        return False

    @staticmethod
    def _marks(request: pb.ChunkFrame, count: int) -> Marks | None:
        """What a frame has beside steps: marks, cursors, a wish for scores; None where it has nothing of it.

        Raises:
            BadFrame: There is no such mark, a cursor is too long, or a mark that carries one has none.
        """
        if not request.marks and not request.cursors and not request.score:
            return None
        kinds, cursors = wire.optional_column(request.marks, "u1", count, "marks"), list(request.cursors)
        if cursors and len(cursors) != count:
            raise errors.BadFrame(
                f"cursors has {len(cursors)} entries; expected {count} or none", metadata={"field": "cursors"}
            )
        if kinds.max() > CURSOR:
            raise errors.BadFrame(f"marks has {kinds.max()}; expected 0 to {CURSOR}", metadata={"field": "marks"})
        wire.check_cursor(max(cursors, key=len, default=b""), "cursors")
        if any(not (cursors and cursors[place]) for place in np.flatnonzero(kinds == CURSOR).tolist()):
            raise errors.BadFrame("a mark that carries a cursor has none", metadata={"field": "cursors"})
        return Marks(kinds, cursors, request.score)

    def _lengths(self, request: pb.ChunkFrame, count: int, marks: Marks | None) -> Lengths:
        most, least = request.steps, request.steps
        lengths = Lengths(count, request.steps)
        column = lengths.column if marks is not None else None
        if request.lengths:
            column = wire.column(request.lengths, "<u4", count, "lengths").astype(np.int64)
            least, most, lengths = int(column.min()), int(column.max()), Lengths.of(column)
        if marks is not None and column is not None and marks.kinds.any():
            marked = marks.kinds > 0
            if column[marked].any():
                field = "lengths" if request.lengths else "steps"
                raise errors.BadFrame("a mark has steps; its length is 0", metadata={"field": field})
            least, most = int(column[~marked].min(initial=1 << 32)), int(column[~marked].max(initial=0))
        limit = self._most_steps
        if least < 1 or most > limit:
            raise errors.BadFrame(
                f"a chunk has {least or most} steps; expected 1 to {limit}",
                metadata={"field": "lengths" if request.lengths else "steps"},
            )
        return lengths


class _Receiver:
    """Takes the replies to the chunks of one frame and one table; they are under way until then."""

    def __init__(self, outbox: Outbox, account: Account, window: Window, frame: int) -> None:
        self.window = window
        self._outbox = outbox
        self._account = account
        self._frame = frame
        self._each = self._left = 0

    def begin(self, chunks: Chunks) -> None:
        """Counts what is under way from now on."""
        self._each, self._left = _each(chunks), len(chunks.rows)
        self._account.take(OVERHEAD + self._each * chunks.lengths.total, self.window)

    def results(self, chunks: Chunks, outputs: Sequence[Array]) -> None:
        specs, durable = chunks.table.answers[: len(outputs)], chunks.table.durable[chunks.rows]
        found = Results(self._frame, specs, chunks.handles, chunks.starts, durable, chunks.lengths, outputs)
        answers.put(self._outbox, found, self.window, self._cost(chunks))

    def repeated(self, chunks: Chunks, entries: Ints) -> None:
        self._account.give(self._cost(chunks), self.window)
        kept = Kept(counting(len(entries)), entries, chunks.starts, chunks.ends)
        self._outbox.put_in_order(answers.repeated(self._frame, chunks.table, chunks.handles, chunks.rows, [kept]))

    def refused(self, chunks: Chunks, refusal: Refusal) -> None:
        self._account.give(self._cost(chunks), self.window)
        self._outbox.refuse(self._frame, chunks.handles, chunks.starts, refusal)

    def overtaken(self, chunks: Chunks) -> None:
        # The stream heard of it when its sessions were taken.
        self._account.give(self._cost(chunks), self.window)

    def _cost(self, chunks: Chunks) -> int:
        """What some of the chunks have had of the window, who end now."""
        self._left -= len(chunks.rows)
        return self._each * chunks.lengths.total + (0 if self._left else OVERHEAD)


def _each(chunks: Chunks) -> int:
    """Bytes that each step of some chunks holds until it is answered: its inputs, and the outputs it comes to."""
    return chunks.table.output_bytes + sum([array.nbytes for array in chunks.inputs]) // max(1, chunks.lengths.total)
