"""Statestream's export: modules of torch become self-describing ONNX files; recipes train them.

from statestream_export import State, export
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from statestream_export.errors import ExportError, GateError, RecipeError
    from statestream_export.exporter import Export, export, quantized
    from statestream_export.gate import Case, GateReport
    from statestream_export.heads import categorical, gaussian, negative_binomial, quantiles, student_t
    from statestream_export.interface import State
    from statestream_export.loss import Deviation, Loss

__all__ = [
    "Case",
    "Deviation",
    "Export",
    "ExportError",
    "GateError",
    "GateReport",
    "Loss",
    "RecipeError",
    "State",
    "categorical",
    "export",
    "gaussian",
    "negative_binomial",
    "quantiles",
    "quantized",
    "student_t",
]

_ROOMS = {
    "errors": ("ExportError", "GateError", "RecipeError"),
    "exporter": ("Export", "export", "quantized"),
    "gate": ("Case", "GateReport"),
    "heads": ("categorical", "gaussian", "negative_binomial", "quantiles", "student_t"),
    "interface": ("State",),
    "loss": ("Deviation", "Loss"),
}
"""Where each name is: imported when it is asked for, so that the command's help does not wait for torch."""


def __getattr__(name: str) -> object:
    for room, names in _ROOMS.items():
        if name in names:
            return getattr(import_module(f"statestream_export.{room}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
