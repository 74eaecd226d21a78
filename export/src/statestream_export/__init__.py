"""Statestream's export: modules of torch become self-describing ONNX files; recipes train them.

from statestream_export import State, export
"""

from statestream_export.errors import ExportError, GateError, RecipeError
from statestream_export.exporter import Export, export
from statestream_export.gate import Case, GateReport
from statestream_export.interface import State

__all__ = ["Case", "Export", "ExportError", "GateError", "GateReport", "RecipeError", "State", "export"]
