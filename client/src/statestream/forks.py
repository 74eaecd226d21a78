"""What becomes of clients where their process forks: they stay with the parent, and their copies say so.

A copy has no thread, and gRPC's locks stand as they stood: whatever it would call could wait for ever. So it is closed
before the child's first line, and ends without a word to gRPC.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Protocol

from statestream.contract.errors import Closed


class Forked(Protocol):
    """What is to know of a fork."""

    def forked(self) -> None:
        """Closes this copy, in the child."""


_watched: weakref.WeakSet[Forked] = weakref.WeakSet()


def watch(link: Forked) -> None:
    """Has a link told when it is a copy."""
    _watched.add(link)


def closed(*, forked: bool) -> Closed:
    """What a caller of a closed client hears."""
    if forked:
        return Closed(
            f"the client was connected before this process ({os.getpid()}) was forked, and stays with the parent;"
            " connect again here, after the fork"
        )
    return Closed("the client is closed; connect again")


def keep(*things: object) -> None:
    """Has a child never free what is gRPC's: that would wait for threads that it has not, also when it exits."""
    for thing in things:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _in_child() -> None:
    for link in list(_watched):
        link.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
