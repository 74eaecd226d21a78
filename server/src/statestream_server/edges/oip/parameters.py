"""Parameters: what a request says beside its tensors, read and checked once for gRPC and REST."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

from statestream.contract import errors
from statestream.contract.aliases import is_alias
from statestream.contract.errors import quoted
from statestream_server.edges.oip import oip_pb2 as pb

Value: TypeAlias = "bool | int | float | str"
HINTS: Final = frozenset({"priority", "timeout", "binary_data_output", "triton_enable_empty_final_response"})
"""Parameters that clients send by themselves, and that change nothing here."""
_LARGEST: Final = 2**62


@dataclass(frozen=True, slots=True)
class Sequence:
    """Where a request belongs in a sequence.

    Attributes:
        id: As the caller wrote it.
        start: Whether the sequence starts anew with it.
        end: Whether it ends behind it.
        position: The steps before it, as the caller counts; None where it does not count.
    """

    id: int | str
    start: bool
    end: bool
    position: int | None

    @property
    def session(self) -> str:
        """The id of the session; a number is written in decimal."""
        return str(self.id)


def values_of(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Value]:
    """Parameters of a message as plain values; one without a value is left out."""
    found = dict[str, Value]()
    for name, parameter in parameters.items():
        which = parameter.WhichOneof("parameter_choice")
        if which is not None:
            found[name] = getattr(parameter, which)
    return found


def sequence_of(values: Mapping[str, Any]) -> Sequence | None:
    """What a request says of its sequence; None where it names none.

    An id of 0 or "" is none, as clients send for requests of no sequence.

    Raises:
        BadFrame: A parameter has the wrong type or is out of range, is one that nobody knows, or there is one of a
            sequence and no id.
    """
    unknown = [name for name in values if name not in HINTS and not name.startswith("sequence_")]
    unknown += [name for name in values if name.startswith("sequence_") and name not in _KINDS]
    if unknown:
        raise errors.BadFrame(
            f"parameter {quoted(unknown[0])} is not known; expected {', '.join(_KINDS)}",
            metadata={"field": unknown[0]},
        )
    for name, kinds in _KINDS.items():
        value = values.get(name)
        if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise errors.BadFrame(
                f"parameter {name} is {quoted(str(value))}, a {type(value).__name__}; expected {expected}",
                metadata={"field": name},
            )
    named, start, end = values.get("sequence_id"), values.get("sequence_start"), values.get("sequence_end")
    position = values.get("sequence_position")
    if not named:
        if start or end or position is not None:
            raise errors.BadFrame(
                "the request starts, ends or counts a sequence and names none; expected sequence_id, a number other"
                " than 0 or a text",
                metadata={"field": "sequence_id"},
            )
        return None
    if position is not None and not 0 <= position < _LARGEST:
        raise errors.BadFrame(
            f"sequence_position is {position}; expected how many steps of the sequence come before this request, 0 or"
            " more",
            metadata={"field": "sequence_position"},
        )
    if start and position:
        raise errors.BadFrame(
            f"sequence_start is true and sequence_position {position}; a sequence starts at 0",
            metadata={"field": "sequence_position"},
        )
    return Sequence(named, bool(start), bool(end), position)


_KINDS: Final[Mapping[str, tuple[type, ...]]] = {
    "sequence_id": (int, str),
    "sequence_start": (bool,),
    "sequence_end": (bool,),
    "sequence_position": (int,),
}


class Named(NamedTuple):
    """A version as a caller names it: its number, 0 for none, or its alias, "" for none."""

    version: int = 0
    alias: str = ""


def version_of(text: str) -> Named:
    """A model's version, which the protocol has as text.

    Raises:
        ModelNotFound: There is no such version.
    """
    if not text:
        return Named()
    if is_alias(text):
        return Named(0, text)
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 10) or not int(text):
        raise errors.ModelNotFound(
            f"model_version is {quoted(text)}; expected a number from 1 on, an alias, or nothing for the default"
            " version"
        )
    return Named(int(text))
