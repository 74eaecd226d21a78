"""Small files in the formats of the published data sets."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

from statestream_export.datasets.images import MNIST, digits


def idx_bytes(values: np.ndarray) -> bytes:
    shape = struct.pack(f">{values.ndim}I", *values.shape)
    return bytes([0, 0, 8, values.ndim]) + shape + values.astype(np.uint8).tobytes()


def image_folder(folder: Path, count: int = 200) -> Path:
    """The four files of MNIST and of Fashion-MNIST, with scans of digits in them."""
    folder.mkdir(parents=True, exist_ok=True)
    made = digits(28)
    parts = (made.images[:count], made.labels[:count], made.test_images[:50], made.test_labels[:50])
    for name, part in zip(MNIST.files, parts, strict=True):
        (folder / name).write_bytes(gzip.compress(idx_bytes(part.numpy())))
    return folder


def german_rows(count: int) -> str:
    generator = np.random.default_rng(0)
    rows = generator.integers(0, 5, (count, 24))
    labels = 1 + (rows[:, 0] > 2)
    return "".join(f"{'  '.join(map(str, row))}  {label} \n" for row, label in zip(rows, labels, strict=True))


def adult_rows(count: int, *, dot: str = "") -> str:
    generator = np.random.default_rng(count)
    lines = []
    for _ in range(count):
        age, hours = int(generator.integers(18, 80)), int(generator.integers(10, 60))
        work = str(generator.choice(["Private", "State-gov", "?"]))
        label = ">50K" if age + hours > 85 else "<=50K"
        lines.append(
            f"{age}, {work}, 77516, Bachelors, 13, Never-married, Sales, Wife, White, Female, 0, 0, {hours}, Cuba,"
            f" {label}{dot}\n"
        )
    return "".join(lines) + "\n"


def tsf(series: list[list[float]], horizon: int) -> str:
    """Series in the Monash archive's format."""
    lines = [f"T{at}:1970-01-01 00-00-00:{','.join(map(str, one))}" for at, one in enumerate(series, 1)]
    return "\n".join(["# yearly", f"@horizon {horizon}", "@data", *lines]) + "\n"


def yearly_folder(folder: Path, count: int = 12) -> Path:
    """The file of M1 yearly, with series that drift, of 16 years and more."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(3)
    made = [
        np.round(50 * 3.0 ** (at % 5) + np.cumsum(draw.normal(1.0 + at % 3, 2.0, 16 + 2 * at)), 3).tolist()
        for at in range(count)
    ]
    (folder / "m1_yearly_dataset.tsf").write_text(tsf(made, horizon=6))
    return folder
