"""What is drawn: messages of any type from its descriptor, bytes with damage, texts that are nearly TOML."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

MODELS: Final = ("counter", "lstm", "gru", "loop", "scores", "tokens", "pair", "encoder", "decoder")
_WORDS: Final = (
    *MODELS, "", "a", "b", "c", "x", "y", "h", "c0", "nobody", "FP32", "FP16", "BF16", "INT64", "BYTES", "BOOL",
    "float32",
    "float64", "float16", "bfloat16", "int64", "bool", "string", "sequence_id", "sequence_start", "sequence_end",
    "sequence_position", "stable", "ä\0", "x" * 300, "\ud7ff",
)  # fmt: skip
_NUMBERS: Final = (0, 1, 2, 3, 5, 7, 8, 16, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 51, (1 << 63) - 1)
_BYTES: Final = (
    b"", b"\0", bytes(4), bytes(8), bytes(16), b"\1\0\0\0", b"\0\0\0\0\1\0\0\0", np.ones(1, "<f4").tobytes(),
    np.full(3, np.nan, "<f4").tobytes(), np.arange(6, dtype="<i8").tobytes(), b"\xff" * 8, b"\3\0\0\0abc", b"x" * 5000,
)  # fmt: skip
_INTEGERS: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-1, 9),
}
_DEEP: Final = 5


@st.composite
def messages(draw: st.DrawFn, kind: Descriptor, depth: int = 0) -> Message:
    """A message of a type: each field by itself may be there, with values that occur or that stand at a border."""
    made: Any = GetMessageClass(kind)()
    chance = draw(st.integers(0, 3))
    for field in kind.fields:
        if draw(st.integers(0, 3)) < chance or depth > _DEEP:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name
            for _ in range(draw(st.integers(0, 2))):
                name = draw(_value(entry["key"], depth))
                found = draw(_value(entry["value"], depth))
                if isinstance(found, Message):
                    getattr(made, field.name)[name].CopyFrom(found)
                else:
                    getattr(made, field.name)[name] = found
        elif field.is_repeated:
            some = [draw(_value(field, depth)) for _ in range(draw(st.integers(0, 3)))]
            getattr(made, field.name).extend(some)
        elif field.message_type is not None:
            getattr(made, field.name).CopyFrom(draw(_value(field, depth)))
        else:
            setattr(made, field.name, draw(_value(field, depth)))
    return made


def _value(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return messages(field.message_type, depth + 1)
    kind = field.cpp_type
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.sampled_from(_BYTES) | st.binary(max_size=40)
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return st.sampled_from(_WORDS) | st.text(max_size=6)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return st.sampled_from([0.0, 0.5, 1.0, -1.0, float("nan"), float("inf"), 1e-300]) | st.floats(width=32)
    least, most = _INTEGERS[kind]
    return st.sampled_from([number for number in _NUMBERS if number <= most]) | st.integers(least, most)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes as they are, or with some of them changed, gone, or there twice."""
    found = bytearray(data)
    for _ in range(draw(st.integers(0, 3))):
        if not found:
            break
        at = draw(st.integers(0, len(found) - 1))
        match draw(st.integers(0, 4)):
            case 0:
                del found[at:]
            case 1:
                found[at:at] = found[at : at + draw(st.integers(1, 16))]
            case 2:
                del found[at : at + draw(st.integers(1, 8))]
            case 3:
                found[at] ^= 1 << draw(st.integers(0, 7))
            case _:
                found[at : at + 4] = draw(st.binary(min_size=1, max_size=4))
    return bytes(found)


def sent(kind: Any) -> st.SearchStrategy[bytes]:
    """A message on the wire: mostly whole, sometimes damaged, sometimes no message at all."""
    whole = messages(kind).map(lambda made: made.SerializeToString())
    return whole | whole | whole.flatmap(damaged) | st.binary(max_size=60)


def lines(texts: tuple[str, ...]) -> st.SearchStrategy[str]:
    """Lines of a TOML file, of which some are right, in any order, with a piece cut out or put in."""
    words = st.sampled_from([line for text in texts for line in text.splitlines()]) | st.text(max_size=20)
    keys = st.sampled_from([line.partition("=")[0] for text in texts for line in text.splitlines() if "=" in line])
    values = st.sampled_from(
        ["1", "-1", "true", '""', '"a"', "[]", "{}", "[[1]]", "1e400", "nan", "0x7fffffffffffffff", "9" * 30,
         "2026-01-01", "1979-05-27T07:32:00Z", '["step", 1]', "[" * 200, '"\\u0000"', "'''"]
    )  # fmt: skip
    strange = st.tuples(keys, values).map(lambda pair: f"{pair[0]} = {pair[1]}")
    drawn = st.lists(words | strange, max_size=12).map("\n".join)
    changed = (
        st.sampled_from([text.encode() for text in texts]).flatmap(damaged).map(lambda b: b.decode(errors="replace"))
    )
    return drawn | changed
