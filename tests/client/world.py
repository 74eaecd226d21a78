"""A server in memory without I/O: a model that adds up its inputs; positions, windows, epochs and claims are real."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np

from statestream import errors
from statestream.contract.tensors import (
    Array,
    from_tensor,
    handles_column,
    positions_column,
    read_handles,
    read_positions,
    to_tensor,
)
from statestream.errors import StatestreamError, to_status
from statestream.v1 import inference_pb2 as pb
from statestream.v1.server_pb2 import Limits
from statestream.v1.tensor_pb2 import RowError

FEATURES = 2
WINDOW = 8
MODEL = "sum"


def ones(*shape: int) -> Array:
    """Inputs of the model, [*shape, FEATURES]."""
    return np.ones((*shape, FEATURES), np.float32)


@dataclass
class Reply:
    end: int
    digest: bytes
    outputs: Array


@dataclass
class Row:
    """A session's state, position and reply window."""

    epoch: int
    writer: bytes
    incarnation: int
    ephemeral: bool = False
    position: int = 0
    state: Array = field(default_factory=lambda: np.zeros(FEATURES, np.float32))
    replies: dict[int, Reply] = field(default_factory=dict)
    version: int = 1
    """Version 1 adds its inputs up, version 2 ten times as much, …; version 9 keeps another state."""
    origin: int = 0
    cursor: bytes = b""

    def copy(self) -> Row:
        return replace(self, state=self.state.copy(), replies=dict(self.replies))


class World:
    """All sessions, those that are durable, and what was ever applied."""

    def __init__(
        self, durability: pb.DurabilityMode = pb.DURABILITY_MODE_INTERVAL, window: int = WINDOW, max_steps: int = 4
    ) -> None:
        self.durability = durability
        self.limits = Limits(
            max_chunk_steps=max_steps,
            max_message_bytes=4 << 20,
            max_unacknowledged_chunks=window,
            max_sessions=1 << 20,
            max_queued_bytes=64 << 20,
            max_horizon=100,
        )
        self.newest = 1
        self.rows: dict[str, Row] = {}
        self.saved: dict[str, Row] = {}
        self.tombstones: dict[str, tuple[int, int]] = {}
        self.refuse: list[StatestreamError] = []
        self.protocol = 1
        self.lives = 1
        """How many processes there were."""
        self.unsaid: list[StatestreamError] = []
        """What the next opens are answered although they are done."""
        self.most_incarnation = self.most_epoch = 1 << 60
        """Above them an open frame is refused as a whole."""
        self.frames: list[str] = []

    def save(self, ids: list[str] | None = None) -> None:
        """Makes sessions durable."""
        for session_id in self.rows if ids is None else ids:
            if session_id in self.rows:
                self.saved[session_id] = self.rows[session_id].copy()

    def restart(self, *, lose_everything: bool = False) -> None:
        """The process is killed and started again."""
        self.lives += 1
        if lose_everything:
            self.saved.clear()
        claims = {session_id: (row.epoch, row.incarnation, row.writer) for session_id, row in self.rows.items()}
        self.rows = {session_id: row.copy() for session_id, row in self.saved.items()}
        for session_id, row in self.rows.items():
            # Claims go to the store at once, whatever the durability of the steps.
            if session_id in claims:
                row.epoch, row.incarnation, row.writer = claims[session_id]

    def durable(self, session_id: str) -> int:
        saved = self.saved.get(session_id)
        return saved.position if saved is not None else 0

    def claim(
        self,
        session_id: str,
        mode: int,
        writer: bytes,
        incarnation: int,
        seen: int,
        replay: int,
        ephemeral: bool,
        version: int = 0,
        upgrade: bool = False,
    ) -> tuple[Row, bool]:
        row = self.rows.get(session_id)
        if row and mode != pb.OPEN_MODE_REPLACE and version not in (0, row.version) and not (upgrade and version != 9):
            raise errors.ModelChanged(f"session {session_id!r} is of version {row.version}")
        epoch, claimed = (row.epoch, row.incarnation) if row else self.tombstones.get(session_id, (0, 0))
        unseen = mode in (pb.OPEN_MODE_RESUME, pb.OPEN_MODE_EITHER) and 0 < seen < epoch
        if incarnation < claimed or (row and row.writer != writer and (incarnation == claimed or unseen)):
            raise errors.SessionMoved(
                f"incarnation {incarnation} and epoch {seen} are below {claimed} and {epoch}",
                metadata={"incarnation": str(claimed), "epoch": str(epoch)},
            )
        if mode == pb.OPEN_MODE_CREATE and row:
            untouched = {"untouched": "true"} if row.writer == writer and not row.position else {}
            raise errors.SessionExists(f"session {session_id!r} exists", metadata=untouched)
        if mode == pb.OPEN_MODE_RESUME and not row:
            raise errors.SessionNotFound(f"no session {session_id!r}")
        if mode != pb.OPEN_MODE_REPLACE and (row.position if row else 0) < replay:
            raise errors.StateLost("lost", metadata={"position": str(row.position if row else 0)})
        created = row is None or mode == pb.OPEN_MODE_REPLACE
        if row is None or created:
            row = self.rows[session_id] = Row(0, writer, incarnation, ephemeral)
            self.saved.pop(session_id, None)
            row.version = version or self.newest
        elif upgrade:
            row.version = version or self.newest
            self.save([session_id])
        row.epoch, row.writer, row.incarnation = max(epoch + 1, seen + 1, incarnation), writer, incarnation
        return row, created

    def delete(self, session_id: str) -> None:
        row = self.rows.pop(session_id, None)
        self.saved.pop(session_id, None)
        if row is None:
            raise errors.SessionNotFound(f"no session {session_id!r}")
        self.tombstones[session_id] = (row.epoch, row.incarnation)

    def apply(self, session_id: str, start: int, x: Array, kind: int = 0, cursor: bytes = b"") -> Reply:
        """Applies one chunk, or mark, or answers for the one applied before."""
        row = self.rows[session_id]
        digest = hashlib.sha256(x.tobytes() + bytes([kind]) + cursor).digest()
        known = row.replies.get(start)
        if known is not None:
            if known.digest != digest:
                raise errors.PositionConflict(f"another chunk was applied at {start}")
            return known
        if start < row.position:
            raise errors.AlreadyApplied(f"{start} was applied and acknowledged")
        if start > row.position:
            raise errors.PositionGap("gap", metadata={"expected_position": str(row.position)})
        if len(row.replies) >= self.limits.max_unacknowledged_chunks:
            raise errors.WindowFull("window full")
        if self.refuse:
            raise self.refuse.pop()
        if len(x) > self.limits.max_chunk_steps:
            raise errors.BadTensor(f"{len(x)} steps", metadata={"field": "x"})
        factor = np.float32(10 ** (row.version - 1))
        y = (row.state + np.cumsum(factor * x, axis=0, dtype=np.float32)).astype(np.float32)
        if not np.isfinite(y).all():
            raise errors.NonFiniteState("the state would not be finite")
        row.state = y[-1].copy() if len(x) else row.state
        row.position = start + max(1, len(x))
        row.cursor = cursor or row.cursor
        if kind == pb.MARK_RESET:
            row.state, row.origin = np.zeros(FEATURES, np.float32), row.position
        reply = row.replies[start] = Reply(row.position, digest, y)
        if self.durability == pb.DURABILITY_MODE_SYNC:
            self.save([session_id])
        return reply


class Stream:
    """One stream: handles bound to claims."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.bound: dict[int, tuple[str, int]] = {}

    def receive(self, request: pb.StreamRequest) -> list[pb.StreamResponse]:
        """Answers one frame."""
        kind = request.WhichOneof("request")
        self.world.frames.append(str(kind))
        try:
            answer = self._answer(request, str(kind))
        except StatestreamError as error:
            answer = pb.StreamResponse(refused=pb.RefusedFrame(status=to_status(error)))
        if answer is None:
            return []
        answers = [answer]
        if kind == "open" and request.open.return_replies:
            handles = read_handles(answer.opened.handles)
            kept = [len(self.world.rows[self.bound[handle][0]].replies) for handle in handles.tolist()]
            answer.opened.kept = handles_column(np.array(kept, np.int64))
            for handle in read_handles(answer.opened.handles).tolist():
                session_id = self.bound[handle][0]
                for start, reply in sorted(self.world.rows[session_id].replies.items()):
                    again = _result(self.world, [(handle, start, reply, session_id)], [])
                    answers.append(pb.StreamResponse(result=again))
        for answer in answers:
            answer.frame = request.frame
        return answers

    def _answer(self, request: pb.StreamRequest, kind: str) -> pb.StreamResponse | None:
        if kind == "open":
            return self._open(request.open)
        if kind == "chunk":
            return self._chunk(request.chunk)
        if kind == "flush":
            return self._flush(request.flush)
        if kind == "close":
            return self._close(request.close)
        self._ack_frame(request.ack)
        return None

    def _open(self, frame: pb.OpenFrame) -> pb.StreamResponse:
        handles = read_handles(frame.handles).tolist()
        seen = read_positions(frame.seen_epochs, len(handles)).tolist()
        replay = read_positions(frame.replay_positions, len(handles)).tolist()
        acked = read_positions(frame.acked_positions, len(handles)).tolist()
        initial = from_tensor(frame.initial_states[0]) if frame.initial_states else None
        good, rows, created, refused = [], [], [], []
        if frame.incarnation > self.world.most_incarnation:
            raise errors.BadFrame("far ahead", metadata={"field": "incarnation"})
        if max(seen, default=0) > self.world.most_epoch:
            raise errors.BadFrame("too high", metadata={"field": "seen_epochs"})
        if frame.model == "double":
            raise errors.Unsupported("model 'double' has no memory; use client.predict")
        if frame.model != MODEL:
            raise errors.ModelNotFound(f"no model {frame.model!r}")
        for n, (handle, session_id) in enumerate(zip(handles, frame.ids, strict=True)):
            try:
                row, new = self.world.claim(
                    session_id,
                    frame.mode,
                    frame.writer,
                    frame.incarnation,
                    seen[n],
                    replay[n],
                    frame.ephemeral,
                    frame.version,
                    frame.upgrade,
                )
            except StatestreamError as error:
                refused.append(RowError(handle=handle, status=to_status(error)))
                continue
            if self.world.unsaid:
                refused.append(RowError(handle=handle, status=to_status(self.world.unsaid.pop())))
                continue
            if new and initial is not None:
                row.state = initial[n].copy()
            self.bound[handle] = (session_id, row.epoch)
            self._ack(session_id, acked[n])
            good.append(handle)
            rows.append(row)
            created.append(new)
            if new and self.world.durability != pb.DURABILITY_MODE_NONE:
                self.world.save([session_id])  # Made and claimed in one write.
        return pb.StreamResponse(
            opened=pb.OpenedFrame(
                version=rows[0].version if rows else 0,
                handles=handles_column(np.array(good, np.int64)),
                epochs=positions_column(np.array([row.epoch for row in rows], np.int64)),
                positions=positions_column(np.array([row.position for row in rows], np.int64)),
                durable_positions=positions_column(
                    np.array([self.world.durable(self.bound[handle][0]) for handle in good], np.int64)
                ),
                created=np.array(created, np.uint8).tobytes(),
                durability=self.world.durability,
                origins=positions_column(np.array([row.origin for row in rows], np.int64)),
                cursors=[row.cursor for row in rows],
                errors=refused,
            )
        )

    def _session(self, handle: int) -> str:
        if handle not in self.bound:
            raise errors.SessionNotFound(f"handle {handle} is not bound")
        session_id, epoch = self.bound[handle]
        row = self.world.rows.get(session_id)
        if row is None or row.epoch != epoch:
            del self.bound[handle]
            raise errors.SessionMoved(f"session {session_id!r} has a newer epoch")
        return session_id

    def _stands(self, session_id: str, end: int) -> None:
        """What a frame stands behind has to be applied."""
        position = self.world.rows[session_id].position
        if position < end:
            raise errors.PositionGap(f"{session_id!r} is at {position}, the frame stands behind {end}")

    def _ack(self, session_id: str, position: int) -> None:
        row = self.world.rows[session_id]
        for start in [start for start, reply in row.replies.items() if reply.end <= position]:
            del row.replies[start]

    def _chunk(self, frame: pb.ChunkFrame) -> pb.StreamResponse:
        handles = read_handles(frame.handles).tolist()
        assert len(set(handles)) == len(handles)
        positions = read_positions(frame.positions, len(handles)).tolist()
        acked = read_positions(frame.acked_positions, len(handles)).tolist()
        kinds = list(frame.marks) or [0] * len(handles)
        cursors = list(frame.cursors) or [b""] * len(handles)
        assert len(kinds) == len(cursors) == len(handles)
        lengths = read_handles(frame.lengths).tolist() if frame.lengths else [frame.steps] * len(handles)
        assert [not length for length in lengths] == [kind > 0 for kind in kinds]
        x = from_tensor(frame.inputs[0]) if frame.inputs else np.zeros((0, FEATURES), np.float32)
        assert sum(lengths) == len(x)
        done, refused, at = [], [], 0
        columns = zip(handles, positions, lengths, acked, kinds, cursors, strict=True)
        for handle, position, length, ack, kind, cursor in columns:
            chunk = x[at : at + length]
            at += length
            try:
                session_id = self._session(handle)
                self._ack(session_id, ack)
                done.append((handle, position, self.world.apply(session_id, position, chunk, kind, cursor), session_id))
            except StatestreamError as error:
                refused.append(RowError(handle=handle, position=position, status=to_status(error)))
        return pb.StreamResponse(result=_result(self.world, done, refused))

    def _flush(self, frame: pb.FlushFrame) -> pb.StreamResponse:
        ids, refused = dict[int, str](), []
        for handle, end in _ends(frame):
            try:
                ids[handle] = self._session(handle)
                self._stands(ids[handle], end)
            except StatestreamError as error:
                ids.pop(handle, None)
                refused.append(RowError(handle=handle, status=to_status(error)))
        self.world.save([*ids.values()])
        return pb.StreamResponse(
            durable=pb.DurableFrame(
                handles=handles_column(np.array([*ids], np.int64)),
                durable_positions=positions_column(np.array([*map(self.world.durable, ids.values())], np.int64)),
                errors=refused,
            )
        )

    def _close(self, frame: pb.CloseFrame) -> pb.StreamResponse:
        refused = []
        for (handle, end), epoch in zip(_ends(frame), read_positions(frame.epochs, len(_ends(frame))), strict=True):
            try:
                session_id = self._session(handle)
                self._stands(session_id, end)
                if frame.action == pb.CLOSE_ACTION_DELETE:
                    assert epoch == self.world.rows[session_id].epoch
                    self.world.delete(session_id)
                else:
                    self.world.save([session_id])
            except StatestreamError as error:
                refused.append(RowError(handle=handle, status=to_status(error)))
                if isinstance(error, errors.PositionGap):
                    continue
            self.bound.pop(handle, None)
        return pb.StreamResponse(closed=pb.ClosedFrame(handles=frame.handles, errors=refused))

    def _ack_frame(self, frame: pb.AckFrame) -> None:
        handles = read_handles(frame.handles)
        for handle, position in zip(
            handles.tolist(), read_positions(frame.acked_positions, len(handles)).tolist(), strict=True
        ):
            session_id, epoch = self.bound.get(handle, ("", 0))
            row = self.world.rows.get(session_id)
            if row is not None and row.epoch == epoch:
                self._ack(session_id, position)


def _ends(frame: pb.FlushFrame | pb.CloseFrame) -> list[tuple[int, int]]:
    """Each session of a frame, and where it stands behind what was sent before."""
    handles = read_handles(frame.handles)
    ends = read_positions(frame.positions, len(handles)) if frame.positions else np.zeros(len(handles), np.int64)
    return [*zip(handles.tolist(), ends.tolist(), strict=True)]


def _result(world: World, done: list[tuple[int, int, Reply, str]], refused: list[RowError]) -> pb.ResultFrame:
    lengths = np.array([len(reply.outputs) for _, _, reply, _ in done], np.int64)
    frame = pb.ResultFrame(
        handles=handles_column(np.array([handle for handle, _, _, _ in done], np.int64)),
        positions=positions_column(np.array([position for _, position, _, _ in done], np.int64)),
        durable_positions=positions_column(np.array([world.durable(i) for _, _, _, i in done], np.int64)),
        errors=refused,
    )
    if done and lengths.any():
        frame.outputs.append(to_tensor("y", np.concatenate([reply.outputs for _, _, reply, _ in done])))
        if (lengths == lengths[0]).all():
            frame.steps = int(lengths[0])
        else:
            frame.lengths = handles_column(lengths)
    return frame


def split(response: pb.StreamResponse, at: int) -> list[pb.StreamResponse]:
    """A result cut into two frames after some rows, neither naming the request; others as they are."""
    result = response.result
    handles = read_handles(result.handles)
    if response.WhichOneof("response") != "result" or not 0 < at < len(handles):
        return [response]
    lengths = np.full(len(handles), result.steps) if result.steps else read_handles(result.lengths)
    y = from_tensor(result.outputs[0])
    cut = int(lengths[:at].sum())
    parts = []
    for rows, outputs, refused in ((slice(at, None), y[cut:], []), (slice(0, at), y[:cut], result.errors)):
        parts.append(
            pb.StreamResponse(
                result=pb.ResultFrame(
                    handles=handles_column(handles[rows]),
                    positions=positions_column(read_positions(result.positions, len(handles))[rows]),
                    lengths=handles_column(lengths[rows]),
                    durable_positions=positions_column(read_positions(result.durable_positions, len(handles))[rows]),
                    outputs=[to_tensor("y", outputs)],
                    errors=refused,
                )
            )
        )
    return parts
