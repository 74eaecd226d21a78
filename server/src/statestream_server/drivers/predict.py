"""The predict driver: one run of a model without memory, bounded before and behind."""

from __future__ import annotations

from collections.abc import Sequence

from statestream.contract import errors
from statestream.contract.signature import TensorSpec
from statestream_server.arrays import Array
from statestream_server.drivers.bounds import check_answer
from statestream_server.engine.engine import Engine
from statestream_server.models.model import Model
from statestream_server.registry import Registry
from statestream_server.sessions.admission.accounts import COPIES, Budget
from statestream_server.settings import Limits
from statestream_server.shapes import check_graph, known_bytes


class Predictor:
    """Predicts with models without memory."""

    def __init__(self, registry: Registry, engine: Engine, limits: Limits, budget: Budget) -> None:
        """Predictions run on `engine`; `budget` is what they may hold together."""
        self._registry = registry
        self._engine = engine
        self._limits = limits
        self._budget = budget

    def model(self, name: str, version: int) -> Model:
        """The model that a caller means; version 0 for the default one.

        Raises:
            ModelNotFound: It is not served.
            Unsupported: It has memory.
        """
        model = self._registry.get(name, version).model
        if model.graph is None:
            verb = "open a session" if model.kind == "session" else "call generate"
            raise errors.Unsupported(f"model {model.name!r} has memory; {verb} instead")
        return model

    async def predict(
        self, model: Model, inputs: list[Array], outputs: Sequence[str]
    ) -> list[tuple[TensorSpec, Array]]:
        """Runs a model.

        Args:
            model: As `model` gave it.
            inputs: One array for every input of the signature, with the graph's own axes.
            outputs: The names of those that are wanted; none for all.

        Returns:
            Those outputs in the order of `outputs`, or of the signature, each with the spec that it has there.

        Raises:
            BadTensor: An input does not fit the signature, a name is not in it, or the graph refuses a value.
            Overloaded: With what is under way it would hold too much.
            AnswerTooLarge: The outputs have more bytes than the server sends.
        """
        assert model.graph is not None
        signature = model.signature
        check_graph(signature.inputs, inputs)
        wanted = _wanted([spec.name for spec in signature.outputs], outputs)
        specs = [signature.outputs[index] for index in wanted]
        batched = all(spec.HasField("batch_axis") for spec in [*signature.inputs, *signature.outputs])
        axes = [spec.batch_axis for spec in signature.inputs] if batched else []
        output_axes = [spec.batch_axis for spec in signature.outputs] if batched else []
        rows, came = inputs[0].shape[axes[0]] if axes else 1, sum(array.nbytes for array in inputs)
        check_answer(model, known_bytes(specs, rows), self._limits)
        # Outputs of free shape are taken to be as large as the inputs: more is known once they are there.
        with self._budget.holding(COPIES * came + max(came, known_bytes(signature.outputs, rows))):
            made = await self._engine.predict(model.graph, inputs, axes, output_axes, model.mark)
        chosen = [made[index] for index in wanted]
        check_answer(model, sum(array.nbytes for array in chosen), self._limits)
        return list(zip(specs, chosen, strict=True))


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
