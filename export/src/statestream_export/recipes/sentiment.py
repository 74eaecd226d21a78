"""Sentiment: embedding and LSTM read a sentence, the last output says whether it is kind."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from statestream.contract.signature import Text, encode_text
from statestream_export import Export, export
from statestream_export.pictures import table
from statestream_export.recipe import Card, Target
from statestream_export.training import Curve, Run

CLASSES = ["negative", "positive"]
SUBJECTS = ["the film", "this book", "the soup", "her song", "the room", "that trip"]
VERBS = {"was": 1, "was not": -1, "is never": -1, "seemed": 1, "is always": 1, "was hardly": -1}
DEGREES = ["", "very ", "rather ", "so "]
QUALITIES = {
    "good": 1,
    "lovely": 1,
    "warm": 1,
    "bright": 1,
    "clever": 1,
    "bad": -1,
    "dull": -1,
    "cold": -1,
    "ugly": -1,
    "boring": -1,
}
WORDS = " ".join([*SUBJECTS, *VERBS, *DEGREES, *QUALITIES]).split()
VOCABULARY = ["?", *sorted(set(WORDS))]
LANGUAGE = Text(vocabulary=VOCABULARY, separator=" ", unknown="?")
WIDTH, HIDDEN = 12, 24
SHOWN = ["the film was very good", "the film was not very good", "the soup is never cold", "her song seemed dull"]


@dataclass(frozen=True)
class Sentence:
    """A sentence and its class number, 1 where it is positive."""

    text: str
    label: int


def sentences() -> list[Sentence]:
    """All 1,440 sentences; a denial turns the quality round, so no single word decides."""
    return [
        Sentence(f"{subject} {verb} {degree}{quality}", int(VERBS[verb] * QUALITIES[quality] > 0))
        for subject, verb, degree, quality in itertools.product(SUBJECTS, VERBS, DEGREES, QUALITIES)
    ]


class SentimentLstm(nn.Module):
    """One verdict a sentence: text [B, T] int64 → scores [B, 2], logarithms of probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(VOCABULARY), WIDTH)
        self.lstm = nn.LSTM(WIDTH, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, len(CLASSES))

    def forward(self, text: Tensor) -> Tensor:
        """Sentences of one length; the last output decides."""
        _, (h, _) = self.lstm(self.words(text))
        return nn.functional.log_softmax(self.head(h[-1]), dim=-1)


Grouped = list[tuple[Tensor, Tensor]]
"""Sentences of equal length together, int64 [N, T], and their classes [N]: nothing is padded."""


@dataclass(frozen=True)
class Split:
    """What trains and what is held out."""

    train: Grouped
    test: Grouped


def grouped(chosen: list[Sentence]) -> Grouped:
    """Token numbers, by length."""
    by_length = dict[int, list[tuple[list[int], int]]]()
    for one in chosen:
        tokens = encode_text(LANGUAGE, one.text)
        by_length.setdefault(len(tokens), []).append((tokens, one.label))
    return [
        (torch.tensor([tokens for tokens, _ in group]), torch.tensor([label for _, label in group]))
        for group in by_length.values()
    ]


class Sentiment:
    """Adam .01, 30 epochs; a quarter of all sentences is held out, drawn at random."""

    card = Card(
        "sentiment",
        task="tell whether a sentence is kind",
        data="1,440 sentences made from the recipe's word lists, with denials; a quarter held out",
        cell="Embedding, LSTM 12→24",
        kind="predict",
        mode="sequence to class",
        target=Target("test_accuracy", ">=", 0.97),
    )

    def data(self, run: Run) -> Split:
        """The split is the same for every seed, so that figures can be compared."""
        made = sentences()
        order = torch.randperm(len(made), generator=torch.Generator().manual_seed(0)).tolist()
        shuffled, held = [made[at] for at in order], len(made) // 4
        return Split(grouped(shuffled[held:]), grouped(shuffled[:held]))

    def module(self, data: Split) -> SentimentLstm:
        """Random weights from the run's seed."""
        return SentimentLstm()

    def train(self, module: SentimentLstm, data: Split, run: Run) -> Curve:
        """Mini-batches of 40 sentences of one length."""
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)

        def epoch() -> float:
            losses = []
            for texts, labels in data.train:
                for chosen in torch.split(torch.randperm(len(texts)), 40):
                    loss = nn.functional.nll_loss(module(texts[chosen]), labels[chosen])
                    optimizer.zero_grad()
                    torch.autograd.backward(loss)
                    optimizer.step()
                    losses.append(float(loss.item()))
            return sum(losses) / len(losses)

        return run.fit(module, epoch, epochs=30)

    def metrics(self, module: SentimentLstm, data: Split) -> dict[str, float | int]:
        """The share of held-out sentences that are judged right; a word alone would be right in half of them."""
        right = torch.cat([module(texts).argmax(-1) == labels for texts, labels in data.test])
        return {"test_accuracy": float(right.float().mean()), "test_sentences": len(right)}

    def picture(self, module: SentimentLstm, data: Split) -> Figure:
        """The probabilities of four sentences."""
        scores = [module(torch.tensor([encode_text(LANGUAGE, text)]))[0] for text in SHOWN]
        return table("sentiment: probabilities", torch.stack(scores).exp().numpy(), SHOWN, CLASSES)

    def export(self, module: SentimentLstm, data: Split, folder: Path) -> list[Export]:
        """One file without memory between calls; any length."""
        texts, _ = data.test[0]
        return [
            export(
                module,
                {"text": texts[:20]},
                outputs=["scores"],
                time_axis=1,
                path=folder / "model.onnx",
                text={"text": LANGUAGE},
                classes={"scores": CLASSES},
                description="Tells whether a sentence of a small language is kind: log-probabilities of two classes.",
            )
        ]


recipe = Sentiment()
