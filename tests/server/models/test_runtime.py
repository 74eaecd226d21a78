"""ONNX Runtime's edge: devices, errors in one line, fingerprints, and that nobody else imports it."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import statestream_server
from statestream_server.models.graphs import cuda, runtime
from statestream_server.models.graphs.runtime import DeviceError, Graph, GraphError, fingerprint, providers_for
from statestream_server.settings import threads_for
from tests.server.models import graphs

CPU = providers_for("cpu")


def test_only_runtime_imports_onnxruntime() -> None:
    (folder,) = statestream_server.__path__
    importing = {
        path.name
        for path in Path(folder).rglob("*.py")
        if re.search(r"^\s*(import|from)\s+(onnxruntime|torch)\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert importing == {"runtime.py"}


def test_a_missing_onnx_runtime_is_one_error_that_names_both_extras() -> None:
    code = "import sys; sys.modules['onnxruntime'] = None; import statestream_server.models.graphs.runtime"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: statestream-server needs ONNX Runtime")
    assert "statestream-server[cpu]" in last
    assert "statestream-server[gpu]" in last


@pytest.mark.parametrize("device", ["", "gpu", "cuda:x", "cpu:0", "auto:1"])
def test_a_device_that_does_not_exist_is_refused(device: str) -> None:
    with pytest.raises(DeviceError, match="does not exist; expected auto, cpu, cuda or cuda:<number>"):
        providers_for(device)


@pytest.fixture
def cuda_listed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The GPU build, which lists CUDA also where nothing of it is there; and a driver that shows one GPU."""
    runtime._cuda.cache_clear()
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: print("Failed to load libcublasLt.so.13: no such file"))
    monkeypatch.setattr(ort, "cuda_version", "13.0")
    monkeypatch.setattr(cuda, "gpus", lambda: [cuda.Gpu("GPU of a test", (9, 0))])
    yield
    runtime._cuda.cache_clear()


def only_the_cpu(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Sessions start on the CPU, whatever is asked for, as the GPU build's do where CUDA does not start."""
    real, asked = ort.InferenceSession, list[object]()

    def start(source: object, options: object, providers: list[object], enable_fallback: int) -> object:
        assert not enable_fallback
        asked.append(providers[0])
        return real(source, options, ["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", start)
    return asked


@pytest.fixture
def cuda_unlisted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    runtime._cuda.cache_clear()
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    yield
    runtime._cuda.cache_clear()


@pytest.mark.usefixtures("cuda_unlisted")
def test_without_cuda_auto_is_the_cpu_and_cuda_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "has_driver", lambda: False)
    assert not providers_for("auto").note, "who has none did not ask"
    monkeypatch.setattr(cuda, "has_driver", lambda: True)
    device = providers_for("auto")
    assert (device.name, device.kind) == ("cpu", "cpu")
    assert device.note == "this ONNX Runtime has no CUDA: in a fresh environment install statestream-server[gpu]"
    assert not providers_for("cpu").note
    with pytest.raises(
        DeviceError, match=r"device 'cuda:1' was asked for, but .*statestream-server\[gpu\]; or serve with --device cpu"
    ):
        providers_for("cuda:1")


@pytest.mark.usefixtures("cuda_listed")
def test_cuda_that_is_listed_and_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = only_the_cpu(monkeypatch)
    device = providers_for("auto")
    assert device.name == "cpu"
    assert "does not start on GPU of a test (9.0) (libraries not found: libcublasLt.so.13)" in device.note
    assert "CPUExecutionProvider did instead" in device.note
    with pytest.raises(DeviceError, match="'cuda' was asked for, but CUDAExecutionProvider does not start"):
        providers_for("cuda")
    assert asked == [
        (
            "CUDAExecutionProvider",
            {
                "device_id": "0",
                "use_tf32": "0",
                "cudnn_conv_algo_search": "HEURISTIC",
                "arena_extend_strategy": "kSameAsRequested",
            },
        )
    ]
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("cuda_listed")
def test_a_gpu_with_a_number_that_there_is_not() -> None:
    with pytest.raises(DeviceError, match="there is no GPU 3: this process sees 1, numbered from 0"):
        providers_for("cuda:3")


@pytest.mark.usefixtures("cuda_listed")
def test_a_driver_that_shows_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def gpus() -> list[cuda.Gpu]:
        raise cuda.DriverError("there is no NVIDIA driver here (libcuda.so.1 is missing)")

    monkeypatch.setattr(cuda, "gpus", gpus)
    with pytest.raises(DeviceError, match="no NVIDIA driver here .*: install NVIDIA's driver, and give a container"):
        providers_for("cuda")


@pytest.mark.usefixtures("cuda_listed")
def test_cuda_that_runs_is_taken_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What starts and computes counts; the sessions here are the CPU's under the other name."""
    real = ort.InferenceSession

    class Session(real):  # type: ignore[misc, valid-type]
        def __init__(self, source: object, options: object, providers: object, enable_fallback: int) -> None:
            super().__init__(source, options, ["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(cuda, "libraries", lambda: "cuDNN 91002")
    device = providers_for("auto")
    assert device.name == "cuda:0"
    assert fingerprint(device).endswith("; CUDAExecutionProvider; GPU of a test (9.0); cuDNN 91002; threads 1")


def test_a_device_that_stops_starting_is_an_error_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    device = dataclasses.replace(CPU, kind="cuda", providers=(("CUDAExecutionProvider", {}), *CPU.providers))
    only_the_cpu(monkeypatch)
    with pytest.raises(DeviceError, match="CUDAExecutionProvider did not start and CPUExecutionProvider did"):
        Graph(graphs.counter()[0].SerializeToString(), device)


def test_a_graph_tells_its_ports_and_metadata_and_runs() -> None:
    model, _ = graphs.counter()
    graph = Graph(model.SerializeToString(), providers_for("cpu"), inputs=["count", "x"], outputs=["count_out", "y"])
    assert graph.inputs == (("x", "float32", (-1, 2)), ("count", "int64", (-1,)))
    assert [port.name for port in graph.outputs] == ["y", "count_out"]
    assert "statestream.signature" in graph.metadata
    count, y = graph.predict([np.asarray([5]), np.zeros((1, 2), np.float32)])
    assert count.tolist() == [6]
    assert y.tolist() == [[5, 5]]


def test_what_onnx_runtime_refuses_is_one_line() -> None:
    graph = Graph(graphs.counter()[0].SerializeToString(), providers_for("cpu"))
    with pytest.raises(GraphError, match="invalid dimensions") as caught:
        graph.run({"x": np.zeros((1, 9), np.float32), "count": np.asarray([5])}, ["y"])
    assert "\n" not in str(caught.value)
    with pytest.raises(GraphError):
        Graph(b"nothing", providers_for("cpu"))


def test_the_fingerprint_names_version_provider_and_hardware() -> None:
    version, provider, processor, threads = fingerprint(CPU).split("; ")
    assert version == f"onnxruntime {ort.__version__}"
    assert provider == "CPUExecutionProvider"
    assert processor
    other = dataclasses.replace(CPU, providers=(("CUDAExecutionProvider", {}),))
    assert threads == "threads 1"
    alike = (CPU, other, dataclasses.replace(other, hardware="A"), dataclasses.replace(CPU, threads=2))
    assert len({fingerprint(device) for device in alike}) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_graph_runs_on_as_many_threads_as_it_may(count: int) -> None:
    """The caller's thread is one of them."""
    before = len(os.listdir("/proc/self/task"))
    graph = Graph(graphs.counter()[0].SerializeToString(), dataclasses.replace(CPU, threads=count))
    assert len(os.listdir("/proc/self/task")) - before == count - 1
    assert graph.device.threads == count


@pytest.mark.parametrize(
    ("processors", "processes", "threads"), [(1, 1, 1), (2, 1, 2), (2, 2, 1), (64, 1, 2), (4, 8, 1)]
)
def test_two_threads_where_there_are_two_processors_for_each_process(
    processors: int, processes: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)), raising=False)
    assert threads_for(processes) == threads
