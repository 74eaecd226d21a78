"""A stream core and a server in memory, joined by a stream that a test can cut."""

from __future__ import annotations

import numpy as np

from statestream import errors
from statestream.core import Group, Lane, PoolTicket, StepTicket, StreamCore
from statestream.v1 import inference_pb2 as pb
from statestream.v1.tensor_pb2 import RowError
from tests.client.world import FEATURES, MODEL, Stream, World

LANE = Lane(MODEL, 1, ("x",), ("float32",), ((FEATURES,),), 4 * FEATURES)
CURSOR_LANE = LANE.with_cursors()
RESET_LANE = Lane(MODEL, 1, (), (), (), 0, mark=pb.MARK_RESET)
MARK_LANE = Lane(MODEL, 1, (), (), (), 0, mark=pb.MARK_CURSOR, cursors=True)


def make_core(**kwargs: object) -> StreamCore:
    return StreamCore(bytes(16), 1000, **kwargs)  # type: ignore[arg-type]


class Wire:
    """A core and a world, joined by a stream that a test can cut."""

    def __init__(self, world: World | None = None, core: StreamCore | None = None) -> None:
        self.world = world or World()
        self.core = core or make_core()
        self.now = 0.0
        self.requests: list[pb.StreamRequest] = []
        self.responses: list[pb.StreamResponse] = []
        self.stream: Stream | None = None
        self.frame = 0

    def connect(self) -> None:
        self.stream = Stream(self.world)
        self.core.connected(self.world.limits, self.world.durability, 0.0, str(self.world.lives))

    def cut(self, fault: errors.StatestreamError | None = None) -> None:
        self.stream = None
        self.requests.clear()
        self.responses.clear()
        self.core.disconnected(fault)

    def send(self) -> bool:
        request = self.core.next_request(self.now)
        if request is not None:
            assert request.frame > self.frame, f"frame {request.frame} comes after {self.frame}; a server refuses that"
            self.frame = request.frame
            self.requests.append(pb.StreamRequest.FromString(request.SerializeToString()))
        return request is not None

    def serve(self) -> bool:
        if not self.requests or self.stream is None:
            return False
        self.responses += self.stream.receive(self.requests.pop(0))
        return True

    def deliver(self) -> bool:
        if not self.responses:
            return False
        self.core.receive(self.responses.pop(0), self.now)
        self.core.buffer.advance(self.now)
        return True

    def holds(self, session_id: str, epoch: int) -> bool:
        """Whether a claim is the newest of its session."""
        row = self.world.rows.get(session_id)
        return row is not None and row.epoch == epoch

    def run(self) -> None:
        """Until nothing moves."""
        while self.send() or self.serve() or self.deliver():
            pass

    def settle(self) -> None:
        """Reconnects where needed and runs until nobody waits."""
        if self.stream is None:
            self.connect()
        for _ in range(300):
            self.run()
            if not self.core.busy:
                return
            self.now += 0.5
        raise AssertionError("a caller waits for ever")

    def open(self, *ids: str, mode: pb.OpenMode = pb.OPEN_MODE_EITHER, ephemeral: bool = False) -> np.ndarray:
        ticket = self.core.open(Group(MODEL, 0, ephemeral), list(ids), mode)
        self.run()
        assert ticket.done
        if ticket.errors:
            raise next(iter(ticket.errors.values()))
        return ticket.handles

    def step(self, handle: int, x: np.ndarray, cursor: bytes = b"") -> StepTicket:
        x = np.asarray(x, np.float32).reshape(-1, FEATURES)
        lane = CURSOR_LANE if cursor else LANE
        ticket = StepTicket(lane, int(handle), (x.tobytes(),), len(x), single=False, cursor=cursor)
        self.core.step(ticket)
        return ticket

    def reset(self, handles: np.ndarray) -> StepTicket | PoolTicket:
        """Resets one session, or several as a pool does."""
        if len(handles) == 1:
            ticket: StepTicket | PoolTicket = StepTicket(RESET_LANE, int(handles[0]), (), 1, single=True)
        else:
            ticket = PoolTicket(RESET_LANE, handles, (), 1, 1)
        self.core.step(ticket)
        return ticket

    def mark(self, handle: int, cursor: bytes) -> StepTicket:
        ticket = StepTicket(MARK_LANE, int(handle), (), 1, single=True, cursor=cursor)
        self.core.step(ticket)
        return ticket

    def pool(self, handles: np.ndarray, x: np.ndarray, lengths: np.ndarray | int) -> PoolTicket:
        ticket = PoolTicket(LANE, handles, (np.asarray(x, np.float32).tobytes(),), lengths, x.shape[1])
        self.core.step(ticket)
        return ticket


def notice(handle: int, error: errors.StatestreamError) -> pb.StreamResponse:
    row = RowError(handle=handle, status=errors.to_status(error))
    return pb.StreamResponse(notice=pb.NoticeFrame(errors=[row]))


def error_of(ticket: StepTicket | PoolTicket) -> errors.StatestreamError | None:
    """What became of a step or a mark, of one of its rows at least."""
    assert ticket.done
    return ticket.error or (next(iter(ticket.errors.values()), None) if isinstance(ticket, PoolTicket) else None)
