"""The predict driver: runs of models without memory, one by one or many together, bounded before and behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from statestream.contract import errors
from statestream.contract.signature import TensorSpec
from statestream_server.arrays import Array
from statestream_server.catalog import Catalog
from statestream_server.drivers.bounds import check_answer
from statestream_server.drivers.waiting import predict
from statestream_server.engine.calls import Calls, CallSink
from statestream_server.engine.engine import Engine
from statestream_server.models.model import Model
from statestream_server.sessions.admission.accounts import COPIES, Budget
from statestream_server.settings import Limits
from statestream_server.shapes import check_graph, known_bytes


class Asked(NamedTuple):
    """A model, and the outputs of it that are wanted.

    Attributes:
        model: As `Predictor.model` gave it.
        wanted: The places of the outputs among the model's.
        specs: Those outputs, each with the spec that it has in the signature.
        axes: The batch axis of each input; empty where an input or an output has none.
        output_axes: The batch axis of each of the model's outputs; likewise.
    """

    model: Model
    wanted: Sequence[int]
    specs: Sequence[TensorSpec]
    axes: Sequence[int]
    output_axes: Sequence[int]

    def known_bytes(self, rows: int) -> int:
        """Bytes of those outputs for so many rows, as far as the signature knows."""
        return known_bytes(self.specs, rows)

    def chosen(self, outputs: Sequence[Array]) -> list[Array]:
        """Those of a run's outputs."""
        return [outputs[index] for index in self.wanted]


class Predictor:
    """Predicts with models without memory."""

    def __init__(self, catalog: Catalog, engine: Engine, limits: Limits, budget: Budget) -> None:
        """Predictions run on `engine`; `budget` is what those without a stream may hold together."""
        self._catalog = catalog
        self._engine = engine
        self._limits = limits
        self._budget = budget

    def model(self, name: str, version: int, alias: str = "") -> Model:
        """The model that a caller means; by number or alias, 0 for the default version.

        Raises:
            ModelNotFound: It is not served.
            Unsupported: It has memory.
        """
        model = self._catalog.get(name, version, alias).model
        if model.graph is None:
            verb = "open a session" if model.kind == "session" else "call generate"
            raise errors.Unsupported(f"model {model.name!r} has memory; {verb} instead")
        return model

    def asked(self, model: Model, outputs: Sequence[str]) -> Asked:
        """What is asked of a model: the names of the outputs that are wanted; none for all.

        Raises:
            BadTensor: A name is not in its signature, or comes twice.
        """
        signature = model.signature
        wanted = _wanted([spec.name for spec in signature.outputs], outputs)
        specs = [signature.outputs[index] for index in wanted]
        batched = all(spec.HasField("batch_axis") for spec in [*signature.inputs, *signature.outputs])
        axes = [spec.batch_axis for spec in signature.inputs] if batched else []
        output_axes = [spec.batch_axis for spec in signature.outputs] if batched else []
        return Asked(model, wanted, specs, axes, output_axes)

    async def predict(self, asked: Asked, inputs: list[Array]) -> list[Array]:
        """Runs a model once.

        Args:
            asked: The model, and what is wanted of it.
            inputs: One array for every input of the signature, with the graph's own axes.

        Returns:
            The outputs, in the order in which they are wanted.

        Raises:
            BadTensor: An input does not fit the signature, or the graph refuses a value.
            Overloaded: With what is under way it would hold too much.
            AnswerTooLarge: The outputs have more bytes than the server sends.
        """
        model = asked.model
        assert model.graph is not None
        check_graph(model.signature.inputs, inputs)
        rows, came = inputs[0].shape[asked.axes[0]] if asked.axes else 1, sum(array.nbytes for array in inputs)
        self.check_answer(asked, asked.known_bytes(rows))
        # Outputs of free shape are taken to be as large as the inputs: more is known once they are there.
        with self._budget.holding(COPIES * came + max(came, known_bytes(model.signature.outputs, rows))):
            made = await predict(self._engine, model.graph, inputs, asked.axes, asked.output_axes, model.mark)
        chosen = asked.chosen(made)
        self.check_answer(asked, sum(array.nbytes for array in chosen))
        return chosen

    def check(self, asked: Asked, inputs: Sequence[Array], rows: Sequence[int] | None) -> list[int]:
        """Checks the inputs of calls that came together; the rows of each.

        Args:
            asked: The model, and what is wanted of it.
            inputs: One array for every input, of one call behind the other along the batch axis.
            rows: The rows of each call; None where it is one, whatever it has.

        Raises:
            BadTensor: An input does not fit the signature.
            BadFrame: The rows are not those of the inputs, or the model takes one call at a time.
        """
        check_graph(asked.model.signature.inputs, inputs)
        came = inputs[0].shape[asked.axes[0]] if asked.axes else 1
        if rows is None:
            return [came]
        if not asked.axes:
            raise errors.BadFrame(
                f"rows has {len(rows)} entries; an input or an output of model {asked.model.name!r} has no batch axis:"
                " send a frame for each call, without rows",
                metadata={"field": "rows"},
            )
        if sum(rows) != came:
            raise errors.BadFrame(
                f"rows come to {sum(rows)}, the inputs have {came}; expected the rows of every call",
                metadata={"field": "rows"},
            )
        return list(rows)

    def check_answer(self, asked: Asked, nbytes: int) -> None:
        """Checks how large the answer to one call is, known or measured.

        Raises:
            AnswerTooLarge: It is more than the server sends.
        """
        check_answer(asked.model, nbytes, self._limits)

    def submit(self, asked: Asked, inputs: list[Array], rows: Sequence[int], sink: CallSink, first: int = 0) -> None:
        """Queues calls that were checked, the first of them number `first`; the sink hears how they end.

        It gets all outputs of the model, in its order.
        """
        assert asked.model.graph is not None
        calls = Calls(inputs, asked.axes, asked.output_axes, rows, sink, first)
        self._engine.call(asked.model.graph, calls, asked.model.mark)


def _wanted(names: list[str], asked: Sequence[str]) -> list[int]:
    """The places of the outputs that are asked for."""
    unknown = [name for name in asked if name not in names]
    if len(set(asked)) < len(asked):
        raise errors.BadTensor(
            f"outputs has {len(asked)} names, {len(set(asked))} of them different; expected each once at most",
            metadata={"field": "outputs"},
        )
    if unknown:
        raise errors.BadTensor(
            f"output {errors.quoted(unknown[0])} does not exist; the model has {', '.join(names)}",
            metadata={"field": "outputs"},
        )
    return [names.index(name) for name in asked] or list(range(len(names)))
