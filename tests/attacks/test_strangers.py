"""Callers without a token flood a server that asks for one: what it holds for them is counted, its tenant goes on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from statestream import aio
from statestream_server.access import tokens
from tests.support import models
from tests.support.serving import EDGES, serving

pytestmark = pytest.mark.attack
_CALLS, _STREAMS = 400, 400


@pytest.mark.parametrize("edge", EDGES)
async def test_strangers_cost_a_tenant_nothing(tmp_path: Path, edge: str) -> None:
    door = tmp_path / "tokens.toml"
    secret, _ = tokens.new(door, "acme", frozenset({"step"}), time.time() + 1_000)
    folder = models.write(tmp_path / "models", "counter")
    async with serving(folder, tokens=door, edge=edge) as local, aio.connect(local.address, token=secret) as client:
        session = await client.session("counter", id="a")
        most, steps, over = 0, 0, asyncio.Event()

        async def go_on() -> None:
            nonlocal steps, most
            while not over.is_set():
                steps += 1
                assert float(np.squeeze(await session.step(1.0))) == steps
                streams = [usage.held.get("streams", 0) for usage in local.server.access.usages.values()]
                most = max(most, local.server.accounts.held, sum(streams) - 1)
                await asyncio.sleep(0)

        going = asyncio.create_task(go_on())
        junk = {"request_serializer": lambda data: data, "response_deserializer": lambda data: data}
        data, codes = b"x" * (1 << 18), set[grpc.StatusCode]()
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(local.address, options=options) as channel:
            calls: list[Any] = [
                channel.unary_unary("/statestream.v1.InferenceService/Step", **junk)(data) for _ in range(_CALLS)
            ]
            calls += [
                channel.stream_stream("/statestream.v1.InferenceService/Stream", **junk)(
                    metadata=(("authorization", f"Bearer {number}"),)
                )
                for number in range(_STREAMS)
            ]
            async with asyncio.timeout(60):
                codes = {await call.code() for call in calls}
        over.set()
        await going
        assert codes <= {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE}
        assert grpc.StatusCode.UNAUTHENTICATED in codes
        assert most < 1 << 16, "what strangers sent is in the accounts of streams"
        assert steps > 3, "it goes on meanwhile; how often in so short a time is the processor's affair"
        assert not local.server.budgets.steps.held
        assert len(local.server.streams) == 1
