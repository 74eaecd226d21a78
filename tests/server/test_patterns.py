"""A lone chunk is known by its bytes only where they mean what is taken of them; its reply is a message."""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from statestream.v1 import inference_pb2 as pb
from statestream.v1.tensor_pb2 import Tensor
from statestream_server.edges.grpc import patterns
from statestream_server.edges.grpc.patterns import Port

NUMBERS: Final = st.integers(1, 2**64 - 1)
PORTS: Final = st.lists(
    st.builds(
        Port,
        st.text(min_size=1, max_size=3),
        st.sampled_from(["float32", "int8"]),
        st.lists(st.integers(0, 300), max_size=2).map(tuple),
        st.integers(0, 200),
    ),
    max_size=3,
).map(tuple)
CHANGES: Final = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 255), st.sampled_from("flip drop twice".split())), max_size=3
)


def tensor(port: Port, steps: int) -> Tensor:
    return Tensor(name=port.name, dtype=port.dtype, shape=(steps, *port.shape), data=bytes(steps * port.nbytes))


def _mutated(data: bytes, changes: list[tuple[int, int, str]]) -> bytes:
    found = bytearray(data)
    for at, value, how in changes:
        at %= len(found) or 1
        if how == "flip":
            found[at : at + 1] = bytes((value,))
        else:
            found[at : at + (how == "drop")] = found[at : at + 3] if how == "twice" else b""
    return bytes(found)


@given(PORTS, st.integers(1, 300), NUMBERS, st.integers(0, 2**32 - 1), NUMBERS, st.booleans(), CHANGES)
@example((Port("x", "float32", (3,), 12),), 1, 5, 0, 7, True, [])
@example((Port("x", "float32", (3,), 12),), 1, 300, 0, 7, False, [(1, 0x80, "twice")])
@example((Port("x", "int8", (0,), 0),), 1, 1, 0, 7, False, [])
def test_what_is_known_says_what_is_taken_of_it(
    ports: tuple[Port, ...],
    steps: int,
    frame: int,
    handle: int,
    start: int,
    acked: bool,
    changes: list[tuple[int, int, str]],
) -> None:
    chunk = pb.ChunkFrame(
        handles=handle.to_bytes(4, "little"),
        positions=start.to_bytes(8, "little"),
        acked_positions=start.to_bytes(8, "little") if acked else b"",
        steps=steps,
        inputs=[tensor(port, steps) for port in ports],
    )
    data = _mutated(pb.StreamRequest(frame=frame, chunk=chunk).SerializeToString(), changes)
    pattern = patterns.chunk(ports, steps, acked=acked)
    known = pattern.fits(data)
    if not changes:
        assert known == (frame < 2**35)
    if not known:
        return
    try:
        request = pb.StreamRequest.FromString(data)
    except DecodeError:
        raise AssertionError("what is no message was known") from None
    number, at = patterns.number(data)
    parts, said = pattern.split(data, at), request.chunk
    assert number == request.frame
    assert parts[1].to_bytes(4, "little") == said.handles
    assert parts[3].to_bytes(8, "little") == said.positions
    assert said.steps == steps
    assert [*parts[7 if acked else 5 :: 2]] == [tensor.data for tensor in said.inputs]
    assert said.acked_positions == (parts[5].to_bytes(8, "little") if acked else b"")
    assert [(t.name, t.dtype, *t.shape) for t in said.inputs] == [(p.name, p.dtype, steps, *p.shape) for p in ports]
    assert not any((said.lengths, said.marks, said.cursors, said.score))
    named = at + pattern.named
    echo = data[:at], data[named : named + patterns.NAMED]
    read, handles, starts = patterns.read_echo(*echo)
    assert (read, handles.tobytes(), starts.tobytes()) == (number, said.handles, said.positions)
    assert pb.ResultFrame.FromString(echo[1]) == pb.ResultFrame(handles=said.handles, positions=said.positions)


@given(st.binary(max_size=12))
def test_the_number_of_a_frame_is_read_or_left_alone(data: bytes) -> None:
    frame, at = patterns.number(data)
    if at:
        assert pb.StreamRequest.FromString(data[:at]).frame == frame
        assert at <= 6


@given(PORTS, st.integers(1, 300), st.integers(1, 2**64 - 1), st.binary(min_size=12, max_size=12), NUMBERS)
def test_a_reply_is_the_message_of_what_it_says(
    ports: tuple[Port, ...], steps: int, frame: int, named: bytes, durable: int
) -> None:
    begin, between, tensors = patterns.reply(ports, steps)
    number, echo = patterns.echo(frame, named[:4], named[4:])
    data = [tensor(port, steps).data for port in ports]
    parts = [number, begin, echo, between, durable.to_bytes(8, "little")]
    for before, held in zip(tensors, data, strict=True):
        parts += (before, held)
    outputs = [tensor(port, steps) for port in ports]
    result = pb.ResultFrame(
        handles=named[:4],
        positions=named[4:],
        steps=steps,
        durable_positions=durable.to_bytes(8, "little"),
        outputs=outputs,
    )
    assert pb.StreamResponse.FromString(b"".join(parts)) == pb.StreamResponse(frame=frame, result=result)
