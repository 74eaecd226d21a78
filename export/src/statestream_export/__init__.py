"""Statestream's export: modules of torch become self-describing ONNX files; recipes train them.

from statestream_export import State, export
"""

from statestream_export.errors import ExportError, GateError, RecipeError
from statestream_export.exporter import Export, export, quantized
from statestream_export.gate import Case, GateReport
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
    "export",
    "quantized",
]
