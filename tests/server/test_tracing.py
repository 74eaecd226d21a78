"""Spans of calls, frames, batches and runs: which lies under which, and that none is made where none is wanted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import statestream
from statestream.v1 import inference_pb2 as pb
from statestream.v1.inference_pb2_grpc import InferenceServiceStub
from statestream_server import tracing
from tests.support import models
from tests.support.arrays import tensor
from tests.support.calls import Caller
from tests.support.serving import Local, serving

TRACE, SPAN = "1" * 31 + "2", "3" * 15 + "4"
ONE = {"x": np.ones((1, 1), np.float32)}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What servers of the test tell, whose settings have tracing."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "made", lambda _, server: tracing.Tracing(SimpleSpanProcessor(exporter), server))
    return exporter


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == name or span.name.endswith(f"/{name}")]


async def step_within(local: Local, flags: str) -> None:
    request = pb.StepRequest(model="counter", session_id="s", inputs=[tensor("x", ONE["x"])])
    await InferenceServiceStub(local.channel).Step(
        request, timeout=10, metadata=[("traceparent", f"00-{TRACE}-{SPAN}-{flags}")]
    )


def is_under(span: ReadableSpan, other: ReadableSpan) -> bool:
    assert span.parent is not None
    assert span.context is not None
    assert other.context is not None
    return span.parent.span_id == other.context.span_id and span.context.trace_id == other.context.trace_id


@pytest.mark.parametrize("edge", ["grpcio", "h2"])
async def test_a_call_goes_on_with_the_callers_trace_down_to_its_run(
    tmp_path: Path, spans: InMemorySpanExporter, edge: str
) -> None:
    async with serving(models.write(tmp_path, "counter"), tracing="otlp", edge=edge) as local:
        await step_within(local, "01")
    (step,), (batch,), (run,) = (named(spans, name) for name in ("Step", "batch", "run"))
    assert step.parent is not None
    assert step.parent.span_id == int(SPAN, 16)
    assert step.context is not None
    assert step.context.trace_id == int(TRACE, 16)
    assert is_under(batch, step)
    assert is_under(run, batch)
    assert [link.context.span_id for link in batch.links] == [step.context.span_id]
    assert batch.attributes is not None
    assert batch.attributes["statestream.model"] == "counter"
    assert batch.attributes["statestream.batch.rows"] == 1
    assert batch.start_time is not None
    assert run.start_time is not None
    assert batch.end_time is not None
    assert step.start_time is not None
    assert step.start_time <= batch.start_time + 1_000_000
    assert batch.start_time <= run.start_time


async def test_a_trace_that_is_not_recorded_makes_no_spans(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    async with serving(models.write(tmp_path, "counter"), tracing="otlp") as local:
        await step_within(local, "00")
    assert not named(spans, "Step")
    assert not named(spans, "batch")


async def test_frames_of_many_streams_share_a_batch_that_links_to_all(
    tmp_path: Path, spans: InMemorySpanExporter
) -> None:
    async with serving(models.write(tmp_path, "counter"), tracing="otlp") as local:
        connect = statestream.aio.connect
        async with (
            connect(local.address) as one,
            connect(local.address) as two,
            one.session("counter", "a") as first,
            two.session("counter", "b") as second,
        ):
            with local.engine_held():
                steps = [asyncio.ensure_future(session.step(np.ones(1, np.float32))) for session in (first, second)]
                await local.until(lambda: local.server.engine.queued == 2)
                assert not named(spans, "frame chunk"), "a frame lasts until what it asked for has run"
            await asyncio.gather(*steps)
        await local.until(lambda: not local.server.streams)
    frames, streams = named(spans, "frame chunk"), named(spans, "Stream")
    assert len(frames) == 2 == len(streams)
    assert all(any(is_under(frame, stream) for stream in streams) for frame in frames)
    linked = {link.context.span_id for batch in named(spans, "batch") for link in batch.links}
    assert linked == {frame.context.span_id for frame in frames if frame.context is not None}


async def test_a_refused_call_says_why(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    async with serving(models.write(tmp_path, "counter"), tracing="otlp") as local:
        with pytest.raises(Exception, match="nothing"):
            await Caller(local.channel).step("nothing", "s", ONE)
    (step,) = named(spans, "Step")
    assert not step.status.is_ok
    assert step.attributes is not None
    assert step.attributes["statestream.reason"] == "MODEL_NOT_FOUND"


async def test_nothing_is_made_where_nothing_is_asked(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    async with serving(models.write(tmp_path, "counter")) as local:
        await Caller(local.channel).step("counter", "s", ONE)
        assert local.server.tracing is None
        assert local.server.engine.tracer is None
    assert not spans.get_finished_spans()


async def test_a_call_whose_work_comes_when_it_is_over_ends_once(
    tmp_path: Path, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """Its caller left, and what it began queues all the same."""
    async with serving(models.write(tmp_path, "counter"), tracing="otlp") as local:
        tracer = local.server.engine.tracer
        with tracer.call("/a/b", "counter") as under:
            pass
        under.hold()
        under.release()
    assert not caplog.records
    assert [span.name for span in spans.get_finished_spans()] == ["/a/b"]
