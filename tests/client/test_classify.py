"""`client.classify`: names and probabilities of what a model tells, whatever its scores are; with both clients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from statestream import classes, errors
from statestream.layout import Layout
from statestream.signature import HeadKind
from tests.client.fake_server import Fake
from tests.client.twins import Connect, Twin

LOGS = (math.log(0.2), math.log(0.8))


def told(found: Any) -> list[tuple[str, float]]:
    return [(name, round(probability, 3)) for name, probability in found]


async def test_one_input_and_many(connect: Connect, twin: Twin, fake: Fake) -> None:
    """The model doubles: its answers are what is sent, twice."""
    fake.models["double"].signature.outputs[0].classes.extend(["cat", "dog"])
    client = await connect()
    half = np.asarray(LOGS) / 2
    one = await twin.call(client.classify, "double", half)
    assert told(one) == [("dog", 0.8), ("cat", 0.2)]
    assert one[0].name == "dog"
    many = await twin.call(client.classify, "double", np.stack([half, half[::-1]]), top=1)
    assert [told(each) for each in many] == [[("dog", 0.8)], [("cat", 0.8)]]
    seen = list[tuple[int, int | None]]()
    done = await twin.call(client.classify, "double", np.tile(half, (40, 1)), progress=lambda *how: seen.append(how))
    assert (len(done), seen[0], seen[-1]) == (40, (0, 40), (40, 40))
    assert len(seen) > 2, "some at a time"
    with pytest.raises(TypeError, match="progress is int"):
        await twin.call(client.classify, "double", half, progress=3)
    # Numbers that are probabilities are left as they are, unless they are said to be something else.
    assert told(await twin.call(client.classify, "double", [0.35, 0.15])) == [("cat", 0.7), ("dog", 0.3)]
    assert told(await twin.call(client.classify, "double", [0.35, 0.15], scores="logits"))[0] == ("cat", 0.599)
    assert told(await twin.call(client.classify, "double", [0.3, 0.1], scores="probabilities"))[0] == ("cat", 0.6)
    named = await twin.call(client.classify, "double", half, names=["Katze", "Hund"])
    assert [name for name, _ in named] == ["Hund", "Katze"]


async def test_without_names_classes_are_numbers(connect: Connect, twin: Twin) -> None:
    client = await connect()
    assert [name for name, _ in await twin.call(client.classify, "double", [1, 5])] == ["1", "0"]


async def test_what_cannot_be_classified_says_so(connect: Connect, twin: Twin, fake: Fake) -> None:
    client = await connect()
    with pytest.raises(errors.Unsupported, match="sum"):
        await twin.call(client.classify, "sum", [1, 2])
    with pytest.raises(errors.BadTensor, match="scores of 2 classes; expected as many names, 3 came"):
        await twin.call(client.classify, "double", [1, 2], names=list("abc"))
    with pytest.raises(errors.BadTensor, match="expects"):
        await twin.call(client.classify, "double", [1, 2, 3])
    fake.models["double"].signature.outputs.add(name="z", dtype="float32", shape=[-1, 4], batch_axis=0)
    with pytest.raises(errors.Unsupported, match=r"does not say which of its outputs \(y, z\)"):
        await twin.call((await connect()).classify, "double", [1, 2])


def test_what_the_signature_says_of_scores_counts(fake: Fake) -> None:
    message = fake.models["double"]
    head = message.signature.heads.add(name="class", kind=HeadKind.HEAD_KIND_CATEGORICAL)
    head.parameters["probs"] = "y"
    from statestream.views import read_model

    wish = classes.wished(None, None, None)
    layout = Layout(read_model(message))
    assert told(classes.classified(layout, wish, np.asarray([[0.1, 0.3]]), alone=True)) == [("1", 0.3), ("0", 0.1)]
    del head.parameters["probs"]
    head.parameters["logits"] = "y"
    layout = Layout(read_model(message))
    assert told(classes.classified(layout, wish, np.asarray([[0.5, 0.5]]), alone=True)) == [("0", 0.5), ("1", 0.5)]


def test_labels_and_grey_pictures(fake: Fake) -> None:
    from statestream.views import read_model

    message = fake.models["double"]
    spec, output = message.signature.inputs[0], message.signature.outputs[0]
    del spec.shape[:]
    spec.shape.extend([-1, 1, 8, 8])
    output.dtype = "int64"
    output.classes.extend(["cat", "dog"])
    layout = Layout(read_model(message))
    sent: Any
    sent, alone = classes.image(layout, np.zeros((8, 8)))
    assert (sent.shape, alone) == ((1, 1, 8, 8), True)
    sent, alone = classes.image(layout, np.zeros((3, 1, 8, 8)))
    assert (sent.shape, alone) == ((3, 1, 8, 8), False)
    (one,) = classes.classified(layout, classes.wished(1, None, None), np.asarray([1]), alone=True)
    assert one.name == "dog"
    assert math.isnan(one.probability)
