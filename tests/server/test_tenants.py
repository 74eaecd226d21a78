"""Sessions of one id and model are as many as there are tenants, wherever they are; an edge says whose a call is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc, session_pb2_grpc
from statestream.v1 import session_pb2 as sessions
from statestream_server.caller import Caller
from statestream_server.edges.grpc import chain
from statestream_server.sessions.ownership.turns import Turns
from statestream_server.settings import Durability
from statestream_server.stores.base import Key
from tests.support.arrays import tensor
from tests.support.calls import failing
from tests.support.serving import Local, serving

MODEL = "counter"
WRITER = bytes(range(16))


@pytest.fixture(params=["memory", "sqlite"])
async def local(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[Local]:
    """A server whose callers say their tenant themselves."""

    def by_header(headers: Any, names: Any = None) -> Caller:
        return Caller(tenant=str(dict(headers).get("tenant", "")))

    monkeypatch.setattr(chain, "identify", by_header)
    url = f"sqlite:{tmp_path / 's.db'}" if request.param == "sqlite" else request.param
    async with serving(models_dir, store=url, durability=Durability.SYNC) as local:
        yield local


class Tenant:
    """Calls of one tenant."""

    def __init__(self, channel: grpc.aio.Channel, name: str) -> None:
        self.metadata = (("tenant", name),)
        self._sessions = session_pb2_grpc.SessionServiceStub(channel)
        self._inference = inference_pb2_grpc.InferenceServiceStub(channel)

    def call(self, method: str, request: Any) -> Any:
        return getattr(self._sessions, method)(request, metadata=self.metadata)

    async def step(self, value: float) -> float:
        """Adds to the counter "a" and gives its sum."""
        request = pb.StepRequest(model=MODEL, session_id="a", inputs=[tensor("x", np.full((1, 1), value, np.float32))])
        response = await self._inference.Step(request, metadata=self.metadata)
        return float(np.frombuffer(response.outputs[0].data, np.float32)[0])

    async def ids(self) -> list[str]:
        found = await self.call("ListSessions", sessions.ListSessionsRequest(model=MODEL))
        return [each.id for each in found.sessions]

    async def opened(self, *ids: str) -> list[int]:
        """Opens sessions on a stream of its own and gives their positions."""
        count = len(ids)
        stream = self._inference.Stream(metadata=self.metadata)
        await stream.write(
            pb.StreamRequest(
                frame=1,
                open=pb.OpenFrame(
                    model=MODEL,
                    ids=ids,
                    mode=pb.OPEN_MODE_RESUME,
                    writer=WRITER,
                    incarnation=int(time.time() * 1e6),
                    handles=np.arange(count, dtype="<u4").tobytes(),
                    replay_positions=np.zeros(count, "<u8").tobytes(),
                ),
            )
        )
        response = await stream.read()
        stream.cancel()
        assert not response.opened.errors, response
        return [int(position) for position in np.frombuffer(response.opened.positions, "<u8")]


async def test_what_tenants_call_alike_is_not_the_same(local: Local) -> None:
    one, other = Tenant(local.channel, ""), Tenant(local.channel, "other")
    assert await one.step(1) == 1
    assert await other.step(10) == 10
    assert await one.step(2) == 3
    table = local.table(MODEL)
    assert (len(table.rows_of("")), len(table.rows_of("other")), table.sessions) == (1, 1, 2)
    assert {key.tenant for key in table.keys(table.resident())} == {"", "other"}
    assert len(set(table.tag[table.resident()].tolist())) == 2
    fork = sessions.ForkSessionRequest(model=MODEL, session_id="a", fork_id="b")
    await other.call("ForkSession", fork)
    assert (await one.ids(), await other.ids()) == (["a"], ["a", "b"])
    assert (await one.opened("a"), await other.opened("a", "b")) == ([2], [1, 1])

    await one.call("DeleteSession", sessions.DeleteSessionRequest(model=MODEL, session_id="a"))
    assert (await failing(one.call("GetSession", sessions.GetSessionRequest(model=MODEL, session_id="b")))).reason
    assert (await one.ids(), await other.ids()) == ([], ["a", "b"])
    assert (len(table.rows_of("")), table.sessions) == (0, 2)
    assert await other.step(10) == 20


async def test_they_come_back_each_with_his_own(local: Local) -> None:
    """From the store, and the deletion of sessions of several tenants at once."""
    tenants = [Tenant(local.channel, name) for name in ("", "x", "y")]
    for value, tenant in enumerate(tenants):
        await tenant.step(value)
    table = local.table(MODEL)
    await local.server.sessions.hibernate(table, float("inf"))
    assert (table.sessions, *map(len, map(table.rows_of, ("", "x", "y")))) == (0, 0, 0, 0)
    assert [await tenant.step(5) for tenant in tenants] == [5, 6, 7]
    await local.server.deletions.delete(table, table.resident())
    assert table.sessions == 0
    assert not local.server.sessions.turns
    assert [await tenant.ids() for tenant in tenants] == [[], [], []]


async def test_nobody_waits_for_another_tenants_session() -> None:
    turns = Turns()
    first, other = turns.take("x", "m", ["a"]), turns.take("y", "m", ["a"])
    await asyncio.wait_for(other.come(), 1)
    both = turns.take_all([Key("x", "m", "a"), Key("y", "m", "b")])
    other.end()
    coming = asyncio.create_task(both.come())
    await asyncio.sleep(0)
    assert not coming.done()
    first.end()
    await asyncio.wait_for(coming, 1)
    both.end()
    assert not turns
