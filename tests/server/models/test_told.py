"""What is told beside a file by mistake, or by whoever means harm: one line about it, soon, and nothing waits."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from statestream_server.models.files import files, repository
from statestream_server.models.form.told import ToldError, loads
from statestream_server.models.model import ModelLoadError
from statestream_server.models.proof import loading
from tests.server.models.form_zoo import CASES
from tests.server.models.graphs import save

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
