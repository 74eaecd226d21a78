"""Tagger: an LSTM that names the part of speech of every word as it comes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from statestream.contract.signature import Text, encode_text
from statestream_export import Export, State, export
from statestream_export.pictures import table
from statestream_export.recipe import Card, Target
from statestream_export.training import Curve, Run

TAGS = ["determiner", "adjective", "noun", "modal", "verb", "preposition"]
AMBIGUOUS = ("saw", "can", "watch", "light", "fly", "play", "park")
"""Words of more than one tag, such as "the saw", "I saw": what came before decides."""
WORDS = {
    "determiner": ["the", "a", "every", "this"],
    "adjective": ["old", "red", "small", "quiet"],
    "noun": ["dog", "child", "tree", "boat", *AMBIGUOUS],
    "modal": ["can", "will", "must"],
    "verb": ["see", "find", "like", "saw", "watch", "light", "fly", "play", "park"],
    "preposition": ["in", "near", "under"],
}
VOCABULARY = ["?", *sorted({word for words in WORDS.values() for word in words})]
LANGUAGE = Text(vocabulary=VOCABULARY, separator=" ", unknown="?")
TRAIN, TEST, HIDDEN, WIDTH, NO_TAG = 1000, 200, 32, 16, -100
SHOWN = "the old saw can fly near a red can"

Sentence = tuple[tuple[str, str], ...]
"""Words and their tags."""


def sentence(generator: np.random.Generator) -> Sentence:
    """A sentence of the small grammar: noun phrase, maybe a modal, verb, noun phrase, maybe where."""
    tags = [*_phrase(generator)]
    if generator.random() < 0.5:
        tags.append("modal")
    tags += ["verb", *_phrase(generator)]
    if generator.random() < 0.4:
        tags += ["preposition", *_phrase(generator)]
    return tuple((str(generator.choice(WORDS[tag])), tag) for tag in tags)


def _phrase(generator: np.random.Generator) -> list[str]:
    return ["determiner", *(["adjective"] if generator.random() < 0.4 else []), "noun"]


class TagLstm(nn.Module):
    """Scores of the tags: word [B, T] int64 → scores [B, T, 6], states h, c [1, B, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(VOCABULARY), WIDTH)
        self.lstm = nn.LSTM(WIDTH, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, len(TAGS))

    def forward(self, word: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All words; a tag never waits for the words behind it."""
        hidden, (h, c) = self.lstm(self.words(word), (h, c))
        return self.head(hidden), h, c


@dataclass(frozen=True)
class Tagged:
    """Sentences as numbers, int64 [N, longest], padded on the right: tags with -100 there."""

    words: Tensor
    tags: Tensor
    test_words: Tensor
    test_tags: Tensor


def numbers(sentences: list[Sentence]) -> tuple[Tensor, Tensor]:
    """Word and tag numbers, padded."""
    words = [torch.tensor(encode_text(LANGUAGE, " ".join(word for word, _ in made))) for made in sentences]
    tags = [torch.tensor([TAGS.index(tag) for _, tag in made]) for made in sentences]
    return pad_sequence(words, batch_first=True), pad_sequence(tags, batch_first=True, padding_value=NO_TAG)


class Tagger:
    """Adam .01, batches of 50, 15 epochs; no sentence of the test is among those that train."""

    card = Card(
        "tagger",
        task="name the part of speech of every word",
        data="1,200 different sentences made from a small grammar with ambiguous words; 200 held out",
        cell="Embedding, LSTM 16→32",
        kind="session",
        mode="synchronous sequence to sequence",
        target=Target("test_accuracy", ">=", 0.98),
    )

    def data(self, run: Run) -> Tagged:
        """Different sentences; the same for every seed, so that figures can be compared."""
        generator = np.random.default_rng(0)
        made = dict[Sentence, None]()
        while len(made) < TRAIN + TEST:
            made[sentence(generator)] = None
        sentences = list(made)
        return Tagged(*numbers(sentences[:TRAIN]), *numbers(sentences[TRAIN:]))

    def module(self, data: Tagged) -> TagLstm:
        """Random weights from the run's seed."""
        return TagLstm()

    def train(self, module: TagLstm, data: Tagged, run: Run) -> Curve:
        """Cross-entropy over all words."""
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)

        def epoch() -> float:
            losses = []
            for chosen in torch.split(torch.randperm(TRAIN), 50):
                scores = self._scores(module, data.words[chosen])
                loss = nn.functional.cross_entropy(
                    scores.flatten(0, 1), data.tags[chosen].flatten(), ignore_index=NO_TAG
                )
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                losses.append(float(loss.item()))
            return sum(losses) / len(losses)

        return run.fit(module, epoch, epochs=15)

    def metrics(self, module: TagLstm, data: Tagged) -> dict[str, float]:
        """The share of right tags, of all words and of the ambiguous ones; and of each word's most frequent tag.

        And how far sentences that are streamed word by word are from whole ones.
        """
        said = self._scores(module, data.test_words).argmax(-1)
        real = data.test_tags != NO_TAG
        unsure = real & torch.isin(data.test_words, torch.tensor([VOCABULARY.index(word) for word in AMBIGUOUS]))
        right = said == data.test_tags
        usual = torch.stack([self._usual(data, number) for number in range(len(VOCABULARY))])
        return {
            "test_accuracy": float(right[real].float().mean()),
            "test_accuracy_ambiguous": float(right[unsure].float().mean()),
            "test_accuracy_without_context": float((usual[data.test_words] == data.test_tags)[real].float().mean()),
            "stream_difference": self._stream_difference(module, data.test_words),
        }

    def picture(self, module: TagLstm, data: Tagged) -> Figure:
        """The probabilities of the tags of one sentence."""
        words = torch.tensor([encode_text(LANGUAGE, SHOWN)])
        shown = self._scores(module, words)[0].softmax(-1).numpy()
        return table("tagger: probabilities", shown, SHOWN.split(), TAGS)

    def export(self, module: TagLstm, data: Tagged, folder: Path) -> list[Export]:
        """One file; words go in as numbers, by the vocabulary in the signature."""
        state = State(torch.zeros(1, 1, HIDDEN), batch_axis=1)
        return [
            export(
                module,
                {"word": data.words[:20]},
                states={"h": state, "c": state},
                outputs=["scores"],
                time_axis=1,
                path=folder / "model.onnx",
                text={"word": LANGUAGE},
                classes={"scores": TAGS},
                description="Names the part of speech of every word as it comes, in a small language.",
            )
        ]

    def _scores(self, module: TagLstm, words: Tensor) -> Tensor:
        start = torch.zeros(1, len(words), HIDDEN)
        scores: Tensor = module(words, start, start)[0]
        return scores

    def _stream_difference(self, module: TagLstm, words: Tensor) -> float:
        h = c = torch.zeros(1, len(words), HIDDEN)
        streamed = []
        for word in words.unbind(1):
            scores, h, c = module(word[:, None], h, c)
            streamed.append(scores)
        return float((torch.cat(streamed, 1) - self._scores(module, words)).abs().max())

    def _usual(self, data: Tagged, number: int) -> Tensor:
        """The most frequent tag of a word among the sentences that train."""
        seen = data.tags[(data.words == number) & (data.tags != NO_TAG)]
        return torch.bincount(seen, minlength=len(TAGS)).argmax()


recipe = Tagger()
