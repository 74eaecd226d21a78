"""Scaling: what scikit-learn's scalers do to a column, so that it can be part of a graph."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from torch import Tensor

from statestream_export.errors import ExportError
from statestream_export.interface import Port

Scaler = Any
"""A fitted StandardScaler, MinMaxScaler, MaxAbsScaler or RobustScaler, or a Pipeline of such."""

_KNOWN: Final = ("StandardScaler", "MinMaxScaler", "MaxAbsScaler", "RobustScaler")
_TOLERANCE: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Affine:
    """`(x - centre) * factor`, column by column, in float64; then cut to bounds, where there are some."""

    centre: np.ndarray
    factor: np.ndarray
    bounds: tuple[float, float] | None = None

    def __eq__(self, other: object) -> bool:
        """Whether both do the same."""
        return isinstance(other, Affine) and (
            np.array_equal(self.centre, other.centre)
            and np.array_equal(self.factor, other.factor)
            and self.bounds == other.bounds
        )

    __hash__ = None  # type: ignore[assignment]


def by_name(scaler: Scaler | Mapping[str, Scaler] | None, ports: Sequence[Port]) -> dict[str, Scaler]:
    """Scalers by input or output.

    Raises:
        ExportError: One was given, and there are several inputs.
    """
    if scaler is None or isinstance(scaler, Mapping):
        return dict(scaler or {})
    if len(ports) > 1:
        names = ", ".join(port.name for port in ports)
        raise ExportError(f"scaler is one, inputs are {names}; say of which: scaler={{{ports[0].name!r}: scaler}}")
    return {ports[0].name: scaler}


def places(
    scalers: Mapping[str, Scaler], ports: Sequence[Port], outputs: Sequence[str] | None, feedback: Mapping[str, str]
) -> tuple[dict[int, Affine], dict[int, Affine]]:
    """What scalers do, by the place of an input, and what is undone, by the place of an output.

    Raises:
        ExportError: A scaler is none that a graph can have, or of nothing, or not that of both ends of a feedback.
    """
    inputs, results = {port.name: place for place, port in enumerate(ports)}, list(outputs or ["y"])
    examples = {port.name: port.example for port in ports}
    found = {name: affine(name, each, examples.get(name)) for name, each in scalers.items()}
    for name in found:
        if name not in inputs and name not in results:
            raise ExportError(
                f"scaler names {name!r}; inputs are {', '.join(inputs)}, outputs {', '.join(results)}. Outputs are"
                " named with outputs=[…]"
            )
    for output, name in feedback.items():
        if (output in found or name in found) and found.get(output) != found.get(name):
            raise ExportError(
                f"feedback feeds {output!r} into {name!r}, and only one of them is scaled, or not as the other: give"
                f" both the same, scaler={{{name!r}: scaler, {output!r}: scaler}}"
            )
    return (
        {inputs[name]: each for name, each in found.items() if name in inputs},
        {results.index(name): each for name, each in found.items() if name not in inputs},
    )


def affine(name: str, scaler: Scaler, example: Tensor | None) -> Affine:
    """What a scaler does.

    Args:
        name: The input or output that it is of.
        scaler: The scaler.
        example: The input's; None of an output.

    Raises:
        ExportError: It is none that a graph can have, is not fitted, or is for another number of columns.
    """
    made = _known(name, scaler)
    if example is None:
        return made
    if not example.is_floating_point():
        raise ExportError(f"scaler of {name!r}: the input is {example.dtype}; give an example of floating numbers")
    columns = example.shape[-1] if example.dim() else 1
    if len(made.centre) not in (1, columns):
        raise ExportError(
            f"scaler of {name!r} was fitted on {len(made.centre)} columns; the last axis of the example has {columns}:"
            " fit it on the model's own columns, in their order"
        )
    if len(made.centre) == columns:
        _check(name, scaler, made, example.detach().reshape(-1, columns).double().numpy()[:64])
    return made


def columns(scalers: Mapping[str, Scaler], given: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """The names of columns, those that scalers were fitted with where nothing else is given.

    Raises:
        ExportError: The scaler was fitted with other names than those that are given, or in another order.
    """
    found = dict(given)
    for name, scaler in scalers.items():
        seen = [str(each) for each in getattr(scaler, "feature_names_in_", ())]
        if seen and list(found.get(name, seen)) != seen:
            raise ExportError(
                f"columns of {name!r} are {', '.join(found[name])}; its scaler was fitted with {', '.join(seen)}: give"
                " the same, in the same order"
            )
        if seen:
            found[name] = seen
    return found


def _known(name: str, scaler: Scaler) -> Affine:
    steps = getattr(scaler, "steps", None)
    if isinstance(steps, list) and steps:
        parts = [_known(name, step) for _, step in steps if step is not None and step != "passthrough"]
        if any(part.bounds for part in parts[:-1]):
            raise ExportError(f"scaler of {name!r} clips before its last step; put the clipping last")
        made = parts[0]
        for part in parts[1:]:
            # ((x - a) p - b) q is (x - (a + b / p)) p q.
            made = Affine(made.centre + part.centre / made.factor, made.factor * part.factor, part.bounds)
        return made
    kind = next((each.__name__ for each in type(scaler).__mro__ if each.__name__ in _KNOWN), None)
    if kind is None:
        raise ExportError(
            f"scaler of {name!r} is a {type(scaler).__name__}; a graph takes {', '.join(_KNOWN)} and pipelines of them:"
            " write what it does as tensor operations in forward, or apply it before you send"
        )
    count = getattr(scaler, "n_features_in_", None)
    if count is None:
        raise ExportError(f"scaler of {name!r} is not fitted; call {type(scaler).__name__}.fit with the training data")
    zeros, ones = np.zeros(count), np.ones(count)
    scale = _column(getattr(scaler, "scale_", None), ones)
    if kind == "StandardScaler":
        mean = getattr(scaler, "mean_", None) if scaler.with_mean else None
        return Affine(_column(mean, zeros), 1 / scale)
    if kind == "RobustScaler":
        return Affine(_column(getattr(scaler, "center_", None), zeros), 1 / scale)
    if kind == "MaxAbsScaler":
        return Affine(zeros, 1 / scale, (-1.0, 1.0) if getattr(scaler, "clip", False) else None)
    low, high = (float(each) for each in scaler.feature_range)
    return Affine(-_column(scaler.min_, zeros) / scale, scale, (low, high) if scaler.clip else None)


def _column(values: Any, missing: np.ndarray) -> np.ndarray:
    return np.asarray(missing if values is None else values, np.float64)


def _check(name: str, scaler: Scaler, made: Affine, rows: np.ndarray) -> None:
    """Checks that the scaler itself gives the same: a class may be derived from a known one and do something else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That an array has no names of columns.
        wanted = np.asarray(scaler.transform(rows.copy()), np.float64)
    found = (rows - made.centre) * made.factor
    found = found if made.bounds is None else found.clip(*made.bounds)
    scale = np.abs(rows * made.factor) + np.abs(made.centre * made.factor) + 1
    if wanted.shape != found.shape or not (np.abs(wanted - found) <= _TOLERANCE * scale)[np.isfinite(rows)].all():
        raise ExportError(
            f"scaler of {name!r}, a {type(scaler).__name__}, does something else than its class: write what it does as"
            " tensor operations in forward"
        )
