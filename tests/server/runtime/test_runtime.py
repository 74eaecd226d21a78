"""ONNX Runtime's edge: devices, errors in one line, fingerprints, and that nobody else imports it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import statestream_server
from statestream_server.models.runtime import DeviceError, Graph, GraphError, fingerprint, providers_for
from tests.server.runtime import graphs


def test_only_runtime_imports_onnxruntime() -> None:
    (folder,) = statestream_server.__path__
    importing = {
        path.name
        for path in Path(folder).rglob("*.py")
        if re.search(r"^\s*(import|from)\s+(onnxruntime|torch)\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert importing == {"runtime.py"}


def test_a_missing_onnx_runtime_is_one_error_that_names_both_extras() -> None:
    code = "import sys; sys.modules['onnxruntime'] = None; import statestream_server.models.runtime"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: statestream-server needs ONNX Runtime")
    assert "statestream-server[cpu]" in last
    assert "statestream-server[gpu]" in last


@pytest.mark.parametrize("device", ["", "gpu", "cuda:x", "cpu:0", "auto:1"])
def test_a_device_that_does_not_exist_is_refused(device: str) -> None:
    with pytest.raises(DeviceError, match="does not exist; expected auto, cpu, cuda or cuda:<number>"):
        providers_for(device)


def test_without_cuda_auto_is_the_cpu_and_cuda_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert providers_for("auto").name == "cpu"
    with pytest.raises(DeviceError, match=r"has no CUDA: .*statestream-server\[gpu\], or serve with --device cpu"):
        providers_for("cuda:1")


def test_cuda_that_is_listed_and_does_not_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The GPU build lists CUDA also where its libraries are missing, and falls back by itself."""
    model = graphs.counter()[0].SerializeToString()
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    real = ort.InferenceSession
    monkeypatch.setattr(
        ort,
        "InferenceSession",
        lambda source, options, providers: real(source, options, ["CPUExecutionProvider"]),
    )
    assert dict(providers_for("cuda:1").providers)["CUDAExecutionProvider"] == {"device_id": "1"}
    graph = Graph(model, providers_for("auto"))
    assert graph.providers == ("CPUExecutionProvider",)
    assert "CUDAExecutionProvider did not start" in caplog.text
    with pytest.raises(DeviceError, match="did not start"):
        Graph(model, providers_for("cuda"))


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


def test_the_fingerprint_names_version_provider_and_processor() -> None:
    version, provider, processor = fingerprint().split("; ")
    assert version == f"onnxruntime {ort.__version__}"
    assert provider == "CPUExecutionProvider"
    assert processor
    assert fingerprint(["CUDAExecutionProvider"]) != fingerprint()
