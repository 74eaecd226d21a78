"""One chain for every call of the gRPC port, whatever its service and its shape."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from statestream import errors
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc, server_pb2, server_pb2_grpc
from statestream_server import caller
from statestream_server.caller import Caller, Trace
from statestream_server.edges.grpc import chain
from statestream_server.edges.grpc.stream import Stream
from statestream_server.edges.identity import identify, trace_of
from statestream_server.sessions.admin.copies import Copies
from statestream_server.sessions.unary import Unary
from tests.support.arrays import tensor
from tests.support.calls import failing
from tests.support.serving import Local, serving

TRACE = Trace("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", 1)
TRACEPARENT = (("traceparent", f"00-{TRACE.id}-{TRACE.span}-01"),)


def calls(channel: Any) -> dict[str, Any]:
    """One call of every shape, by name: it takes metadata and gives what can be awaited."""
    inference, server = inference_pb2_grpc.InferenceServiceStub(channel), server_pb2_grpc.ServerServiceStub(channel)
    health = health_pb2_grpc.HealthStub(channel)
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    x = tensor("x", np.ones((1, 1), np.float32))
    step = pb.StepRequest(
        model="counter", session_id="a", inputs=[x], mode=pb.OPEN_MODE_REPLACE
    )  # Never the quick way.

    async def stream(metadata: Any) -> Any:
        call = inference.Stream(metadata=metadata)
        await call.done_writing()
        return await call.read()

    return {
        "unary": lambda metadata: server.GetServerInfo(server_pb2.GetServerInfoRequest(), metadata=metadata),
        "step": lambda metadata: inference.Step(step, metadata=metadata),
        "server stream": lambda metadata: inference.Forecast(pb.ForecastRequest(), metadata=metadata).read(),
        "stream": stream,
        "health": lambda metadata: health.Check(health_pb2.HealthCheckRequest(), metadata=metadata),
        "watch": lambda metadata: health.Watch(health_pb2.HealthCheckRequest(), metadata=metadata).read(),
        "reflection": lambda metadata: reflection.ServerReflectionInfo(iter([asked]), metadata=metadata).read(),
    }


SHAPES = ("unary", "step", "server stream", "stream", "health", "watch", "reflection")


@pytest.mark.parametrize("shape", SHAPES)
async def test_nobody_is_served_who_may_not_call(local: Local, monkeypatch: pytest.MonkeyPatch, shape: str) -> None:
    """Identity comes first: what is refused there is refused for every service, with its details."""
    asked = list[Any]()

    def nobody(headers: Any, names: Any) -> Caller:
        asked.append(dict(headers).get("authorization"))
        raise errors.Unauthenticated("say who you are")

    monkeypatch.setattr(chain, "identify", nobody)
    failure = await failing(calls(local.channel)[shape]((("authorization", "nobody"),)))
    assert (failure.code, failure.reason, failure.message) == ("UNAUTHENTICATED", "UNAUTHENTICATED", "say who you are")
    assert asked == ["nobody"]


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_identity_that_fails_is_a_fault_of_the_server(
    local: Local, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, shape: str
) -> None:
    def broken(headers: Any, names: Any) -> Caller:
        raise RuntimeError("the keys are lost")

    monkeypatch.setattr(chain, "identify", broken)
    failure = await failing(calls(local.channel)[shape](()))
    assert (failure.code, failure.reason) == ("INTERNAL", "INTERNAL")
    assert "keys" not in failure.message
    assert "the keys are lost" in caplog.text


async def test_the_caller_and_its_trace_reach_whatever_runs_for_a_call(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls and streams that run beside each other each have their own; who says nothing has none."""
    seen = dict[str, Caller]()

    async def info(self: Any, request: Any, context: Any) -> Any:
        seen["unary"] = caller.current.get()
        return server_pb2.GetServerInfoResponse()

    async def serve(self: Any) -> None:
        await asyncio.gather(asyncio.create_task(note()))

    async def note() -> None:
        seen["stream"] = caller.current.get()

    target = Unary.target

    async def noting(self: Any, *args: Any) -> Any:
        seen["step"] = caller.current.get()
        return await target(self, *args)

    monkeypatch.setattr(Unary, "target", noting)
    monkeypatch.setattr(Stream, "serve", serve)
    made = calls(local.channel)
    await asyncio.gather(made["step"](TRACEPARENT), made["stream"](TRACEPARENT))
    assert seen == {"step": Caller("", TRACE), "stream": Caller("", TRACE)}
    await asyncio.gather(made["step"](()), made["stream"]((("traceparent", "nonsense"),)))
    assert seen == {"step": Caller(), "stream": Caller()}


async def test_what_nobody_expected_is_internal_for_every_shape(
    local: Local, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a table has three legs")

    monkeypatch.setattr(Unary, "target", broken)
    monkeypatch.setattr(Copies, "read", broken)
    monkeypatch.setattr(Stream, "serve", broken)
    made = calls(local.channel)
    forecast = pb.ForecastRequest(model="counter", session_id="a", horizon=1)
    made["server stream"] = inference_pb2_grpc.InferenceServiceStub(local.channel).Forecast(forecast).read
    for call in (made["step"](()), made["stream"](()), made["server stream"]()):
        failure = await failing(call)
        assert (failure.code, failure.reason) == ("INTERNAL", "INTERNAL")
        assert "legs" not in failure.message
    assert caplog.text.count("RuntimeError: a table has three legs") == 3


async def test_limits_are_met_before_health_and_reflection_see_anything(local: Local) -> None:
    """Bytes that are no message, names that are too long."""
    junk = {"request_serializer": lambda data: data, "response_deserializer": lambda data: data}
    check = local.channel.unary_unary("/grpc.health.v1.Health/Check", **junk)
    long = health_pb2.HealthCheckRequest(service="s" * 10_000).SerializeToString()
    for data in (b"\xff\xff", long):
        assert (await failing(check(data))).reason == "BAD_FRAME"
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    asking = local.channel.stream_stream(path, **junk)
    long = reflection_pb2.ServerReflectionRequest(file_containing_symbol="s" * 10_000).SerializeToString()
    well = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    for data in (b"\xff\xff", long):
        call = asking()
        await call.write(well)
        assert await call.read()
        await call.write(data)
        assert (await failing(call.read())).reason == "BAD_FRAME"


async def test_a_budget_that_is_used_up_refuses_its_kind_before_a_request_is_looked_at(models_dir: Path) -> None:
    async with serving(models_dir) as local:
        stub = inference_pb2_grpc.InferenceServiceStub(local.channel)
        budgets = local.server.budgets
        with budgets.predictions.holding(budgets.predictions.most):
            assert (await failing(stub.Predict(pb.PredictRequest(model="no such model")))).reason == "OVERLOADED"
            assert (await failing(stub.Forecast(pb.ForecastRequest()).read())).reason == "BAD_FRAME"
        with budgets.forecasts.holding(budgets.forecasts.most):
            assert (await failing(stub.Forecast(pb.ForecastRequest()).read())).reason == "OVERLOADED"
            assert (await failing(stub.Predict(pb.PredictRequest(model="no such model")))).reason == "MODEL_NOT_FOUND"


async def test_a_method_that_does_not_exist_is_unimplemented(local: Local) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await local.channel.unary_unary("/statestream.v1.InferenceService/Guess")(b"")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_a_service_that_is_not_served_is_not_found(local: Local) -> None:
    """What a service aborts with by itself leaves as it is."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_pb2_grpc.HealthStub(local.channel).Check(health_pb2.HealthCheckRequest(service="x"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


class TestTraceparent:
    def test_what_the_recommendation_gives_as_examples(self) -> None:
        sampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        assert trace_of(sampled) == TRACE
        assert trace_of(sampled[:-2] + "00") == TRACE._replace(flags=0)
        assert identify([("user-agent", "x"), ("traceparent", sampled)]) == Caller("", TRACE)

    def test_a_version_to_come_is_read_as_far_as_it_is_like_this_one(self) -> None:
        assert trace_of(f"cc-{TRACE.id}-{TRACE.span}-01-what-the-future-brings") == TRACE
        assert trace_of(f"cc-{TRACE.id}-{TRACE.span}-01.what") is None

    @pytest.mark.parametrize(
        "header",
        [
            "",
            f"ff-{TRACE.id}-{TRACE.span}-01",
            f"00-{TRACE.id}-{TRACE.span}-01-more",
            f"00-{'0' * 32}-{TRACE.span}-01",
            f"00-{TRACE.id}-{'0' * 16}-01",
            f"00-{TRACE.id.upper()}-{TRACE.span}-01",
            f"00-{TRACE.id[1:]}-{TRACE.span}-01",
        ],
    )
    def test_what_is_none_is_ignored(self, header: str) -> None:
        assert trace_of(header) is None
        assert identify([("traceparent", header)]) == Caller()

    @given(st.text())
    def test_any_text_is_a_trace_or_none(self, header: str) -> None:
        found = trace_of(header)
        assert found is None or (len(found.id), len(found.span)) == (32, 16)
