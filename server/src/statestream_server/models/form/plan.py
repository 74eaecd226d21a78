"""The plan: all that turns a file into its normal form. Found once, in a trial; from then on only carried out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import onnx

from statestream.contract import signature as signatures
from statestream.contract.signature import Signature
from statestream_server.models.form import surgery
from statestream_server.models.form.surgery import Change

FOUND: Final = "found in the graph"
TOLD: Final = "as model.toml says"


def counted(signature: Signature, *, full: bool) -> Signature:
    """A signature whose windows begin empty, as they serve, or full, as they are tried.

    What is held back, or is the first step again and again, would show nothing of the model.
    """
    counts = {window.count: window.steps for window in signature.windows}
    if not any(counts):
        return signature
    copy = Signature()
    copy.CopyFrom(signature)
    for state in copy.states:
        if state.input in counts:
            state.start[:] = [counts[state.input]] * full
    return copy


class Note(NamedTuple):
    """Something worth telling of a form: what it is about, and a sentence."""

    about: str
    text: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a file without a signature of its own becomes.

    Attributes:
        signature: Of the normal form.
        changes: What is done to the graph, in order.
        notes: Why: where it comes from, evidence, what was changed, what is not as good as it could be.
    """

    signature: Signature
    changes: Sequence[Change] = ()
    notes: Sequence[Note] = ()

    def applied(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The graph in its normal form; the model stays as it is."""
        return surgery.applied(model, self.changes) if self.changes else model

    def freed(self, name: str, rank: int, *, rows: bool) -> Plan:
        """The plan with any lengths of an output, which were seen to be other ones than the graph says.

        Args:
            name: The output.
            rank: How many axes it was seen to have.
            rows: Whether one of them may still be that of rows.
        """
        signature = Signature()
        signature.CopyFrom(self.signature)
        spec = next(spec for spec in signature.outputs if spec.name == name)
        said = list(spec.shape)
        spec.shape[:] = [-1] * rank
        if len(said) != rank or not rows:
            spec.ClearField("batch_axis")
        note = Note("lengths", f"output {name} is said to be of shape {said}, and was seen to be of others")
        return replace(self, signature=signature, notes=[*self.notes, note] if rows else self.notes)

    def values(self) -> dict[str, Any]:
        """As values that JSON holds."""
        return {
            "signature": signatures.dumps(self.signature),
            "changes": [list(change) for change in self.changes],
            "notes": [list(note) for note in self.notes],
        }

    @classmethod
    def of_values(cls, values: Mapping[str, Any]) -> Plan:
        """From what `values` gave."""
        return cls(
            signatures.loads(values["signature"]),
            tuple(Change(*change) for change in values["changes"]),
            tuple(Note(*note) for note in values["notes"]),
        )
