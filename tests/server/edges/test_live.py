"""The edge over sockets, beside others: random and broken frames, and callers whose machine is gone."""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import hpack
import numpy as np
import pytest
from hyperframe import frame as frames
from hypothesis import HealthCheck, given, settings

import statestream
from statestream.v1 import inference_pb2 as pb
from statestream_server.edges.h2 import connection, port
from tests.server.edges.sequences import Sender, Step, cuts, mutated, mutations, pieces, steps
from tests.support import models
from tests.support.arrays import tensor, u32
from tests.support.calls import connected
from tests.support.http2 import PREDICT, STREAM, call, data, enveloped, wired
from tests.support.serving import Process, serving
from tests.support.speaker import Speaker, fresh_id, next_incarnation

_QUIET: float = 0.02
"""Seconds after which nothing more is expected of the server, unless it is told that all was said."""
_HANGS: float = 20.0


@pytest.fixture(scope="module")
def neighbour(server: Process) -> Iterator[statestream.Session]:
    """A session of somebody else on the same server."""
    with statestream.connect(server.address) as client, client.session("counter", id="neighbour") as session:
        yield session


def answers(address: str, parts: list[bytes]) -> bytes:
    """What a server says to these bytes, in so many writes; then the connection is over."""
    host, _, number = address.rpartition(":")
    said = bytearray()
    with (
        socket.create_connection((host, int(number)), _HANGS) as sender,
        contextlib.suppress(BrokenPipeError, ConnectionResetError),
    ):
        for part in parts:
            sender.sendall(part)
        while select.select([sender], [], [], _QUIET)[0] and (came := sender.recv(1 << 16)):
            said += came
        sender.shutdown(socket.SHUT_WR)
        while came := sender.recv(1 << 16):  # A server that hangs is a timeout here.
            said += came
    return bytes(said)


def faults(said: bytes) -> list[str]:
    """Where a server says that it is at fault: INTERNAL_ERROR of HTTP/2, UNKNOWN of gRPC, words of its own."""
    found, decoder, at = list[str](), hpack.Decoder(), 0
    while len(said) - at >= 9:
        one, length = frames.Frame.parse_frame_header(memoryview(said)[at : at + 9])
        body = said[at + 9 : at + 9 + length]
        at += 9 + length
        if len(body) < length:
            break
        one.parse_body(memoryview(body))
        if isinstance(one, frames.HeadersFrame):
            fields = {str(name): str(value) for name, value in decoder.decode(one.data)}
            if fields.get("grpc-status") == "2" or "the server" in fields.get("grpc-message", ""):
                found.append(str(fields))
        elif isinstance(one, (frames.GoAwayFrame, frames.RstStreamFrame)) and one.error_code == 2:
            found.append(repr(one))
    return found


def survived(
    server: Process,
    neighbour: statestream.Session,
    made: list[Step],
    sizes: list[int],
    changes: list[tuple[int, int, str]],
) -> None:
    sender = Sender()
    sent = mutated(b"".join([sender.begin(), *(sender.sent(step) for step in made)]), changes)
    assert not faults(answers(server.address, pieces(sent, sizes)))
    before = neighbour.position
    neighbour.step(np.ones(1, np.float32))
    assert neighbour.position == before + 1
    assert not re.search("Traceback|ERROR|the server failed", server.output), server.output[-3000:]


@given(steps, cuts, mutations)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_random_frames_cost_nobody_else_anything(
    server: Process,
    neighbour: statestream.Session,
    made: list[Step],
    sizes: list[int],
    changes: list[tuple[int, int, str]],
) -> None:
    survived(server, neighbour, made, sizes, changes)


@pytest.mark.slow
@pytest.mark.timeout(300)
@given(steps, cuts, mutations)
@settings(max_examples=1500, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_many_random_frames_cost_nobody_else_anything(
    server: Process,
    neighbour: statestream.Session,
    made: list[Step],
    sizes: list[int],
    changes: list[tuple[int, int, str]],
) -> None:
    survived(server, neighbour, made, sizes, changes)


async def test_who_does_not_answer_a_ping_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that lost its power says no FIN: its connection ends, and what it had is free."""
    monkeypatch.setattr(connection, "QUIET_SECONDS", 0.2)
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(port, "_LOOKS", 0.05)
    models.write(tmp_path, "counter")
    async with serving(tmp_path, edge="h2") as local:
        name = fresh_id()
        async with wired(local.address) as wire:
            frame = pb.OpenFrame(
                model="counter", handles=u32(0), ids=[name], writer=bytes(16), incarnation=next_incarnation()
            )
            await wire.send(call(1, STREAM), data(1, enveloped(pb.StreamRequest(frame=1, open=frame))))
            assert await wire.until(lambda: wire.body(1))
            table = local.table("counter")
            assert len(local.server.streams) == 1
            end = await wire.ended()
            assert end is not None
            assert "no answer to a PING" in end.reason.decode()
            await local.until(lambda: len(local.server.streams) == 0)
            assert not (table.owner > 0).any()
        async with connected(local.address) as channel, Speaker(channel, "counter") as speaker:
            await speaker.open_one(name)
            await speaker.step(0, 0, {"x": np.ones((1, 1), np.float32)})


async def test_who_is_connected_hears_that_the_server_leaves_and_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First that new calls are for others, then which the last one was; what was on its way is answered, too."""
    monkeypatch.setattr(port, "_ROUND_TRIP", 0.2)
    context = serving(models.write(tmp_path, "scores"), edge="h2")
    local = await context.__aenter__()
    x = tensor("x", np.ones((1, 4), np.float32))
    asked = enveloped(pb.PredictRequest(model="scores", inputs=[x]))
    async with wired(local.address) as wire:

        def told() -> list[frames.GoAwayFrame]:
            return [one for one in wire.got if isinstance(one, frames.GoAwayFrame)]

        with local.engine_held():
            await wire.send(call(1, PREDICT), data(1, asked, end=True))
            await local.until(lambda: local.server.connected()[1] == 1)
            leaving = asyncio.create_task(context.__aexit__(None, None, None))
            assert await wire.until(told)
            await wire.send(call(3, PREDICT), data(3, asked, end=True))
            assert await wire.until(lambda: len(told()) == 2)
        assert await wire.answered(1)
        assert await wire.answered(3)
        assert (wire.status(1), wire.status(3)) == ("0", "0")
        assert [(one.error_code, one.last_stream_id) for one in told()] == [(0, 2**31 - 1), (0, 3)]
        assert {bytes(one.additional_data) for one in told()} == {b"the server is leaving"}
        assert await wire.ended()
    await leaving
