"""The figures of all runs, in one JSON file by section: docs and pictures come from it alone."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

_DOCS = Path(__file__).parents[1] / "docs"
PAGE, IMAGES = _DOCS / "benchmarks.md", _DOCS / "images"
FILE = IMAGES / "bench.json"


def load(file: Path = FILE) -> dict[str, Any]:
    """What is known; nothing where there is no file."""
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return known


def update(sections: dict[str, Any], file: Path = FILE) -> None:
    """Replaces some sections; each says on which machine it was measured."""
    stamped = {name: {"machine": machine(), "figures": figures} for name, figures in sections.items()}
    file.write_text(json.dumps(load(file) | stamped, indent=1) + "\n")


def machine() -> str:
    """What ran it, in one line; the load average tells how busy it was besides."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    packages = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "grpcio", "protobuf", "numpy"))
    return (
        f"{len(os.sched_getaffinity(0))} cores of {model}, {platform.system()}, Python {platform.python_version()},"
        f" {packages}, load average {os.getloadavg()[0]:.1f}"
    )


def shown(value: float) -> str:
    """A figure for people: four digits, or whole numbers of thousands."""
    return f"{rounded(value):,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def rounded(value: float) -> float:
    """Four significant digits: more are noise."""
    return float(f"{value:.4g}")
