"""The recipes that ship: quick runs of all, and the figures of those that train in seconds."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from statestream import signature as signatures
from statestream.signature import decode_text, encode_text
from statestream_export import RecipeError
from statestream_export.recipes import NAMES, antonyms, antonyms_attention, digits_cnn, load, sunspots
from statestream_export.runs import Result, execute
from statestream_export.training import Run, reproducible
from tests.export.modules import session
from tests.export.sets import image_folder, yearly_folder

QUICKLY_TRAINED = (
    "linear",
    "sine-mlp",
    "sine-rnn-window",
    "sin2cos",
    "hello-cell",
    "hello-embedding",
    "tagger",
    "sentiment",
    "credit",
    "income",
    "deepar-sales",
)
SLOW = ("sine", "rows", "rows-lstm", "rows-gru", "convnet", "lenet")
LARGE = ("transfer", "resnet18", "alexnet", "googlenet", "inception-v3", "vgg16")
"""Up to minutes even in a quick run: test_architectures.py has them, at small sizes and, marked slow, in full."""


def run(name: str, folder: Path, *, quick: bool, seed: int = 0) -> Result:
    console = Console(file=io.StringIO())
    made = {"fashion": image_folder, "deepar": yearly_folder, "global-rnn": yearly_folder}
    data = made[name](folder / "data") if name in made else None
    return execute(load(name), folder / "models", folder / "runs", quick=quick, seed=seed, console=console, folder=data)


SAMPLE = {"antonyms", "deepar", "global-rnn", "lstm", "sunspots"}
"""One of each kind; the others are slow tests."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in SAMPLE else pytest.mark.slow) for name in NAMES if name not in LARGE],
)
def test_a_quick_run_leaves_model_metrics_and_pictures(tmp_path: Path, name: str) -> None:
    result = run(name, tmp_path, quick=True)
    assert load(name).card.name == name
    assert result.model == tmp_path / "models" / name / "1"
    files = {path.name for path in result.model.iterdir()}
    kind = load(name).card.kind
    assert files == ({"encoder.onnx", "decoder.onnx"} if kind == "generate" else {"model.onnx"})
    assert {path.name for path in result.folder.iterdir()} == {"metrics.json", "loss.png", "picture.png"}
    report = json.loads((result.folder / "metrics.json").read_text("utf-8"))
    assert report["recipe"]["name"] == name
    assert load(name).card.target.metric in report["metrics"]
    assert report["training"]["quick"] is True
    assert result.curve.losses or result.reached, result.metrics  # without training, the figure is there at once
    assert sorted(path.name for path in (tmp_path / "models" / name).iterdir()) == ["1"]
    for made in result.exports:
        assert made.path.is_file()
        written = signatures.loads(session(made.path).get_modelmeta().custom_metadata_map[signatures.METADATA_KEY])
        assert written == made.signature
        session_model = kind == "session" and made.path.parents[1].name == name
        assert bool(written.states) == (session_model or made.path.name == "decoder.onnx")


@pytest.mark.slow
def test_the_same_seed_gives_the_same_figures_and_the_next_version(tmp_path: Path) -> None:
    first, second = run("sunspots", tmp_path, quick=True), run("sunspots", tmp_path, quick=True)
    other = run("sunspots", tmp_path, quick=True, seed=1)
    assert first.metrics == second.metrics
    assert first.curve == second.curve
    assert (first.model / "model.onnx").read_bytes() == (second.model / "model.onnx").read_bytes()
    assert other.metrics["rmse"] != first.metrics["rmse"]
    assert [result.model.name for result in (first, second, other)] == ["1", "2", "3"]


@pytest.mark.slow
def test_sunspots_beats_last_value_and_seasonal_on_years_it_never_saw(tmp_path: Path) -> None:
    result = run("sunspots", tmp_path, quick=False)
    assert result.reached
    data = sunspots.series()
    first = data.at(sunspots.TEST_FROM)
    graph = session(result.model / "model.onnx")
    zeros = np.zeros((2, 1, 64), np.float32)
    said = graph.run(["y"], {"x": data.numbers[None, :-1, None], "h": zeros, "c": zeros})[0][0, first - 1 :, 0]
    assert sunspots.rmse(said, data.numbers[first:]) == pytest.approx(result.metrics["rmse"], rel=1e-4)
    assert result.metrics["rmse"] < 0.8 * result.metrics["rmse_last_value"]  # type: ignore[operator]
    assert result.metrics["rmse"] < 0.8 * result.metrics["rmse_seasonal"]  # type: ignore[operator]


@pytest.mark.slow
def test_digits_are_read_from_the_exported_file(tmp_path: Path) -> None:
    result = run("digits-cnn", tmp_path, quick=False)
    assert result.reached
    data = digits_cnn.digits()
    scores = session(result.model / "model.onnx").run(["scores"], {"image": data.test_images.numpy()})[0]
    assert scores.shape == (450, 10)
    assert float((scores.argmax(-1) == data.test_labels.numpy()).mean()) == pytest.approx(
        result.metrics["test_accuracy"], abs=0.003
    )
    np.testing.assert_allclose(np.exp(scores).sum(-1), 1, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["antonyms", "antonyms-attention"])
def test_all_six_antonyms_are_exact_from_the_exported_files(tmp_path: Path, name: str) -> None:
    result = run(name, tmp_path, quick=False)
    assert result.metrics["pairs_exact"] == 6
    encoder, decoder = session(result.model / "encoder.onnx"), session(result.model / "decoder.onnx")
    [text] = result.exports[0].signature.inputs
    decoding, states = result.exports[1].signature.decoding, result.exports[1].signature.states
    assert [state.from_encoder for state in states] == [spec.name for spec in result.exports[0].signature.outputs]
    for word, opposite in antonyms.PAIRS.items():
        carried = encoder.run(None, {text.name: np.array([encode_text(text.text, word)])})
        token, said = decoding.start_token, list[int]()
        while len(said) < decoding.max_tokens:
            given = {state.input: value for state, value in zip(states, carried, strict=True)}
            logits, *carried = decoder.run(
                [decoding.output, *(state.output for state in states)], {decoding.input: np.array([[token]]), **given}
            )
            token = int(logits[0, -1].argmax())
            if token == decoding.end_token:
                break
            said.append(token)
        assert decode_text(decoding.text, said) == opposite
        for state, value in zip(states, carried, strict=True):
            passed = state.from_encoder in ("memory", "mask")
            assert np.array_equal(value, given[state.input]) == passed, state.input


def test_attention_reads_padded_words_as_it_reads_them_alone_and_looks_at_their_letters_only() -> None:
    recipe = antonyms_attention.recipe
    with reproducible(0), torch.no_grad():
        data = recipe.data(Run(True, 0, Console(file=io.StringIO())))
        module = recipe.module(data).eval()
        assert isinstance(module.decoder, antonyms_attention.Decoder)
        together = module.encoder(data.text, data.lengths)
        for row, word in enumerate(antonyms.PAIRS):
            alone = module.encoder(data.text[row : row + 1, : len(word)])
            for one, all_, axis in zip(alone, together, (1, 1, 0, 0), strict=True):
                torch.testing.assert_close(one.select(axis, 0), all_.select(axis, row), rtol=1e-5, atol=1e-6)
            weights = module.decoder.attention(data.given[row : row + 1], *alone)[0]
            torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights)))
            assert (weights[:, : len(word)] > 0).all()
            assert not weights[:, len(word) :].any()


@pytest.mark.slow
def test_attention_looks_at_the_first_letters_of_a_word_that_is_longer_than_its_memory(tmp_path: Path) -> None:
    graph = session(run("antonyms-attention", tmp_path, quick=True).model / "encoder.onnx")
    window = antonyms_attention.WINDOW
    numbers = np.array([encode_text(antonyms.LETTERS, "incomprehensibilities")])
    assert numbers.shape[1] > window
    h, _, memory, mask = graph.run(None, {"text": numbers})
    first, _, remembered, _ = graph.run(None, {"text": numbers[:, :window]})
    assert memory.shape == (1, window, antonyms.HIDDEN)
    assert mask.all()
    np.testing.assert_allclose(memory, remembered, rtol=1e-5, atol=1e-6)
    assert not np.allclose(h, first)  # the rest was read, too


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICKLY_TRAINED)
def test_a_full_run_reaches_the_figure(tmp_path: Path, name: str) -> None:
    result = run(name, tmp_path, quick=False)
    assert result.reached, result.metrics
    assert not result.curve.interrupted


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SLOW)
def test_a_full_run_of_a_slow_one_reaches_the_figure(tmp_path: Path, name: str) -> None:
    assert run(name, tmp_path, quick=False).reached


def test_ctrl_c_in_the_first_training_of_rows_ends_the_run_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "randperm", stopped)
    result = run("rows", tmp_path, quick=True)
    assert result.curve.interrupted
    assert not result.reached
    report = json.loads((result.folder / "metrics.json").read_text("utf-8"))
    assert report["training"]["interrupted"]


def test_the_network_by_hand_is_exact_in_the_exported_file(tmp_path: Path) -> None:
    graph = session(run("srn-linear", tmp_path, quick=True).model / "model.onnx")
    h, said = np.zeros((1, 2), np.float32), []
    for x in ([1, 1], [1, 1], [2, 2]):
        y, h = graph.run(None, {"x": np.array([x], np.float32), "h": h})
        said.append(y.tolist())
    assert said == [[[4, 4]], [[12, 12]], [[32, 32]]]


def test_hello_is_answered_letter_by_letter_from_the_exported_file(tmp_path: Path) -> None:
    result = run("hello", tmp_path, quick=False)
    [made] = result.exports
    [letter], [scores] = made.signature.inputs, made.signature.outputs
    graph, h, said = session(made.path), np.zeros((1, 1, 4), np.float32), ""
    for number in encode_text(letter.text, "hello"):
        y, h = graph.run(None, {letter.name: np.array([[number]]), "h": h})
        said += scores.classes[y.argmax()]
    assert said == "ohlol"


@pytest.mark.slow
def test_a_bidirectional_session_is_refused_with_the_reason(tmp_path: Path) -> None:
    metrics = run("lstm", tmp_path, quick=True).metrics
    assert "bidirectional" in str(metrics["bidirectional_session"])
    assert [name for name in metrics if name.startswith("bidirectional_predict")] == [
        "bidirectional_predict_10_20_x2",
        "bidirectional_predict_100_20_x4",
    ]


def test_unknown_recipes_name_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError,
        match=r"no recipe 'sunspot' \(did you mean 'sunspots'\?\); there are sunspots, .*ending: \./my_recipe\.py",
    ):
        load("sunspot")
    with pytest.raises(RecipeError, match="no file"):
        load(str(tmp_path / "mine.py"))
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_that_name\n")
    with pytest.raises(RecipeError, match=r"cannot be loaded: ModuleNotFoundError.*nothing_of_that_name"):
        load(str(broken))
    broken.write_text("answer = 42\n")
    with pytest.raises(RecipeError, match="has no `recipe`"):
        load(str(broken))
    broken.write_text("class Half:\n    def data(self, run): ...\nrecipe = Half()\n")
    with pytest.raises(RecipeError, match="lacks module, train, metrics, picture, export, card"):
        load(str(broken))
