"""Where models lie: which name and version each file has, which clash, and what is said of everything else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from statestream_server.models.files import repository
from statestream_server.models.files.repository import LAYOUTS, scan


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def found(*places: Path) -> dict[tuple[str, int], Path]:
    return {(one.name, one.version): one.path for one in scan(places).found}


NAMED = {
    "net.onnx": ("net", 1),
    "net/model.onnx": ("net", 1),
    "net/3/model.onnx": ("net", 3),
    "my net (2).v1.onnx": ("my net (2).v1", 1),
    "7/model.onnx": ("top", 7),
    "7/2/model.onnx": ("7", 2),
    "model.onnx": ("top", 1),
}


@pytest.mark.parametrize("place", NAMED)
def test_a_file_has_one_name_whether_it_or_its_folder_is_pointed_at(tmp_path: Path, place: str) -> None:
    top = tmp_path / "top"
    put(top / place)
    assert found(top) == found(top / place) == {NAMED[place]: top / place}


def test_the_folder_of_one_model_and_of_one_version_are_served_too(tmp_path: Path) -> None:
    put(tmp_path / "net/1/model.onnx", tmp_path / "net/12/model.onnx")
    assert list(found(tmp_path / "net")) == [("net", 1), ("net", 12)]
    assert list(found(tmp_path / "net/12")) == [("net", 12)]


@pytest.mark.parametrize("folder", ["pair", "pair/2"])
def test_a_pair_is_one_model_whichever_half_is_pointed_at(tmp_path: Path, folder: str) -> None:
    put(tmp_path / folder / "encoder.onnx", tmp_path / folder / "decoder.onnx")
    expected = {("pair", 2 if folder == "pair/2" else 1): tmp_path / folder / "decoder.onnx"}
    assert found(tmp_path) == found(tmp_path / folder) == expected
    assert found(tmp_path / folder / "encoder.onnx") == found(tmp_path / folder / "decoder.onnx") == expected


def test_all_layouts_go_together_and_come_by_name_and_version(tmp_path: Path) -> None:
    put(*(tmp_path / one for one in ("b.onnx", "a/2/model.onnx", "a/10/model.onnx", "a/model.onnx", "c/model.onnx")))
    put(
        tmp_path / "p/encoder.onnx",
        tmp_path / "p/decoder.onnx",
        tmp_path / ".hidden/1/model.onnx",
        tmp_path / ".x.onnx",
    )
    assert list(found(tmp_path)) == [("a", 1), ("a", 2), ("a", 10), ("b", 1), ("c", 1), ("p", 1)]
    assert not scan([tmp_path]).astray


def test_names_are_those_of_the_path_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "net/model.onnx", tmp_path / "other.onnx")
    monkeypatch.chdir(tmp_path / "net")
    assert list(found(Path())) == list(found(Path("model.onnx"))) == [("net", 1)]
    assert list(found(Path("../other.onnx"), Path("../net"))) == [("net", 1), ("other", 1)]


def test_a_file_that_is_pointed_at_twice_is_one(tmp_path: Path) -> None:
    put(tmp_path / "net.onnx")
    told = scan([tmp_path, tmp_path / "net.onnx"])
    assert len(told.found) == 1
    assert not told.clashes


@pytest.mark.parametrize(
    ("one", "other"),
    [("net.onnx", "net/1/model.onnx"), ("net/model.onnx", "net/1/model.onnx"), ("net.onnx", "net/model.onnx")],
)
def test_two_files_of_one_version_clash_and_both_are_named(tmp_path: Path, one: str, other: str) -> None:
    put(tmp_path / one, tmp_path / other, tmp_path / "net/2/model.onnx")
    told = scan([tmp_path])
    assert [(each.name, each.version) for each in told.found] == [("net", 2)]
    assert list(told.clashes) == [("net", 1)]
    assert not told.mixed
    assert all(str(tmp_path / path) in told.clashes["net", 1] for path in (one, other))
    assert "rename one" in told.clashes["net", 1]


def test_a_clash_between_two_paths_is_told_from_one_in_a_folder(tmp_path: Path) -> None:
    put(tmp_path / "x/net.onnx", tmp_path / "y/net.onnx")
    assert scan([tmp_path / "x/net.onnx", tmp_path / "y/net.onnx"]).mixed
    assert scan([tmp_path / "x", tmp_path / "y"]).mixed


ASTRAY = {
    "net/other.onnx": "it is not called model.onnx",
    "net/1/other.onnx": "it is not called model.onnx",
    "net/latest/model.onnx": "'latest' is no version",
    "net/0/model.onnx": "'0' is no version",
    "half/1/encoder.onnx": "its other half, encoder.onnx or decoder.onnx, is missing",
    "half/decoder.onnx": "its other half, encoder.onnx or decoder.onnx, is missing",
}


@pytest.mark.parametrize("place", ASTRAY)
def test_what_lies_astray_is_named_with_the_layout(tmp_path: Path, place: str) -> None:
    put(tmp_path / place)
    told = scan([tmp_path])
    assert not told.found
    assert told.astray == [f"{tmp_path / place} is not served: {ASTRAY[place]}; expected {LAYOUTS}"]
    assert repository.nothing([tmp_path], told) == told.astray[0]


def test_no_regular_file_is_served_nor_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "dangling.onnx").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.onnx").symlink_to(tmp_path / "loop.onnx")
    told = scan([tmp_path])
    assert not told.found
    assert sorted(text.partition(" is not served: ")[2].partition(";")[0] for text in told.astray) == [
        "it is no regular file"
    ] * len(told.astray)
    assert len(told.astray) >= 2


def test_links_are_followed_within_the_folder_and_never_out_of_it(tmp_path: Path) -> None:
    """As a volume of Kubernetes has them; and as somebody has them who wants to have other files read."""
    top = tmp_path / "models"
    put(top / "..data/net.onnx", tmp_path / "secret/model.onnx")
    (top / "net.onnx").symlink_to("..data/net.onnx")
    (top / "file.onnx").symlink_to(tmp_path / "secret/model.onnx")
    (top / "folder").symlink_to(tmp_path / "secret")
    (top / "deep").mkdir()
    (top / "deep/1").symlink_to(tmp_path / "secret")
    told = scan([top])
    assert [(one.name, one.path) for one in told.found] == [("net", top / "net.onnx")]
    assert len(told.astray) == 3
    assert all(f"a link leads out of {top}, to {tmp_path / 'secret/model.onnx'}" in text for text in told.astray)
    # Who points at the link means what it leads to.
    assert found(top / "file.onnx") == {("file", 1): top / "file.onnx"}


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.onnx"))
    put(path)
    (said,) = scan([tmp_path]).astray
    assert "is not UTF-8" in said


def test_where_nothing_can_be_served_what_lies_there_is_shown_and_what_is_expected(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "net/weights").mkdir(parents=True)
    assert repository.nothing([top], scan([top])).startswith(
        f"nothing in {top} can be served: there is top/net/weights/;"
    )
    put(top / "README.md", top / "net/net.pt")
    said = repository.nothing([top], scan([top]))
    assert "there is top/README.md, top/net/net.pt, top/net/weights/; expected NAME.onnx, NAME/model.onnx" in said
    put(*(top / f"{number:03}.txt" for number in range(100)))
    said = repository.nothing([top], scan([top]))
    assert "011.txt, …;" in said
    assert len(said) < 1000
    (tmp_path / "empty").mkdir()
    assert "it is empty" in repository.nothing([tmp_path / "empty"], scan([tmp_path / "empty"]))


def test_a_version_looks_other_once_anything_of_it_is_other(tmp_path: Path) -> None:
    """And not for what is another model's, or hidden: a copy that is not renamed yet."""
    put(tmp_path / "net.onnx", tmp_path / "other.onnx")
    one = scan([tmp_path]).found[0]
    before, mark = repository.look(one.path), repository.mark(one)
    (tmp_path / "other.onnx").write_bytes(b"other")
    put(tmp_path / ".net.onnx.part")
    assert (repository.look(one.path), repository.mark(one)) == (before, mark)
    for name in ("net.onnx", "net.onnx.data"):
        (tmp_path / name).write_bytes(b"more")
        assert repository.look(one.path) != before
        assert repository.mark(one) != mark
        before, mark = repository.look(one.path), repository.mark(one)
