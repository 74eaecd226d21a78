"""What the outputs must be: inputs from a seed, and each session run by ONNX Runtime alone, without a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from tests.server.models.graphs import recurrent, save
from tests.support.models import Whole
from tests.support.serving import TEST_DEVICE

MODEL = "lstm"
FEATURES, HIDDEN, OUTPUTS = 8, 16, 4
_BLOCK = 1024
_TOLERANCE = 0.0 if TEST_DEVICE == "cpu" else 1e-3


def write_model(folder: Path, versions: int = 1) -> Path:
    """Writes the model under test as MODELS_DIR/lstm/1, …; returns MODELS_DIR.

    It is an LSTM 8→16 with a linear head; the versions differ in their weights, and a session can move between them.
    """
    for version in range(1, versions + 1):
        model, _ = recurrent("LSTM", features=FEATURES, hidden=HIDDEN, outputs=OUTPUTS, seed=10 + version)
        save(model, folder / MODEL / str(version))
    return folder


@lru_cache(maxsize=8192)
def _block(seed: int, number: int, block: int) -> np.ndarray:
    return np.random.default_rng([seed, number, block]).standard_normal((_BLOCK, FEATURES), np.float32)


def inputs(seed: int, number: int, start: int, steps: int) -> np.ndarray:
    """Inputs [steps, FEATURES] of session `number` from position `start` on; the same at every call."""
    parts = []
    while steps:
        block, offset = divmod(start, _BLOCK)
        part = _block(seed, number, block)[offset : offset + steps]
        parts.append(part)
        start, steps = start + len(part), steps - len(part)
    return np.concatenate(parts) if len(parts) != 1 else parts[0]


@dataclass
class Track:
    """What one session was answered, in the order in which its caller got it.

    Attributes:
        number: Which session; its inputs follow from it.
        id: Its id on the servers.
        outputs: The outputs, [T, OUTPUTS] each.
        times: When each of them came, by time.monotonic.
        position: Steps answered so far.
        versions: The version of the model that it began with, at position 0, and those that it moved to, each with
            the position from which on its weights hold.
    """

    number: int
    id: str
    outputs: list[np.ndarray] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    position: int = 0
    versions: list[tuple[int, int]] = field(default_factory=lambda: [(0, 1)])

    @property
    def version(self) -> int:
        """The version that its next step runs with."""
        return self.versions[-1][1]

    def took(self, outputs: np.ndarray, at: float) -> None:
        """Notes what came."""
        outputs = np.asarray(outputs).reshape(-1, OUTPUTS)
        self.outputs.append(outputs)
        self.times.append(at)
        self.position += len(outputs)


class Oracle:
    """The uninterrupted run of every session."""

    def __init__(self, models: Path, seed: int) -> None:
        files = sorted((models / MODEL).glob("*/model.onnx"))
        self._versions = {int(file.parent.name): Whole(file) for file in files}
        self.seed = seed

    def outputs(self, number: int, steps: int, versions: Sequence[tuple[int, int]] = ((0, 1),)) -> np.ndarray:
        """Outputs [steps, OUTPUTS] of session `number`, which has `versions` from their positions on."""
        found, state = [], self._versions[versions[0][1]].start()
        ends = [position for position, _ in versions[1:]]
        for (start, version), end in zip(versions, [*ends, steps], strict=True):
            if start < end:
                x = {"x": inputs(self.seed, number, start, end - start)}
                y, state = self._versions[version].run_from(x, state)
                found.append(y["y"])
        return np.concatenate(found)

    def check(self, tracks: list[Track]) -> int:
        """Compares all that was received, bit by bit; returns how many outputs that were.

        Where the servers run on another device than ONNX Runtime here, within a tolerance, which a step too many or too
        few exceeds, too. An output that is lost, comes twice, comes out of turn or differs in a bit fails this: a
        step that the server skipped or repeated changes every output behind it.
        """
        checked = 0
        for track in tracks:
            if not track.position:
                continue
            wanted = self.outputs(track.number, track.position, track.versions)
            got = np.concatenate(track.outputs)
            assert got.shape == wanted.shape, f"{track.id}: {got.shape} outputs came, expected {wanted.shape}"
            differs = (got.view(np.uint32) != wanted.view(np.uint32)) & ~(np.abs(got - wanted) <= _TOLERANCE)
            wrong = np.flatnonzero(differs.any(axis=1))
            assert not len(wrong), (
                f"seed {self.seed}: session {track.id} differs from the uninterrupted run at {len(wrong)} of"
                f" {track.position} outputs, first at position {wrong[0]}: {got[wrong[0]]}, expected {wanted[wrong[0]]}"
            )
            checked += track.position
        return checked
