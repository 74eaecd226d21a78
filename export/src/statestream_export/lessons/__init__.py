"""What the pages of docs/lessons show: each lesson trains small networks, measures, and draws one picture.

python -m statestream_export.lessons [NAME…] [--out DIR] [--quick]
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from statestream_export.training import Curve, Run

NAMES: Final = ("gates", "vanishing", "neighbours")
"""The lessons; each lives in a module of its name and has a page of its name."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a lesson found.

    Attributes:
        figures: What the page says of it, as JSON has it.
        picture: What the page shows.
    """

    figures: Mapping[str, Any]
    picture: Figure


class Lesson(Protocol):
    """A module of a lesson."""

    def show(self, run: Run) -> Shown:
        """Trains, measures and draws. The same seed gives the same figures; Ctrl-C in a training ends it all."""


def finished(curve: Curve) -> None:
    """Goes on where a training came to its end.

    Raises:
        KeyboardInterrupt: Ctrl-C ended it: what was learnt till then says nothing.
    """
    if curve.interrupted:
        raise KeyboardInterrupt


def load(name: str) -> Lesson:
    """The lesson of a name; one of NAMES."""
    return cast("Lesson", importlib.import_module(f"{__name__}.{name}"))
