"""Made graphs: what ONNX Runtime takes of a version, kept beside its verdict, so that a start makes none of it again.

Of a file of moderate size with a memory that the graph itself gathers and commits, on the CPU. Where one is kept, the
file is only compared by its SHA-256: it is neither parsed nor rewritten, and the package that does so is not imported.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from statestream.contract.signature import Signature, as_sent
from statestream_server.models.graphs.fused_names import Names, SlabNames, Wrapped
from statestream_server.models.graphs.refused import FusionError
from statestream_server.models.graphs.runtime import Device
from statestream_server.models.memory.fused_rows import FusedRows
from statestream_server.models.memory.observed import observed
from statestream_server.models.model import Kind, Model
from statestream_server.models.proof.verdict import Verdict

_MOST_BYTES: Final = 1 << 20
"""Of the files that a version is read from, and of its graphs."""


class Made(NamedTuple):
    """The graphs of a version.

    Attributes:
        signature: Of its normal form.
        form: How it became that; see `Model.form`.
        weights: The files that hold weights and no graph, relative to its folder, links followed.
        graph: For one step.
        unfolded: For several steps at once, with their signature; None where there is none.
    """

    signature: Signature
    form: Sequence[tuple[str, str]]
    weights: Sequence[str]
    graph: Wrapped
    unfolded: tuple[Wrapped, Signature] | None = None

    def values(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "signature": _text(self.signature.SerializeToString()),
            "form": [[*note] for note in self.form],
            "weights": [*self.weights],
            "graph": _values(self.graph),
            "unfolded": self.unfolded and [_values(self.unfolded[0]), _text(self.unfolded[1].SerializeToString())],
        }

    @classmethod
    def of_values(cls, values: Mapping[str, Any]) -> Made:
        """From what `values` gave."""
        several = values["unfolded"]
        return cls(
            Signature.FromString(base64.b64decode(values["signature"])),
            tuple((str(about), str(text)) for about, text in values["form"]),
            [str(name) for name in values["weights"]],
            _wrapped(values["graph"]),
            several and (_wrapped(several[0]), Signature.FromString(base64.b64decode(several[1]))),
        )


def make(path: Path, verdict: Verdict, device: Device) -> Made | None:
    """Makes the graphs of a version that was tried; None where they are not of the kind that is kept, or large.

    Raises:
        ModelLoadError: The file is not readable any more.
    """
    from statestream_server.models.files import couples, modelfile
    from statestream_server.models.proof import building

    if not verdict.fused or device.apart or path.suffix != ".onnx" or modelfile.check_size(path).size > _MOST_BYTES:
        return None
    encoder, file = couples.read(path)
    if encoder is not None or file.nbytes > _MOST_BYTES:
        return None
    file = building.formed(file, verdict.plan)
    try:
        graph, unfolded = building.wrapped_of(verdict, file)
    except FusionError:
        return None
    if len(graph.graph) + (len(unfolded[0].graph) if unfolded is not None else 0) > 2 * _MOST_BYTES:
        return None
    weights = [os.path.relpath(stamp.path, path.parent.resolve()) for stamp in file.weights]
    file.check_unchanged()
    return Made(file.signature, file.plan.notes if file.plan is not None else (), weights, graph, unfolded)


def built(path: Path, made: Made, verdict: Verdict, *, name: str, version: int, device: Device) -> Model:
    """Builds a version whose file has the bytes that its graphs were made of; see `building.build`.

    Raises:
        ModelLoadError: ONNX Runtime does not take them here.
    """
    from statestream_server.models.proof import building

    with building.refusing(path):
        model = Model(name, version, Kind.SESSION, as_sent(made.signature), verdict.digest)
        model.batch_invariance, model.invariance_note = verdict.batch_invariance, verdict.invariance_note
        model.form = made.form
        rows = FusedRows(made.graph, made.signature, device, check_inputs=verdict.hides, unfolded=made.unfolded)
        arranged = building.WAYS[verdict.policy](building.in_batches(rows, made.signature, device))
        model.rows, model.providers = observed(arranged, made.signature), tuple(name for name, _ in device.providers)
        model.files = (path, *(path.parent.resolve() / weight for weight in made.weights))
        return model


def _values(wrapped: Wrapped) -> list[Any]:
    return [_text(wrapped.graph), {**wrapped.names._asdict()}, sorted(wrapped.touching), sorted(wrapped.context)]


def _wrapped(values: Sequence[Any]) -> Wrapped:
    graph, names, touching, context = values
    names = {key: tuple(value) if isinstance(value, list) else value for key, value in names.items()}
    slabs = tuple(SlabNames(before, after, parts, tuple(item)) for before, after, parts, item in names.pop("slabs"))
    return Wrapped(base64.b64decode(graph), Names(**names, slabs=slabs), frozenset(touching), frozenset(context))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
