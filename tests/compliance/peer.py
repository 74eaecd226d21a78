"""A scripted peer: a server of one session that breaks as it is told, and writes down what its client does wrong."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from grpc_status import rpc_status

from statestream.contract import errors
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc, model_pb2_grpc, server_pb2_grpc
from statestream.v1.model_pb2 import MODEL_KIND_SESSION, GetModelResponse, Model
from statestream.v1.server_pb2 import GetServerInfoResponse, Limits
from statestream.v1.signature_pb2 import Signature, StateSpec, TensorSpec
from statestream.v1.tensor_pb2 import RowError
from tests.support.arrays import tensor, u32, u64

MODEL = "counter"
_SPEC: Any = {"dtype": "float32", "shape": [-1, 1], "batch_axis": 0}
SIGNATURE = Signature(
    format=1,
    inputs=[TensorSpec(name="x", **_SPEC)],
    outputs=[TensorSpec(name="y", **_SPEC)],
    states=[StateSpec(input="s", output="t", **_SPEC)],
)


@dataclass
class Script:
    """What goes wrong, and when.

    Attributes:
        chunks: What happens with the Nth chunk that comes for the first time, from 1: "late", the stream breaks before
            it is applied; "lost", behind; "killed", it breaks and what is not durable is gone; "twice", it is
            answered twice; "parts", in two parts; "leave", it is answered and the server says that it leaves; "move",
            and the server asks for its sessions to go; or a reason to refuse it for once.
        opens: The reason for which the Nth open is refused.
        close_lost: Whether the answer to the first close is lost.
        every: How many steps become durable at a time; 1 is the mode sync.
        window: Chunks that may be unacknowledged.
        bytes: Bytes that may be under way.
        protocol: The version that it speaks.
    """

    chunks: dict[int, str] = field(default_factory=dict)
    opens: dict[int, errors.StatestreamError] = field(default_factory=dict)
    close_lost: bool = False
    every: int = 1
    window: int = 256
    bytes: int = 1 << 20
    protocol: int = 1


@dataclass
class Chunk:
    """A chunk as it came first."""

    position: int
    inputs: bytes
    outputs: np.ndarray


@dataclass
class Peer:
    """The server, over successive streams.

    Attributes:
        faults: What the client did that it must not, in words.
        streams: How many there were.
    """

    script: Script
    faults: list[str] = field(default_factory=list)
    streams: int = 0
    position: int = 0
    durable: int = 0
    acked: int = 0
    epoch: int = 0
    exists: bool = False
    seen: int = 0
    opens: int = 0
    closes: int = 0
    detached_at: int | None = None
    incarnation: int = 0
    writer: bytes = b""
    sums: list[float] = field(default_factory=lambda: [0.0])
    first: dict[int, bytes] = field(default_factory=dict)
    kept: dict[int, Chunk] = field(default_factory=dict)
    answered: int = 0
    asked: bool = False
    leaving: bool = False
    unanswered: int = 0

    def must(self, holds: bool, what: str) -> None:
        """Notes what the client did wrong."""
        if not holds:
            self.faults.append(what)

    # ── calls ──────────────────────────────────────────────────────────────────────────────────

    async def GetServerInfo(self, request: Any, context: Any) -> GetServerInfoResponse:
        self.asked = True
        self.must((request.oldest_protocol or request.protocol or 1) <= 1, "it does not speak version 1")
        if self.script.protocol != 1:
            await _abort(context, errors.Unsupported("this server speaks version 9 of the protocol"))
        limits = Limits(
            max_chunk_steps=256,
            max_message_bytes=4 << 20,
            max_unacknowledged_chunks=self.script.window,
            max_sessions=100,
            max_queued_bytes=1 << 30,
            max_answer_bytes=64 << 20,
            max_kept_bytes=1 << 20,
            max_window_bytes=self.script.bytes,
            max_frame_chunks=1 << 20,
            max_frame_sessions=1 << 20,
            max_name_bytes=1 << 12,
        )
        return GetServerInfoResponse(version="0", protocol=1, server_id="peer", limits=limits, durability=self._mode)

    async def GetModel(self, request: Any, context: Any) -> GetModelResponse:
        self._written_in(context)
        model = Model(name=MODEL, version=1, is_default=True, kind=MODEL_KIND_SESSION, digest="0", signature=SIGNATURE)
        return GetModelResponse(model=model)

    async def Stream(self, requests: AsyncIterator[pb.StreamRequest], context: Any) -> None:
        self.streams += 1
        self._written_in(context)
        self.must(self.asked, "it opened a stream without asking GetServerInfo before")
        self.asked = self.leaving = False
        self.unanswered, last, handle = 0, 0, None
        async for request in requests:
            kind = request.WhichOneof("request")
            self.must(request.frame > last, f"frame {request.frame} came behind frame {last}")
            last = request.frame
            if self.leaving:  # What was on its way may come, an open is of no use here.
                self.must(kind != "open", "it opened a session on a stream that it was asked to leave")
            if kind == "open":
                handle = await self._open(request, context)
            elif handle is None and kind == "close":
                row = RowError(status=errors.to_status(errors.SessionNotFound("no such handle")))
                await context.write(pb.StreamResponse(frame=request.frame, closed=pb.ClosedFrame(errors=[row])))
            elif handle is None:
                self.must(False, f"a frame '{kind}' came before the session was open")
            elif kind == "chunk":
                await self._chunk(request, context, handle)
            elif kind == "ack":
                self._acknowledge(np.frombuffer(request.ack.acked_positions, "<u8").tolist()[0])
            elif kind == "flush":
                self.durable = self.position
                durable = pb.DurableFrame(handles=u32(handle), durable_positions=u64(self.durable))
                await context.write(pb.StreamResponse(frame=request.frame, durable=durable))
            elif kind == "close":
                await self._close(request, context, handle)
                handle = None

    # ── frames ─────────────────────────────────────────────────────────────────────────────────

    async def _open(self, request: pb.StreamRequest, context: Any) -> int | None:
        frame = request.open
        self.opens += 1
        handles, (incarnation, mode) = np.frombuffer(frame.handles, "<u4").tolist(), (frame.incarnation, frame.mode)
        replay, acked = _one(frame.replay_positions), _one(frame.acked_positions)
        self.must(len(handles) == 1 and len(frame.ids) == 1, "the open is not of one session")
        self.must(len(frame.writer) == 16, f"the writer has {len(frame.writer)} bytes")
        self.must(frame.writer == (self.writer or frame.writer), "another writer in the same client")
        self.must(incarnation > self.incarnation, f"incarnation {incarnation} does not rise above {self.incarnation}")
        if self.epoch:
            self.must(_one(frame.seen_epochs) == self.epoch, "seen_epochs does not name the last epoch")
            self.must(mode in (pb.OPEN_MODE_EITHER, pb.OPEN_MODE_RESUME), "it opened its own session with a new mode")
        if self.closes:
            self.must(mode == pb.OPEN_MODE_RESUME, "after a close whose answer was lost it must open with RESUME")
        self.must(acked <= self.answered, f"it acknowledged {acked}, of {self.answered} answered")
        self.writer, self.incarnation = frame.writer, max(incarnation, self.incarnation)
        refusal = self.script.opens.get(self.opens)
        if refusal is None and replay > self.position:
            refusal = errors.StateLost("steps are gone", metadata={"position": str(self.position)})
        if refusal is not None:
            refused = pb.RefusedFrame(status=errors.to_status(refusal))
            await context.write(pb.StreamResponse(frame=request.frame, refused=refused))
            return None
        created, self.exists = not self.exists, True
        self.epoch = max(self.epoch + 1, incarnation)
        self._acknowledge(acked)
        opened = pb.OpenedFrame(
            version=1,
            handles=frame.handles,
            epochs=u64(self.epoch),
            positions=u64(self.position),
            durable_positions=u64(self.durable),
            created=bytes([created]),
            durability=self._mode,
            kept=u32(0) if frame.return_replies else b"",
            window_bytes=self.script.bytes,
            kept_window_bytes=1 << 20,
        )
        await context.write(pb.StreamResponse(frame=request.frame, opened=opened))
        return int(handles[0])

    async def _chunk(self, request: pb.StreamRequest, context: Any, handle: int) -> None:
        frame = request.chunk
        position, (x,) = _one(frame.positions), frame.inputs
        steps = frame.steps or int(np.frombuffer(frame.lengths, "<u4")[0])
        self.must(np.frombuffer(frame.handles, "<u4").tolist() == [handle], "a chunk of a handle that is not open")
        self.must(
            (x.name, x.dtype, list(x.shape)) == ("x", "float32", [steps, 1]), f"a wrong tensor: {x.name} {x.shape}"
        )
        if frame.acked_positions:
            self._acknowledge(_one(frame.acked_positions))
        before = self.first.get(position)
        if before is None:
            self.seen += 1
            self.first[position] = x.data
        elif position in self.kept:
            self.must(self.kept[position].inputs == x.data, f"the chunk at {position} came again with other inputs")
        action = self.script.chunks.pop(self.seen, "") if before is None else ""
        if position > self.position:
            await self._refuse(
                request,
                context,
                handle,
                position,
                errors.PositionGap("a gap", metadata={"expected_position": str(self.position)}),
            )
            return
        if action == "late":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the way broke")
        if action and action in errors.REASONS:
            del self.first[position]
            await self._refuse(request, context, handle, position, errors.REASONS[action]("not now", retry_after=0.01))
            return
        if position == self.position:
            self._apply(position, x.data)
        self.must(len(self.kept) <= self.script.window, f"{len(self.kept)} chunks are not acknowledged")
        if action in ("lost", "killed"):
            if action == "killed":
                self.position = self.durable
                self.kept = {at: chunk for at, chunk in self.kept.items() if at < self.position}
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the way broke")
        chunk = self.kept.get(position)
        if chunk is None:
            await self._refuse(request, context, handle, position, errors.AlreadyApplied("its reply is gone"))
            return
        await self._answer(request.frame, context, handle, chunk, action)
        if action == "leave":
            self.leaving = True
            await context.write(pb.StreamResponse(go_away=pb.GoAwayFrame()))
        elif action == "move":
            await context.write(pb.StreamResponse(move=pb.MoveFrame(handles=u32(handle))))

    async def _answer(self, number: int, context: Any, handle: int, chunk: Chunk, action: str) -> None:
        steps, data = len(chunk.outputs), chunk.outputs.tobytes()
        self.answered = max(self.answered, chunk.position + steps)
        if action == "parts":
            half, out = len(data) // 2, tensor("y", chunk.outputs)
            out.ClearField("data")
            common: dict[str, Any] = {"handle": handle, "position": chunk.position, "parts": 2, "size": len(data)}
            parts = [
                pb.PartFrame(**common, data=data[:half], steps=steps, outputs=[out]),
                pb.PartFrame(**common, part=1, offset=half, data=data[half:], durable_position=self.durable),
            ]
            for part in parts:
                await context.write(pb.StreamResponse(frame=number, part=part))
            return
        result = pb.ResultFrame(
            handles=u32(handle),
            positions=u64(chunk.position),
            steps=steps,
            durable_positions=u64(self.durable),
            outputs=[tensor("y", chunk.outputs)],
        )
        for _ in range(2 if action == "twice" else 1):
            await context.write(pb.StreamResponse(frame=number, result=result))

    async def _refuse(
        self, request: pb.StreamRequest, context: Any, handle: int, position: int, error: errors.StatestreamError
    ) -> None:
        row = RowError(handle=handle, position=position, status=errors.to_status(error))
        await context.write(pb.StreamResponse(frame=request.frame, result=pb.ResultFrame(errors=[row])))

    async def _close(self, request: pb.StreamRequest, context: Any, handle: int) -> None:
        self.closes += 1
        if request.close.positions:
            at = _one(request.close.positions)
            self.must(at == self.position, f"it closes at {at}; the session stands at {self.position}")
        self.detached_at = self.durable = self.position
        if self.script.close_lost and self.closes == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the way broke")
        await context.write(pb.StreamResponse(frame=request.frame, closed=pb.ClosedFrame(handles=u32(handle))))

    # ── the session ────────────────────────────────────────────────────────────────────────────

    @property
    def _mode(self) -> pb.DurabilityMode:
        return pb.DURABILITY_MODE_SYNC if self.script.every == 1 else pb.DURABILITY_MODE_INTERVAL

    def _apply(self, position: int, data: bytes) -> None:
        x = np.frombuffer(data, np.float32)
        outputs = (np.cumsum(x, dtype=np.float32) + np.float32(self.sums[position])).astype(np.float32)
        del self.sums[position + 1 :]
        self.sums += outputs.tolist()
        self.kept[position] = Chunk(position, data, outputs[:, None])
        self.position = position + len(x)
        self.durable = max(self.durable, self.position // self.script.every * self.script.every)
        if self.durable not in self.first and self.durable != self.position:
            self.durable = max([at for at in self.first if at <= self.durable], default=0)

    def _acknowledge(self, position: int) -> None:
        self.must(position <= self.answered, f"it acknowledged {position}, of {self.answered} answered")
        self.acked = max(self.acked, min(position, self.position))
        self.kept = {at: one for at, one in self.kept.items() if at + len(one.outputs) > self.acked}

    def _written_in(self, context: Any) -> None:
        said = dict(context.invocation_metadata())
        version = said.get("x-statestream-protocol", "1")
        self.must(version == "1", f"a call says that it is written in version {version!r}, agreed was 1")


def _one(column: bytes) -> int:
    return int(np.frombuffer(column, "<u8")[0]) if column else 0


async def _abort(context: Any, error: errors.StatestreamError) -> None:
    await context.abort_with_status(rpc_status.to_status(errors.to_status(error)))


@contextlib.asynccontextmanager
async def listening(script: Script) -> AsyncIterator[tuple[Peer, str]]:
    """A peer, and its address."""
    peer = Peer(script)
    server = grpc.aio.server()
    any_peer: Any = peer
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(_Only(any_peer), server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(_Only(any_peer), server)
    server_pb2_grpc.add_ServerServiceServicer_to_server(_Only(any_peer), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield peer, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


class _Only:
    """What a peer has not is UNIMPLEMENTED."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._peer, name, _unimplemented)


async def _unimplemented(request: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "the peer has one session, and nothing beside")
