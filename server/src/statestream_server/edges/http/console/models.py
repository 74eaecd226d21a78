"""Models as the console shows them: signature, what was proved of them, and why they are batched or not."""

from __future__ import annotations

from typing import Any, Final

from statestream.contract.signature import Signature, TensorSpec, forecast_values, known_places, steps_before
from statestream.contract.specs import step_shape
from statestream.v1.model_pb2 import BatchInvariance
from statestream_server import caller
from statestream_server.catalog import Served
from statestream_server.models.model import BatchPolicy, Model
from statestream_server.server import Server

_MOST_FIELDS: Final = 64
"""Columns, classes and the like of a tensor that are told."""
_NOTES: Final = {
    BatchInvariance.BATCH_INVARIANCE_EXACT: "Batched: rows answer with the same bits at every batch size tried.",
    BatchInvariance.BATCH_INVARIANCE_PADDED: "Batched: the same bits once a batch of one runs as two, as it does here.",
    BatchInvariance.BATCH_INVARIANCE_APPROXIMATE: "Bits differ between batch sizes, within rounding.",
    BatchInvariance.BATCH_INVARIANCE_UNSPECIFIED: "Not checked: there is no batch axis, or no inputs were found that it"
    " takes.",
}


def all_of(server: Server) -> list[dict[str, Any]]:
    """All versions that serve, and those that failed, by name and version."""
    found = [_of(server, served) for served in server.registry]
    found += [
        {"name": name, "version": version, "error": reason}
        for (name, version), reason in server.registry.failures.items()
    ]
    return sorted(found, key=lambda each: (each["name"], each["version"]))


def _of(server: Server, served: Served) -> dict[str, Any]:
    model, table = served.model, served.table
    signature, encoder = model.signature, model.encoder_signature
    found = server.engine.statistics_of(table, (model.graph, model.encoder))
    values = forecast_values(signature) if signature.feedback and table is not None else []
    return {
        "name": model.name,
        "version": model.version,
        "aliases": server.registry.aliases_of(model.name, model.version),
        "default": server.registry.is_default(model),
        "kind": str(model.kind),
        "digest": model.digest,
        "description": signature.description,
        "inputs": [spec_of(spec) for spec in signature.inputs],
        "outputs": [spec_of(spec) for spec in (table.answers if table is not None else signature.outputs)],
        "encoder_inputs": [spec_of(spec) for spec in encoder.inputs] if encoder is not None else [],
        "states": [
            {"name": state.input, "dtype": state.dtype, "shape": list(state.shape)} for state in signature.states
        ],
        "bytes": table.rows.row_nbytes if table is not None else 0,
        "sessions": table.sessions_of(caller.current.get().counts) if table is not None else 0,
        "proof": model.invariance_note,
        "encoder_proof": model.encoder_note,
        "batched": _batched(server, model),
        "form": [list(note) for note in model.form],
        "batches": found.batches,
        "rows": found.rows,
        "forecasts": [value.name for value in values],
        "future": [
            {**spec_of(spec), "step": list(shape)}
            for spec in signature.inputs
            if values and (shape := future_shape(signature, spec)) is not None
        ],
        "draws": bool(signature.heads),
        "lookback": steps_before(signature) if values else 0,
        "reads_text": model.reads is not None,
    }


def _batched(server: Server, model: Model) -> str:
    if server.settings.batch_policy is BatchPolicy.SERIALISE:
        return "Not batched: --batch-policy serialise has every row and step run alone."
    note = _NOTES.get(model.batch_invariance, "")
    if model.graph is not None and model.batch_invariance not in (
        BatchInvariance.BATCH_INVARIANCE_EXACT,
        BatchInvariance.BATCH_INVARIANCE_PADDED,
    ):
        return f"{note} Calls of Predict run alone, so that none depends on another."
    if model.batch_invariance == BatchInvariance.BATCH_INVARIANCE_APPROXIMATE:
        return f"{note} It is batched all the same; --batch-policy serialise gives the same bits, slower."
    return note


def future_shape(signature: Signature, spec: TensorSpec) -> tuple[int, ...] | None:
    """The shape of what of a step of an input has to be known beforehand; None where a forecast feeds all of it."""
    places = known_places(signature, spec.name)
    if places is None:
        return step_shape(spec)
    return (*step_shape(spec)[:-1], len(places)) if len(places) else None


def spec_of(spec: TensorSpec) -> dict[str, Any]:
    """A tensor of a signature; -1 is a free length."""
    return {
        "name": spec.name,
        "dtype": spec.dtype,
        "shape": list(spec.shape),
        "step": list(step_shape(spec)),
        "columns": list(spec.columns[:_MOST_FIELDS]),
        "classes": list(spec.classes[:_MOST_FIELDS]),
        "text": spec.HasField("text"),
    }
