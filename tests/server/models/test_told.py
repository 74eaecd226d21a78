"""What is told beside a file by mistake, or by whoever means harm: one line about it, soon, and nothing waits."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from statestream_server import describe
from statestream_server.models.files import files, repository
from statestream_server.models.form.entries import loads
from statestream_server.models.form.told import ToldError
from statestream_server.models.model import ModelLoadError
from statestream_server.models.proof import loading
from tests.server.models.form_zoo import CASES, model
from tests.server.models.graphs import Builder, save

TEXTS = {
    "lists in lists": f"wires = {'[' * 20_000}{']' * 20_000}",
    "tables in tables": f"window = {'{a = ' * 200}1{'}' * 200}",
    "a key of many parts": f"window.{'.'.join('a' * 200_000)} = 1",
    "a key of many quoted parts": f"""{"'a'." * 100_000}b = 1""",
    "a number of many digits": f"window = {{ x = {'9' * 5000} }}",
    "a number of many bits": f"shapes = {{ x = [0x{'f' * 5000}] }}",
    "sizes without end": f"sizes = {{ x = [{', '.join(f'[{n}]' for n in range(1, 50_000))}] }}",
    "a list where a number stands": f"window = {{ x = [{'1, ' * 100_000}] }}",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_is_absurd_is_one_short_line_soon(tmp_path: Path, name: str) -> None:
    began = time.process_time()
    with pytest.raises(ToldError) as refused:
        loads(TEXTS[name])
    assert len(str(refused.value)) < 3000
    (tmp_path / "m.toml").write_text(TEXTS[name])
    assert repository.sizes(tmp_path / "m.onnx") == []
    assert time.process_time() - began < 5


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "link to nothing", "link to itself"])
def test_a_place_where_no_text_lies_is_never_waited_for_nor_taken_for_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.onnx"
    save(CASES["lstm"]().model, tmp_path, path.name)
    beside = path.with_suffix(".toml")
    if kind == "pipe":
        os.mkfifo(beside)
    elif kind == "folder":
        beside.mkdir()
    else:
        beside.symlink_to({"device": "/dev/zero", "link to nothing": "nowhere"}.get(kind, beside.name))
    assert [found.path for found in repository.scan([path]).found] == [path]
    with pytest.raises(ModelLoadError, match=r"m\.toml: (is a|cannot be read)"):
        loading.load_file(path, name="m", version=1, device="cpu")


def test_a_mark_that_editors_write_before_a_text_is_none_of_it(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_bytes(b"\xef\xbb\xbfwindow = { x = 4 }")
    text = files.told(tmp_path / "m.toml")
    assert text is not None
    assert loads(text[0]).window["x"].steps == 4


def test_a_name_with_dots_in_quotes_is_a_name() -> None:
    name = ".".join(["layer"] * 40)
    assert loads(f'states = {{ "{name}" = "{name}" }}\nstart."{name}" = 0.5').start == {name: (0.5,)}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ("constants = { k = 2.5 }", "constants: k int8[] is given 2.5, which int8 does not hold"),
        ("constants = { k = 300 }", "constants: k int8[] is given 300"),
        ("constants = { k = inf }", "constants: k int8[] is given inf"),
        ("constants = { k = nan }", "constants.k is nan"),
        ("session = { k = -129 }", "session: k int8[] is given -129"),
        ("counters = { k = 0.5 }", "counters: k int8[] is given 0.5"),
        ("constants = { k = 1 }\nstart = { s = 0.5 }", "start: s int64[b, 3] is given 0.5"),
        ("constants = { k = 1 }\nstart = { s = 9007199254740993 }", "start: s int64[b, 3] is given 9007199254740993"),
        ("constants = { k = 1 }\nstart = { s = [1, 2] }", "start: state 's' is given 2 numbers; expected one or 3"),
        ("constants = { k = 1 }\ncolumns = { x = ['a', 'b'] }", "m.toml: inputs['x'].columns has 2 names"),
        ("constants = { k = 1 }\ncolumns = { x = ['a', 'b', 'a'] }", "expected a list of names, each once"),
        ("session = { k = 1 }\nstart = { k = 2 }", "'k' is told two things"),
    ],
)
def test_a_number_that_a_tensor_cannot_hold_is_refused_and_never_cut(tmp_path: Path, entries: str, words: str) -> None:
    b = Builder()
    wide = b.add("Cast", ["k"], to=7)
    b.add("Add", [b.add("Mul", ["x", wide]), "s"], ["s_out"])
    b.add("Neg", ["s_out"], ["y"])
    proto = model(
        b,
        [("x", "int64", ["b", 3]), ("s", "int64", ["b", 3]), ("k", "int8", [])],
        [("y", "int64", ["b", 3]), ("s_out", "int64", ["b", 3])],
    )
    save(proto, tmp_path, "m.onnx")
    (tmp_path / "m.toml").write_text(f'{entries}\nstates = {{ s = "s_out" }}\n')
    with pytest.raises(ModelLoadError) as refused:
        loading.load_file(tmp_path / "m.onnx", name="m", version=1, device="cpu")
    assert words in str(refused.value)


def test_a_constant_of_64_bits_keeps_all_of_them(tmp_path: Path) -> None:
    b = Builder()
    b.add("Add", ["x", "k"], ["y"])
    save(model(b, [("x", "int64", ["b", 1]), ("k", "int64", [])], [("y", "int64", ["b", 1])]), tmp_path, "m.onnx")
    (tmp_path / "m.toml").write_text("constants = { k = 9007199254740993 }")
    made = loading.load_file(tmp_path / "m.onnx", name="m", version=1, device="cpu")
    assert made.graph is not None
    (answer,) = made.graph.predict([np.zeros((1, 1), np.int64)])
    assert answer.item() == 9007199254740993


def test_a_folder_that_is_no_version_is_told_with_what_lies_there(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="it is empty; expected NAME"):
        describe.describe(tmp_path)
    save(CASES["lstm"]().model, tmp_path, "talk.onnx")
    with pytest.raises(ModelLoadError, match=r"is a folder of 1 models; inspect one of them: .*talk\.onnx"):
        describe.describe(tmp_path)
