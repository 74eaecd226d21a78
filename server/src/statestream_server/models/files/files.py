"""Files of a model on the disk: only regular ones, only inside its folder, and whether they changed since."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from statestream_server.models.model import ModelLoadError

if TYPE_CHECKING:
    import onnx

_EXTERNAL: Final = 1
"""In onnx.TensorProto.DataLocation; that package takes a tenth of a start that may need none of it."""
_BLOCK = 1 << 20
_MOST_TOLD = 1 << 20
"""Bytes of a model.toml."""
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


class Stamp(NamedTuple):
    """A file as it was when it was first looked at."""

    path: Path
    inode: tuple[int, int]
    size: int
    changed: int

    def check(self) -> None:
        """Checks that the file is the same still.

        Raises:
            ModelLoadError: It was written or replaced meanwhile.
        """
        if stamp(self.path) != self:
            raise ModelLoadError(
                f"{self.path}: changed while it was being loaded; load it again once it is written whole (write new"
                " versions beside, then rename their folder)"
            )


def stamp(path: Path) -> Stamp:
    """Looks at a file.

    Raises:
        ModelLoadError: There is none, or it is no regular file.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # A NUL in a name is a ValueError.
        raise ModelLoadError(f"{path}: cannot be read ({_reason(error)}); copy the file there") from error
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for test, name in _KINDS if test(found.st_mode)), "no file")
        raise ModelLoadError(f"{path}: is {kind}; expected a regular file")
    return Stamp(path, (found.st_dev, found.st_ino), found.st_size, found.st_mtime_ns)


def blocks(path: Path) -> Iterator[bytes]:
    """The contents of a regular file, piece by piece; what is none is never waited for.

    Raises:
        ModelLoadError: It cannot be read.
    """
    stamp(path)
    try:
        # Somebody may put a pipe in its place between two looks: opened so, it does not block.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ModelLoadError(f"{path}: is no regular file")
            while block := file.read(_BLOCK):
                yield block
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read ({_reason(error)}); copy the file there") from error


def told(path: Path) -> tuple[str, Stamp] | None:
    """The text of a model.toml, and how it lies there; None where there is none.

    Raises:
        ModelLoadError: It cannot be read, is too large, or is no text.
    """
    if not os.path.lexists(path):  # A link that leads nowhere is one that somebody means to be read.
        return None
    found = stamp(path)
    if found.size > _MOST_TOLD:
        raise ModelLoadError(f"{path}: {found.size} bytes; expected {_MOST_TOLD} at most")
    try:
        return b"".join(blocks(path)).decode("utf-8-sig"), found
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"{path}: is no text ({error}); save it as UTF-8") from error


def outside_weights(path: Path, proto: onnx.ModelProto) -> list[Stamp]:
    """The files that hold weights of a graph, each once, by name.

    Raises:
        ModelLoadError: One is named that lies outside the folder of `path` or is no regular file, or is too short.
    """
    found: dict[str, Stamp] = {}
    for tensor in tensors(proto):
        if tensor.data_location == _EXTERNAL:
            location, end = _place(path, tensor)
            if location not in found:
                found[location] = _inside(path, tensor, location)
            if end > found[location].size:
                raise ModelLoadError(
                    f"{path}: weight {tensor.name!r} ends at byte {end} of {location!r}, which has"
                    f" {found[location].size}; copy the file again, whole"
                )
    return [found[location] for location in sorted(found)]


def take_in(path: Path, proto: onnx.ModelProto) -> None:
    """Reads the weights of a graph that lie in files of their own into it.

    Raises:
        ModelLoadError: They cannot be read; see `outside_weights`.
    """
    for tensor in tensors(proto):
        if tensor.data_location == _EXTERNAL:
            location, end = _place(path, tensor)
            length = next((int(one.value or 0) for one in tensor.external_data if one.key == "length"), 0)
            place = _inside(path, tensor, location).path
            try:
                with place.open("rb") as file:
                    file.seek(end - length)
                    tensor.raw_data = file.read(length or -1)
            except OSError as error:
                raise ModelLoadError(f"{place}: cannot be read ({_reason(error)}); copy the file there") from error
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")


def _place(path: Path, tensor: onnx.TensorProto) -> tuple[str, int]:
    """Where a weight lies: the file's name, and the byte behind its last."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or 0)
    except ValueError:
        offset = length = -1
    if not location or offset < 0 or length < 0:
        raise ModelLoadError(
            f"{path}: weight {tensor.name!r} lies in a file of its own, but where is wrong (location {location!r},"
            f" offset {entries.get('offset', 0)}, length {entries.get('length', 0)}); export it again"
        )
    return location, offset + length


def _inside(path: Path, tensor: onnx.TensorProto, location: str) -> Stamp:
    folder = path.parent.resolve()
    try:
        real = (folder / location).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelLoadError(f"{path}: weight {tensor.name!r} lies in {location!r}: {_reason(error)}") from error
    if Path(location).is_absolute() or not real.is_relative_to(folder):
        raise ModelLoadError(
            f"{path}: weight {tensor.name!r} lies in {location!r}, outside the model's folder, which is never read;"
            " put the file beside the model and export it again, or export it with weights inside"
        )
    try:
        return stamp(folder / location)
    except ModelLoadError as error:
        others = sorted({other.name for other in folder.iterdir()} - {path.name})[:8]
        raise ModelLoadError(
            f"{path}: weight {tensor.name!r} lies in a file of its own: {error} (beside the model lie"
            f" {', '.join(others) or 'no files'})"
        ) from error


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model, wherever it stands: used or not, in inner graphs, functions and training graphs too."""
    yield from _of_graph(proto.graph)
    for function in proto.functions:
        yield from _of_nodes(function.node)
        yield from _of_attributes(function.attribute_proto)
    for training in proto.training_info:
        yield from _of_graph(training.initialization)
        yield from _of_graph(training.algorithm)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        yield from _of_attributes(node.attribute)


def _of_attributes(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        if attribute.HasField("g"):
            yield from _of_graph(attribute.g)
        for graph in attribute.graphs:
            yield from _of_graph(graph)


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
