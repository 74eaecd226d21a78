"""What is counted of calls: by method, model and code, and no series that a caller can make up."""

from __future__ import annotations

import math
from pathlib import Path

import grpc
import numpy as np
import pytest

from statestream_server.requests import DURATIONS, Requests
from tests.support import models
from tests.support.calls import Caller, failing
from tests.support.serving import serving

ONE = {"x": np.ones((1, 1), np.float32)}


@pytest.mark.parametrize("edge", ["grpcio", "h2"])
async def test_calls_are_counted_by_method_model_and_code(tmp_path: Path, edge: str) -> None:
    async with serving(models.write(tmp_path, "counter"), edge=edge) as local:
        caller = Caller(local.channel)
        await caller.step("counter", "s", ONE)
        await caller.step("counter", "s", ONE)
        for number in range(3):
            await failing(caller.step(f"made up {number}", "s", ONE))
        with pytest.raises(grpc.aio.AioRpcError):
            await local.channel.unary_unary("/statestream.v1.InferenceService/MadeUp")(
                b"", metadata=[("statestream-protocol", "made up")]
            )
        requests = local.server.requests
        kinds = {key: sum(kind.counts) for key, kind in requests.kinds.items()}
        step = "statestream.v1.InferenceService/Step"
        assert kinds[step, "counter", "OK"] == 2
        assert kinds[step, "", "NOT_FOUND"] == 3
        assert not [key for key in kinds if "ade" in key[0] or "made up" in key[1]]
        assert requests.under_way == 0
        assert 0 < requests.kinds[step, "counter", "OK"].total < math.inf


def test_names_of_models_are_bounded_and_durations_have_their_buckets() -> None:
    requests = Requests(lambda name: True)
    for number in range(2000):
        requests.count("m", f"model {number}", "OK", 0.0)
    assert len(requests.kinds) == 1001
    for seconds, bucket in ((0.0, 0), (1.5e-6, 1), (3e-6, 2), (1e-3, 10), (1e9, DURATIONS - 1)):
        requests = Requests(lambda name: True)
        requests.count("m", "", "OK", seconds)
        (kind,) = requests.kinds.values()
        assert kind.counts.index(1) == bucket
