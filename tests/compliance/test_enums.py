"""Values of enums that this release does not know: refused in requests, each field named; nothing happens then."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor

from statestream.v1 import inference_pb2 as pb
from statestream.v1 import model_pb2, server_pb2, session_pb2
from tests.support.arrays import u32
from tests.support.calls import Caller, Failure, everything, failing
from tests.support.speaker import Speaker, fresh_id, next_incarnation
from tests.support.subject import Subject

UNKNOWN = (-1, 5, 9, (1 << 31) - 1)


def _enums(message: Descriptor, seen: set[str]) -> Iterator[str]:
    """The fields of a message, and of those in it, that are enums."""
    if message.full_name in seen:
        return
    seen.add(message.full_name)
    for field in message.fields:
        if field.enum_type is not None:
            yield f"{message.name}.{field.name}"
        if field.message_type is not None:
            yield from _enums(field.message_type, seen)


async def _opening(speaker: Speaker, caller: Caller, subject: Subject, number: int) -> Failure:
    frame = pb.OpenFrame(model=speaker.model, handles=u32(7), ids=[fresh_id()], writer=speaker.writer)
    frame.incarnation, frame.mode = next_incarnation(), number  # type: ignore[assignment]
    await speaker.send(open=frame)
    return await speaker.refused()


async def _closing(speaker: Speaker, caller: Caller, subject: Subject, number: int) -> Failure:
    await speaker.send(close=pb.CloseFrame(handles=u32(0), action=number))  # type: ignore[arg-type]
    return await speaker.refused()


async def _step(caller: Caller, subject: Subject, **more: Any) -> Failure:
    return await failing(caller.inference.Step(pb.StepRequest(model=subject.name, session_id=fresh_id(), **more)))


async def _step_mode(speaker: Speaker, caller: Caller, subject: Subject, number: int) -> Failure:
    return await _step(caller, subject, mode=number)


async def _step_mark(speaker: Speaker, caller: Caller, subject: Subject, number: int) -> Failure:
    return await _step(caller, subject, mark=number)


async def _session_mode(speaker: Speaker, caller: Caller, subject: Subject, number: int) -> Failure:
    request = session_pb2.OpenSessionRequest(model=subject.name, session_id=fresh_id())
    request.mode = number  # type: ignore[assignment]
    return await failing(caller.sessions.OpenSession(request))


async def _bands(speaker: Speaker, caller: Caller, subject: Subject, number: int) -> Failure:
    request = pb.ForecastRequest(model=subject.name, session_id=fresh_id(), horizon=1)
    request.bands = number  # type: ignore[assignment]
    return await failing(everything(caller.inference.Forecast(request)))


REFUSED = {
    "ForecastRequest.bands": _bands,
    "OpenFrame.mode": _opening,
    "CloseFrame.action": _closing,
    "StepRequest.mode": _step_mode,
    "StepRequest.mark": _step_mark,
    "OpenSessionRequest.mode": _session_mode,
}


def test_every_enum_of_a_request_has_its_case() -> None:
    seen = set[str]()
    services = [
        service
        for module in (pb, model_pb2, server_pb2, session_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
    ]
    found = {field for service in services for method in service.methods for field in _enums(method.input_type, seen)}
    assert found == set(REFUSED)


@pytest.mark.parametrize("number", UNKNOWN)
@pytest.mark.parametrize("field", REFUSED)
async def test_an_unknown_value_is_refused(
    speaker: Speaker, caller: Caller, subject: Subject, field: str, number: int
) -> None:
    """BAD_FRAME names the field, what came and what was expected; the session goes on as it was."""
    await speaker.open_one(fresh_id())
    failure = await REFUSED[field](speaker, caller, subject, number)
    name = field.partition(".")[2]
    assert (failure.code, failure.reason, failure.fields) == ("INVALID_ARGUMENT", "BAD_FRAME", [name])
    assert f"{name} is {number}; expected 0 to " in failure.message
    assert (await speaker.step(0, 0, subject.random(1))).position == 0


@pytest.mark.parametrize("number", [3, 9, 255])
async def test_an_unknown_mark_in_a_column_is_refused(speaker: Speaker, number: int) -> None:
    """Marks are bytes of a column, and the enum's all the same."""
    await speaker.open_one(fresh_id())
    await speaker.send(chunk=pb.ChunkFrame(handles=u32(0), positions=bytes(8), marks=bytes([number])))
    failure = await speaker.refused()
    assert (failure.reason, failure.fields) == ("BAD_FRAME", ["marks"])
