"""Silero VAD's own files, unchanged, where the package silero-vad is installed (pip install --no-deps silero-vad).

Streamed frames have the bits of a loop over ONNX Runtime that keeps state and context as the package's wrapper does.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
import pytest

import statestream
from statestream_server.arrays import Array
from tests.support import serving

_FOUND = importlib.util.find_spec("silero_vad")
pytestmark = pytest.mark.skipif(_FOUND is None, reason="the package silero-vad is not installed")
_CALLS, _FRAMES = 64, 8
FILES: Final = {
    # By name the file, the rate (0: it takes none), and where that is told.
    "16k": ("silero_vad.onnx", 16000, "constants"),
    "8k": ("silero_vad.onnx", 8000, "constants"),
    "16k-of-each": ("silero_vad.onnx", 16000, "session"),
    "ifless-16k": ("silero_vad_op18_ifless.onnx", 16000, "constants"),
    "ifless-8k": ("silero_vad_op18_ifless.onnx", 8000, "constants"),
    "op15": ("silero_vad_16k_op15.onnx", 16000, "constants"),
    "half": ("silero_vad_half.onnx", 0, ""),
}


def _source(file: str) -> Path:
    assert _FOUND is not None
    assert _FOUND.submodule_search_locations is not None
    return Path(_FOUND.submodule_search_locations[0]) / "data" / file


def _sizes(rate: int) -> tuple[int, int]:
    """Samples of a frame, and of the context before it."""
    return (256, 32) if rate == 8000 else (512, 64)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("silero")
    for name, (file, rate, table) in FILES.items():
        place = folder / name / "1"
        place.mkdir(parents=True)
        shutil.copy(_source(file), place / "model.onnx")
        frame, context = _sizes(rate)
        told = f'context = {{ input = {context} }}\nshapes = {{ input = ["batch", {frame}] }}\n'
        (place / "model.toml").write_text(told + (f"{table} = {{ sr = {rate} }}\n" if rate else ""))
    with serving.process(folder, "--store", "memory") as server, statestream.connect(server.address) as client:
        yield client


def _loop(file: str, rate: int, frames: Array) -> Array:
    """Scores of one call's frames [T, samples]."""
    runtime = onnxruntime.InferenceSession(str(_source(file)), providers=["CPUExecutionProvider"])
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros((1, _sizes(rate)[1]), np.float32)
    scores = []
    for frame in frames:
        given = np.concatenate([context, frame[None]], axis=1)
        more = {"sr": np.asarray(rate, np.int64)} if rate else {}
        score, state = runtime.run(["output", "stateN"], {"input": given, "state": state, **more})
        context = given[:, -context.shape[1] :]
        scores.append(score[0, 0])
    return np.stack(scores)


@pytest.mark.parametrize("name", FILES)
def test_64_calls_at_once_have_the_bits_of_a_loop_each(client: Any, name: str) -> None:
    file, rate, table = FILES[name]
    calls = 4 if table == "session" else _CALLS  # They run one by one.
    frames = (np.random.default_rng(0).standard_normal((calls, _FRAMES, _sizes(rate)[0])) * 0.1).astype(np.float32)
    with client.sessions(name, calls) as pool:
        found = np.stack([pool.step(frames[:, step])[:, 0] for step in range(_FRAMES)], axis=1)
    expected = np.stack([_loop(file, rate, frames[call]) for call in range(calls)])
    np.testing.assert_array_equal(found, expected)
