"""Raw calls and streams in closed loop by gRPC's C++ client, closed_loop.cc, and what each costs the server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import grpc

from benchmarks import cases
from benchmarks.cases import FEATURES
from benchmarks.processes import Process
from statestream.v1 import inference_pb2 as pb
from statestream.v1.tensor_pb2 import Tensor
from statestream_server.edges.grpc import oip
from statestream_server.edges.oip import oip_pb2
from tests.support import http2

_SOURCE: Final = Path(__file__).with_name("closed_loop.cc")
_PROGRAM: Final = _SOURCE.parents[1] / ".tools" / "closed_loop"
WARM: Final = 0.5
"""Seconds of a load before it is measured."""
_OFFSET: Final = 1_000_000
"""A count that is found again in the bytes of a message, in the place of which the caller's own is put."""


@dataclass(frozen=True)
class Figure:
    """One measurement of one side.

    Attributes:
        value: In the row's unit.
        server: Processor seconds of the server for one of them; None where nothing is served.
    """

    value: float
    server: float | None = None


def built() -> bool:
    """Builds the C++ client where it can be; whether it is there."""
    if _PROGRAM.exists() and _PROGRAM.stat().st_mtime > _SOURCE.stat().st_mtime:
        return True
    if any(shutil.which(name) is None for name in ("g++", "pkg-config")):
        return False
    asked = subprocess.run(["pkg-config", "--cflags", "--libs", "grpc++"], capture_output=True, text=True)
    if asked.returncode:
        return False
    _PROGRAM.parent.mkdir(exist_ok=True)
    subprocess.run(["g++", "-O2", "-std=c++17", str(_SOURCE), "-o", str(_PROGRAM), *asked.stdout.split()], check=True)
    return True


def closed_loop(
    server: Process,
    method: str,
    kind: str,
    lines: Sequence[str],
    patches: Sequence[str],
    seconds: float,
    door: Mapping[str, str] | None = None,
) -> Figure:
    """Answers a second that callers in closed loop have, and the server's processor time for each.

    `door` is what the server asks of them: {"ROOTS": a file of authorities, "TOKEN": a token}.
    """
    command = [str(_PROGRAM), server.address, method, kind, str(WARM), str(seconds), *patches]
    variables = {**os.environ, **(door or {})}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        threading.Thread(target=_fed, args=(client.stdin, "\n".join(lines)), daemon=True).start()
        used = list[float]()
        for said in client.stdout:
            if said.strip() in ("BEGIN", "END"):
                used.append(server.busy_seconds())
            else:
                done = json.loads(said)
    if client.returncode:
        raise click.ClickException("the C++ client failed; its own message is above")
    return Figure(done["done"] / done["seconds"], (used[1] - used[0]) / done["done"])


def _fed(pipe: Any, text: str) -> None:
    with pipe:
        pipe.write(text + "\n")


def _varint(value: int) -> bytes:
    """As protobuf writes it, in 5 bytes."""
    return bytes(value >> 7 * place & 0x7F | (0x80 if place < 4 else 0) for place in range(5))


def _patched(message: bytes, shortest: bytes, kinds: Sequence[str]) -> tuple[bytes, list[str]]:
    """A message in which varints of `_OFFSET` have 5 bytes, and where the callers' counts go."""
    found = list[str]()
    for kind in kinds:
        at = message.index(shortest)
        message = message[:at] + _varint(0) + message[at + len(shortest) :]
        found.append(f"{kind}@{at}")
    return message, found


def _plain(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*found, value))


def streams(server: Process, count: int, seconds: float, door: Mapping[str, str] | None = None) -> Figure:
    """Sessions that have a stream each and step one at a time."""
    x = Tensor(name="x", dtype="float32", shape=[1, FEATURES], data=bytes(4 * FEATURES))
    lines = []
    position = _OFFSET.to_bytes(8, "little")
    handle = (0).to_bytes(4, "little")
    for number in range(count):
        opening = pb.OpenFrame(
            model="lstm",
            handles=handle,
            ids=[f"edge-{uuid.uuid4().hex}-{number}"],
            writer=uuid.uuid4().bytes,
            incarnation=1,
            ephemeral=True,
        )
        # The frame's number by hand: as a varint of 5 bytes, so that it can grow.
        chunk = pb.ChunkFrame(handles=handle, positions=position, acked_positions=position, steps=1, inputs=[x])
        message = b"\x08" + _varint(0) + pb.StreamRequest(chunk=chunk).SerializeToString()
        first = message.index(position)
        patches = ["next@1", f"u64@{first}", f"u64@{message.index(position, first + 8)}"]
        lines.append(f"{pb.StreamRequest(frame=1, open=opening).SerializeToString().hex()} {message.hex()}")
    return closed_loop(server, http2.STREAM, "stream", lines, patches, seconds, door)


def steps(server: Process, count: int, seconds: float, door: Mapping[str, str] | None = None) -> Figure:
    """Sessions that are stepped by a unary call each."""
    x = Tensor(name="x", dtype="float32", shape=[1, FEATURES], data=bytes(4 * FEATURES))
    lines = []
    for _ in range(count):
        request = pb.StepRequest(
            model="lstm", session_id=f"edge-{uuid.uuid4().hex}", position=_OFFSET, acked_position=_OFFSET, inputs=[x]
        )
        message, patches = _patched(request.SerializeToString(), _plain(_OFFSET), ["varint", "varint"])
        lines.append(message.hex())
    return closed_loop(server, "/statestream.v1.InferenceService/Step", "unary", lines, patches, seconds, door)


def oip_steps(server: Process, count: int, seconds: float) -> Figure:
    """Sequences of the Open Inference Protocol that are stepped by a unary call each."""
    return closed_loop(server, f"/{oip.SERVICE}/ModelInfer", "unary", _sequences(server, count), [], seconds)


def oip_streams(server: Process, count: int, seconds: float) -> Figure:
    """Sequences of the Open Inference Protocol that have a stream each and step one at a time."""
    return closed_loop(server, f"/{oip.SERVICE}/ModelStreamInfer", "oip", _sequences(server, count), [], seconds)


def _sequences(server: Process, count: int) -> list[str]:
    """The next step of each of so many sequences that have started."""
    lines, first = [], uuid.uuid4().int >> 80
    with grpc.insecure_channel(server.address) as channel:
        infer: Any = channel.unary_unary(
            f"/{oip.SERVICE}/ModelInfer", request_serializer=oip_pb2.ModelInferRequest.SerializeToString
        )
        for number in range(first, first + count):
            request = oip_pb2.ModelInferRequest(model_name="lstm", raw_input_contents=[bytes(4 * FEATURES)])
            request.inputs.add(name="x", datatype="FP32", shape=[1, 1, FEATURES])
            request.parameters["sequence_id"].int64_param = number + 1
            lines.append(request.SerializeToString().hex())
            request.parameters["sequence_start"].bool_param = True
            infer(request)
    return lines


def predictions(server: Process, count: int, seconds: float) -> Figure:
    """Callers that predict one image a call."""
    x = cases.images(1)
    image = Tensor(name="x", dtype="float32", shape=x.shape, data=x.tobytes())
    message = pb.PredictRequest(model="convnet", inputs=[image]).SerializeToString()
    return closed_loop(server, http2.PREDICT, "unary", [message.hex()] * count, [], seconds)


def echoes(server: Process, count: int, seconds: float, method: str, kind: str, size: int) -> Figure:
    """Messages that come back as they are, of a stream or a call each."""
    opening = "- " if kind == "echo" else ""
    return closed_loop(server, method, kind, [opening + bytes(size).hex()] * count, [], seconds)
