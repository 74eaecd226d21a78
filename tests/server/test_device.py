"""A server whose rows lie on a device: what is loaded there, and that sessions notice nothing.

The device is the CPU under the rules of a GPU: graphs and memory as there, batches padded and warmed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statestream.v1 import inference_pb2 as pb
from statestream_server.arrays import Array, Bools, Ints
from statestream_server.models.files import repository
from statestream_server.models.graphs.runtime import Device, DeviceError, Graph, providers_for
from statestream_server.models.memory.device_rows import DeviceRows
from statestream_server.models.memory.numpy_rows import NumpyRows
from statestream_server.models.memory.policies import BucketedRows
from statestream_server.models.model import Model
from statestream_server.models.proof import building, making, proof, warming
from statestream_server.settings import StartError
from tests.server.models import graphs
from tests.support.arrays import same_bits
from tests.support.serving import serving
from tests.support.speaker import Answer, Refusal, Speaker


@pytest.fixture
def device_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU as a device with memory of its own."""
    monkeypatch.setattr(Device, "apart", property(lambda device: True))
    monkeypatch.setattr(warming, "_BUDGET", 0.05)


def load(folder: Path) -> Model:
    """Tried in this process, where the CPU is a device apart."""
    path, device = repository.file_of(folder), providers_for("cpu")
    return building.build(path, making.prove(path, device), name="m", version=1, device=device)


def below(model: Model) -> Any:
    assert isinstance(model.rows, BucketedRows)
    return model.rows._rows


@pytest.mark.usefixtures("device_apart")
def test_a_model_is_loaded_onto_the_device_and_warmed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="statestream_server")
    graphs.save(graphs.recurrent("LSTM")[0], tmp_path)
    model = load(tmp_path)
    assert isinstance(below(model), DeviceRows)
    assert "model.onnx: warmed up to" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.usefixtures("device_apart")
def test_where_commits_are_not_in_place_there_are_two_memories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(proof, "keeps_others", lambda rows, signature: False)
    graphs.save(graphs.recurrent("LSTM")[0], tmp_path)
    rows = below(load(tmp_path))
    assert isinstance(rows, DeviceRows)
    assert not rows._slab._in_place
    assert "cpu does not commit rows in place; every step copies all of them there" in caplog.text


@pytest.mark.usefixtures("device_apart")
def test_what_the_device_cannot_do_is_done_with_rows_on_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Graph, "elsewhere", lambda graph, nodes: sorted(nodes))
    graphs.save(graphs.recurrent("LSTM")[0], tmp_path)
    assert isinstance(below(load(tmp_path)), NumpyRows)
    assert "rows are copied in and out at every step, the graph cannot do it: cpu leaves" in caplog.text


async def scenario(folder: Path, store: str) -> list[list[Answer | Refusal]]:
    """Sessions of ragged lengths, one with an input that spoils its state, over a stop and a start."""
    rng, ids = np.random.default_rng(5), [f"s{number}" for number in range(37)]
    answers, position = list[list[Answer | Refusal]](), [0] * len(ids)
    for restart in range(2):
        async with serving(folder, store=store) as local, Speaker(local.channel, "lstm") as speaker:
            await speaker.open(*ids, mode=pb.OPEN_MODE_RESUME if restart else pb.OPEN_MODE_UNSPECIFIED)
            for _ in range(3):
                lengths = rng.integers(1, 40, len(ids)).tolist()
                chunks = [{"x": rng.standard_normal((n, 3)).astype(np.float32)} for n in lengths]
                chunks[5]["x"][-1] = np.nan
                await speaker.send_chunk(range(len(ids)), position, chunks)
                rows = sorted(await speaker.rows(len(ids)), key=lambda row: row.handle)
                answers.append(rows)
                for row in rows:
                    if isinstance(row, Answer):
                        position[row.handle] = row.end
    return answers


async def test_sessions_on_a_device_get_the_bits_that_they_get_on_the_host(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await scenario(models_dir, f"sqlite:{tmp_path / 'host.db'}")
    monkeypatch.setattr(Device, "apart", property(lambda device: True))
    monkeypatch.setattr(warming, "_BUDGET", 0.05)
    sizes, real = set[int](), DeviceRows.step

    def noting(rows: DeviceRows, source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        sizes.add(len(source))
        return real(rows, source, target, inputs)

    monkeypatch.setattr(DeviceRows, "step", noting)
    found = await scenario(models_dir, f"sqlite:{tmp_path / 'device.db'}")
    assert sizes
    for one, other in zip(expected, found, strict=True):
        for host, device in zip(one, other, strict=True):
            assert type(host) is type(device)
            assert (host.handle, host.position) == (device.handle, device.position)
            if isinstance(host, Answer) and isinstance(device, Answer):
                assert same_bits(host.outputs, device.outputs)
            else:
                assert isinstance(device, Refusal)
                assert device.failure.reason == "NON_FINITE_STATE"
        assert sum(isinstance(row, Refusal) for row in one) == 1


async def test_a_start_on_a_device_that_is_not_there_is_an_error(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def providers_for(device: str, threads: int) -> Device:
        raise DeviceError(f"device {device!r} was asked for, but there is no NVIDIA driver here; or serve with …")

    monkeypatch.setattr("statestream_server.models.graphs.runtime.providers_for", providers_for)
    with pytest.raises(StartError, match="device 'cuda:1' was asked for, but there is no NVIDIA driver here"):
        async with serving(models_dir, device="cuda:1"):
            pass


async def test_auto_that_becomes_the_cpu_says_so_once_and_is_told_to_callers(
    models_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from statestream_server.models.graphs import cuda, runtime

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(cuda, "has_driver", lambda: True)
    monkeypatch.setattr(runtime, "_cuda", lambda number: "the driver is on holiday")
    async with serving(models_dir, device="auto") as local:
        assert local.server.device == "cpu"
    assert [m for m in caplog.messages if "holiday" in m] == ["device auto is the CPU: the driver is on holiday"]
