"""Hello with an embedding: letters become vectors, two layers of RNN, "ohllo" to "hello"."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from statestream_export import State
from statestream_export.recipe import Card, Target
from statestream_export.recipes.hello import LETTERS, Hello, Pair

WIDTH, HIDDEN, LAYERS = 10, 8, 2


class EmbeddingRnn(nn.Module):
    """Embedding 4→10, RNN 10→8 ×2, Linear: letter [B, T] int64 → scores [B, T, 4], state h [2, B, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(LETTERS), WIDTH)
        self.rnn = nn.RNN(WIDTH, HIDDEN, LAYERS, batch_first=True)
        self.head = nn.Linear(HIDDEN, len(LETTERS))

    def forward(self, letter: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """All letters."""
        hidden, h = self.rnn(self.letters(letter), h)
        return self.head(hidden), h


class HelloEmbedding(Hello):
    """Adam .05, 15 epochs."""

    card = Card(
        "hello-embedding",
        task='say "ohllo" to "hello"',
        data="one pair of words",
        cell="Embedding 4→10, RNN 10→8 ×2",
        kind="session",
        mode="synchronous sequence to sequence",
        target=Target("letters_exact", "==", 5),
    )
    answer = "ohllo"
    epochs = 15
    state = State(torch.zeros(LAYERS, 1, HIDDEN), batch_axis=1)

    def module(self, data: Pair) -> nn.Module:
        """Random weights from the run's seed."""
        return EmbeddingRnn()


recipe = HelloEmbedding()
