"""All files of the package silero-vad, unchanged: 64 calls at once have the bits of the package's own wrapper each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pytest

import statestream
from tests.support import serving, voice

_CALLS, _FRAMES = 64, 24
_ALONE: Final = "context = { input = 64 }\n"
FILES: Final = {
    # By name the file, its rate, and what it is told.
    "16k": ("silero_vad.onnx", 16000, voice.told(16000)),
    "8k": ("silero_vad.onnx", 8000, voice.told(8000)),
    "16k-of-each": ("silero_vad.onnx", 16000, voice.told(16000, "session")),
    "ifless-16k": ("silero_vad_op18_ifless.onnx", 16000, voice.told(16000)),
    "ifless-8k": ("silero_vad_op18_ifless.onnx", 8000, voice.told(8000)),
    "op15": ("silero_vad_16k_op15.onnx", 16000, voice.told(16000)),
    "half": ("silero_vad_half.onnx", 16000, voice.told(16000, "")),
    "batch-of-1": ("silero_vad_openvino_16k.onnx", 16000, _ALONE),
    "sequence": (
        voice.SEQUENCE,
        16000,
        'context = { input = { keep = 64, axis = 1 } }\nshapes = { input = ["time", 512] }\n',
    ),
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("silero")
    for name, (file, _, told) in FILES.items():
        place = folder / name / "1"
        place.mkdir(parents=True)
        shutil.copy(voice.source(file), place / "model.onnx")
        (place / "model.toml").write_text(told)
    with serving.process(folder, "--store", "memory") as server, statestream.connect(server.address) as client:
        yield client


def test_these_are_all_files_of_the_package() -> None:
    folder = voice.source("silero_vad.onnx").parent
    assert {path.name for path in folder.glob("*.onnx")} == {file for file, _, _ in FILES.values()}


def test_many_frames_in_one_run_have_the_bits_of_the_packages_wrapper(client: Any) -> None:
    frames = voice.calls(4)
    with client.sessions("sequence", 4) as pool:
        cuts = [(0, 1), (1, 9), (9, 100), (100, frames.shape[1])]
        found = np.concatenate([pool.step(frames[:, start:end]).reshape(4, -1) for start, end in cuts], axis=1)
    for call in range(4):
        np.testing.assert_array_equal(found[call], voice.wrapped(voice.SEQUENCE, frames[call]))


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_64_calls_at_once_have_the_bits_of_the_packages_wrapper_each(client: Any, name: str) -> None:
    file, rate, _ = FILES[name]
    frames = voice.calls(_CALLS, rate, _FRAMES)
    with client.sessions(name, _CALLS) as pool:
        found = np.stack([pool.step(frames[:, step]).reshape(_CALLS) for step in range(_FRAMES)], axis=1)
    expected = np.stack([voice.wrapped(file, frames[call], rate) for call in range(_CALLS)])
    np.testing.assert_array_equal(found, expected)
    # Calls differ, and of both kinds there are some.
    assert (found < 0.5).any()
    assert (found > 0.5).any()
