"""Where models lie: what the paths that a server is pointed at hold, by which name and version, and what lies astray.

One rule names a file, wherever it was found: `NAME.onnx` is version 1 of NAME; model.onnx, or an encoder with its
decoder, is called like its folder; and a folder whose name is a number is that version of the folder around it. A pair
is encoder.onnx and decoder.onnx, or as others export it, encoder_model.onnx and decoder_model.onnx.
A model.toml without any of these beside it names the files of a chain, which are no models of their own. What tells
several sizes is a model for each, NAME-SIZE.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from statestream_server.models.files import files
from statestream_server.models.model import ModelLoadError

SINGLE, ENCODER, DECODER = "model.onnx", "encoder.onnx", "decoder.onnx"
EXPORTED: Final = "encoder_model.onnx"
"""The encoder of a pair as Optimum exports it."""
DECODERS: Final = ("decoder_model.onnx", "decoder_model_merged.onnx", "decoder_with_past_model.onnx")
"""The decoders that it exports: the first that is there stands for the pair."""
CHAIN: Final = "model.toml"
"""What stands for files that are one model together, and tells of a pair as others export it."""
ALIASES: Final = "aliases.toml"
"""What names versions, in the folder of these."""
LAYOUTS: Final = (
    f"NAME.onnx, NAME/{SINGLE} or NAME/VERSION/{SINGLE} ({ENCODER} and {DECODER} for a pair, {CHAIN} for a chain;"
    " a version is 1, 2, …)"
)
_PAIRED: Final = (ENCODER, DECODER, EXPORTED, *DECODERS)
_PARTS: Final = (SINGLE, *_PAIRED)
_NAMELESS: Final = (*_PARTS, CHAIN)
"""What is called like its folder."""
_SUFFIX, _TOML = ".onnx", ".toml"
_DEPTH: Final = 3
_MOST_TOLD: Final = 20
_MOST_SHOWN: Final = 12
HIGHEST_VERSION: Final = (1 << 63) - 1


class Found(NamedTuple):
    """One version of a model.

    Attributes:
        path: The file that stands for it: its only one, the decoder of a pair, or the model.toml of a chain.
        size: Which of several sizes of that file it is; "" where there is one.
    """

    name: str
    version: int
    path: Path
    size: str = ""


class Entry(NamedTuple):
    """A file beside others, as one look shows it."""

    name: str
    inode: int
    size: int
    changed: int


@dataclass(slots=True)
class Scan:
    """What one look at the paths found.

    Attributes:
        found: The versions that can be tried, by name, then version.
        clashes: Two files of one name and version, in words that name both; none of them is served.
        mixed: Whether a clash is between two of the paths.
        astray: Files that are not served because of where they lie or how they are called, in words.
        missing: Paths that are not there, or cannot be read.
    """

    found: list[Found] = field(default_factory=list)
    clashes: dict[tuple[str, int], str] = field(default_factory=dict)
    mixed: bool = False
    astray: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def scan(places: Sequence[Path]) -> Scan:
    """Finds what lies at files and in folders; nothing is read but names, and the sizes that a model.toml tells.

    A folder holds models as `LAYOUTS` says, side by side, or is itself that of one model or version. Whatever is hidden
    is passed over, and a link in a folder that leads out of it is not followed.
    """
    told, by_key = Scan(), dict[tuple[str, int], dict[tuple[Path, str], Path]]()
    for place in places:
        try:
            paths = list(_within(place, told)) if place.is_dir() else [_pointed(place, told)]
        except OSError as error:
            told.missing.append(f"{place}: {error.strerror or error}")
            continue
        for path in filter(None, paths):
            name, version = _key(path)
            for size in sizes(path) or [""]:
                key = f"{name}-{size}" if size else name, version
                by_key.setdefault(key, {}).setdefault((Path(os.path.abspath(path)), size), place)
    for (name, version), places_of in sorted(by_key.items()):
        paths = [path for path, _ in places_of]
        if len(paths) == 1:
            told.found.append(Found(name, version, *next(iter(places_of))))
            continue
        told.mixed |= len(set(places_of.values())) > 1
        told.clashes[name, version] = (
            f"{paths[0]} and {paths[1]} are both version {version} of {name!r}, and neither is served; rename one, or"
            f" make it another version ({name}/{version + 1}/{SINGLE})"
        )
    return told


def sizes(path: Path) -> list[str]:
    """The sizes in which a file is served, by its model.toml; none where that tells none, or cannot be read."""
    beside = settling(path)
    try:
        stat = beside.stat()
        return _sizes(beside, stat.st_ino, stat.st_mtime_ns, stat.st_size)
    except OSError:
        return []


@functools.lru_cache(1 << 14)
def _sizes(path: Path, inode: int, changed: int, size: int) -> list[str]:
    """The same; read once until it changed."""
    from statestream_server.models.form import entries
    from statestream_server.models.form.told import ToldError

    try:
        text = files.told(path)
        return [*entries.loads(text[0]).by_size()] if text is not None else []
    except (ModelLoadError, ToldError):  # Loading says so.
        return []


def _key(path: Path) -> tuple[str, int]:
    """The name and version of a file, by its place."""
    whole = Path(os.path.abspath(path))
    if whole.name not in _NAMELESS:
        return whole.stem, 1
    folder = whole.parent
    if _is_version(folder.name) and folder.parent.name:
        return folder.parent.name, int(folder.name)
    return folder.name or whole.stem, 1


def folder_of(path: Path) -> Path:
    """The folder of a model's versions, by the file of one; for a file with a name of its own the one of that name."""
    whole = Path(os.path.abspath(path))
    if whole.name not in _NAMELESS:
        return whole.with_suffix("")
    folder = whole.parent
    return folder.parent if _is_version(folder.name) and folder.parent.name else folder


def _is_version(number: str) -> bool:
    return number.isascii() and number.isdecimal() and 0 < int(number) <= HIGHEST_VERSION


def _pointed(path: Path, told: Scan) -> Path | None:
    """A file that is meant itself; it need not be a regular one, loading says so."""
    path.stat()
    why = _halved(path) or _unnamed(path)
    if path.suffix not in (_SUFFIX, _TOML):
        why = "it is no .onnx file, nor the .toml of a chain"
    if why:
        told.astray.append(f"{path} is not served: {why}; expected {LAYOUTS}")
        return None
    couple = pair(path)
    return couple[1] if couple else path


def pair(path: Path) -> tuple[Path, Path] | None:
    """The encoder and the decoder that a file is one of, by its name; None where it stands for itself."""
    if path.name in (ENCODER, DECODER):
        return path.with_name(ENCODER), path.with_name(DECODER)
    if path.name in _PAIRED:
        there = [name for name in DECODERS if path.with_name(name).is_file()]
        return path.with_name(EXPORTED), path.with_name((there or DECODERS)[0])
    return None


def settling(path: Path) -> Path:
    """The model.toml of a file, whether it is there or not."""
    return path.with_name(CHAIN) if path.name in (EXPORTED, *DECODERS) else path.with_suffix(_TOML)


def _within(root: Path, told: Scan) -> Iterator[Path]:
    """The files in a folder that stand for versions."""
    real = root.resolve()
    for path, linked in _files(root, _DEPTH):
        why = _astray(path, path.relative_to(root).parts) or _unnamed(path)
        if not why and linked and not path.resolve().is_relative_to(real):
            why = f"a link leads out of {root}, to {path.resolve()}, and is not followed (copy it, or serve that too)"
        if why:
            told.astray.append(f"{path} is not served: {why}; expected {LAYOUTS}")
        elif path == (pair(path) or (None, path))[1]:
            yield path


def _files(folder: Path, depth: int, *, linked: bool = False) -> Iterator[tuple[Path, bool]]:
    """Every file of a model down to a depth that is not hidden, in order, and whether a link led there."""
    with os.scandir(folder) as entries:
        inside = sorted(entries, key=lambda entry: entry.name)
    names = {entry.name for entry in inside}
    chain = CHAIN in names and names.isdisjoint(_PARTS)
    for entry in inside:
        if entry.name.startswith("."):
            continue
        link = linked or entry.is_symlink()
        try:
            if not entry.is_dir():
                if entry.name == CHAIN if chain else entry.name.endswith(_SUFFIX):
                    yield Path(entry.path), link
            elif depth > 1:
                yield from _files(Path(entry.path), depth - 1, linked=link)
        except OSError:  # It may be gone already, be nobody's business, or a link to itself.
            continue


def _astray(path: Path, parts: Sequence[str]) -> str:
    """Why a file in a folder is not served, by its place; "" where it is."""
    if len(parts) == _DEPTH and not _is_version(parts[1]):
        return f"{parts[1]!r} is no version"
    if not path.is_file():
        return "it is no regular file"
    if len(parts) > 1 and path.name not in _NAMELESS:
        return f"it is not called {SINGLE}"
    return _halved(path)


def _halved(path: Path) -> str:
    """What is wrong with a file as part of a version; "" where nothing is."""
    couple = pair(path)
    if couple is None:
        return ""
    if path.with_name(SINGLE).exists():
        return f"{SINGLE} lies beside it, and a version is one file or a pair"
    if path.name not in (ENCODER, DECODER) and path.with_name(DECODER).exists():
        return f"{DECODER} lies beside it, and a version is one pair"
    if not all(half.is_file() for half in couple):
        return f"its other half, {' or '.join(half.name for half in couple)}, is missing"
    return ""


def _unnamed(path: Path) -> str:
    name, _ = _key(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        return f"its name, {name!r}, is not UTF-8"
    return ""


def shown(told: Scan) -> list[str]:
    """What to warn of beside what is served: files astray, and what is missing."""
    lines = [*told.missing, *told.astray]
    if len(lines) > _MOST_TOLD:
        lines[_MOST_TOLD:] = [f"{len(lines) - _MOST_TOLD} more files are not served because of where they lie"]
    return lines


def nothing(places: Sequence[Path], told: Scan) -> str:
    """Why nothing is served: what lies there, and what is expected; one line."""
    if told.missing:
        return f"{'; '.join(told.missing)}; point the server at a file.onnx, or at a folder of {LAYOUTS}"
    if told.astray:
        more = f" (and {len(told.astray) - 1} more like it)" if len(told.astray) > 1 else ""
        return told.astray[0] + more
    lying = [name for place in places for name in _listing(place, place.parent)][: _MOST_SHOWN + 1]
    more = ", …" if len(lying) > _MOST_SHOWN else ""
    there = f"there is {', '.join(lying[:_MOST_SHOWN])}{more}" if lying else "it is empty"
    where = " and ".join(map(str, places))
    return f"nothing in {where} can be served: {there}; expected {LAYOUTS}"


def _listing(folder: Path, base: Path, depth: int = _DEPTH) -> Iterator[str]:
    """What lies in a folder, folders that hold nothing with a slash."""
    try:
        inside = sorted(folder.iterdir())
    except OSError:
        return
    for path in inside:
        deeper = list(_listing(path, base, depth - 1)) if path.is_dir() and depth > 1 else []
        yield from deeper or [f"{path.relative_to(base)}{'/' if path.is_dir() else ''}"]


def look(path: Path) -> tuple[Entry, ...]:
    """What a version is made of, as it lies there: another value once any of it is another, or is still written.

    Its file, of a pair those that may be of it, of a chain all, and whatever lies beside that is no other model:
    weights, and what settles its states.
    """
    chain = path.suffix == _TOML
    own = {*_PAIRED} if path.name in _PAIRED else {path.name}
    seen = list[Entry]()
    with os.scandir(path.parent) as entries:
        for entry in entries:
            if entry.name == ALIASES:
                continue  # What versions are called is no part of them.
            if entry.name in own or not (entry.name.startswith(".") or (entry.name.endswith(_SUFFIX) and not chain)):
                try:
                    if entry.is_file():
                        stat = entry.stat()
                        seen.append(Entry(entry.name, stat.st_ino, stat.st_size, stat.st_mtime_ns))
                except OSError:
                    continue
    return tuple(sorted(seen))


def mark(found: Found) -> bytes:
    """16 bytes that stand for a version while it loads: others once its files are others."""
    whole = found.path.name in _PARTS or found.path.suffix == _TOML
    parts = [
        (entry.name, entry.size, entry.changed)
        for entry in look(found.path)
        if whole or entry.name.startswith(found.path.stem)
    ]
    return hashlib.sha256(repr((found.name, found.version, parts)).encode()).digest()[:16]


def file_of(folder: Path) -> Path:
    """The file that stands for a version in a folder of its own."""
    names = [name for name in (SINGLE, DECODER, *DECODERS, CHAIN) if (folder / name).is_file()]
    return folder / (names[0] if names else DECODER)
