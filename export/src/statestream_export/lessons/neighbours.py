"""Neighbours: which words an embedding puts next to each other, before and after `sentiment` has trained it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from statestream_export.lessons import Shown, finished
from statestream_export.recipes import sentiment
from statestream_export.recipes.sentiment import QUALITIES, SUBJECTS, VOCABULARY
from statestream_export.training import Run

WORDS = VOCABULARY[1:]
"""All but the one for unknown words, which no sentence has."""
SMALL = 0.1
"""What the vectors are multiplied by before training, so that what training puts there is not lost in the start."""
KINDS: Mapping[str, Sequence[str]] = {
    "praise": [word for word, sign in QUALITIES.items() if sign > 0],
    "blame": [word for word, sign in QUALITIES.items() if sign < 0],
    "denial": ["not", "never", "hardly"],
    "verb": ["was", "is", "seemed", "always"],
    "degree": ["very", "rather", "so"],
    "article": sorted({subject.split()[0] for subject in SUBJECTS}),
    "thing": [subject.split()[1] for subject in SUBJECTS],
}
"""What the words are, which nobody tells the network."""
SHOWN = ("good", "bad", "not", "film")


def likeness(vectors: Tensor) -> Tensor:
    """The cosine of the angle between any two of [N, D]: [N, N], 1 for the same direction."""
    directions = torch.nn.functional.normalize(vectors, dim=1)
    return directions @ directions.T


def nearest(vectors: Tensor, word: str, count: int = 3) -> list[tuple[str, float]]:
    """The words with the most alike vectors, nearest first, and how alike they are."""
    at = WORDS.index(word)
    alike = likeness(vectors)[at]
    order = [other for other in alike.argsort(descending=True).tolist() if other != at]
    return [(WORDS[other], float(alike[other])) for other in order[:count]]


def of_one_kind(vectors: Tensor) -> int:
    """How many words have a nearest neighbour of their own kind."""
    kind = {word: name for name, words in KINDS.items() for word in words}
    return sum(kind[nearest(vectors, word, 1)[0][0]] == kind[word] for word in WORDS)


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of all words before and after training, [N, D] each, and the accuracy on held-out sentences."""

    title: str
    before: Tensor
    after: Tensor
    accuracy: float


def show(run: Run) -> Shown:
    """Trains the recipe twice: from torch's start, N(0, 1), and from a tenth of that."""
    found = list[Embedded]()
    for title, scale in (("start N(0, 1), as torch has it", 1.0), (f"start {SMALL:g} times that", SMALL)):
        torch.manual_seed(run.seed)
        data = sentiment.recipe.data(run)
        module = sentiment.recipe.module(data)
        with torch.no_grad():
            module.words.weight *= scale
            before = module.words.weight[1:].clone()
        finished(sentiment.recipe.train(module, data, run))
        with torch.no_grad():
            accuracy = float(sentiment.recipe.metrics(module, data)["test_accuracy"])
            found.append(Embedded(title, before, module.words.weight[1:].clone(), accuracy))
    figures = {
        "words": len(WORDS),
        "starts": [
            {
                "title": one.title,
                "test_accuracy": one.accuracy,
                "of_one_kind_before": of_one_kind(one.before),
                "of_one_kind_after": of_one_kind(one.after),
                "nearest": {word: dict(nearest(one.after, word)) for word in SHOWN},
            }
            for one in found
        ],
    }
    return Shown(figures, _picture(found))


def _picture(found: list[Embedded]) -> Figure:
    """A map for each start: the two directions in which the vectors differ most."""
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    figure.suptitle("sentiment: the words' vectors, along the two directions in which they differ most")
    for axes, one in zip(figure.subplots(1, len(found)), found, strict=True):
        middle = one.after - one.after.mean(0)
        _, _, directions = torch.linalg.svd(middle, full_matrices=False)
        points = middle @ directions[:2].T
        for name, words in KINDS.items():
            at = [WORDS.index(word) for word in words]
            axes.scatter(points[at, 0], points[at, 1], label=name, s=18)
            for number in at:
                axes.annotate(WORDS[number], points[number].tolist(), (3, 3), textcoords="offset points", fontsize=8)
        same = f"{of_one_kind(one.after)} of {len(WORDS)} (before training {of_one_kind(one.before)})"
        axes.set_title(f"{one.title}\nnearest neighbour of one's own kind: {same}", fontsize=10)
    axes.legend(fontsize=8)
    return figure
