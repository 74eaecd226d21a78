"""Refusals of graphs: what cannot be wrapped or guarded, and what a guard had a run fail for, in its own words."""

from __future__ import annotations

import re
from typing import Final

MARK: Final = "guard: "
"""What the name of a guard's node begins with; ONNX Runtime says it where a run fails there."""
_MARKED: Final = re.compile(re.escape(MARK) + r"(.*?) #\d+")


class FusionError(Exception):
    """The graph cannot be wrapped; the message says why."""


class GuardError(Exception):
    """A graph cannot be guarded; the message says what and why."""


def explained(text: str) -> str:
    """An error of ONNX Runtime; one that a guard caused in the guard's own words."""
    found = _MARKED.search(text)
    return found[1] if found else text
