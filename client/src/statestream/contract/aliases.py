"""Aliases: what a version of a model may be called in place of its number."""

from __future__ import annotations

import re
from typing import Final

DEFAULT: Final = "default"
"""The alias of the version that serves where none is asked for."""

MOST_ALIAS: Final = 64
"""Characters."""

_ALIAS: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")


def is_alias(text: str) -> bool:
    """Whether a text may be one: letters, digits, "-", "_" and ".", the first a letter, so that it is no number."""
    return _ALIAS.fullmatch(text) is not None
