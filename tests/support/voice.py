"""Silero VAD, from the package silero-vad: its files, what they are told, its wrapper, and a recording of 6 seconds.

Nothing here imports the package but `wrapped`; where it is not installed, tests skip and CI fails.
"""

from __future__ import annotations

import importlib
import shutil
import warnings
import wave
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import statestream
from tests.support import others, serving
from tests.support.pages import ROOT

RECORDING: Final = ROOT / "docs" / "voice" / "recording.wav"
"""Two sentences and a burst of noise; tools/record_voice.py makes it with espeak-ng and sox."""
RATE: Final = 16_000
FRAME: Final = 512
"""Samples a step, at 16 kHz."""
SEQUENCE: Final = "silero_vad_16k_sequence.onnx"
Samples = NDArray[np.float32]


def source(file: str) -> Path:
    """A file of the package."""
    return others.required("silero_vad", f"data/{file}")


def sizes(rate: int) -> tuple[int, int]:
    """Samples of a frame, and how many of the frame before are put before it."""
    return (256, 32) if rate == RATE // 2 else (FRAME, 64)


def told(rate: int, table: str = "constants") -> str:
    """The model.toml of a file with a free batch; `table` "" where the file takes no rate."""
    frame, context = sizes(rate)
    text = f'context = {{ input = {context} }}\nshapes = {{ input = ["batch", {frame}] }}\n'
    return text + (f"{table} = {{ sr = {rate} }}\n" if table else "")


def recording() -> Samples:
    """The recording, between -1 and 1, at 16 kHz."""
    with wave.open(str(RECORDING)) as file:
        data = np.frombuffer(file.readframes(file.getnframes()), np.uint8)
    return (data.astype(np.float32) - np.float32(128)) / np.float32(128)


def calls(count: int, rate: int = RATE, steps: int | None = None) -> Samples:
    """Calls as frames [count, steps, samples]: each has the recording from another place, and its own noise on top."""
    frame, _ = sizes(rate)
    said = recording()[:: RATE // rate]
    length = len(said) // frame if steps is None else steps
    rng = np.random.default_rng(0)
    rows = []
    for call in range(count):
        heard = np.roll(said, -call * len(said) // count)[: length * frame]
        rows.append(heard + rng.normal(0, 0.001 * (call % 8), heard.shape))
    return np.asarray(rows, np.float32).reshape(count, length, frame)


def served(file: str, frames: Samples, folder: Path) -> Samples:
    """Scores [calls, steps] of a server whose sessions are the calls, all at once."""
    (folder / "vad").mkdir()
    shutil.copy(source(file), folder / "vad" / "vad.onnx")
    (folder / "vad" / "vad.toml").write_text(told(RATE))
    with (
        serving.process(folder / "vad", "--store", "memory") as server,
        statestream.connect(server.address) as client,
        client.sessions("vad", len(frames)) as pool,
    ):
        return np.stack([scores[:, 0] for scores in pool.stream(frames.swapaxes(0, 1))], axis=1)


def wrapped(file: str, frames: Samples, rate: int = RATE) -> Samples:
    """Scores [steps] of the package's own wrapper for one call's frames [steps, samples]."""
    path = source(file)
    if file == SEQUENCE:
        sequence: Any = importlib.import_module("silero_vad").SileroVADSequence(str(path))
        scores: Samples = sequence.audio_forward(frames.reshape(-1))
        return scores
    wrapper, torch = wrapper_of(path), importlib.import_module("torch")
    return np.asarray([wrapper(torch.from_numpy(frame), rate)[0, 0].numpy() for frame in frames], np.float32)


def wrapper_of(path: Path) -> Any:
    """The package's wrapper of a file; it hands `sr` to every file, and to one that takes none it gets no further."""
    package = importlib.import_module("silero_vad.utils_vad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That some files know one rate only.
        wrapper: Any = package.OnnxWrapper(str(path), force_onnx_cpu=True)
    session = wrapper.session
    if all(each.name != "sr" for each in session.get_inputs()):
        wrapper.session = _WithoutRate(session)
    return wrapper


class _WithoutRate:
    """A session of ONNX Runtime that takes a rate and does nothing with it."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self, names: Any, feeds: dict[str, Any]) -> Any:
        return self._session.run(names, {name: value for name, value in feeds.items() if name != "sr"})
