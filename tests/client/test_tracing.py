"""Spans of a client, and one trace over client and server, over a reconnect, too."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace import Tracer as TRACER
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import statestream
from statestream import Settings
from statestream_server import tracing
from tests.support import models
from tests.support.serving import process, serving

ONE = np.ones(1, np.float32)
TRACED = Settings(tracing=True)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What client and server tell."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", lambda name: provider.get_tracer(name))
    monkeypatch.setattr(tracing, "made", lambda _, server: tracing.Tracing(SimpleSpanProcessor(exporter), server))
    yield exporter
    provider.shutdown()


def named(spans: InMemorySpanExporter, name: str, kind: trace.SpanKind) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name.endswith(name) and span.kind is kind]


def ids(found: list[ReadableSpan]) -> set[int]:
    return {span.context.span_id for span in found if span.context is not None}


async def test_one_trace_from_the_caller_to_the_run_over_a_reconnect(
    tmp_path: Path, spans: InMemorySpanExporter
) -> None:
    tracer = trace.get_tracer("caller")
    async with serving(models.write(tmp_path, "counter"), tracing="otlp") as local:
        with tracer.start_as_current_span("job") as job:
            async with statestream.aio.connect(local.address, settings=TRACED) as client:
                async with client.session("counter", "s") as session:
                    with tracer.start_as_current_span("first") as first:
                        await session.step(ONE)
                    link = client._shards.links[0]
                    await link.renew(link.state.streams)
                    await session.step(ONE)
                await client.models()
        await local.until(lambda: not local.server.streams)
    client_streams = named(spans, "Stream", trace.SpanKind.CLIENT)
    server_streams = named(spans, "Stream", trace.SpanKind.SERVER)
    assert len(client_streams) == 2 == len(server_streams)
    assert {span.parent.span_id for span in client_streams if span.parent} == {job.get_span_context().span_id}
    assert {span.parent.span_id for span in server_streams if span.parent} == ids(client_streams)
    frames = named(spans, "frame chunk", trace.SpanKind.SERVER)
    assert {span.parent.span_id for span in frames if span.parent} <= ids(server_streams)
    batches = named(spans, "batch", trace.SpanKind.INTERNAL)
    assert {link.context.span_id for span in batches for link in span.links} <= ids(frames)
    assert len(batches) == 2
    asked = named(spans, "frame chunk", trace.SpanKind.CLIENT)
    assert first.get_span_context().span_id in {link.context.span_id for span in asked for link in span.links}
    runs = named(spans, "run", trace.SpanKind.INTERNAL)
    whole = [
        *client_streams,
        *server_streams,
        *frames,
        *batches,
        *asked,
        *runs,
        *named(spans, "ListModels", trace.SpanKind.SERVER),
    ]
    assert {span.context.trace_id for span in whole if span.context} == {job.get_span_context().trace_id}


def test_without_the_library_the_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ImportError, match=r"statestream\[tracing\]"):
        statestream.connect("localhost:1", settings=TRACED)


def until(wanted: Callable[[], bool]) -> None:
    """Returns once it holds: another process' spans come when they come."""
    ends = time.monotonic() + 20
    while not wanted():
        assert time.monotonic() < ends
        time.sleep(0.02)


class Receiver:
    """Takes spans as OpenTelemetry's collectors do."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        handler = grpc.unary_unary_rpc_method_handler(
            self._export,
            request_deserializer=ExportTraceServiceRequest.FromString,
            response_serializer=ExportTraceServiceResponse.SerializeToString,
        )
        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    def __enter__(self) -> Receiver:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()

    def _export(self, request: Any, context: object) -> Any:
        self.spans += [span for of in request.resource_spans for scope in of.scope_spans for span in scope.spans]
        return ExportTraceServiceResponse()


@pytest.mark.slow
def test_one_trace_over_processes_one_of_which_is_killed(
    tmp_path: Path, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer = trace.get_tracer("caller")
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.port}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        options = ("--tracing", "otlp", "--store", f"sqlite:{tmp_path / 's.db'}", "--durability", "sync")
        with process(models.write(tmp_path / "models", "counter"), *options) as server:
            with (
                tracer.start_as_current_span("job") as job,
                statestream.connect(server.address, settings=TRACED) as client,
                client.session("counter", "s") as session,
            ):
                session.step(ONE)
                until(lambda: any(span.name == "run" for span in receiver.spans))
                server.kill()
                server.start()
                session.step(ONE)
                assert session.position == 2
            server.stop()
    context = job.get_span_context()
    mine = [span for span in receiver.spans if int.from_bytes(span.trace_id, "big") == context.trace_id]
    names = [span.name for span in mine]
    assert names.count("run") == 2 == names.count("batch")
    assert names.count("frame chunk") >= 2
    parents = {int.from_bytes(span.parent_span_id, "big") for span in mine if span.name.endswith("/Stream")}
    assert parents <= ids(named(spans, "Stream", trace.SpanKind.CLIENT))
    assert len(named(spans, "Stream", trace.SpanKind.CLIENT)) == 2


def test_what_tracing_is_not() -> None:
    with pytest.raises(TypeError, match="expected True or False"):
        Settings(tracing="yes")  # type: ignore[arg-type]


async def test_what_fails_in_it_costs_no_step(
    tmp_path: Path, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no span today")

    monkeypatch.setattr(TRACER, "start_span", fails)
    async with (
        serving(models.write(tmp_path, "counter"), tracing="otlp") as local,
        statestream.aio.connect(local.address, settings=TRACED) as client,
        client.session("counter") as one,
    ):
        assert await one.step(ONE) is not None
    assert not spans.get_finished_spans()
    assert "a span is missing" in caplog.text
    assert caplog.text.count("spans are missing") == 1
