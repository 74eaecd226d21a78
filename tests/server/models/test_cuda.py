"""CUDA: what the driver says, and, where there is a GPU, that rows on it are what they are on the host."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statestream.signature import numpy_dtype, step_shape
from statestream_server.models.graphs import cuda
from statestream_server.models.graphs.runtime import DeviceError, fingerprint, providers_for
from statestream_server.models.memory.device_rows import DeviceRows
from statestream_server.models.memory.fused_rows import FusedRows
from statestream_server.models.memory.policies import SerialisedRows
from statestream_server.models.proof import loading, proof
from statestream_server.models.proof.draws import Draws
from statestream_server.models.rows import Rows, is_batched
from tests.server.models import graphs
from tests.server.models.test_rows import MODELS, same_bits, values


class Driver:
    """NVIDIA's driver as a process meets it: functions that fill in what they are given a reference to."""

    def __init__(self, gpus: list[tuple[str, int, int]], code: int = 0) -> None:
        self._gpus, self._code = gpus, code

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        return self._code

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self._gpus)
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:
        device._obj.value = number
        return 0

    def cuDeviceGetName(self, buffer: Any, size: int, device: Any) -> int:
        assert size == len(buffer)
        buffer.value = self._gpus[device.value][0].encode()
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = self._gpus[device.value][{75: 1, 76: 2}[attribute]]
        return 0


def found(monkeypatch: pytest.MonkeyPatch, driver: Driver | None) -> None:
    def library(name: str) -> Driver:
        if driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        return driver

    monkeypatch.setattr(ctypes, "CDLL", library)


def test_the_driver_names_its_gpus_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, Driver([("NVIDIA L4", 8, 9), ("NVIDIA H100", 9, 0)]))
    assert [str(gpu) for gpu in cuda.gpus()] == ["NVIDIA L4 (8.9)", "NVIDIA H100 (9.0)"]


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        (None, "there is no NVIDIA driver here"),
        (Driver([]), "shows this process no GPU"),
        (Driver([], code=100), "shows this process no GPU"),
        (Driver([("a", 1, 1)], code=803), r"does not start \(cuInit gave 803\); does nvidia-smi work"),
    ],
)
def test_a_driver_without_a_gpu_says_why(monkeypatch: pytest.MonkeyPatch, driver: Driver | None, said: str) -> None:
    found(monkeypatch, driver)
    with pytest.raises(cuda.DriverError, match=said):
        cuda.gpus()


def test_the_libraries_that_are_loaded_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        """One function, which gives a version."""

        def __init__(self, name: str) -> None:
            if name == "libcublasLt.so.13":
                raise OSError(name)
            function: Callable[[], int] = {
                "libcudnn.so.9": lambda: 91002,
                "libcublasLt.so.12": lambda: 120804,
            }[name]
            setattr(self, "cudnnGetVersion" if "cudnn" in name else "cublasLtGetVersion", function)

    monkeypatch.setattr(ctypes, "CDLL", Library)
    assert cuda.libraries() == "cuDNN 91002, cuBLAS 120804"
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert cuda.libraries() == ""


def _why_not() -> str:
    try:
        providers_for("cuda")
    except DeviceError as error:
        return str(error)
    return ""


# `make gpu` sets STATESTREAM_REQUIRE_GPU: there, what cannot run fails and says why.
_required = os.environ.get("STATESTREAM_REQUIRE_GPU") == "1"
on_a_gpu = pytest.mark.skipif(bool(_why_not()) and not _required, reason=_why_not())
_TOLERANCE = 1e-5


@on_a_gpu
@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "two memories"])
@pytest.mark.parametrize(
    "name", ["LSTM-0-1", "LSTM-1-0", "GRU-2-1", "RNN-1-1", "counter", "delay", "half nan", "double"]
)
def test_rows_on_the_gpu_are_what_they_are_on_the_host(name: str, in_place: bool) -> None:
    """Moves bit for bit, steps but for rounding; rows that are not written keep every bit."""
    model, signature = MODELS[name]()
    host: Rows = FusedRows(model, signature, providers_for("cpu"), check_inputs=True)
    gpu: Rows = DeviceRows(model, signature, providers_for("cuda"), check_inputs=True, in_place=in_place)
    if not is_batched(signature):
        host, gpu = SerialisedRows(host, single=False), SerialisedRows(gpu, single=False)
    assert proof.keeps_others(gpu, Draws(signature))
    rng, every = np.random.default_rng(6), np.arange(1, 50)
    for rows in (host, gpu):
        rows.grow(50)
        rows.reset(every)
    assert all(map(same_bits, host.read(every), gpu.read(every)))
    for _ in range(5):
        target = rng.permutation(every)[:9]
        source = np.where(rng.random(9) < 0.5, target, rng.choice(np.setdiff1d(every, target), 9))
        steps = min(4, host.max_slice)
        inputs = [values(rng, numpy_dtype(spec.dtype), (9, steps, *step_shape(spec))) for spec in signature.inputs]
        inputs[0][3] = np.nan
        (expected, bad), (outputs, also) = (rows.step(source, target, inputs) for rows in (host, gpu))
        assert bad.tolist() == also.tolist()
        for one, other in zip([*expected, *host.read(every)], [*outputs, *gpu.read(every)], strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-2 if one.dtype == np.float16 else _TOLERANCE, atol=1e-2 if
                                       one.dtype == np.float16 else _TOLERANCE)  # fmt: skip
        gpu.write(every, host.read(every))
    for rows in (host, gpu):
        rows.grow(5000)
        rows.copy(every, every + 1000)
    assert all(map(same_bits, host.read(every + 1000), gpu.read(every + 1000)))


@on_a_gpu
def test_the_same_steps_give_the_same_bits_on_the_gpu() -> None:
    results = []
    for _ in range(2):
        model, signature = graphs.recurrent("LSTM", hidden=64, layers=2)
        rows = DeviceRows(model, signature, providers_for("cuda"), check_inputs=True)
        rows.grow(300)
        every = np.arange(1, 257)
        rows.reset(every)
        x = np.random.default_rng(7).standard_normal((256, 16, 3)).astype(np.float32)
        results.append(rows.step(every, every, [x])[0][0])
    assert same_bits(*results)


@on_a_gpu
def test_a_model_is_loaded_onto_the_gpu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="statestream_server")
    graphs.save(graphs.recurrent("LSTM", hidden=64, layers=2)[0], tmp_path)
    model = loading.load("m", 1, tmp_path, device="auto")
    assert model.providers[0] == "CUDAExecutionProvider"
    assert "warm after" in caplog.text
    assert "does not commit rows in place" not in caplog.text
    assert "copied in and out" not in caplog.text
    assert "CUDAExecutionProvider; " in fingerprint(providers_for("auto"))
    with pytest.raises(DeviceError, match="there is no GPU 99"):
        providers_for("cuda:99")
