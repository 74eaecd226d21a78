"""The outer side of a terminal in which a program runs."""

from __future__ import annotations

import os


def rest(outer: int) -> bytes:
    """What is said there until the program has closed its side; closes this one, too."""
    seen = b""
    try:
        while more := os.read(outer, 4096):
            seen += more
    except OSError:
        pass  # The other side is closed.
    finally:
        os.close(outer)
    return seen
