"""Encoders and decoders of others: what is found of them, that it answers as the files, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from statestream_server.arrays import Array
from statestream_server.models.files import prints, repository
from statestream_server.models.form.edits import read_as
from statestream_server.models.form.told import Told
from statestream_server.models.model import Kind, Model, ModelLoadError
from statestream_server.models.proof import loading
from statestream_server.models.proof.kept import Kept
from statestream_server.models.rows import FIRST_ROW, is_batched, start_values
from tests.server.models.form_zoo_couples import CONFIG, COUPLES, Couple, V, growing, gru_attention, rereading

_SOURCES = ([3, 5, 2, 9, 4], [7], [2, 2, 8, 10, 6, 3, 4, 5])
_GIVEN = [0, 4, 9, 2, 6]


def load(path: Path) -> Model:
    return loading.load_file(path, name="m", version=1, device="cpu")


def served(model: Model) -> list[list[Array]]:
    """The scores after each token, of all sources as rows of one batch."""
    assert model.rows is not None
    assert model.encoder is not None
    assert model.encoder_signature is not None
    rows, signature, reads = model.rows, model.signature, model.encoder_signature
    which = np.arange(FIRST_ROW, FIRST_ROW + len(_SOURCES), dtype=np.int64)
    rows.grow(FIRST_ROW + len(_SOURCES))
    values = [np.stack([value] * len(_SOURCES)) for value in start_values(signature)]
    for row, source in enumerate(_SOURCES):
        outputs = model.encoder.predict([np.asarray([source], np.int64)])
        found = {spec.name: value.take(0, spec.batch_axis) for spec, value in zip(reads.outputs, outputs, strict=True)}
        for place, state in enumerate(signature.states):
            if state.from_encoder:
                values[place][row] = found[state.from_encoder]
    rows.write(which, values)
    told: list[list[Array]] = [[] for _ in _SOURCES]
    for token in _GIVEN:
        (scores, *_), bad = rows.step(which, which, [np.full((len(_SOURCES), 1), token, np.int64)])
        assert not bad.any()
        for row, each in enumerate(told):
            each.append(scores[row].reshape(-1))
    return told


@pytest.mark.parametrize("name", COUPLES)
def test_a_couple_answers_as_its_files_do(tmp_path: Path, name: str) -> None:
    couple = COUPLES[name]()
    model = load(couple.save(tmp_path / name))
    assert model.kind == Kind.GENERATE
    found = served(model)
    for source, scores in zip(_SOURCES, found, strict=True):
        np.testing.assert_allclose(scores, couple.scores(source, _GIVEN), rtol=2e-5, atol=2e-5)
    decoding = model.signature.decoding
    assert (decoding.start_token, decoding.end_token, decoding.max_tokens) == (0, 1, 8)
    assert model.signature.outputs[0].shape == [-1, V]  # A batch of 1 is freed, too.


def refused(path: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load(path)
    return str(caught.value)


_GROWS = "the decoder's memory grows: "


@pytest.mark.parametrize(
    ("couple", "decoder", "what"),
    [
        (growing(), "decoder_model.onnx", "input past_key_values.0.key float32[batch_size, past_sequence, 6]"),
        (growing(), "decoder_with_past_model.onnx", "input past_key_values.0.key"),
        (growing(merged=True), "decoder_model_merged.onnx", "input past_key_values.0.key"),
        (growing(said=False), "decoder_model.onnx", "input past_key_values.0.key float32[batch_size, ?, 6]"),
        (
            growing(names=("memory", "memory_out")),
            "decoder_model.onnx",
            "memory.0.key of shape [1, 3, 6]",
        ),
        (growing(names=("memory", "memory_out"), said=False), "decoder_model.onnx", "memory.0.key of shape [1, 3, 6]"),
        (rereading(presents=True), "decoder_model.onnx", "output present.0.decoder.key"),
    ],
)
def test_a_cache_that_grows_is_refused_with_the_reason(tmp_path: Path, couple: Couple, decoder: str, what: str) -> None:
    path = couple.save(tmp_path, decoder)
    said = refused(path)
    assert said.startswith(f"{path}: {_GROWS}{what}") or said.startswith(f"{path}: {_GROWS}input {what}")
    assert "is longer by one with every token, and a row of memory keeps one shape" in said
    assert "optimum-cli export onnx --task text2text-generation" in said


def test_what_is_filled_and_not_hidden_is_refused(tmp_path: Path) -> None:
    said = refused(gru_attention(mask=False).save(tmp_path))
    assert "a source of 1 tokens, filled up to 16, has other scores than by itself" in said
    assert "it takes no mask of the source. A row of memory keeps one shape: export the decoder with an" in said


def test_a_decoder_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    assert ", or it looks ahead" in refused(rereading(causal=False).save(tmp_path))


def test_sources_that_change_each_other_share_no_run(tmp_path: Path) -> None:
    """A row that looks at what its neighbours' sources were runs alone, and answers as the files do."""
    couple = gru_attention(mixing=True)
    model = load(couple.save(tmp_path))
    assert not is_batched(model.signature)
    assert any(about == "one at a time" and "ReduceMean" in text for about, text in model.form)
    for source, scores in zip(_SOURCES, served(model), strict=True):
        np.testing.assert_allclose(scores, couple.scores(source, _GIVEN), rtol=2e-5, atol=2e-5)


def test_signed_files_are_what_serves(tmp_path: Path) -> None:
    couple = COUPLES["rereading"]()
    path = couple.save(tmp_path / "a")
    signed = loading.signed_couple(path, Told(), device="cpu")
    for name, model in signed.items():
        onnx.save(model, tmp_path / name)
    again = load(tmp_path / "decoder.onnx")
    assert again.form == ()
    assert again.digest == load(path).digest
    for source, scores in zip(_SOURCES, served(again), strict=True):
        np.testing.assert_allclose(scores, couple.scores(source, _GIVEN), rtol=2e-5, atol=2e-5)


def test_rows_are_tried_with_sources_of_their_own(tmp_path: Path) -> None:
    """A signed decoder that mixes what the encoder said to its rows is refused, as any that mixes its rows."""
    signed = loading.signed_couple(gru_attention().save(tmp_path / "a"), Told(), device="cpu")
    graph = signed["decoder.onnx"].graph
    read_as(graph.node, "encoder_hidden_states", "mixed")
    nodes = [
        onnx.helper.make_node("ReduceMean", ["encoder_hidden_states"], ["mean"], axes=[0], keepdims=1),
        onnx.helper.make_node("Add", ["encoder_hidden_states", "mean"], ["mixed"]),
    ]
    for place, node in enumerate(nodes):
        graph.node.insert(place, node)
    for name, model in signed.items():
        onnx.save(model, tmp_path / name)
    assert "influence each other" in refused(tmp_path / "decoder.onnx")


def test_what_nobody_says_is_asked(tmp_path: Path) -> None:
    lstm = COUPLES["lstm"]()
    path = dataclasses.replace(lstm, config={}).save(tmp_path / "a")
    assert "nobody says what a text begins and ends with" in refused(path)
    told = "[generate]\nstart_token = 0\nend_token = 1\nmax_tokens = 5\n"
    model = load(dataclasses.replace(lstm, config={}, told=told).save(tmp_path / "b"))
    assert (model.signature.decoding.max_tokens, model.signature.decoding.end_token) == (5, 1)
    for entry, why in (("starts = 0", "generate.starts is no entry"), ("max_tokens = 0", "1 or more")):
        path = dataclasses.replace(lstm, told=f"[generate]\n{entry}\n").save(tmp_path / "c")
        assert why in refused(path)
    path = dataclasses.replace(lstm, told='window = { "token" = 3 }').save(tmp_path / "d")
    assert "window is not for an encoder and its decoder" in refused(path)
    (path.parent / "model.toml").write_text('chain = ["encoder_model.onnx", "decoder_model.onnx"]')
    assert "rename the files of the chain" in refused(path)
    (path.parent / "model.toml").unlink()
    (path.parent / "config.json").write_text("{")
    assert "config.json: is no JSON" in refused(path)
    wires = 'wires = { h = "h", c = "d" }'
    assert "wires.c is 'd', no output of the encoder" in refused(
        dataclasses.replace(lstm, told=wires).save(tmp_path / "e")
    )
    swapped = dataclasses.replace(lstm, told='wires = { h = "c", c = "h" }', wires={"h": "c", "c": "h"})
    model = load(swapped.save(tmp_path / "f"))
    np.testing.assert_allclose(served(model)[0], swapped.scores(_SOURCES[0], _GIVEN), rtol=2e-5, atol=2e-5)


def test_what_the_configuration_says_is_done_or_told(tmp_path: Path) -> None:
    config = {"bad_words_ids": [[4], [2, 3]], "suppress_tokens": [7], "no_repeat_ngram_size": 3, "eos_token_id": [1, 2]}
    model = load(dataclasses.replace(COUPLES["lstm"](), config={**CONFIG, **config}).save(tmp_path))
    for scores in served(model)[0]:
        assert scores[[4, 7]].tolist() == [np.finfo(np.float32).min] * 2
        assert np.isfinite(scores).all()
    notes = [text for about, text in model.form if about == "left out"]
    assert notes[0] == "eos_token_id = [1, 2]: only 1 ends a text"
    assert "no_repeat_ngram_size = 3" in notes[1]


def test_what_was_found_is_kept_for_these_files(tmp_path: Path) -> None:
    """A verdict is of both files and of what lies beside them; all of it has to be trusted."""
    path, tried = COUPLES["lstm"]().save(tmp_path / "m"), list[str]()
    kept, trusted = Kept(tmp_path / "kept"), tmp_path / "trusted"

    def load() -> Model:
        return loading.load_file(
            path, name="m", version=1, device="cpu", kept=kept, trust=prints.Trust(trusted) if tried else None
        )

    first = load()
    assert load().digest == first.digest
    assert len([*(tmp_path / "kept").iterdir()]) == 1
    (path.parent / "config.json").write_text(json.dumps({**CONFIG, "max_length": 4}))
    assert load().signature.decoding.max_tokens == 3
    assert len([*(tmp_path / "kept").iterdir()]) == 2
    tried.append("with a list")
    lines = [f"{one.sha256}  {one.path.name}" for one in map(prints.take, [path, path.with_name("encoder_model.onnx")])]
    trusted.write_text("\n".join(lines))
    with pytest.raises(ModelLoadError, match=r"config\.json: is not trusted"):
        load()
    trusted.write_text("\n".join([*lines, prints.take(path.with_name("config.json")).sha256]))
    assert load().digest


def test_a_text_is_as_long_as_transformers_makes_it(tmp_path: Path) -> None:
    bare = {key: value for key, value in CONFIG.items() if key != "max_length"}
    for number, (more, most) in enumerate(
        [({}, 20), ({"max_length": 7}, 6), ({"max_length": 7, "max_new_tokens": 9}, 9)]
    ):
        model = load(dataclasses.replace(COUPLES["lstm"](), config={**bare, **more}).save(tmp_path / str(number)))
        assert model.signature.decoding.max_tokens == most
    long = dataclasses.replace(COUPLES["rereading"](), config={**CONFIG, "max_length": 600, "n_positions": 40})
    assert load(long.save(tmp_path / "long")).signature.decoding.max_tokens == 40
    odd = {"bad_words_ids": 3, "suppress_tokens": "x", "pad_token_id": True, "max_length": 1 << 40, "vocab_size": -1}
    assert load(dataclasses.replace(COUPLES["lstm"](), config={**CONFIG, **odd}).save(tmp_path / "odd"))
    path = tmp_path / "0"
    (path / "generation_config.json").write_text('{"max_length": 5, "eos_token_id": 3}')
    decoding = load(path / "decoder_model.onnx").signature.decoding
    assert (decoding.max_tokens, decoding.end_token) == (4, 3)


def test_a_couple_lies_in_a_folder_of_its_own(tmp_path: Path) -> None:
    COUPLES["lstm"]().save(tmp_path / "a")
    growing().save(tmp_path / "b", "decoder_model_merged.onnx")
    (tmp_path / "c").mkdir()
    (tmp_path / "c/encoder_model.onnx").write_bytes(b"")
    found = repository.scan([tmp_path])
    assert [(each.name, each.path.name) for each in found.found] == [
        ("a", "decoder_model.onnx"),
        ("b", "decoder_model_merged.onnx"),
    ]
    assert "its other half, encoder_model.onnx or decoder_model.onnx, is missing" in found.astray[0]
    assert repository.scan([tmp_path / "a"]).found[0].name == "a"
    (told,) = repository.scan([tmp_path / "a/encoder_model.onnx"]).found
    assert told.path == tmp_path / "a/decoder_model.onnx"
    names = {one.name for one in prints.named(told.path)}
    assert names == {"encoder_model.onnx", "decoder_model.onnx", "config.json"}
