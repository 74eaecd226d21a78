"""Hello: an RNN that learns to say "ohlol" to "hello", letter by letter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from statestream.contract.signature import Text
from statestream_export import Export, State, export
from statestream_export.pictures import table
from statestream_export.recipe import Card, Target
from statestream_export.training import Curve, Run

LETTERS = ["e", "h", "l", "o"]
GIVEN = "hello"
STARTS = 10


def numbers(word: str) -> Tensor:
    """Token numbers [1, T] int64 of a word."""
    return torch.tensor([[LETTERS.index(letter) for letter in word]])


class OneHotRnn(nn.Module):
    """RNN 4→4 over one-hot letters: letter [B, T] int64 → scores [B, T, 4], state h [1, B, 4]."""

    letters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("letters", torch.eye(len(LETTERS)))
        self.rnn = nn.RNN(len(LETTERS), len(LETTERS), batch_first=True)

    def forward(self, letter: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The hidden state is the scores."""
        scores, h = self.rnn(self.letters[letter], h)
        return scores, h


@dataclass(frozen=True)
class Pair:
    """A word and what must be said to it, letter by letter: token numbers [1, 5] int64."""

    given: Tensor
    wanted: Tensor


class Hello:
    """Cross-entropy over all five letters, Adam .05, 100 epochs."""

    card = Card(
        "hello",
        task='say "ohlol" to "hello"',
        data="one pair of words",
        cell="RNN 4→4, one-hot",
        kind="session",
        mode="synchronous sequence to sequence",
        target=Target("letters_exact", "==", 5),
    )
    answer: ClassVar[str] = "ohlol"
    rate: ClassVar[float] = 0.05
    epochs: ClassVar[int] = 100
    state: ClassVar[State] = State(torch.zeros(1, 1, 4), batch_axis=1)
    time_axis: ClassVar[int | None] = 1

    def data(self, run: Run) -> Pair:
        """The one pair."""
        return Pair(numbers(GIVEN), numbers(self.answer))

    def module(self, data: Pair) -> nn.Module:
        """Random weights from the run's seed."""
        return OneHotRnn()

    def train(self, module: nn.Module, data: Pair, run: Run) -> Curve:
        """Adam on one pair; begins anew from other weights where a start ends in a word that is nearly right.

        Four hidden units are few: about one start in four stays at "ohlll".
        """
        curve = Curve()
        for start in range(STARTS):
            if start:
                module.load_state_dict(self.module(data).state_dict())
            curve = self._fit(module, data, run)
            if run.quick or curve.interrupted or self.metrics(module, data)["letters_exact"] == len(GIVEN):
                break
        return curve

    def _fit(self, module: nn.Module, data: Pair, run: Run) -> Curve:
        optimizer = torch.optim.Adam(module.parameters(), lr=self.rate)

        def epoch() -> float:
            scores = self.scores(module, data.given)
            loss = nn.functional.cross_entropy(scores, data.wanted[0])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            return float(loss.item())

        return run.fit(module, epoch, epochs=self.epochs)

    def metrics(self, module: nn.Module, data: Pair) -> dict[str, int | str]:
        """What it says, and how many letters of that are right."""
        said = self.scores(module, data.given).argmax(-1)
        return {
            "says": "".join(LETTERS[number] for number in said.tolist()),
            "letters_exact": int((said == data.wanted[0]).sum()),
        }

    def picture(self, module: nn.Module, data: Pair) -> Figure:
        """The probability of every letter at every step."""
        shown = self.scores(module, data.given).softmax(-1).numpy()
        rows = [f"{letter} → {answer}" for letter, answer in zip(GIVEN, self.answer, strict=True)]
        return table(f"{self.card.name}: probabilities", shown, rows, LETTERS)

    def export(self, module: nn.Module, data: Pair, folder: Path) -> list[Export]:
        """One file; letters go in as numbers, by the vocabulary in the signature."""
        return [
            export(
                module,
                {"letter": data.given if self.time_axis == 1 else data.given[0]},
                states={"h": self.state},
                outputs=["scores"],
                time_axis=self.time_axis,
                path=folder / "model.onnx",
                text={"letter": Text(vocabulary=LETTERS)},
                classes={"scores": LETTERS},
                description=f'Says "{self.answer}" to "{GIVEN}", letter by letter.',
            )
        ]

    def scores(self, module: nn.Module, given: Tensor) -> Tensor:
        """The scores [T, 4] of one word, from the start."""
        scores: Tensor = module(given, self.state.value)[0][0]
        return scores


recipe = Hello()
