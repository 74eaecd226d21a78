"""Gathered calls: predictions that come one by one, without a stream; those of one turn of the loop run as one.

Their inputs lie one behind the other before the engine sees them, so a call costs it what a row costs. Whatever is not
as usual is left to predict.py, which also says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from statestream.contract import errors
from statestream.contract.signature import numpy_dtype
from statestream_server.arrays import Array
from statestream_server.drivers.predict import Asked, Predictor
from statestream_server.engine.engine import Engine
from statestream_server.models.model import Model
from statestream_server.sessions.admission.accounts import COPIES, OVERHEAD, Budget


class Asker(Protocol):
    """Who asked for a prediction; hears of it once, by one of these methods, on the loop."""

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more."""

    def ran(self, rows: int, outputs: Sequence[bytes]) -> None:
        """The bytes [rows, ...one row] of every output of the model."""

    def refused(self, error: Exception) -> None:
        """There is no answer."""


class Gathering:
    """The calls that came since the last batch began, by model."""

    def __init__(self, predictor: Predictor, engine: Engine, budget: Budget) -> None:
        """None came. `budget` is what calls without a stream may hold; the engine asks for them before it chooses."""
        self._predictor = predictor
        self._engine = engine
        self._budget = budget
        self._groups: dict[int, _Group] = {}

    def put(self, model: Model, rows: int, inputs: Sequence[bytes], size: int, asker: Asker) -> bool:
        """Takes a call, which goes on with the next turn of the engine.

        Args:
            model: A model whose inputs and outputs have the batch axis first, and no other that is free.
            rows: Its rows, one or more.
            inputs: The bytes [rows, ...one row] of every input, as the signature says.
            size: The bytes of its inputs and of the outputs that it comes to.
            asker: Who hears of it.

        Returns:
            False where there is no room for it now, and nothing happened.
        """
        size, budget = OVERHEAD + COPIES * size, self._budget
        if budget.held and budget.held + size > budget.most:
            return False
        if not self._groups:
            self._engine.feeds.append(self.empty)
        group = self._groups.get(id(model))
        if group is None:
            group = self._groups[id(model)] = _Group(self._predictor.asked(model, ()), budget)
        group.calls.append((rows, inputs, size, asker))
        budget.held += size
        self._engine.wake(1)
        return True

    def empty(self) -> None:
        """Hands on what came; while nothing does, no batch waits for this."""
        if self._groups:
            self._engine.feeds.remove(self.empty)
        groups, self._groups = self._groups, {}
        for group in groups.values():
            group.submit(self._predictor)


class _Group:
    """Calls of one model that run together; takes their outputs."""

    __slots__ = ("_asked", "_budget", "calls")

    def __init__(self, asked: Asked, budget: Budget) -> None:
        self._asked = asked
        self._budget = budget
        self.calls: list[tuple[int, Sequence[bytes], int, Asker]] = []

    @property
    def wanted(self) -> bool:
        return any(not asker.over for *_, asker in self.calls)

    def submit(self, predictor: Predictor) -> None:
        """Queues them, but for those that nobody waits for any more."""
        left = [call for call in self.calls if call[3].over]
        if left:
            self._budget.held -= sum([size for _, _, size, _ in left])
            self.calls = [call for call in self.calls if not call[3].over]
            if not self.calls:
                return
        counts, parts, *_ = zip(*self.calls, strict=True)
        total = sum(counts)
        inputs = [
            np.ndarray(
                (total, *spec.shape[1:]), numpy_dtype(spec.dtype), b"".join(datas) if len(datas) > 1 else datas[0]
            )
            for spec, datas in zip(self._asked.model.signature.inputs, zip(*parts, strict=True), strict=True)
        ]
        predictor.submit(self._asked, inputs, counts, self)

    def ran(self, first: int, rows: Sequence[int], outputs: list[Array]) -> None:
        whole, begin = [array.tobytes() for array in outputs], 0
        each = [array.nbytes // len(array) for array in outputs]
        for place, count in enumerate(rows, first):
            end = begin + count
            self._end(place).ran(
                count, [data[begin * size : end * size] for data, size in zip(whole, each, strict=True)]
            )
            begin = end

    def refused(self, first: int, count: int, error: errors.StatestreamError) -> None:
        for place in range(first, first + count):
            self._end(place).refused(error)

    def _end(self, place: int) -> Asker:
        """Who asked for a call, which is not under way any more."""
        _, _, size, asker = self.calls[place]
        self._budget.held -= size
        return asker
