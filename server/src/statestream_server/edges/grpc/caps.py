"""Caps: how much of anything one request may have, checked by its descriptors before anything is done with it.

A message may be as large as `max_message_bytes`; what it holds could still be millions of names, axes or rows, each of
which costs far more to look at than it took to send. So every field that repeats and every text has a cap, whatever the
message: a field that is added later has one by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from statestream.contract import errors
from statestream.v1 import inference_pb2 as pb
from statestream_server.edges.grpc.decoding import Unreadable
from statestream_server.settings import Limits

MAX_TENSORS: Final = 1024
"""Tensors in one message, and other parts that repeat."""
MAX_AXES: Final = 32
"""Axes of a tensor, and other numbers that repeat. NumPy takes 64."""
MAX_QUANTILES: Final = 199
"""Quantiles of a forecast: every half percent."""
MAX_CONTENTS: Final = 1 << 18
"""Elements of a tensor that come as numbers of a message, each of which is an object for a moment; not as bytes."""
_CONTENTS: Final = "inference.InferTensorContents"
_SYMBOL_BYTES: Final = 16
"""What a symbol of a text may have on average, its separator included."""
_TOKEN_BYTES: Final = 4096
"""A page token has two names in it, written as JSON and base64."""

_Check = Callable[[Any], None]


class Caps:
    """The caps of one server."""

    def __init__(self, limits: Limits) -> None:
        """Caps by `limits`, which GetServerInfo tells."""
        self._limits = limits
        self._texts = {
            "statestream.v1.GenerateRequest.texts": limits.max_text_symbols * _SYMBOL_BYTES,
            "statestream.v1.ListSessionsRequest.page_token": _TOKEN_BYTES,
        }
        self._counts = {
            "statestream.v1.OpenFrame.ids": limits.max_frame_sessions,
            "statestream.v1.ChunkFrame.cursors": limits.max_frame_chunks,
            "statestream.v1.ForecastSessions.ids": limits.max_forecast_series,
            "statestream.v1.ForecastRequest.quantiles": MAX_QUANTILES,
            "statestream.v1.GenerateRequest.texts": limits.max_generate_sources,
        }
        self._plans: dict[object, Sequence[tuple[str, _Check]]] = {}

    def well(self, request: Message | Unreadable) -> Message:
        """The request, which is well.

        Raises:
            StatestreamError: It cannot be read, or something in it is more than it may be.
        """
        if isinstance(request, Unreadable):
            raise request.error
        self.check(request)
        return request

    def check(self, message: Message) -> None:
        """Checks a request, and everything in it.

        Raises:
            BadFrame: Something is more than it may be; `metadata["field"]` names it.
        """
        plan = self._plans.get(message.DESCRIPTOR)
        if plan is None:
            plan = self._plans[message.DESCRIPTOR] = self._plan(message.DESCRIPTOR)
        for field, check in plan:
            check(getattr(message, field))

    def check_frame(self, request: pb.StreamRequest) -> None:
        """Checks a frame of a stream: how many sessions or calls it is about, then the rest.

        Raises:
            BadFrame: Something is more than it may be; `metadata["field"]` names it.
        """
        kind = request.WhichOneof("request")
        if kind is None:
            return
        if kind in ("predict", "part"):
            if len(request.predict.rows) // 4 > self._limits.max_frame_calls:
                count, most = len(request.predict.rows) // 4, self._limits.max_frame_calls
                raise too_many("rows", count, most, "Send several frames")
            self.check(getattr(request, kind))
            return
        most = self._limits.max_frame_chunks if kind in ("chunk", "ack") else self._limits.max_frame_sessions
        count = len(getattr(request, kind).handles) // 4
        if count > most:
            raise too_many("handles", count, most, "Send several frames")
        if kind != "ack":
            self.check(getattr(request, kind))

    def _plan(self, descriptor: Any) -> Sequence[tuple[str, _Check]]:
        """The checks of a message's fields, by their names. What has none is not looked at: that may be a copy."""
        checks = [(field.name, self._field(field)) for field in descriptor.fields]
        return [(name, check) for name, check in checks if check is not None]

    def _field(self, field: FieldDescriptor) -> _Check | None:
        text = field.type == FieldDescriptor.TYPE_STRING
        most_bytes = self._texts.get(field.full_name, self._limits.max_name_bytes)
        default = MAX_TENSORS if field.message_type is not None or text else MAX_AXES
        if field.containing_type is not None and field.containing_type.full_name == _CONTENTS:
            default = MAX_CONTENTS
        most = self._counts.get(field.full_name, default)
        name = field.name

        def texts(value: str) -> None:
            # No character has more than four bytes.
            if 4 * len(value) > most_bytes and len(value.encode()) > most_bytes:
                raise errors.BadFrame(
                    f"{name} has {len(value.encode())} bytes; expected at most {most_bytes}", metadata={"field": name}
                )

        each: _Check | None = texts if text else self.check if field.message_type is not None else None
        if not field.is_repeated:
            return each
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            return self._map(name, field.message_type, most)

        def repeated(values: Any) -> None:
            if len(values) > most:
                raise too_many(name, len(values), most)
            if each is not None and values:
                for value in values:
                    each(value)

        return repeated

    def _map(self, field: str, kind: Descriptor, most: int) -> _Check:
        """The check of a map, which is read by its keys, not as the entries that travel."""
        entry = kind.fields_by_name
        key, value = self._field(entry["key"]), self._field(entry["value"])

        def mapped(values: Any) -> None:
            if len(values) > most:
                raise too_many(field, len(values), most)
            for name in values if key is not None or value is not None else ():
                if key is not None:
                    key(name)
                if value is not None:
                    value(values[name])

        return mapped


def too_many(field: str, count: int, most: int, advice: str = "") -> errors.BadFrame:
    """What a caller is told who sent too many of something."""
    return errors.BadFrame(
        f"{field} has {count} entries; expected at most {most}{'. ' + advice if advice else ''}",
        metadata={"field": field, "came": str(count), "expected": str(most)},
    )
