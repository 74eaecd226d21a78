"""Blame: which lines of a module's forward are at fault, for messages. Read from its source and from tracebacks."""

from __future__ import annotations

import ast
import inspect
import linecache
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

import torch
from torch import nn

_FOREIGN: Final = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
_MOST: Final = 3
_SHOWN: Final = 80
_NUMBERS: Final = frozenset(("item", "tolist", "numpy"))
"""Methods by which a tensor becomes Python's, and what follows is frozen."""
_LENGTHS: Final = frozenset(("size", "shape", "__len__"))


def raised(error: BaseException) -> str:
    """The innermost line of somebody's own code that an error came from, as in ", in forward, line 8: `…`"; or ""."""
    found = ""
    one: BaseException | None = error
    while one is not None:
        found = _innermost(one.__traceback__) or found
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return found


def _innermost(at: TracebackType | None) -> str:
    found = ""
    while at is not None:
        code = at.tb_frame.f_code
        own = not code.co_filename.startswith((*_FOREIGN, "<")) and "site-packages" not in code.co_filename
        line = linecache.getline(code.co_filename, at.tb_lineno).strip() if own else ""
        if line and code.co_name != "<module>" and isinstance(at.tb_frame.f_locals.get("self"), nn.Module):
            found = f"; at fault is line {at.tb_lineno}, in {code.co_name}: `{_cut(line)}`"
        at = at.tb_next
    return found


def frozen(module: nn.Module) -> str:
    """The lines of a module's own code that may freeze a length or a batch size, as a clause; "" where none is seen."""
    lines = list(dict.fromkeys(_suspects(module)))
    more = f" and {len(lines) - _MOST} more" if len(lines) > _MOST else ""
    return f" Look at {', '.join(lines[:_MOST])}{more}." if lines else ""


def _suspects(module: nn.Module) -> Iterator[str]:
    for kind in dict.fromkeys(type(part) for part in module.modules()):
        forward = kind.__dict__.get("forward")
        if kind.__module__.startswith(("torch.", "statestream_export.")) or not inspect.isfunction(forward):
            continue
        try:
            source, first = inspect.getsourcelines(forward)
            tree = ast.parse(textwrap.dedent("".join(source)))
        except (OSError, SyntaxError, TypeError):
            continue
        for node in ast.walk(tree):
            if _freezes(node):
                line = source[node.lineno - 1].strip()  # type: ignore[attr-defined]
                yield f"{kind.__name__}.forward, line {first + node.lineno - 1}: `{_cut(line)}`"  # type: ignore[attr-defined]


def _freezes(node: ast.AST) -> bool:
    """Whether Python runs it once, for the example's lengths and values."""
    if isinstance(node, ast.For | ast.While):
        return True
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute) and node.func.attr in _NUMBERS:
        return True
    if not isinstance(node.func, ast.Name) or node.func.id not in ("int", "float", "bool", "len"):
        return False
    return node.func.id == "len" or any(
        isinstance(each, ast.Attribute) and each.attr in _LENGTHS for each in ast.walk(node)
    )


def _cut(line: str) -> str:
    return line if len(line) <= _SHOWN else line[: _SHOWN - 2] + " …"
