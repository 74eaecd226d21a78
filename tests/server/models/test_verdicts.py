"""Verdicts that are kept, and files that are trusted: what is not tried again, and what is not even read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import load_model, save_model

from statestream.contract.signature import numpy_dtype, step_shape
from statestream_server.models.files import prints
from statestream_server.models.files.prints import Trust
from statestream_server.models.graphs.runtime import providers_for
from statestream_server.models.model import BatchPolicy, Model, ModelLoadError
from statestream_server.models.proof import building, kept, loading
from statestream_server.models.proof.kept import Kept
from tests.server.models import graphs
from tests.server.models.form_zoo_windows import tcn
from tests.support import hostile, models

CPU = providers_for("cpu")
FOUR = np.asarray([1, 2, 3, 4], np.float32).tobytes()


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were tried."""
    paths, really = list[Path](), loading._tried

    def trial(path: Path, *rest: object) -> object:
        paths.append(path)
        return really(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(loading, "_tried", trial)
    return paths


def load(path: Path, folder: Path, policy: BatchPolicy = BatchPolicy.PAD, trust: Trust | None = None) -> Model:
    return loading.load_file(
        path, name="m", version=1, device=CPU, batch_policy=policy, kept=Kept(folder / "proofs"), trust=trust
    )


def entries(folder: Path) -> list[Path]:
    return sorted((folder / "proofs").iterdir())


@pytest.mark.parametrize("name", ["gru", "scores", "pair"])
def test_a_version_is_tried_once_and_built_the_same_from_what_was_kept(
    tmp_path: Path, name: str, tried: list[Path]
) -> None:
    folder = models.write(tmp_path, name) / name / "1"
    path = folder / ("decoder.onnx" if name == "pair" else "model.onnx")
    one = load(path, tmp_path)
    [entry] = entries(tmp_path)
    written = entry.stat().st_ino
    other = load(path, tmp_path)
    assert tried == [path]
    assert entry.stat().st_ino == written  # Nothing is written where nothing was tried.
    for field in ("kind", "digest", "batch_invariance", "invariance_note", "encoder_note", "signature", "files"):
        assert getattr(one, field) == getattr(other, field)
    assert type(one.rows) is type(other.rows)
    # It goes by what is in the files, not by where they are.
    moved = folder.rename(tmp_path / "elsewhere")
    assert load(moved / path.name, tmp_path).digest == one.digest
    assert tried == [path]


def test_other_bytes_policies_and_code_are_tried_anew(
    tmp_path: Path, tried: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = graphs.save(models.gru(), tmp_path)
    load(path, tmp_path)
    load(path, tmp_path, BatchPolicy.SERIALISE)
    assert len(tried) == 2
    graphs.save(models.lstm(), tmp_path)
    load(path, tmp_path)
    assert len(tried) == 3
    (tmp_path / "model.toml").write_text("")
    load(path, tmp_path)
    assert len(tried) == 4
    monkeypatch.setattr(kept, "_code", lambda: "another release")
    load(path, tmp_path)
    assert len(tried) == 5
    assert len(entries(tmp_path)) == 5


def test_weights_in_files_of_their_own_count(tmp_path: Path, tried: list[Path]) -> None:
    path = hostile.put(hostile.adding(hostile.outside("w", "w.bin")), tmp_path, "m")
    (path.parent / "w.bin").write_bytes(FOUR)
    assert load(path, tmp_path).prints[1].path == path.parent / "w.bin"
    load(path, tmp_path)
    assert len(tried) == 1
    (path.parent / "w.bin").write_bytes(FOUR[::-1])
    load(path, tmp_path)
    assert len(tried) == 2


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[:-9],
    "flipped": lambda data: data[:-30] + bytes([data[-30] ^ 1]) + data[-29:],
    "empty": lambda data: b"",
    "other words": lambda data: b"\xff\x00",
    "huge": lambda data: data + b" " * (2 << 20),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_none_and_is_written_anew(tmp_path: Path, damage: str, tried: list[Path]) -> None:
    path = graphs.save(models.gru(), tmp_path)
    load(path, tmp_path)
    (entry,) = entries(tmp_path)
    good = entry.read_bytes()
    entry.write_bytes(DAMAGE[damage](good))
    load(path, tmp_path)
    assert len(tried) == 2
    assert [one.read_bytes() for one in entries(tmp_path)] == [good]


def test_a_verdict_that_does_not_build_is_tried_again(
    tmp_path: Path, tried: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = graphs.save(models.gru(), tmp_path)
    load(path, tmp_path)
    digest = load(graphs.save(models.lstm(), tmp_path / "other"), tmp_path).digest
    one, other = entries(tmp_path)
    both = one.read_bytes(), other.read_bytes()
    one.write_bytes(both[1])
    other.write_bytes(both[0])
    assert load(path, tmp_path).digest != digest
    assert len(tried) == 3


def _window(folder: Path) -> Path:
    """A file without a signature, over a window of steps: it has a form, and takes several steps at once."""
    case = tcn()
    path = graphs.save(case.model, folder)
    path.with_suffix(".toml").write_text(case.told)
    return path


def _weights(folder: Path) -> Path:
    """A file whose weights lie beside it."""
    path = graphs.save(models.gru(), folder)
    save_model(load_model(path), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return path


def _linked(folder: Path) -> Path:
    """The same in a folder that is a link to elsewhere, as where a cluster mounts settings."""
    (folder / "v").mkdir()
    path = _weights(folder / "far" / "away" / "1")
    (folder / "v" / "1").symlink_to(path.parent)
    return folder / "v" / "1" / path.name


MADE: dict[str, Callable[[Path], Path]] = {
    "gru": lambda folder: graphs.save(models.gru(), folder),
    "tokens": lambda folder: graphs.save(models.tokens(), folder),
    "weights": _weights,
    "linked": _linked,
    "window": _window,
}


@pytest.mark.parametrize("name", MADE)
def test_graphs_are_kept_with_the_verdict_and_answer_the_same(
    tmp_path: Path, name: str, tried: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that finds them parses no file; the bits are those of the graphs that the trial ran."""
    path = MADE[name](tmp_path)
    first = load(path, tmp_path)
    monkeypatch.setattr(building, "build", lambda *_, **__: pytest.fail("the file is read"))
    second = load(path, tmp_path)
    assert tried == [path]
    for field in ("kind", "digest", "signature", "batch_invariance", "invariance_note", "form", "providers", "files"):
        assert getattr(first, field) == getattr(second, field), field
    assert stepped(first) == stepped(second)


def stepped(model: Model) -> list[bytes]:
    """Three steps of two rows, one step at a time and together: outputs and rows."""
    assert model.rows is not None
    model.rows.grow(4)
    rows, found = np.asarray([1, 2]), list[bytes]()
    for steps in (1, 2):
        inputs = [np.ones((2, steps, *step_shape(spec)), numpy_dtype(spec.dtype)) for spec in model.signature.inputs]
        outputs, bad = model.rows.step(rows, rows, inputs)
        found += [array.tobytes() for array in (*outputs, bad, *model.rows.read(rows))]
    return found


def test_what_is_refused_is_not_kept(tmp_path: Path) -> None:
    path = hostile.put(b"no model", tmp_path, "m")
    with pytest.raises(ModelLoadError, match="not a readable ONNX file"):
        load(path, tmp_path)
    assert not (tmp_path / "proofs").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions are POSIX'")
def test_the_folder_is_its_owners_alone_and_another_is_not_used(
    tmp_path: Path, tried: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    path, folder = graphs.save(models.gru(), tmp_path), tmp_path / "proofs"
    load(path, tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    load(path, tmp_path)
    assert len(tried) == 2
    assert f"{folder} can be written by others; make it yours alone (chmod 700)" in caplog.text
    folder.chmod(0o700)
    load(path, tmp_path)
    assert len(tried) == 2


def test_a_folder_that_cannot_be_made_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "proofs").write_bytes(b"")
    assert load(graphs.save(models.gru(), tmp_path), tmp_path).digest
    assert "every start tries all models anew" in caplog.text


def test_the_number_of_entries_is_bounded_and_what_is_used_stays(
    tmp_path: Path, tried: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_MOST_ENTRIES", 2)
    paths = [graphs.save(models.counter(float(factor)), tmp_path / str(factor)) for factor in (2, 3, 4)]
    for at, path in enumerate(paths[:2]):
        load(path, tmp_path)
        os.utime(entries(tmp_path)[0] if at == 0 else max(entries(tmp_path), key=os.path.getmtime), (at, at))
    load(paths[0], tmp_path)  # Used now: the other goes.
    (tmp_path / "proofs" / "left.1.ab.new").write_bytes(b"")
    os.utime(tmp_path / "proofs" / "left.1.ab.new", (1, 1))
    load(paths[2], tmp_path)
    assert len(entries(tmp_path)) == 2
    tried.clear()
    load(paths[0], tmp_path)
    assert not tried
    load(paths[1], tmp_path)
    assert tried == [paths[1]]


def test_only_what_is_trusted_is_read_and_the_line_to_add_is_told(tmp_path: Path, tried: list[Path]) -> None:
    path = hostile.put(hostile.adding(hostile.outside("w", "w.bin")), tmp_path, "m")
    (path.parent / "w.bin").write_bytes(FOUR)
    listed = tmp_path / "trusted"
    listed.write_text("# nothing yet\n\n")
    for name in ("model.onnx", "w.bin"):
        with pytest.raises(ModelLoadError, match="is not trusted; .* the line: ") as caught:
            load(path, tmp_path, trust=Trust(listed))
        assert str(caught.value).startswith(f"{path.parent / name}: ")
        line = str(caught.value).partition("the line: ")[2]
        assert line == f"{prints.take(path.parent / name).sha256}  {name}"
        with listed.open("a") as file:
            file.write(f"{line}\n")
    assert not tried
    assert load(path, tmp_path, trust=Trust(listed)).digest
    # Also what was proved before, once it is trusted no more.
    listed.write_text("")
    with pytest.raises(ModelLoadError, match="is not trusted"):
        load(path, tmp_path, trust=Trust(listed))


def test_an_encoder_and_what_settles_a_file_are_to_be_trusted_too(tmp_path: Path) -> None:
    folder = models.write(tmp_path, "pair") / "pair" / "1"
    (folder / "encoder.toml").write_text("")
    listed = tmp_path / "trusted"
    names = ["decoder.onnx", "encoder.onnx", "encoder.toml"]
    listed.write_text("".join(f"{prints.take(folder / name).sha256.upper()} *{name}\n" for name in names))
    assert load(folder / "decoder.onnx", tmp_path, trust=Trust(listed)).digest
    for name in names:
        listed.write_text("".join(f"{prints.take(folder / one).sha256}\n" for one in names if one != name))
        with pytest.raises(ModelLoadError, match=f"{name}: is not trusted"):
            load(folder / "decoder.onnx", tmp_path, trust=Trust(listed))


@pytest.mark.parametrize(
    ("text", "said"), [("abc  model.onnx\n", "line 1 does not begin with a SHA-256"), (None, "cannot be read")]
)
def test_a_list_that_is_none_lets_nothing_in(tmp_path: Path, text: str | None, said: str) -> None:
    listed, path = tmp_path / "trusted", graphs.save(models.gru(), tmp_path)
    if text is not None:
        listed.write_text(text)
    with pytest.raises(ModelLoadError, match=said):
        load(path, tmp_path, trust=Trust(listed))


def test_a_file_that_is_replaced_while_it_loads_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was looked at, and what was loaded, are one: else another's verdict, or trust, would stand for it."""
    path, other = graphs.save(models.gru(), tmp_path), graphs.save(models.lstm(), tmp_path / "other")
    really = loading._tried

    def replaced(*what: object) -> object:
        other.replace(path)
        return really(*what)  # type: ignore[arg-type]

    monkeypatch.setattr(loading, "_tried", replaced)
    with pytest.raises(ModelLoadError, match="changed while it was being loaded"):
        load(path, tmp_path)
    assert not (tmp_path / "proofs").exists()
