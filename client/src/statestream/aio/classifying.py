"""What an asyncio client is told in names of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from statestream import arguments, classes
from statestream.aio.generating import Generating
from statestream.layout import Input
from statestream.progress import Progress, check_progress


class Classifying(Generating):
    """The part of a client that has inputs classified."""

    async def classify(
        self,
        model: str,
        x: Input,
        *,
        top: int | None = 5,
        names: Sequence[str] | None = None,
        scores: classes.Kind | None = None,
        version: int | str | None = None,
        progress: Progress = False,
    ) -> Any:
        """Tells the likeliest classes of a picture, or of any other input, and their probabilities.

        Args:
            model: The model's name; a model without memory.
            x: One input as the model takes it without the axis of its batch, as [C, H, W] (or [H, W] for one channel),
                or many [B, …]. It is scaled and laid out as the model was trained: nothing is resized here.
            top: How many classes are wanted, the likeliest first; None for all.
            names: The names of the classes, in the order of the scores; those of the model's signature where left out,
                and numbers where that has none.
            scores: What the model's scores are: "logits" (or logarithms of probabilities), of which this takes the
                softmax, or "probabilities". Where left out the signature's head says it, or the numbers do: those that
                are positive and add up to 1 in every row are probabilities.
            version: The model's version, or an alias of one; the default one where left out.
            progress: Tells how many inputs are done: see `predict`.

        Returns:
            `Class`es, pairs of a name and a probability; of many inputs a list of such lists. Of a model that tells a
            label alone one class, with NaN.

        Raises:
            BadTensor: Wrong dtype or shape; or there are not as many names as classes.
            Unsupported: The model has memory, or does not say which of its outputs tells classes.
        """
        arguments.check_model(model, version)
        wish = classes.wished(top, names, scores)
        check_progress(progress)
        sent, alone = classes.image(await self._layout(model, version, "predict"), x)
        found = await self._predict(model, sent, (), version, progress, f"classify {model}")
        return classes.classified(await self._layout(model, version, "predict"), wish, found, alone=alone)
