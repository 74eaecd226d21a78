"""Hello, one letter a run: an RNNCell that learns to say "ohlol" to "hello"."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from statestream_export import State
from statestream_export.recipe import Card, Target
from statestream_export.recipes.hello import LETTERS, Hello, Pair


class OneHotCell(nn.Module):
    """RNNCell 4→4 over one-hot letters: letter [B] int64 → scores [B, 4], state h [B, 4]."""

    letters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("letters", torch.eye(len(LETTERS)))
        self.cell = nn.RNNCell(len(LETTERS), len(LETTERS))

    def forward(self, letter: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """One letter; the hidden state is the scores."""
        h = self.cell(self.letters[letter], h)
        return h, h


class HelloCell(Hello):
    """Adam .1, 15 epochs."""

    card = Card(
        "hello-cell",
        task='say "ohlol" to "hello", one letter a run',
        data="one pair of words",
        cell="RNNCell 4→4, one-hot",
        kind="session",
        mode="synchronous sequence to sequence",
        target=Target("letters_exact", "==", 5),
    )
    rate = 0.1
    epochs = 15
    state = State(torch.zeros(1, 4))
    time_axis = None

    def module(self, data: Pair) -> nn.Module:
        """Random weights from the run's seed."""
        return OneHotCell()

    def scores(self, module: nn.Module, given: Tensor) -> Tensor:
        """The scores [T, 4] of one word, cell by cell."""
        h, said = self.state.value, []
        for letter in given.unbind(1):
            scores, h = module(letter, h)
            said.append(scores[0])
        return torch.stack(said)


recipe = HelloCell()
