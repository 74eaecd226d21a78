"""The demo's figures: errors, the runs to compare with, and whether the promises were kept."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

Numbers = npt.NDArray[np.float32]

LAYERS, HIDDEN = 2, 64
TOLERANCE = 1e-5
"""How far ONNX Runtime may be from torch, relative to each value and to the largest one: the export gate's bound."""


@dataclass(frozen=True)
class Errors:
    """How far forecasts are from the truth, in the unit of the series."""

    rmse: float
    mae: float

    def __str__(self) -> str:
        return f"{self.rmse:.1f} / {self.mae:.1f}"


def errors_of(forecast: Numbers, truth: Numbers) -> Errors:
    """RMSE and MAE of forecasts [T] of a series [T]."""
    gap = forecast.astype(np.float64) - truth
    return Errors(float(np.sqrt(np.mean(gap**2))), float(np.mean(np.abs(gap))))


def run_in_process(model: Path, numbers: Numbers, warm_up: int, horizon: int) -> tuple[Numbers, Numbers]:
    """What a session should answer: the same file, in this process, with neither server nor crash.

    Args:
        model: The exported file.
        numbers: The series [T].
        warm_up: How many of its steps come as one chunk; the others come one by one.
        horizon: Steps of the forecast from its end.

    Returns:
        The answers [T] and the forecast [horizon].
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    h = c = np.zeros((LAYERS, 1, HIDDEN), np.float32)
    answers, forecast = [], []
    for chunk in (numbers[:warm_up], *numbers[warm_up:, None]):
        y, h, c = session.run(["y", "h_out", "c_out"], {"x": chunk[None, :, None], "h": h, "c": c})
        answers.append(y[0, :, 0])
    for _ in range(horizon):
        last = y[:, -1:]
        forecast.append(last[0, 0, 0])
        y, h, c = session.run(["y", "h_out", "c_out"], {"x": last, "h": h, "c": c})
    return np.concatenate(answers), np.asarray(forecast)


def run_in_torch(module: torch.nn.Module, numbers: Numbers) -> Numbers:
    """The trained module's answers [T] to the whole series at once."""
    zeros = torch.zeros(LAYERS, 1, HIDDEN)
    with torch.no_grad():
        answer, _, _ = module(torch.from_numpy(numbers)[None, :, None], zeros, zeros)
    return np.asarray(answer[0, :, 0])


def allowed(expected: Numbers) -> Numbers:
    """How far each of the answers [T] may be from `expected`."""
    return np.asarray(TOLERANCE * (np.abs(expected) + np.abs(expected).max()), np.float32)


def hardware() -> str:
    """Processor, cores and versions, for whoever reads the figures."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = found[0] if found else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = f"Python {platform.python_version()}, ONNX Runtime {onnxruntime.__version__}"
    return f"{name}, {cores} cores, {platform.system()}, {versions}"
