"""Raw frames over the generated stubs: a client with no cleverness, so that the server's rules are what is tested."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc
from statestream.v1.tensor_pb2 import RowError
from tests.support.arrays import Arrays, arrays_of, length, pack, tensor, u32, u64
from tests.support.calls import DEADLINE, Failure, failure_of


def fresh_id(prefix: str = "s") -> str:
    """An id that no other test uses."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


@dataclass(frozen=True)
class Opened:
    """One session of an opened frame."""

    epoch: int
    position: int
    durable: int
    created: bool
    version: int
    durability: int


@dataclass(frozen=True)
class Answer:
    """One chunk of a result frame."""

    frame: int
    handle: int
    position: int
    steps: int
    durable: int
    outputs: dict[str, np.ndarray]

    @property
    def end(self) -> int:
        return self.position + self.steps


@dataclass(frozen=True)
class Refusal:
    """One row error of a frame."""

    frame: int
    handle: int
    position: int
    failure: Failure


_incarnation = 0


def next_incarnation() -> int:
    """The time in microseconds, above every incarnation this process used so far."""
    global _incarnation
    _incarnation = max(_incarnation + 1, int(time.time() * 1e6))
    return _incarnation


@dataclass
class Speaker:
    """One stream: sends what it is told, sorts what comes.

    Attributes:
        notices: Row errors of notices, as they came.
        pushed: The newest durable position of each handle that the server told unasked.
        go_away: Set when the server said that it leaves.
        moves: The handles of every move that the server asked for.
    """

    channel: grpc.aio.Channel
    model: str
    writer: bytes = field(default_factory=lambda: uuid.uuid4().bytes)
    notices: list[Refusal] = field(default_factory=list)
    pushed: dict[int, int] = field(default_factory=dict)
    go_away: asyncio.Event = field(default_factory=asyncio.Event)
    moves: list[list[int]] = field(default_factory=list)

    async def __aenter__(self) -> Speaker:
        self._call = inference_pb2_grpc.InferenceServiceStub(self.channel).Stream()
        self._inbox: asyncio.Queue[pb.StreamResponse | BaseException | None] = asyncio.Queue()
        self._rows: list[Answer | Refusal] = []
        self._parts: dict[tuple[int, int, int], list[pb.PartFrame]] = {}
        self._unasked = asyncio.Condition()
        self._frame = 0
        self._pump_task = asyncio.create_task(self._pump())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()
        self._pump_task.cancel()
        await asyncio.gather(self._pump_task, return_exceptions=True)

    async def _pump(self) -> None:
        try:
            while (response := await self._call.read()) is not grpc.aio.EOF:
                if not await self._is_unasked(response):
                    self._inbox.put_nowait(response)
        except grpc.aio.AioRpcError as error:
            self._inbox.put_nowait(error)
        else:
            self._inbox.put_nowait(None)

    async def _is_unasked(self, response: pb.StreamResponse) -> bool:
        if response.frame:
            return False
        async with self._unasked:
            kind = response.WhichOneof("response")
            if kind == "notice":
                self.notices.extend(_refusals(0, response.notice.errors))
            elif kind == "durable":
                handles = np.frombuffer(response.durable.handles, "<u4").tolist()
                positions = np.frombuffer(response.durable.durable_positions, "<u8").tolist()
                self.pushed.update(zip(handles, positions, strict=True))
            elif kind == "go_away":
                self.go_away.set()
            elif kind == "move":
                self.moves.append(np.frombuffer(response.move.handles, "<u4").tolist())
            self._unasked.notify_all()
        return kind != "refused"

    async def unasked(self, wanted: Any) -> None:
        """Waits until `wanted()` holds; asked whenever the server spoke unasked."""
        async with asyncio.timeout(DEADLINE), self._unasked:
            await self._unasked.wait_for(wanted)

    # What is sent.

    async def send(self, frame: int | None = None, **request: Any) -> int:
        """Sends one frame as it is; its number rises by itself."""
        self._frame = self._frame + 1 if frame is None else frame
        await self._call.write(pb.StreamRequest(frame=self._frame, **request))
        return self._frame

    async def send_chunk(
        self,
        handles: Sequence[int],
        positions: Sequence[int],
        chunks: Sequence[Arrays],
        acked: Sequence[int] | None = None,
    ) -> int:
        """Sends one chunk for each handle; uniform where they are equally long."""
        lengths = [length(chunk) for chunk in chunks]
        uniform = len(set(lengths)) == 1
        return await self.send(
            chunk=pb.ChunkFrame(
                handles=u32(*handles),
                positions=u64(*positions),
                acked_positions=b"" if acked is None else u64(*acked),
                steps=lengths[0] if uniform else 0,
                lengths=b"" if uniform else u32(*lengths),
                inputs=[tensor(name, array) for name, array in pack(chunks).items()],
            )
        )

    async def send_ack(self, handle: int, position: int) -> int:
        return await self.send(ack=pb.AckFrame(handles=u32(handle), acked_positions=u64(position)))

    async def half_close(self) -> None:
        await self._call.done_writing()

    # What comes.

    async def read(self) -> pb.StreamResponse | None:
        """The next answer; None at the end of the stream. What the server says unasked is not among them."""
        found = await asyncio.wait_for(self._inbox.get(), DEADLINE)
        if isinstance(found, BaseException):
            raise found
        return found

    async def expect(self, kind: str) -> Any:
        """The next answer, which must be of this kind."""
        response = await self.read()
        assert response is not None, f"the stream ended where {kind} was expected"
        assert response.WhichOneof("response") == kind, f"{kind} was expected, this came: {response}"
        return getattr(response, kind)

    async def refused(self) -> Failure:
        """The next answer, which must refuse a frame."""
        return failure_of((await self.expect("refused")).status)

    async def rows(self, count: int) -> list[Answer | Refusal]:
        """The answers to `count` chunks, in the order they came."""
        while len(self._rows) < count:
            response = await self.read()
            assert response is not None, f"the stream ended, {count - len(self._rows)} answers are missing"
            if response.WhichOneof("response") == "part":
                self._rows.extend(self._whole(response.frame, response.part))
                continue
            assert response.WhichOneof("response") == "result", f"results were expected, this came: {response}"
            self._rows.extend(rows_of(response.frame, response.result))
        found, self._rows = self._rows[:count], self._rows[count:]
        return found

    def _whole(self, frame: int, part: pb.PartFrame) -> list[Answer]:
        """The answer of which this is the last part; nothing before it."""
        key = frame, part.handle, part.position
        came = self._parts.setdefault(key, [])
        assert part.part == len(came), f"part {part.part} came, {len(came)} was expected"
        assert part.offset == sum(len(one.data) for one in came)
        came.append(part)
        if len(came) < part.parts:
            return []
        first, data = came[0], b"".join(one.data for one in self._parts.pop(key))
        assert len(data) == part.size
        outputs, at = dict[str, np.ndarray](), 0
        for one in first.outputs:
            assert not one.data
            shape, dtype = tuple(one.shape), np.dtype(one.dtype)
            end = at + int(np.prod(shape)) * dtype.itemsize
            outputs[one.name], at = np.frombuffer(data[at:end], dtype).reshape(shape), end
        assert at == len(data)
        return [Answer(frame, part.handle, part.position, first.steps, part.durable_position, outputs)]

    async def answers(self, count: int) -> list[Answer]:
        """The answers to `count` chunks, none of them refused."""
        found = await self.rows(count)
        refusals = [row for row in found if isinstance(row, Refusal)]
        assert not refusals, refusals
        return [row for row in found if isinstance(row, Answer)]

    async def refusal(self) -> Failure:
        """The answer to one chunk, which must be refused."""
        (row,) = await self.rows(1)
        assert isinstance(row, Refusal), row
        return row.failure

    # Both.

    async def open(self, *ids: str, handles: Sequence[int] | None = None, **more: Any) -> dict[int, Opened | Failure]:
        """Opens sessions (or not), by handle."""
        handles = list(handles if handles is not None else range(len(ids)))
        request: dict[str, Any] = {"model": self.model, "writer": self.writer, "incarnation": next_incarnation()}
        await self.send(open=pb.OpenFrame(handles=u32(*handles), ids=ids, **(request | more)))
        found: dict[int, Opened | Failure] = {}
        while len(found) < len(handles):
            opened = await self.expect("opened")
            found |= {row.handle: failure_of(row.status) for row in opened.errors}
            columns = [np.frombuffer(opened.handles, "<u4")]
            columns += [np.frombuffer(c, "<u8") for c in (opened.epochs, opened.positions, opened.durable_positions)]
            columns.append(np.frombuffer(opened.created, np.uint8))
            for handle, epoch, position, durable, created in zip(*(c.tolist() for c in columns), strict=True):
                session = Opened(epoch, position, durable, bool(created), opened.version, opened.durability)
                assert session.durable <= session.position
                found[handle] = session
        return found

    async def open_one(self, session: str, handle: int = 0, **more: Any) -> Opened:
        """Opens one session, which must go well."""
        opened = (await self.open(session, handles=[handle], **more))[handle]
        assert isinstance(opened, Opened), opened
        return opened

    async def not_opened(self, session: str, handle: int = 0, **more: Any) -> Failure:
        """Opens one session, which must be refused."""
        refused = (await self.open(session, handles=[handle], **more))[handle]
        assert isinstance(refused, Failure), refused
        return refused

    async def step(self, handle: int, position: int, inputs: Arrays, acked: int | None = None) -> Answer:
        """One chunk of one session, which must be applied."""
        await self.send_chunk([handle], [position], [inputs], None if acked is None else [acked])
        (answer,) = await self.answers(1)
        assert (answer.handle, answer.position, answer.steps) == (handle, position, length(inputs))
        return answer

    async def flush(self, *handles: int) -> dict[int, int]:
        """Flushes sessions: their durable positions by handle."""
        await self.send(flush=pb.FlushFrame(handles=u32(*handles)))
        durable = await self.expect("durable")
        assert not durable.errors, durable.errors
        columns = np.frombuffer(durable.handles, "<u4"), np.frombuffer(durable.durable_positions, "<u8")
        return dict(zip(*(column.tolist() for column in columns), strict=True))

    async def close(self, *handles: int, delete: bool = False) -> pb.ClosedFrame:
        """Detaches or deletes sessions."""
        action = pb.CLOSE_ACTION_DELETE if delete else pb.CLOSE_ACTION_DETACH
        await self.send(close=pb.CloseFrame(handles=u32(*handles), action=action))
        closed: pb.ClosedFrame = await self.expect("closed")
        return closed


def rows_of(frame: int, result: pb.ResultFrame) -> list[Answer | Refusal]:
    """A result frame row by row."""
    handles = np.frombuffer(result.handles, "<u4").tolist()
    positions = np.frombuffer(result.positions, "<u8").tolist()
    durable = np.frombuffer(result.durable_positions, "<u8").tolist()
    lengths = np.frombuffer(result.lengths, "<u4").tolist() if result.lengths else [result.steps] * len(handles)
    assert len(handles) == len(positions) == len(durable) == len(lengths)
    outputs, offset = arrays_of(result.outputs), 0
    rows: list[Answer | Refusal] = []
    for handle, position, steps, safe in zip(handles, positions, lengths, durable, strict=True):
        mine = {name: array[offset : offset + steps] for name, array in outputs.items()}
        rows.append(Answer(frame, handle, position, steps, safe, mine))
        offset += steps
    assert all(len(array) == offset for array in outputs.values())
    return rows + _refusals(frame, result.errors)


def _refusals(frame: int, errors: Iterable[RowError]) -> list[Refusal]:
    return [Refusal(frame, row.handle, row.position, failure_of(row.status)) for row in errors]


def joined(answers: Iterable[Answer]) -> dict[str, np.ndarray]:
    """The outputs of one session's answers in the order of their positions, which must be without gap or repeat."""
    ordered = sorted(answers, key=lambda answer: answer.position)
    for before, after in itertools.pairwise(ordered):
        assert before.end == after.position, f"{before.position}…{before.end} is followed by {after.position}"
    return pack([answer.outputs for answer in ordered])
