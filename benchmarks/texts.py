"""Texts: many at once against raw ONNX Runtime at that batch, and against the same one after the other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

import statestream
from benchmarks import raw
from benchmarks.processes import Process
from benchmarks.table import Row, Target
from statestream.signature import Decoding
from statestream_export import State, export
from statestream_export.recipes.antonyms import END, HIDDEN, LETTERS, START, VOCABULARY
from statestream_export.recipes.antonyms_attention import WINDOW, Decoder, Encoder

NAME: Final = "texts"
TEXTS: Final = 256
BEAMS: Final = 4
TOKENS: Final = 32
"""Of every text: none ends before."""
_ALONE: Final = 16
"""Texts that are asked for one after the other."""


def make(models: Path) -> None:
    """Writes an encoder-decoder of LSTMs with attention, 29 → 128, whose texts have `TOKENS` tokens each."""
    torch.manual_seed(0)
    folder = models / NAME / "1"
    folder.mkdir(parents=True, exist_ok=True)
    encoder, decoder = Encoder().eval(), Decoder().eval()
    with torch.no_grad():
        decoder.head.bias[END] = -100
        decoder.head.weight *= 8
    example = torch.arange(len(VOCABULARY))[None]
    states = {"h": State(torch.zeros(1, 1, HIDDEN), batch_axis=1, from_encoder="h")}
    states["c"] = State(torch.zeros(1, 1, HIDDEN), batch_axis=1, from_encoder="c")
    states["memory"] = State(torch.zeros(1, WINDOW, HIDDEN), from_encoder="memory")
    states["mask"] = State(torch.zeros(1, WINDOW), from_encoder="mask")
    export(
        encoder,
        {"text": example},
        outputs=list(states),
        time_axis=1,
        path=folder / "encoder.onnx",
        text={"text": LETTERS},
    )
    export(
        decoder,
        {"token": example},
        states=states,
        outputs=["logits", "attention"],
        time_axis=1,
        path=folder / "decoder.onnx",
        decoding=Decoding(
            input="token",
            output="logits",
            start_token=START,
            end_token=END,
            text=LETTERS,
            max_tokens=TOKENS,
            attention="attention",
        ),
    )


def words(count: int) -> list[str]:
    """Words of 8 letters."""
    drawn = np.random.default_rng(0).integers(3, len(VOCABULARY), (count, 8))
    return ["".join(VOCABULARY[letter] for letter in word) for word in drawn]


def served(server: Process, texts: Sequence[str], seconds: float, *, together: bool, **options: Any) -> float:
    """Tokens a second, of all beams, of texts that are asked for in one call or one after the other."""
    with statestream.connect(server.address) as client:

        def ask() -> None:
            for each in [list(texts)] if together else texts:
                client.generate(NAME, each, **options)

        ask()
        start, rounds = time.perf_counter(), 0
        while (passed := time.perf_counter() - start) < seconds or not rounds:
            ask()
            rounds += 1
    return rounds * len(texts) * TOKENS * int(options.get("num_beams", 1)) / passed


def by_hand(models: Path, texts: Sequence[str], seconds: float, beams: int = 1) -> float:
    """Tokens a second of raw ONNX Runtime: the likeliest token of each row in again, beams as rows of the batch.

    With beams the rows change places at each step, as the beams of a search do, and nothing is compared: that is what
    a search costs at least.
    """
    folder = models / NAME / "1"
    encoder, decoder = raw.open_graph(str(folder / "encoder.onnx")), raw.open_graph(str(folder / "decoder.onnx"))
    numbers = np.asarray([[VOCABULARY.index(letter) for letter in text] for text in texts])
    names, rows = ["h", "c", "memory", "mask"], len(texts) * beams
    axes = {"h": 1, "c": 1, "memory": 0, "mask": 0}
    wanted = [port.name for port in decoder.get_outputs() if port.name != "attention"]
    places = np.random.default_rng(0).integers(0, beams, rows) + np.arange(rows) // beams * beams

    def ask() -> None:
        found = dict(zip(names, encoder.run(names, {"text": numbers}), strict=True))
        states = {name: np.repeat(array, beams, axes[name]) for name, array in found.items()}
        tokens = np.full((rows, 1), START)
        for _ in range(TOKENS):
            logits, *after = decoder.run(wanted, {"token": tokens, **states})
            states = dict(zip(names, after, strict=True))
            tokens = logits.argmax(-1)
            if beams > 1:
                states = {name: array.take(places, axes[name]) for name, array in states.items()}

    ask()
    start, rounds = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds or not rounds:
        ask()
        rounds += 1
    return rounds * rows * TOKENS / passed


def rows(server: Process, models: Path, seconds: float) -> list[Row]:
    """The comparisons."""
    many, few = words(TEXTS), words(TEXTS // BEAMS)
    return [
        Row(
            f"{TEXTS} texts at once, greedy, against raw ONNX Runtime at that batch",
            Target(0.6),
            lambda: served(server, many, seconds, together=True),
            lambda: by_hand(models, many, seconds),
            "tokens/s",
        ),
        Row(
            f"{TEXTS} texts at once, against the same one after the other",
            Target(4),
            lambda: served(server, many, seconds, together=True),
            lambda: served(server, many[:_ALONE], seconds, together=False),
            "tokens/s",
        ),
        Row(
            f"{TEXTS // BEAMS} texts with {BEAMS} beams each, against raw ONNX Runtime at that batch, nothing compared",
            Target(0.6),
            lambda: served(server, few, seconds, together=True, num_beams=BEAMS),
            lambda: by_hand(models, few, seconds, BEAMS),
            "tokens/s of all beams",
        ),
    ]
