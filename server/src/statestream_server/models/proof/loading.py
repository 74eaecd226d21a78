"""Loading: a version is tried in a process of its own, then built here by what was found."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Final

from statestream_server.models.files import files
from statestream_server.models.files.repository import file_of
from statestream_server.models.graphs.runtime import Device, providers_for
from statestream_server.models.model import BatchPolicy, Model
from statestream_server.models.proof import making, trials
from statestream_server.models.proof.verdict import TrialLimits, Verdict

_log = logging.getLogger(__name__)
DEFAULT_LIMITS: Final = TrialLimits()


def load(
    name: str,
    version: int,
    folder: Path,
    *,
    device: Device | str = "auto",
    batch_policy: BatchPolicy = BatchPolicy.PAD,
    limits: TrialLimits = DEFAULT_LIMITS,
) -> Model:
    """Loads one version: tries it in a process of its own, then builds it here. Takes the time of a few runs.

    Args:
        name: The model's name.
        version: Its version.
        folder: The folder with its files.
        device: What it runs on, or "auto", "cpu", "cuda" or "cuda:<number>".
        batch_policy: What is done where it answers in other bits alone than in a batch.
        limits: What the trial may take.

    Raises:
        ModelLoadError: It cannot be served: the file, the reason, what to do.
    """
    path = file_of(folder)
    return load_file(path, name=name, version=version, device=device, batch_policy=batch_policy, limits=limits)


def load_file(
    path: Path,
    *,
    name: str,
    version: int,
    device: Device | str = "auto",
    batch_policy: BatchPolicy = BatchPolicy.PAD,
    limits: TrialLimits = DEFAULT_LIMITS,
) -> Model:
    """Loads one file, whatever its folder; an encoder.onnx or decoder.onnx brings the other one. See `load`.

    Raises:
        ModelLoadError: It cannot be served: the file, the reason, what to do.
    """
    with making.refusing(path):
        place = providers_for(device) if isinstance(device, str) else device
        verdict = _tried(path, place, batch_policy, limits)
        for level, text in verdict.said:
            _log.log(level, "%s", text)
        return making.build(path, verdict, name=name, version=version, device=place, policy=batch_policy)


def _tried(path: Path, device: Device, policy: BatchPolicy, limits: TrialLimits) -> Verdict:
    files.stamp(path)  # What is plainly no file needs no trial.
    if sys.platform == "win32":
        return making.prove(path, device, policy)
    return trials.shared()(
        path, device=device.name, threads=device.threads, apart=device.apart, policy=policy, limits=limits
    )
