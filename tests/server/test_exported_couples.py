"""Encoders and decoders of others through server and client: many texts at once are those of a loop over the files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import statestream
from statestream import errors
from tests.server.models.form_zoo_couples import COUPLES, Couple
from tests.support import serving

SOURCES = [[3, 5, 2, 9, 4], [7], [2, 2, 8, 10, 6, 3, 4, 5], [10, 9], [6, 6, 6, 6, 6]]


@pytest.fixture(scope="module")
def couples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Couple]]:
    folder, made = tmp_path_factory.mktemp("couples"), {name: make() for name, make in COUPLES.items()}
    for name, couple in made.items():
        couple.save(folder / name)
    return folder, made


@pytest.fixture(scope="module")
def client(couples: tuple[Path, dict[str, Couple]]) -> Iterator[Any]:
    with serving.process(couples[0], "--store", "memory") as server, statestream.connect(server.address) as client:
        yield client


@pytest.mark.parametrize("name", COUPLES)
def test_many_texts_at_once_are_those_of_a_loop(
    client: Any, couples: tuple[Path, dict[str, Couple]], name: str
) -> None:
    couple = couples[1][name]
    found = client.generate(name, SOURCES)
    assert [each.tokens.tolist() for each in found] == [couple.greedy(source, 8) for source in SOURCES]
    assert client.generate(name, SOURCES[0]).tokens.tolist() == found[0].tokens.tolist()


@pytest.mark.parametrize("name", COUPLES)
def test_beams_have_the_scores_of_the_files(client: Any, couples: tuple[Path, dict[str, Couple]], name: str) -> None:
    """Beams fork a decoder with whatever memory it has: the log-probability of each token is that of the files."""
    couple = couples[1][name]
    for source, texts in zip(SOURCES, client.generate(name, SOURCES, num_beams=3, n_best=3), strict=True):
        for text in texts:
            given = text.tokens.tolist()
            scores = np.stack(couple.scores(source, [0, *given])).astype(np.float64)
            logs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
            np.testing.assert_allclose(text.log_probs, [logs[at, token] for at, token in enumerate(given)], atol=1e-4)


def test_where_a_decoder_looks_is_told(client: Any) -> None:
    for source, text in zip(SOURCES, client.generate("gru-attention", SOURCES, attention=True), strict=True):
        assert text.attention.shape == (len(text.tokens), len(source))
        np.testing.assert_allclose(text.attention.sum(-1), 1, atol=1e-5)
    with pytest.raises(errors.Unsupported, match="does not say where it looks"):
        client.generate("lstm", SOURCES, attention=True)


def test_a_source_that_is_too_long_is_refused_never_cut(client: Any) -> None:
    with pytest.raises(errors.BadFrame, match="text has 17 tokens; model 'gru-attention' reads 16 at most"):
        client.generate("gru-attention", [2] * 17)
    with pytest.raises(errors.BadFrame, match="text 1 has 9 tokens; model 'static-shapes' reads 8 at most"):
        client.generate("static-shapes", [[2], [2] * 9])
    with pytest.raises(errors.BadFrame, match="8 at most"):
        client.generate("static-cache", [2], max_tokens=9)
