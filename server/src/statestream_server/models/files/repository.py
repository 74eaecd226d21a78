"""The models folder: which versions there are, what lies astray, and a version's columns without loading it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from statestream_server.models.files import files, modelfile
from statestream_server.models.rows import Column, columns_of

SINGLE, ENCODER, DECODER = "model.onnx", "encoder.onnx", "decoder.onnx"
_QUICK_BYTES: Final = 64 << 20
LAYOUT: Final = f"MODELS_DIR/<model>/<version>/{SINGLE} (or {ENCODER} and {DECODER}), where a version is 1, 2, …"
_MOST_TOLD: Final = 20
_HIGHEST_VERSION: Final = (1 << 63) - 1


class Found(NamedTuple):
    """One version in the models folder."""

    name: str
    version: int
    folder: Path


def mark(found: Found) -> bytes:
    """16 bytes that stand for a version while it loads: others once its files are others."""
    files = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in found.folder.glob("*"))
    return hashlib.sha256(repr((found.name, found.version, files)).encode()).digest()[:16]


def scan(models_dir: Path) -> list[Found]:
    """Every `<model>/<version>/` with a model.onnx, or an encoder.onnx and a decoder.onnx; by name, then version.

    Anything else in the folder is ignored, hidden folders too.

    Raises:
        OSError: The folder cannot be read.
    """
    found = []
    for folder in models_dir.glob("*/*"):
        name, number = folder.parent.name, folder.name
        if not name.startswith(".") and _is_version(number) and _is_servable(folder):
            found.append(Found(name, int(number), folder))
    return sorted(found)


def _is_version(number: str) -> bool:
    return number.isascii() and number.isdecimal() and 0 < int(number) <= _HIGHEST_VERSION


def _is_servable(folder: Path) -> bool:
    return (folder / SINGLE).is_file() or ((folder / ENCODER).is_file() and (folder / DECODER).is_file())


def astray(models_dir: Path) -> list[str]:
    """What lies in a models folder and is not served because of where it lies or how it is called, in words.

    Raises:
        OSError: The folder cannot be read.
    """
    if not scan(models_dir) and not any(models_dir.iterdir()):
        return [f"{models_dir} is empty, nothing is served; put models there as {LAYOUT} and load them by name"]
    told = list[str]()
    for depth in ("*.onnx", "*/*.onnx", "*/*/*.onnx"):
        for path in sorted(models_dir.glob(depth)):
            parts = path.relative_to(models_dir).parts
            why = "" if any(part.startswith(".") for part in parts) else _astray(path, parts)
            if why:
                told.append(f"{path} is not served: {why}; expected {LAYOUT}")
    if not scan(models_dir) and not told:
        told.append(f"nothing in {models_dir} is served: no .onnx file lies there; expected {LAYOUT}")
    if len(told) > _MOST_TOLD:
        told[_MOST_TOLD:] = [f"{len(told) - _MOST_TOLD} more files are not served because of where they lie"]
    return told


def _astray(path: Path, parts: tuple[str, ...]) -> str:
    """Why a file is not served, by its place; "" where it is, or nobody would expect it to be."""
    if len(parts) == 1:
        return "it lies in the models folder itself"
    if len(parts) == 2:
        if _is_version(parts[0]):
            return "MODELS_DIR is the folder of one model; give the folder above"
        return f"there is no version folder around it (move it to {parts[0]}/1/{SINGLE})"
    if not _is_version(parts[1]):
        return f"{parts[1]!r} is no version"
    if _is_servable(path.parent):
        return ""
    if parts[2] in (SINGLE, ENCODER, DECODER):
        return "it is no regular file" if not path.is_file() else f"its other half, {ENCODER} or {DECODER}, is missing"
    return f"it is not called {SINGLE}"


def file_of(folder: Path) -> Path:
    """The file that stands for a version: its only one, or the decoder of a pair."""
    return folder / (SINGLE if (folder / SINGLE).is_file() else DECODER)


def columns(folder: Path) -> Sequence[Column] | None:
    """The columns of the rows that a version would have, without loading it; None where its files do not say.

    Nothing is run, and a file that is large or wrong says nothing.
    """
    path = file_of(folder)
    try:
        if files.stamp(path).size > _QUICK_BYTES:
            return None
        return columns_of(modelfile.read(path).signature)
    except Exception:  # It is only for the words of another error.
        return None
