"""Counts of what became of one table's sessions and chunks; the numbers go on until it is unloaded."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Counts:
    """What was done so far.

    Attributes:
        created: Sessions that began here.
        recovered: Sessions that came from the store: of another server, of an earlier process, or asleep.
        hibernated: Sessions that left memory for the store.
        repeated: Chunks that had run already and were answered again.
        refused: Chunks that were not applied, by the reason of their error.
    """

    created: int = 0
    recovered: int = 0
    hibernated: int = 0
    repeated: int = 0
    refused: dict[str, int] = field(default_factory=dict)

    def refuse(self, reason: str, chunks: int) -> None:
        """Counts chunks that were refused."""
        self.refused[reason] = self.refused.get(reason, 0) + chunks
