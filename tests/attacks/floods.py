"""The largest message of every kind, made from the descriptors: a field that comes later is covered by itself.

For every method, and every repeated, string and bytes field of its request and of the messages in it, the field alone
is made as large as the receive limit lets through, in each way that its type allows; the rest is a request that would
be answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from statestream.v1 import inference_pb2 as pb
from statestream.v1 import model_pb2, server_pb2, session_pb2
from statestream_server.edges.grpc import oip
from statestream_server.edges.oip import oip_pb2
from tests.support.arrays import tensor, u32, u64

_SPARE: Final = 4096
"""Bytes of the limit that are left for the rest of a message."""
_DELIMITED: Final = 2


@dataclass(frozen=True)
class Flood:
    """One field of one method's request, and how it is filled.

    Attributes:
        method: The method.
        path: Names of the fields that lead to it.
        way: How it is filled.
        make: The request's bytes, of about so many.
    """

    method: MethodDescriptor
    path: tuple[str, ...]
    way: str
    make: Callable[[int], bytes]

    def __str__(self) -> str:
        return f"{self.method.name}.{'.'.join(self.path)}-{self.way}"

    @property
    def called(self) -> str:
        """The method's path on the wire."""
        service = self.method.containing_service
        name = oip.SERVICE if service.file is oip_pb2.DESCRIPTOR else service.full_name
        return f"/{name}/{self.method.name}"

    @property
    def streamed(self) -> bool:
        return bool(self.method.client_streaming)


def floods() -> Iterator[Flood]:
    """Every flood of every method of the contract, and of the other protocol."""
    for module in (pb, session_pb2, model_pb2, server_pb2, oip_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                for path in _paths(method.input_type):
                    yield from _ways(method, path)


def _paths(kind: Descriptor) -> Iterator[tuple[FieldDescriptor, ...]]:
    for field in kind.fields:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            if field.is_repeated:
                yield (field,)
            assert field.message_type is not None
            yield from ((field, *rest) for rest in _paths(field.message_type))
        elif field.is_repeated or field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            yield (field,)


def _ways(method: MethodDescriptor, path: tuple[FieldDescriptor, ...]) -> Iterator[Flood]:
    last = path[-1]
    for way, fill in _fills(last).items():
        names = tuple(field.name for field in path)

        def make(size: int, fill: Callable[[int], bytes] = fill) -> bytes:
            return _request(example(method.input_type, path), path, fill(size - _SPARE))

        yield Flood(method, names, way, make)


def _fills(field: FieldDescriptor) -> dict[str, Callable[[int], bytes]]:
    """Ways to make bytes of a field, its tags included, of about so many bytes."""
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return {"empty": lambda size: _element(field, b"") * (size // 2)}
    if field.type == FieldDescriptor.TYPE_STRING and field.is_repeated:
        return {
            "empty": lambda size: _element(field, b"") * (size // 2),
            "distinct": lambda size: b"".join(_element(field, b"%x" % number) for number in range(size // 8)),
        }
    if field.type == FieldDescriptor.TYPE_STRING:
        return {
            "long": lambda size: _element(field, b"a" * size),
            "quoted": lambda size: _element(field, b'"\n' * (size // 2)),
        }
    if field.type == FieldDescriptor.TYPE_BYTES:
        return {
            "zeros": lambda size: _element(field, bytes(size)),
            "counted": lambda size: _element(field, np.arange(size // 4, dtype="<u4").tobytes()),
            "wide": lambda size: _element(field, np.arange(size // 8, dtype="<u8").tobytes()),
            "ones": lambda size: _element(field, b"\xff" * size),
        }
    return {"small": lambda size: _element(field, b"\x01" * size)}  # A packed list of numbers.


def _request(message: Message, path: tuple[FieldDescriptor, ...], filled: bytes) -> bytes:
    """The bytes of a message in which the field at the end of a path is replaced by what is given."""
    field, *rest = path
    if not rest:
        message.ClearField(field.name)
        return message.SerializeToString() + filled
    inner = _last(message, field)
    nested = _request(inner, tuple(rest), filled)
    if field.is_repeated and not _is_map(field):
        del getattr(message, field.name)[-1:]
    else:
        message.ClearField(field.name)
    return message.SerializeToString() + _element(field, nested)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _last(message: Message, field: FieldDescriptor) -> Message:
    """A copy of the message in a field; of a list the last one, or a new one."""
    if not field.is_repeated:
        found = getattr(message, field.name)
    else:
        assert field.message_type is not None
        there = [] if _is_map(field) else getattr(message, field.name)
        found = (there or [GetMessageClass(field.message_type)()])[-1]
    copy: Message = type(found)()
    copy.CopyFrom(found)
    return copy


def _element(field: FieldDescriptor, data: bytes) -> bytes:
    return _varint(field.number << 3 | _DELIMITED) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


X = tensor("x", np.ones((1, 1), np.float32))


def example(kind: Descriptor, path: tuple[FieldDescriptor, ...] = ()) -> Message:
    """A request that would be answered; of an unknown kind the empty one. A frame is of the kind that a path enters."""
    loop = tensor("x", np.ones((1, 1, 2), np.float32))
    scores = tensor("x", np.ones((1, 4), np.float32))
    infer = oip_pb2.ModelInferRequest(model_name="scores")
    infer.inputs.add(name="x", datatype="FP32", shape=[1, 4]).contents.fp32_contents.extend([1.0] * 4)
    examples: dict[str, Message] = {
        "PredictRequest": pb.PredictRequest(model="scores", inputs=[scores]),
        "StepRequest": pb.StepRequest(model="counter", session_id="flood", inputs=[X]),
        "ForecastRequest": pb.ForecastRequest(model="loop", horizon=1, history=pb.History(inputs=[loop])),
        "GenerateRequest": pb.GenerateRequest(model="pair", texts=["abc"], max_tokens=1),
        "OpenSessionRequest": session_pb2.OpenSessionRequest(model="counter", session_id="flood"),
        "ForkSessionRequest": session_pb2.ForkSessionRequest(model="counter", session_id="flood", fork_id="fork"),
        "ModelInferRequest": infer,
        "GetModelRequest": model_pb2.GetModelRequest(name="counter"),
        "LoadModelRequest": model_pb2.LoadModelRequest(name="counter"),
        "UnloadModelRequest": model_pb2.UnloadModelRequest(name="tokens"),
    }
    if kind.name == "StreamRequest":
        return _frame(path[0].name if path else "")
    found = examples.get(kind.name)
    if found is None:
        found = GetMessageClass(kind)()
        for name, value in (("model", "counter"), ("session_id", "flood")):
            if name in kind.fields_by_name:
                setattr(found, name, value)
    return found


def opening() -> pb.StreamRequest:
    """The first frame of a stream: handle 0 stands for a session of "counter"."""
    frame = pb.OpenFrame(model="counter", handles=u32(0), ids=["flood"], writer=bytes(16), incarnation=1)
    return pb.StreamRequest(frame=1, open=frame)


def _frame(kind: str) -> pb.StreamRequest:
    frames: dict[str, Message] = {
        "open": pb.OpenFrame(model="counter", handles=u32(1), ids=["other"], writer=bytes(16), incarnation=2),
        "chunk": pb.ChunkFrame(handles=u32(0), positions=u64(0), steps=1, inputs=[X]),
        "ack": pb.AckFrame(handles=u32(0), acked_positions=u64(0)),
        "close": pb.CloseFrame(handles=u32(0)),
        "flush": pb.FlushFrame(handles=u32(0)),
        "predict": pb.PredictFrame(model="scores", inputs=[tensor("x", np.ones((1, 4), np.float32))]),
    }
    request = pb.StreamRequest(frame=2)
    if kind in frames:
        getattr(request, kind).CopyFrom(frames[kind])
    return request
