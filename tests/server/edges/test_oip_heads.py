"""Heads of requests: what is known by its bytes is what protobuf reads of it, and the usual next request is known."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from statestream_server.edges.oip import heads
from statestream_server.edges.oip import oip_pb2 as pb
from statestream_server.edges.oip.heads import Heads

TENANT = "somebody"
POSITIONS = st.none() | st.integers(0, 2**62)
IDS = st.text(max_size=6)


@st.composite
def requests(draw: st.DrawFn, *, usual: bool = False) -> pb.ModelInferRequest:
    """A request with inputs of fixed lengths; what no step has is in some, too, where they are not to be usual."""
    odd = [] if usual else ["a" * 130]
    names = ["s", "sequence"] + ([] if usual else ["sequence_position", "\x0a\x11sequence_position\x12"])
    others = ["sequence_end", "priority"] + ([] if usual else ["sequence_position_"])
    request = pb.ModelInferRequest(
        model_name=draw(st.sampled_from(["m", "model", *odd])), model_version=draw(st.sampled_from(["", "1", "12"]))
    )
    named = request.parameters["sequence_id"]
    if draw(st.booleans()):
        named.int64_param = draw(st.integers(-(2**63), 2**63 - 1))
    else:
        named.string_param = draw(st.sampled_from(names))
    for name in draw(st.sets(st.sampled_from(others))):
        request.parameters[name].bool_param = draw(st.booleans())
    for number in range(draw(st.integers(1, 2))):
        request.inputs.add(name=f"x{number}", datatype="FP32", shape=[1, 1])
    for _ in range(draw(st.integers(0, 2))):
        request.outputs.add(name="y")
    return filled(request, draw(IDS), draw(POSITIONS), [bytes(4)] * len(request.inputs))


def filled(
    request: pb.ModelInferRequest, name: str, position: int | None, contents: Sequence[bytes]
) -> pb.ModelInferRequest:
    """The same request with another id, position and contents."""
    made = pb.ModelInferRequest()
    made.CopyFrom(request)
    made.id = name
    if position is None:
        made.parameters.pop("sequence_position", None)
    else:
        made.parameters["sequence_position"].int64_param = position
    made.raw_input_contents[:] = contents
    return made


def bare(request: pb.ModelInferRequest) -> pb.ModelInferRequest:
    return filled(request, "", None, [])


def written(request: pb.ModelInferRequest) -> bytes:
    """A request's bytes; the entries of a map in the order of their names, else protobuf has any."""
    return request.SerializeToString(deterministic=True)


def position_of(request: pb.ModelInferRequest) -> int | None:
    found = request.parameters.get("sequence_position")
    return None if found is None else found.int64_param


def learned(request: pb.ModelInferRequest, data: bytes = b"") -> Heads[pb.ModelInferRequest]:
    found = Heads[pb.ModelInferRequest]()
    contents = [*request.raw_input_contents]
    data = data or written(request)
    found.learn(TENANT, data, bare(request), request.id.encode(), position_of(request), contents)
    return found


def check(known: Heads[pb.ModelInferRequest], data: bytes) -> bool:
    """Whether a request is known; it is what protobuf reads then."""
    seen = known.find(TENANT, data)
    if seen is None:
        return False
    head, name, position, contents = seen
    assert filled(head, name.decode(), position, contents) == pb.ModelInferRequest.FromString(data)
    return True


@given(requests(usual=True), IDS, st.integers(0, 2**62), st.data())
def test_the_next_request_is_known(
    request: pb.ModelInferRequest, name: str, position: int, data: st.DataObject
) -> None:
    """With any id and contents, and any position where the first one has one."""
    known, counted = learned(request), position_of(request) is not None
    assert check(known, written(request))
    contents = [data.draw(st.binary(min_size=4, max_size=4)) for _ in request.inputs]
    assert check(known, written(filled(request, name, position if counted else None, contents)))
    assert not check(known, written(filled(request, name, None if counted else position, contents)))


@given(requests(), st.data())
def test_whatever_is_known_is_what_protobuf_reads(request: pb.ModelInferRequest, data: st.DataObject) -> None:
    """Bytes that were cut, changed or put in anywhere, in what is learned and in what is looked for."""
    usual = request.SerializeToString()
    entry = b"\x0a\x11sequence_position\x12"
    parts = st.sampled_from(
        [
            *(b"\x1a\x00", b"\x1a\x01a", b"\x22\x00", b"\x12\x011", b"\x3a\x04abcd", b"\x80", entry),
            *(b"\x22\x17" + entry + b"\x02\x10\x07", b"\x22\x18" + entry + b"\x03\x10\x87\x00"),
        ]
    ) | st.binary(max_size=3)

    def changed(what: bytes) -> bytes:
        for _ in range(data.draw(st.integers(0, 2))):
            at = data.draw(st.integers(0, len(what)))
            what = what[:at] + data.draw(parts) + what[at + data.draw(st.integers(0, 2)) :]
        return what

    one, other = changed(usual), changed(usual)
    try:
        parsed = pb.ModelInferRequest.FromString(one)
    except DecodeError:
        return
    known = learned(parsed, one)
    check(known, one)
    check(known, usual)
    check(known, other)


def test_what_comes_behind_the_contents_is_not_left_out() -> None:
    usual, other = pb.ModelInferRequest(model_name="m"), pb.ModelInferRequest(model_name="n")
    for request in (usual, other):
        request.parameters["sequence_id"].int64_param = 7
        request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
        request.raw_input_contents.append(bytes(4))
    more = pb.ModelInferRequest()
    more.parameters["sequence_end"].bool_param = True
    behind = more.SerializeToString()
    # Requests of the longer one's length are known too, with a head as long.
    other.raw_input_contents[0] = bytes(4 + len(behind))
    known = learned(usual)
    known.learn(TENANT, other.SerializeToString(), bare(other), b"", None, [*other.raw_input_contents])
    assert check(known, usual.SerializeToString())
    assert check(known, other.SerializeToString())
    assert not check(known, usual.SerializeToString() + behind)


def test_a_head_is_its_tenants_and_no_more_are_kept_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_MOST", 3)
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(4)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    known, made = Heads[int](), []
    for number in range(4):
        request.parameters["sequence_id"].int64_param = number
        made.append(request.SerializeToString())
        known.learn(TENANT, made[-1], number, b"", None, [bytes(4)])
        assert known.find(TENANT, made[-1]) == (number, b"", None, [bytes(4)])
        assert known.find("another", made[-1]) is None
    assert [known.find(TENANT, each) is not None for each in made] == [False, False, False, True]


def test_what_is_too_long_is_not_kept() -> None:
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(4)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    request.parameters["sequence_id"].string_param = "a" * 2000
    assert not check(learned(request), request.SerializeToString())
    request.parameters["sequence_id"].string_param = "a"
    assert check(learned(request), request.SerializeToString())
    assert not check(learned(request), filled(request, "b" * 128, None, [bytes(4)]).SerializeToString())
