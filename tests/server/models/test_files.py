"""Files of a model: nothing outside its folder is read, no pipe is waited for, a change meanwhile is noticed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from statestream_server.describe import describe
from statestream_server.models.files import files, modelfile
from statestream_server.models.model import ModelLoadError
from statestream_server.models.proof import loading
from tests.server.models import graphs
from tests.support import hostile, models
from tests.support.hostile import adding, outside, unused

FOUR = np.asarray([1, 2, 3, 4], np.float32).tobytes()


def in_branch(tensor: onnx.TensorProto) -> onnx.ModelProto:
    """A weight that only the branch of a condition has."""
    branch = helper.make_graph([helper.make_node("Add", ["x", "w"], ["o"])], "b", [], [hostile.value("o")], [tensor])
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["p"])], "c", [], [hostile.value("p")])
    node = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=other)
    return hostile.model([node], weights=[hostile.weight("yes", True)])


def as_constant(tensor: onnx.TensorProto) -> onnx.ModelProto:
    nodes = [helper.make_node("Constant", [], ["c"], value=tensor), helper.make_node("Add", ["x", "c"], ["y"])]
    return hostile.model(nodes)


WAYS: dict[str, Callable[[onnx.TensorProto], onnx.ModelProto]] = {
    "used": adding,
    "unused": unused,
    "in a branch": in_branch,
    "as a constant": as_constant,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("location", ["../../secret", "absolute", "link", "/dev/zero"])
def test_weights_outside_the_folder_are_never_read(
    tmp_path: Path, way: str, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(FOUR)
    folder = tmp_path / "models" / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "link").symlink_to(secret)
    named = str(secret) if location == "absolute" else location
    path = hostile.put(WAYS[way](outside("w", named)), tmp_path / "models", "m")
    read = list[str]()

    def blocks(path: Path) -> Iterator[bytes]:
        read.append(path.name)
        return iter([path.read_bytes()])

    monkeypatch.setattr(files, "blocks", blocks)
    with pytest.raises(ModelLoadError, match="'w' lies in .* outside the model's folder, which is never read"):
        modelfile.read(path)
    assert read == ["model.onnx"]
    monkeypatch.undo()
    with pytest.raises(ModelLoadError, match="outside the model's folder"):
        describe(path, device="cpu")


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    path = hostile.put(adding(outside("w", "link")), tmp_path, "m")
    (path.parent / "really").write_bytes(FOUR)
    (path.parent / "link").symlink_to("really")
    assert loading.load("m", 1, path.parent, device="cpu").graph is not None


SPECIAL: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "is a pipe"),
    "folder": (os.mkdir, "is a folder"),
    "nothing": (lambda path: None, "cannot be read"),
    "short": (lambda path: path.write_bytes(FOUR[:8]), "ends at byte 16 of 'w.bin', which has 8"),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("way", ["used", "unused"])
def test_weights_in_no_ordinary_file_are_refused_at_once(tmp_path: Path, way: str, kind: str) -> None:
    make, said = SPECIAL[kind]
    path = hostile.put(WAYS[way](outside("w", "w.bin", more=[("length", "16")])), tmp_path, "m")
    make(path.parent / "w.bin")
    with pytest.raises(ModelLoadError, match=said):
        modelfile.read(path)


@pytest.mark.parametrize(
    "more", [[("offset", "-16")], [("offset", str(2**62)), ("length", "16")], [("offset", "far")], [("location", "")]]
)
def test_weights_at_impossible_places_are_refused(tmp_path: Path, more: list[tuple[str, str]]) -> None:
    path = hostile.put(unused(outside("w", "w.bin", more=more)), tmp_path, "m")
    (path.parent / "w.bin").write_bytes(FOUR)
    with pytest.raises(ModelLoadError, match="weight 'w'"):
        modelfile.read(path)


def test_a_model_that_is_a_pipe_or_a_device_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    (tmp_path / "zero.onnx").symlink_to("/dev/zero")
    for name, said in (("model.onnx", "is a pipe"), ("zero.onnx", "is a device"), ("none.onnx", "cannot be read")):
        with pytest.raises(ModelLoadError, match=said):
            describe(tmp_path / name, device="cpu")


@pytest.mark.parametrize("which", ["model.onnx", "w.bin"])
def test_a_file_that_changes_while_it_is_loaded_is_refused(tmp_path: Path, which: str) -> None:
    path = hostile.put(adding(outside("w", "w.bin")), tmp_path, "m")
    (path.parent / "w.bin").write_bytes(FOUR)
    found = modelfile.read(path)
    found.check_unchanged()
    (path.parent / which).write_bytes((path.parent / which).read_bytes() + b"\0")
    with pytest.raises(ModelLoadError, match=f"{which}: changed while it was being loaded; load it again"):
        found.check_unchanged()


def test_the_columns_of_a_version_that_is_not_loaded_are_read_without_risk(tmp_path: Path) -> None:
    path = graphs.save(models.gru(), tmp_path)
    assert modelfile.columns(path)
    path.write_bytes(path.read_bytes()[:-40])
    assert modelfile.columns(path) is None
    path.unlink()
    os.mkfifo(path)
    assert modelfile.columns(path) is None


def test_weights_that_are_written_over_while_they_serve_change_nothing(tmp_path: Path) -> None:
    """ONNX Runtime maps files: an answer would have other numbers, and a file cut short would end the process."""
    many = 1 << 16
    tensor = onnx.TensorProto(name="w", data_type=hostile.FLOAT, dims=[many], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    shape = [hostile.value(name, shape=["n", many]) for name in "xy"]
    path = hostile.put(hostile.model(nodes, shape[:1], shape[1:], [tensor]), tmp_path, "m")
    weights = path.parent / "w.bin"
    weights.write_bytes(np.arange(many, dtype=np.float32).tobytes())
    graph = loading.load("m", 1, path.parent, device="cpu").graph
    assert graph is not None
    x = np.zeros((1, many), np.float32)
    with weights.open("r+b") as file:
        file.write(b"\xff" * 4 * many)
    assert graph.predict([x])[0][0, -1] == many - 1
    os.truncate(weights, 0)
    assert graph.predict([x])[0][0, -1] == many - 1
