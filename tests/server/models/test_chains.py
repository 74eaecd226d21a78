"""Chains: several files are one graph; wires follow from names and shapes, or are told; what stays open is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from statestream import signature as signatures
from statestream_server import describe
from statestream_server.filecommands import inspect, sign
from statestream_server.models.files import modelfile, prints, repository
from statestream_server.models.files.prints import Trust
from statestream_server.models.form import entries
from statestream_server.models.form.chain import Joined, joined
from statestream_server.models.form.draft import drafted
from statestream_server.models.form.pairs import UnsettledError
from statestream_server.models.form.told import Told, ToldError
from statestream_server.models.graphs.runtime import providers_for
from statestream_server.models.model import Model, ModelLoadError
from statestream_server.models.proof import loading
from statestream_server.models.proof.kept import Kept
from tests.server.models import graphs
from tests.server.models.form_zoo import Value, model
from tests.server.models.form_zoo_chains import dtln, preprocessed
from tests.server.models.graphs import Builder

Files = Mapping[str, onnx.ModelProto]


def f32(name: str, *dims: int | str | None) -> Value:
    return (name, "float32", dims)


def product(inputs: list[Value], outputs: list[Value], opset: int = 17) -> onnx.ModelProto:
    """A graph in which all outputs are computed from all inputs, by matrix products."""
    b = Builder()
    for name, _, dims in outputs:
        parts = [b.add("MatMul", [given, b.weight(wide[-1], dims[-1])]) for given, _, wide in inputs]  # type: ignore[arg-type]
        b.add("Sum", [*parts, b.constant(np.float32(0.1))], [name])
    return model(b, inputs, outputs, opset)


def chained(files: Files, text: str = "") -> tuple[Joined, set[str], set[str], dict[str, str]]:
    """The joined graph, what callers send and get, and its states."""
    said = entries.loads(text)
    whole = joined(files, said)
    draft = drafted(whole.model, said, whole)
    names = [{each.name for each in tensors} for tensors in (draft.inputs, draft.outputs)]
    return whole, names[0], names[1], {held.old.name: held.new for held in draft.states}


def written(folder: Path, files: Files, text: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, proto in files.items():
        onnx.save(proto, folder / name)
    (folder / "model.toml").write_text(text or f"chain = {[*files]}")
    return folder / "model.toml"


def load(path: Path, **more: Kept | Trust) -> Model:
    return loading.load_file(path, name="m", version=1, device=providers_for("cpu"), **more)  # type: ignore[arg-type]


ENCODER = product([f32("x", "b", 4)], [f32("features", "b", 6)])
HEAD = product([f32("features", "b", 6)], [f32("y", "b", 2)])


def test_an_input_takes_the_output_of_its_name() -> None:
    other = product([f32("x", "b", 4)], [f32("features", "b", 6), f32("more", "b", 6)])
    _, inputs, outputs, _ = chained({"a.onnx": other, "b.onnx": HEAD})
    assert (inputs, outputs) == ({"x"}, {"more", "y"})


def test_names_that_several_files_have_are_those_of_their_files() -> None:
    same = product([f32("x", "b", 4)], [f32("y", "b", 4)])
    whole, inputs, outputs, _ = chained({"one.onnx": same, "two.onnx": same, "three.onnx": same})
    assert (inputs, outputs) == ({"x"}, {"y"})
    assert whole.notes == [
        "two.x takes one.y: no other output fits",
        "three.x takes two.y: no other output fits",
    ]
    _, inputs, outputs, _ = chained(
        {"one.onnx": product([f32("x", "b", 4), f32("z", "b", 2)], [f32("y", "b", 3)]),
         "two.onnx": product([f32("x", "b", 3), f32("z", "b", 5)], [f32("y", "b", 4)])}
    )  # fmt: skip
    assert (inputs, outputs) == ({"x", "one.z", "two.z"}, {"y"})


def test_an_output_that_several_may_take_is_asked_and_each_line_settles_it() -> None:
    files = {
        "a.onnx": product([f32("x", "b", 4)], [f32("p", "b", 6), f32("q", "b", 6)]),
        "b.onnx": product([f32("in", "b", 6), f32("side", "b", 3)], [f32("y", "b", 2)]),
    }
    with pytest.raises(UnsettledError, match=r"input b.in float32\[b, 6\] may take a.p or a.q, or be") as caught:
        chained(files)
    assert caught.value.lines == ['wires = { "b.in" = "a.p" }']
    _, inputs, outputs, _ = chained(files, caught.value.lines[0])
    assert (inputs, outputs) == ({"x", "side"}, {"q", "y"})


def test_a_wire_may_be_told_with_or_without_its_file_and_without_quotes() -> None:
    for line in ('features = "features"', 'b.features = "a.features"', '"b.features" = "features"'):
        assert chained({"a.onnx": ENCODER, "b.onnx": HEAD}, f"[wires]\n{line}")[1:3] == ({"x"}, {"y"})


def test_two_files_may_take_one_input() -> None:
    files = {
        "a.onnx": product([f32("x", "b", 4), f32("gain", "b", 1)], [f32("f", "b", 6)]),
        "b.onnx": product([f32("f", "b", 6), f32("gain", "b", 1)], [f32("y", "b", 2)]),
    }
    assert chained(files)[1] == {"x", "a.gain", "b.gain"}
    assert chained(files, 'wires = { "b.f" = "f", "b.gain" = "a.gain" }')[1:3] == ({"x", "gain"}, {"y"})


def test_a_state_may_be_what_the_next_file_takes() -> None:
    cell, signature = graphs.recurrent("GRU", features=4, hidden=6)
    del cell.metadata_props[:], cell.graph.output[0], signature
    head = product([f32("h_last", 1, None, 6)], [f32("y", 1, None, 2)])
    _, inputs, outputs, states = chained({"cell.onnx": cell, "head.onnx": head})
    assert (inputs, outputs, states) == ({"x"}, {"y"}, {"h": "h_out"})


REFUSED: Mapping[str, tuple[Files, str, str]] = {
    "nothing fits": (
        {"a.onnx": ENCODER, "b.onnx": product([f32("z", "b", 9)], [f32("y", "b", 2)])},
        "",
        r"b.onnx takes nothing from the files before it: its inputs are z float32\[b, 9\], their outputs a.features",
    ),
    "another shape": (
        {"a.onnx": ENCODER, "b.onnx": product([f32("z", "b", 1, 6)], [f32("y", "b", 1, 2)])},
        "wires = { z = 'features' }",
        r"features is float32\[b, 6\] and z float32\[b, 1, 6\]; what lies between them, a change of shape or an FFT",
    ),
    "no such input": (
        {"a.onnx": ENCODER, "b.onnx": HEAD},
        "wires = { feature = 'x' }",
        r"wires names 'feature', which is no input of one file \(is it 'features'\?\)",
    ),
    "no such output": (
        {"a.onnx": ENCODER, "b.onnx": HEAD},
        "wires = { features = 'featurs' }",
        r"'featurs', which is no output .*features",
    ),
    "backwards": (
        {"a.onnx": HEAD, "b.onnx": ENCODER},
        "wires = { 'a.features' = 'b.features' }",
        "a chain goes one way",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_one_graph_is_refused_with_the_reason(name: str) -> None:
    files, text, message = REFUSED[name]
    with pytest.raises(ToldError, match=message):
        chained(files, text)


def test_operators_of_several_versions_are_brought_to_the_newest_or_refused() -> None:
    whole, *_ = chained({"a.onnx": product([f32("x", "b", 4)], [f32("features", "b", 6)], 11), "b.onnx": HEAD})
    assert [entry.version for entry in whole.model.opset_import] == [17]
    odd = onnx.ModelProto.FromString(HEAD.SerializeToString())
    for proto, version in ((odd, 2), (other := onnx.ModelProto.FromString(ENCODER.SerializeToString()), 1)):
        proto.opset_import.add(domain="com.example", version=version)
    with pytest.raises(ToldError, match="a.onnx uses version 1 of the operators 'com.example', b.onnx version 2"):
        chained({"a.onnx": other, "b.onnx": odd})


def test_what_a_files_own_signature_says_counts() -> None:
    cell, _ = graphs.recurrent("GRU", features=6, hidden=5, start=0.5)
    files = {"a.onnx": product([f32("in", None, None, 4)], [f32("features", None, None, 6)]), "cell.onnx": cell}
    whole, inputs, _, states = chained(files)
    assert (inputs, states) == ({"in"}, {"h": "h_out"})
    assert whole.start == {"h": (0.5,)}
    text = json.dumps(str(drafted(whole.model, Told(), whole).notes))
    assert "the signature of its file says so" in text


def test_weights_in_files_of_their_own_are_of_the_digest(tmp_path: Path) -> None:
    chain = preprocessed()
    path = written(tmp_path / "whole", chain.files)
    apart = tmp_path / "apart"
    apart.mkdir()
    for name, proto in chain.files.items():
        copy = onnx.ModelProto.FromString(proto.SerializeToString())
        onnx.save(copy, apart / name, save_as_external_data=True, location=f"{name}.bin", size_threshold=0)
    (apart / "model.toml").write_text(path.read_text())
    one = load(apart / "model.toml")
    assert {file.name for file in one.files} == {"scale.onnx", "cell.onnx", "scale.onnx.bin", "cell.onnx.bin"}
    assert {each.path.name for each in one.prints} == {"model.toml"} | {file.name for file in one.files}
    data = (apart / "cell.onnx.bin").read_bytes()
    (apart / "cell.onnx.bin").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert load(apart / "model.toml").digest != one.digest
    assert load(path).digest != load(written(tmp_path / "swapped", {**chain.files, "cell.onnx": other_cell()})).digest


def other_cell() -> onnx.ModelProto:
    cell = onnx.ModelProto.FromString(preprocessed().files["cell.onnx"].SerializeToString())
    weight = onnx.numpy_helper.to_array(cell.graph.initializer[1]) * np.float32(1.5)
    cell.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(weight, cell.graph.initializer[1].name))
    return cell


def test_a_verdict_is_kept_by_all_files_and_trust_asks_for_all(tmp_path: Path) -> None:
    path = written(tmp_path / "m", preprocessed().files)
    kept = Kept(tmp_path / "proofs")
    first = load(path, kept=kept)
    (entry,) = (tmp_path / "proofs").iterdir()
    assert load(path, kept=kept).digest == first.digest
    onnx.save(other_cell(), path.with_name("cell.onnx"))
    load(path, kept=kept)
    assert [each for each in (tmp_path / "proofs").iterdir() if each != entry]
    listed = tmp_path / "trusted"
    known = [prints.take(each) for each in prints.named(path)]
    listed.write_text("".join(f"{each.sha256}  {each.path.name}\n" for each in known[:-1]))
    with pytest.raises(ModelLoadError, match=r"cell\.onnx.*trust|trust.*cell\.onnx"):
        load(path, trust=Trust(listed))
    listed.write_text("".join(f"{each.sha256}  {each.path.name}\n" for each in known))
    load(path, trust=Trust(listed))


def test_the_files_of_a_chain_lie_in_its_folder(tmp_path: Path) -> None:
    path = written(tmp_path / "m", preprocessed().files)
    outside = path.with_name("cell.onnx").rename(tmp_path / "cell.onnx")
    with pytest.raises(ModelLoadError, match=r"cell\.onnx: cannot be read \(No such file"):
        load(path)
    path.with_name("cell.onnx").symlink_to(outside)
    with pytest.raises(ModelLoadError, match=r"cell\.onnx: a link leads out of the chain's folder"):
        load(path)
    path.write_text("chain = ['../cell.onnx', 'scale.onnx']")
    with pytest.raises(ModelLoadError, match="expected files of this folder"):
        load(path)


def test_a_model_toml_without_a_model_is_a_chain_and_its_files_no_models(tmp_path: Path) -> None:
    written(tmp_path / "denoise" / "3", dtln().files, dtln().told)
    written(tmp_path / "scaled", preprocessed().files)
    onnx.save(HEAD, tmp_path / "head.onnx")
    found = repository.scan([tmp_path])
    assert [(each.name, each.version, each.path.name) for each in found.found] == [
        ("denoise", 3, "model.toml"),
        ("head", 1, "head.onnx"),
        ("scaled", 1, "model.toml"),
    ]
    assert not found.astray
    for place in (tmp_path / "scaled", tmp_path / "scaled" / "model.toml"):
        (each,) = repository.scan([place]).found
        assert (each.name, each.path.name) == ("scaled", "model.toml")
    looks = [repository.look(each.path)]
    onnx.save(other_cell(), tmp_path / "scaled" / "cell.onnx")
    assert repository.look(each.path) not in looks


def test_a_model_toml_that_names_no_files_says_what_to_do(tmp_path: Path) -> None:
    path = written(tmp_path, {}, "stateless = true")
    with pytest.raises(ModelLoadError, match=r"no model\.onnx beside it, and it names no files; put the model there"):
        load(path)
    onnx.save(HEAD, tmp_path / "model.onnx")
    with pytest.raises(ModelLoadError, match=r"it tells of model\.onnx beside it; serve that"):
        load(path)
    path.write_text("chain = ['a.onnx', 'b.onnx']")
    with pytest.raises(ModelLoadError, match=r"it names a chain, and model\.onnx beside it is a model"):
        load(tmp_path / "model.onnx")


def test_inspect_tells_the_wires_and_sign_writes_one_file_of_the_same_digest(tmp_path: Path) -> None:
    path = written(tmp_path / "m", dtln().files, dtln().told)
    found = json.loads(CliRunner().invoke(inspect, [str(path.parent), "--json"]).output)
    assert found["wire"][0] == "model_1.input_2 takes analysis.mag: told"
    assert len(found["state"]) == 2
    copy = tmp_path / "one.onnx"
    done = CliRunner().invoke(sign, [str(path), "-o", str(copy)])
    assert done.exit_code == 0, done.output
    assert len(signatures.loads(onnx.load(copy).metadata_props[0].value).states) == 2
    assert dict(describe.facts(copy, device="cpu"))["digest"] == found["digest"][0]


def test_sign_takes_wires_and_writes_them_down(tmp_path: Path) -> None:
    path = written(tmp_path, dtln().files)
    done = CliRunner().invoke(sign, [str(path), "--toml"])
    assert "may take analysis.mag or analysis.re" in done.output
    wires = entries.loads(dtln().told).wires or {}
    options = [part for to, source in wires.items() for part in ("--wire", f"{to}={source}")]
    assert CliRunner().invoke(sign, [str(path), "--toml", *options]).exit_code == 0
    said = entries.loads(path.read_text())
    assert (said.chain, said.wires) == (tuple(dtln().files), wires)
    assert modelfile.read(path).chain is not None
