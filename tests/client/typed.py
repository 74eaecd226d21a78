"""A script as a user types it, strictly: mypy is to refuse the lines that say so, and no other. Nothing runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import numpy as np

import statestream
from statestream import aio


class Tensor:
    """As torch's."""

    def __array__(self, dtype: object = None) -> object:
        return np.zeros(2)


def by_hand(client: statestream.Client) -> None:
    session = client.session("sunspots", "a", mode="resume")
    client.session("sunspots", mode="resum")  # refused: Literal
    client.sessions("sunspots", 3, mode="new")  # refused: Literal
    client.session("sunspots", id=5)  # refused: str
    session.step([1.0, 2.0])
    session.step(1)
    session.step(np.zeros(3, np.float32))
    session.step(np.float32(3))
    session.step({"x": [1.0]})
    session.step(Tensor())
    session.step([np.zeros(2), np.zeros(2)])
    session.step(object())  # refused: "object"
    session.step(None)  # refused: None
    session.step({1.0})  # refused: set
    session.step([1.0], score="yes")  # refused: bool
    session.stream([[1.0], [2.0]])
    for id, y in client.feed("sunspots", [("a", [1.0])], mode="create"):
        print(id.upper(), y)
    client.feed("sunspots", [5])  # refused: int
    client.classify("digits", np.zeros((8, 8)), scores="logits")
    client.classify("digits", np.zeros((8, 8)), scores="odds")  # refused: Literal
    models: Sequence[statestream.Model] = client.models()
    print(models[0].nam)  # refused: nam


async def by_loop(client: aio.Client) -> None:
    async def source() -> AsyncIterator[tuple[str, list[float]]]:
        yield "a", [1.0]

    async for id, y in client.feed("sunspots", source()):
        print(id.upper(), y)
    async with client.session("sunspots", mode="either") as session:
        await session.step([1.0])
    client.session("sunspots").step([1.0])  # refused: step
    session.step([1.0]) + 1  # refused: Coroutine
