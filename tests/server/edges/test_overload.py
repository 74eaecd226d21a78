"""More than the edge of our own has room for: what is refused costs little, and nobody's flood is all that is done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hpack
from hyperframe import frame as frames

from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc as stubs
from statestream_server.access import tokens
from statestream_server.access.grants import Access
from statestream_server.caller import Caller
from statestream_server.edges import identity
from statestream_server.edges.grpc.caps import Caps
from statestream_server.edges.grpc.chain import Chain, Direct
from statestream_server.edges.grpc.decoding import requests_of
from statestream_server.edges.grpc.readers import Readers
from statestream_server.edges.h2.connection import Connection
from statestream_server.edges.turns import FEW, MANY, Turns
from statestream_server.requests import Requests
from statestream_server.sessions.admission.accounts import MOST_WAIT, Budget
from statestream_server.settings import Limits
from tests.support import http2

_STEP = "/statestream.v1.InferenceService/Step"
_REQUEST = http2.enveloped(pb.StepRequest(model="m", session_id="s"))


class Socket:
    """In place of a transport."""

    def __init__(self) -> None:
        self.written = b""
        self.reading = True
        self.write_eof = self.abort = self.close = lambda: None

    def get_extra_info(self, _name: str) -> None:
        return None

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def write(self, data: bytes) -> None:
        self.written += data

    def frames(self) -> list[frames.Frame]:
        data, found = memoryview(self.written), []
        while data:
            frame, size = frames.Frame.parse_frame_header(data[:9])
            frame.parse_body(data[9 : 9 + size])
            found.append(frame)
            data = data[9 + size :]
        return found


class Edge:
    """What connections ask of their edge: calls of Step are kept here, or refused where they would `wait` too long."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.wait, self.backlog = 0.0, False
        self.taken = list[tuple[Caller, Direct]]()
        self.budget = Budget("unary steps", 1 << 30, lambda _tenant: self.wait)
        self.budget.held = 1
        self.requests = Requests(lambda _model: True)
        self.chain = Chain(
            requests_of(pb), Caps(Limits()), Readers(60.0), {_STEP: self.budget}, self.requests
        )  # fmt: skip
        stubs.add_InferenceServiceServicer_to_server(stubs.InferenceServiceServicer(), self.chain)
        self.chain.direct[_STEP] = self._take
        self.most_in = self.most_out = 1 << 20
        self.turns = Turns(self.loop, lambda: self.backlog)
        self.connections = set[Any]()
        self.most_connections, self.refused_connections = 10, 0

    def _take(self, _request: Any, who: Caller, call: Direct) -> bool:
        self.taken.append((who, call))
        return True

    def client(self, token: str = "") -> Client:
        return Client(self, token)


class Client:
    """A connection of one client."""

    def __init__(self, edge: Edge, token: str) -> None:
        self.socket, self._number, self._packer = Socket(), 1, hpack.Encoder()
        self._headers = http2.headers_of(_STEP, **({"authorization": f"Bearer {token}"} if token else {}))
        self.connection = Connection(edge)  # type: ignore[arg-type]
        self.connection.connection_made(self.socket)
        self.connection.data_received(http2.PREFACE + http2.settings())

    def call(self, message: bytes = _REQUEST) -> bytes:
        """The frames of a call."""
        block, number = self._packer.encode(self._headers), self._number
        self._number += 2
        return http2.raw(1, 4, number, block) + http2.data(number, message, end=True)

    def calls(self, count: int) -> bytes:
        return b"".join(self.call() for _ in range(count))

    def answers(self) -> dict[int, bytes]:
        """The header blocks that ended calls."""
        self.connection.flush()
        return {
            frame.stream_id: frame.data
            for frame in self.socket.frames()
            if isinstance(frame, frames.HeadersFrame) and "END_STREAM" in frame.flags
        }


@contextmanager
def tenants(folder: Path, *names: str) -> Iterator[tuple[Access, list[str]]]:
    """Tokens of tenants, which are asked for meanwhile."""
    file = folder / "tokens.toml"
    found = [tokens.new(file, name, frozenset({tokens.STEP}), time.time() + 3600)[0] for name in names]
    access = Access(file)
    with identity.asking(access):
        yield access, found


async def test_a_refusal_costs_no_stream_and_says_the_same() -> None:
    edge = Edge()
    client = edge.client()
    edge.wait = 2 * MOST_WAIT
    client.connection.data_received(client.call())
    assert edge.chain.refusing
    client.connection.data_received(client.calls(3))
    answers = client.answers()
    assert [*answers] == [1, 3, 5, 7]
    assert len(set(answers.values())) == 2, "the first says the size of the table as well, the others say the same"
    assert b"OVERLOADED" in answers[1] or b"would wait" in answers[1]
    assert answers[1].endswith(answers[3])
    assert edge.budget.late == 4
    assert not edge.taken
    assert not client.connection.wire.calls
    assert not client.connection.wire.streams
    kinds = edge.requests.kinds
    assert sum(sum(kind.counts) for (_, _, code), kind in kinds.items() if code == "RESOURCE_EXHAUSTED") == 4
    edge.wait = 0.0
    client.connection.data_received(client.call())
    assert len(edge.taken) == 1, "and who comes when there is room is let in"


async def test_a_refusal_that_comes_in_pieces_or_is_odd_is_the_usual_one() -> None:
    for cut in (-1, -len(_REQUEST), -len(_REQUEST) - 9):
        edge = Edge()
        client = edge.client()
        edge.wait = 2 * MOST_WAIT
        client.connection.data_received(client.call())
        data = client.call()
        client.connection.data_received(data[:cut])
        client.connection.data_received(data[cut:] + client.call(b"\0\0\0\0\7odd"))
        assert [*client.answers()] == [1, 3, 5]
        assert client.connection.wire.ended is False


async def test_a_flood_leaves_the_turn_to_others(tmp_path: Path) -> None:
    for most, backlog in ((MANY, False), (FEW, True)):
        with tenants(tmp_path / str(most), "flood", "victim") as (_, (theirs, mine)):
            edge = Edge()
            edge.backlog = backlog
            flood, other, victim = edge.client(theirs), edge.client(theirs), edge.client(mine)
            for one in (flood, other, victim):  # Who it is is known from the first call on.
                one.connection.data_received(one.call())
            await asyncio.sleep(0)
            edge.taken.clear()
            flood.connection.data_received(flood.calls(most))
            other.connection.data_received(other.calls(1))
            assert len(edge.taken) == most // 2, "a call has two frames; its other connections have none left"
            assert not flood.socket.reading
            victim.connection.data_received(victim.call())
            assert edge.taken[-1][0].tenant == "victim"
            for _ in range(4):
                await asyncio.sleep(0)
            assert len(edge.taken) == most + 2
            assert flood.socket.reading
            assert other.socket.reading


async def test_a_call_with_a_token_needs_no_task_and_ends_with_its_token(tmp_path: Path) -> None:
    with tenants(tmp_path, "acme") as (access, (secret,)):
        edge = Edge()
        client = edge.client(secret)
        client.connection.data_received(client.calls(3))
        (who, first), (_, second), _ = edge.taken
        assert who.grant is not None
        assert who.grant.usage.held["calls"] == 3
        first.answer(pb.StepResponse(position=1))
        client.connection.data_received(http2.reset(3))
        assert second.over
        assert who.grant.usage.held["calls"] == 1
        who.grant.end("revoked")
        answers = client.answers()
        assert b"grpc-status" in answers[5]
        assert b"16" in answers[5]
        assert who.grant.usage.held == {"calls": 0, "bytes": 0}
        assert access.usages["acme"] is who.grant.usage
        client.connection.data_received(client.call())
        assert len(edge.taken) == 3


async def _ended_after(count: int, *, behind: int) -> int:
    """How many calls a client may begin that gives each up when it has begun so many others; `count` at most.

    A tenth of the budget is left.
    """
    client = Edge().client()
    client.connection.wire.resets.left = 100.0
    for number in range(count):
        data = client.call()
        if number >= behind:
            data += http2.reset(2 * (number - behind) + 1)
        client.connection.data_received(data)
        await asyncio.sleep(0)
        if client.connection.wire.ended:
            return number
    return count


async def test_calls_that_are_too_late_cost_nobody_the_connection_and_rapid_resets_do() -> None:
    assert await _ended_after(500, behind=0) < 250
    assert await _ended_after(800, behind=20) == 800
    assert await _ended_after(4000, behind=500) < 4000, "nor are old calls given up without end"


class _Failing:
    """A connection whose turn ends in an error of ours."""

    def __init__(self) -> None:
        self.ended = False

    def read_on(self) -> None:
        raise RuntimeError("broken")

    flush = read_on

    def abort(self) -> None:
        self.ended = True


class _Counting(_Failing):
    """One that counts its turns."""

    turns = 0

    def read_on(self) -> None:
        self.turns += 1

    flush = read_on


async def test_a_connection_that_fails_takes_nobody_elses_turn() -> None:
    loop, said = asyncio.get_running_loop(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, context: said.append(context))
    turns, failing, other = Turns(loop, lambda: False), _Failing(), _Counting()
    for connection in (failing, other):
        turns.wait(connection)
        turns.write(connection)
    assert turns.left("t") == MANY  # The next turn is asked for.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert failing.ended
    assert not other.ended
    assert other.turns == 2
    assert len(said) == 2
