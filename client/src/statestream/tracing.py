"""Traces of a client: a span for each stream and frame, and the caller's own span in what is sent, with OpenTelemetry.

Frames carry what several callers asked for: their spans lie under that of their stream, and link to the callers' spans.
The stream's span goes on from what was current when the client was made, on every server that it reaches.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec

from statestream.contract.errors import StatestreamError
from statestream.v1.inference_pb2 import StreamRequest, StreamResponse

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = logging.getLogger("statestream")

P = ParamSpec("P")

_MOST_CALLERS: Final = 128
"""Callers that one frame's span links to."""
_MOST_FRAMES: Final = 1 << 14
"""Frames without an answer of which spans are kept."""
_UNANSWERED: Final = frozenset({"ack", "part"})
"""What no answer comes to by its number."""


def _harmless(tell: Callable[Concatenate[Tracing, P], None]) -> Callable[Concatenate[Tracing, P], None]:
    """Whatever fails in it, a sampler or an exporter of the process' own, costs spans and no step."""

    def harmless(tracing: Tracing, /, *args: P.args, **more: P.kwargs) -> None:
        try:
            tell(tracing, *args, **more)
        except Exception:
            if not tracing.failed:
                log.exception("spans are missing: OpenTelemetry failed, and is not told of again")
            tracing.failed = True

    harmless.__doc__ = tell.__doc__
    return harmless


class Tracing:
    """Spans of one shard's streams. Calls come from one thread at a time, but for `asked` and `headers`."""

    def __init__(self) -> None:
        """Goes on from the span that is current; spans go where the process has OpenTelemetry send them.

        Raises:
            ImportError: OpenTelemetry is not installed: says what to install.
        """
        try:
            from opentelemetry import context, trace
            from opentelemetry.trace.propagation import tracecontext
        except ImportError as error:
            raise ImportError(f"tracing needs OpenTelemetry ({error}): pip install 'statestream[tracing]'") from error
        self.failed = False
        self._trace = trace
        self._propagator = tracecontext.TraceContextTextMapPropagator()
        self._tracer = trace.get_tracer("statestream")
        self._from = context.get_current()
        self._stream: Span | None = None
        self._callers: deque[Any] = deque(maxlen=_MOST_CALLERS)
        self._frames: dict[int, Span] = {}

    def headers(self) -> tuple[tuple[str, str], ...]:
        """What a call beside the stream carries: the caller's span, where one is current."""
        return self._written(None)

    def stream_headers(self) -> tuple[tuple[str, str], ...]:
        """What a stream carries: its own span."""
        if self._stream is None:
            return ()
        return self._written(self._trace.set_span_in_context(self._stream))

    def _written(self, context: Any) -> tuple[tuple[str, str], ...]:
        carrier = dict[str, str]()
        self._inject(carrier, context)
        return tuple(carrier.items())

    @_harmless
    def _inject(self, carrier: dict[str, str], context: Any) -> None:
        self._propagator.inject(carrier, context)

    @_harmless
    def began(self, address: str, number: int) -> None:
        """A stream begins, the client's so-and-so-many-th."""
        self._stream = self._tracer.start_span(
            "statestream.Stream",
            self._from,
            self._trace.SpanKind.CLIENT,
            {"rpc.system": "grpc", "server.address": address, "statestream.stream": number},
        )

    @_harmless
    def ended(self, cause: StatestreamError | None) -> None:
        """The stream is over."""
        stream, self._stream = self._stream, None
        for span in self._frames.values():
            span.set_attribute("statestream.unanswered", value=True)
            span.end()
        self._frames.clear()
        if stream is not None:
            if cause is not None:
                stream.set_status(self._trace.StatusCode.ERROR, cause.reason)
            stream.end()

    @_harmless
    def asked(self) -> None:
        """A caller asks for something: the next frame links to its span."""
        found = self._trace.get_current_span().get_span_context()
        if found.is_valid and found.trace_flags.sampled:
            self._callers.append(found)

    @_harmless
    def wrote(self, request: StreamRequest) -> None:
        """A frame leaves."""
        kind = request.WhichOneof("request") or ""
        stream = self._stream
        if stream is None or not stream.is_recording() or kind in _UNANSWERED:
            return
        links = [self._callers.popleft() for _ in range(len(self._callers))] if kind == "chunk" else []
        if len(self._frames) >= _MOST_FRAMES:
            self._frames.pop(next(iter(self._frames))).end()
        self._frames[request.frame] = self._tracer.start_span(
            f"frame {kind}",
            self._trace.set_span_in_context(stream),
            self._trace.SpanKind.CLIENT,
            {"statestream.frame": request.frame, "statestream.frame.kind": kind},
            [self._trace.Link(found) for found in {found.span_id: found for found in links}.values()],
        )

    @_harmless
    def received(self, response: StreamResponse) -> None:
        """An answer came; the first to a frame ends its span."""
        span = self._frames.pop(response.frame, None)
        if span is not None:
            if response.HasField("refused"):
                span.set_status(self._trace.StatusCode.ERROR, f"refused with code {response.refused.status.code}")
            span.end()
