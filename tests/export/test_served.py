"""Recipes behind a server: what a session says step by step is what the module, or predict, says."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from statestream import aio, errors
from statestream.signature import encode_text
from statestream_export.datasets import tables
from statestream_export.datasets.files import Source
from statestream_export.datasets.images import digits
from statestream_export.recipes import load
from statestream_export.recipes.antonyms import MAX_TOKENS, PAIRS
from statestream_export.recipes.sine_mlp import WINDOW, noisy_sine
from statestream_export.training import reproducible
from tests.export.modules import session
from tests.export.test_recipes import run
from tests.support.serving import serving
from tests.support.texts import Plain


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows", "rows-lstm"])
async def test_an_image_whole_and_row_by_row_gets_the_same_answer(tmp_path: Path, name: str) -> None:
    run(name, tmp_path, quick=True)
    images = digits(8).test_images[:3].float().numpy()
    async with serving(tmp_path / "models") as local, aio.connect(local.address) as client:
        whole = await client.predict(f"{name}-whole", images)
        for image, wanted in zip(images, np.asarray(whole), strict=True):
            async with client.session(name) as stream:
                scores = [await stream.step(row) for row in image]
            np.testing.assert_allclose(scores[-1], wanted, rtol=1e-5, atol=1e-5)
        with pytest.raises(errors.Unsupported, match="kind 'session'"):
            await client.predict(name, images)


@pytest.mark.parametrize("name", [pytest.param("sine-mlp", marks=pytest.mark.slow), "sine-rnn-window"])
async def test_the_server_keeps_the_window(tmp_path: Path, name: str) -> None:
    result = run(name, tmp_path, quick=True)
    [made] = result.exports
    assert [state.input for state in made.signature.states] == ["window"]
    with reproducible(1):
        series = noisy_sine()
    values = series.series[:12].numpy()
    async with (
        serving(tmp_path / "models") as local,
        aio.connect(local.address) as client,
        client.session(name) as stream,
    ):
        said = [float(np.asarray(await stream.step(np.array([value], np.float32))).item()) for value in values]
    # The same window in one call: a fresh session, whose state is filled by the first three values alone.
    again = await _last_of_window(tmp_path, name, values[-WINDOW:])
    assert said[-1] == pytest.approx(again, abs=1e-6)
    assert len(set(said)) == len(said)


async def _last_of_window(folder: Path, name: str, window: np.ndarray) -> float:
    async with (
        serving(folder / "models") as local,
        aio.connect(local.address) as client,
        client.session(name) as stream,
    ):
        for value in window[:-1]:
            await stream.step(np.array([value], np.float32))
        return float(np.asarray(await stream.step(np.array([window[-1]], np.float32))).item())


async def test_the_wave_goes_on_from_segment_to_segment(tmp_path: Path) -> None:
    result = run("sin2cos", tmp_path, quick=True)
    recipe = load("sin2cos")
    assert recipe.card.kind == "session"
    assert result.metrics["stream_difference"] <= 1e-5  # type: ignore[operator]
    wave = torch.sin(torch.arange(20) * 0.3)[:, None].numpy()
    async with serving(tmp_path / "models") as local, aio.connect(local.address) as client:
        async with client.session("sin2cos") as stream:
            streamed = [await stream.step(value) for value in wave]
        async with client.session("sin2cos") as stream:
            whole = np.asarray(await stream.step(wave))
    np.testing.assert_allclose(np.asarray(streamed).ravel(), whole.ravel(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
async def test_a_decoder_with_attention_finds_the_memory_in_every_step(tmp_path: Path) -> None:
    run("antonyms-attention", tmp_path, quick=False)
    async with serving(tmp_path / "models") as local, aio.connect(local.address) as client:

        async def said(word: str) -> str:
            return str(await client.generate("antonyms-attention", word))

        answers = dict(zip(PAIRS, await asyncio.gather(*map(said, PAIRS)), strict=True))
        assert answers == PAIRS
        assert len(await said("incomprehensibilities")) <= MAX_TOKENS  # longer than the memory: served, not refused
        await searched_as_by_hand(client, tmp_path / "models/antonyms-attention/1", "antonyms-attention")
        text = await client.generate("antonyms-attention", "king", attention=True)
        assert text.attention.shape == (len("queen"), len("king"))
        np.testing.assert_allclose(text.attention.sum(1), 1, atol=1e-5)


async def test_beams_of_a_recipe_are_those_of_a_search_by_hand() -> None:
    models = Path(__file__).parents[2] / "deploy/models"
    async with serving(models) as local, aio.connect(local.address) as client:
        await searched_as_by_hand(client, models / "antonyms/1", "antonyms")


async def searched_as_by_hand(client: aio.Client, folder: Path, name: str) -> None:
    """Score by score, for words that it knows and others."""
    plain, words = Plain(folder), ["king", "up", "mans", "old", "a"]
    (spec,) = plain.encoder.signature.inputs
    for beams, penalty in ((3, 1.0), (6, 0.0)):
        found = await client.generate(name, words, num_beams=beams, n_best=beams, length_penalty=penalty)
        for word, texts in zip(words, found, strict=True):
            expected = plain.search(encode_text(spec.text, word), beams=beams, n_best=beams, penalty=penalty)
            assert [text.tokens.tolist() for text in texts] == [said.tokens for said in expected]
            np.testing.assert_allclose([text.score for text in texts], [said.score for said in expected], atol=1e-4)


@pytest.mark.parametrize("name", [pytest.param("convnet", marks=pytest.mark.slow), "credit", "income"])
async def test_bytes_missing_numbers_and_categories_pass_through_predict(tmp_path: Path, name: str) -> None:
    [made] = run(name, tmp_path, quick=True).exports
    with reproducible(0):
        values = _example(name)
    assert list(values) == [spec.name for spec in made.signature.inputs]
    wanted = session(made.path).run(None, values)[0]
    assert np.isfinite(wanted).all()
    given = values if len(values) > 1 else next(iter(values.values()))
    async with serving(tmp_path / "models") as local, aio.connect(local.address) as client:
        scores = await client.predict(name, given)
    np.testing.assert_allclose(np.asarray(scores), wanted, rtol=1e-5, atol=1e-5)


def _example(name: str) -> dict[str, np.ndarray]:
    source = Source(None, False, False, Console(file=io.StringIO()))
    if name == "convnet":
        return {"image": digits(28).test_images[:3].numpy()}
    if name == "credit":
        return {"x": tables.credit(source).values[-3:].astype(np.float32)}
    rows = tables.income(source)
    chosen = np.flatnonzero(np.isnan(rows.values).any(1))
    assert np.isnan(rows.values[chosen]).any()
    codes = {name: rows.codes[chosen, at] for at, name in enumerate(rows.vocabularies)}
    return {"numbers": rows.values[chosen], **codes}
