"""Fashion: the convnet on pictures of clothes; it needs the files of Fashion-MNIST."""

from __future__ import annotations

from statestream_export.datasets.images import fashion
from statestream_export.recipe import Card, Target
from statestream_export.recipes.classifier import ClassifierRecipe
from statestream_export.recipes.convnet import Convnet

CLASSES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "trainer", "bag", "ankle boot")

recipe = ClassifierRecipe(
    Card(
        "fashion",
        task="name pieces of clothing",
        data="Fashion-MNIST; nothing stands for it",
        cell="Conv 10@5×5, 20@3×3, Linear 500",
        kind="predict",
        mode="",
        target=Target("test_accuracy", ">=", 0.9),
    ),
    fashion,
    Convnet,
    epochs=40,
    epochs_of_many=10,
    batch=128,
    # Clothes reach the edges of their images.
    shift=0,
    classes=CLASSES,
)
