"""Traces: spans of calls, streams and frames, and of the batches and runs that they came to, told with OpenTelemetry.

A batch runs what many callers sent: its span lies under the first of them that is recorded and links to all of them.
Nothing here is imported unless tracing is configured.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from statestream_server import caller
from statestream_server.caller import Trace
from statestream_server.engine.traced import Ran

log = logging.getLogger(__name__)

_MOST_LINKS: Final = 128
"""Callers that one batch's span links to; it has a number for all of them."""


class Under:
    """A call or a frame under way: its span ends when nobody holds it any more."""

    __slots__ = ("_holds", "span")

    def __init__(self, span: Span) -> None:
        """Held once."""
        self.span = span
        self._holds = 1

    def hold(self) -> None:
        """Work of it is queued."""
        self._holds += 1

    def release(self) -> None:
        """Work of it ended."""
        self._holds -= 1
        # What a call began may queue work when the call is over already: its caller left.
        if not self._holds and self.span.is_recording():
            self.span.end()

    def fail(self, reason: str) -> None:
        """Notes why it failed."""
        if self.span.is_recording():
            self.span.set_status(Status(StatusCode.ERROR, reason))
            self.span.set_attribute("statestream.reason", reason)


_current: ContextVar[Sequence[Under]] = ContextVar("under", default=())
"""What the running task, or turn, is part of."""


class Tracing:
    """Makes spans; see `engine.traced.Tracer` for what the engine tells it."""

    def __init__(self, processor: SpanProcessor, server: str) -> None:
        """Spans go to `processor`; `server` is the name of this process."""
        # OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES and OTEL_TRACES_SAMPLER say more.
        resource = Resource({"service.name": "statestream-server", "service.instance.id": server}).merge(
            Resource.create()
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("statestream_server")

    def close(self) -> None:
        """Sends what was not sent yet; takes seconds where nobody takes it."""
        self._provider.shutdown()

    @contextmanager
    def call(self, name: str, model: str) -> Iterator[Under]:
        """A call or a stream, from here to the end of the block."""
        attributes: dict[str, str | int | float] = {"rpc.system": "grpc", "rpc.method": name}
        if model:
            attributes["statestream.model"] = model
        parent = _context(caller.current.get().trace)
        under = Under(self._started(name, parent, attributes))
        token = _current.set((under,))
        try:
            yield under
        finally:
            _current.reset(token)
            under.release()

    @contextmanager
    def frame(self, number: int, kind: str, stream: Sequence[Under]) -> Iterator[None]:
        """A frame while it is taken in; it ends when all that it asked for has run."""
        parent = trace.set_span_in_context(stream[0].span) if stream else None
        attributes: dict[str, str | int] = {"statestream.frame": number, "statestream.frame.kind": kind}
        under = Under(self._started(f"frame {kind}", parent, attributes))
        with self.within((under,)):
            try:
                yield
            finally:
                under.release()

    def _started(self, name: str, parent: Context | None, attributes: Mapping[str, str | int | float]) -> Span:
        """A span of what somebody asks; one that is none where OpenTelemetry fails, which costs nobody a step."""
        try:
            return self._tracer.start_span(name, parent, SpanKind.SERVER, attributes)
        except Exception:
            log.exception("a span is missing")
            return trace.INVALID_SPAN

    @contextmanager
    def within(self, unders: Sequence[Under]) -> Iterator[None]:
        """Work that is queued in the block is part of these."""
        token = _current.set(unders)
        try:
            yield
        finally:
            _current.reset(token)

    def current(self) -> Sequence[Under]:
        """What the running task is part of."""
        return _current.get()

    def queued(self) -> Sequence[Under]:
        """The same, held until `ended`."""
        unders = _current.get()
        for under in unders:
            under.hold()
        return unders

    def ended(self, unders: Sequence[Under]) -> None:
        """Work of these ended."""
        for under in unders:
            under.release()

    def ran(self, unders: Sequence[Under], ran: Ran) -> None:
        """A batch ended just now."""
        try:
            self._ran(unders, ran)
        except Exception:
            log.exception("a batch's span is missing")

    def _ran(self, unders: Sequence[Under], ran: Ran) -> None:
        recorded = [under.span for under in unders if under.span.get_span_context().trace_flags & TraceFlags.SAMPLED]
        if not recorded:
            return
        now, clock = time.time_ns(), time.perf_counter()
        began = now - int((clock - ran.began) * 1e9)
        attributes: dict[str, str | int | float] = {
            "statestream.model": ran.model,
            "statestream.version": ran.version,
            "statestream.batch.rows": ran.rows,
            "statestream.batch.steps": ran.steps,
            "statestream.batch.class": ran.kind,
            "statestream.batch.callers": len(recorded),
            "statestream.batch.wait_seconds": ran.waited,
        }
        batch = self._tracer.start_span(
            "batch",
            trace.set_span_in_context(recorded[0]),
            SpanKind.INTERNAL,
            attributes,
            [Link(span.get_span_context()) for span in recorded[:_MOST_LINKS]],
            start_time=began,
        )
        first = now - int((clock - (ran.first or ran.began)) * 1e9)
        run = self._tracer.start_span("run", trace.set_span_in_context(batch), SpanKind.INTERNAL, start_time=first)
        run.end(min(now, first + int(ran.seconds * 1e9)))
        batch.end(began + int(ran.total * 1e9))


def _context(found: Trace | None) -> Context | None:
    """Where a caller's trace goes on; None where it has none."""
    if found is None:
        return None
    remote = SpanContext(int(found.id, 16), int(found.span, 16), is_remote=True, trace_flags=TraceFlags(found.flags))
    return trace.set_span_in_context(NonRecordingSpan(remote))


def made(exporter: str, server: str) -> Tracing:
    """Tracing that sends spans as settings say: "otlp" or "console".

    Raises:
        ImportError: The extra [tracing] is not installed.
    """
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

    made: SpanExporter
    if exporter == "console":
        import sys

        made = ConsoleSpanExporter(out=sys.stderr, formatter=lambda span: span.to_json(indent=None) + "\n")
    else:
        # OTEL_EXPORTER_OTLP_ENDPOINT and its like say where.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        made = OTLPSpanExporter()
    return Tracing(BatchSpanProcessor(made), server)
