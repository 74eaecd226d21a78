"""Refusals: which errors callers were told lately, for the people who look after a server."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from statestream.contract import errors
from statestream_server import caller

_MOST: Final = 200
"""Refusals that are told apart; the one that did not come for longest goes for a new one."""
_CHARACTERS: Final = 600
"""Of a message."""


@dataclass(slots=True)
class Refusal:
    """An error that callers were told.

    Attributes:
        tenant: Whose callers; None where it is not known, because the server asks nobody or told it beside their calls.
        reason: Its stable name.
        message: What came, what was expected, what to do. It has names, never tensors or tokens.
        count: How often.
        last: Unix time of the last one.
    """

    tenant: str | None
    reason: str
    message: str
    count: int = 0
    last: float = 0.0


class Refusals:
    """The last refusals of a process, each with how often it came."""

    def __init__(self) -> None:
        """None."""
        self._kept = OrderedDict[tuple[str | None, str, str], Refusal]()

    def note(self, error: errors.StatestreamError, who: caller.Caller | None = None) -> None:
        """Notes that the running call was told an error, or the one of `who`."""
        who = who or caller.current.get()
        key = None if who.grant is None else who.tenant, error.reason, str(error.message)[:_CHARACTERS]
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = Refusal(*key)
            if len(self._kept) > _MOST:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        found.count += 1
        found.last = time.time()

    def newest(self) -> list[Refusal]:
        """All that are kept, the newest first."""
        return [*reversed(self._kept.values())]


recent: Final = Refusals()
"""Those of this process. There is one server in it but in tests."""
