"""What export and recipes refuse, and why. Each message says what came, what was expected, what to do."""

from __future__ import annotations


class ExportError(Exception):
    """The module cannot be exported as asked; nothing was written."""


class ForwardError(ExportError):
    """The module itself refuses values that were drawn, or gives NaN for them; nothing was written."""


class GateError(ExportError):
    """The exported graph does not do what the module does; nothing was written.

    Attributes:
        output: The output, or new state, that differs; empty where the graph did not run at all.
        batch: The batch size of the case, or None where the graph has no batch axis.
        length: The number of steps of the case.
        difference: The largest absolute difference; infinity where shapes differ or nothing ran.
    """

    def __init__(
        self,
        message: str,
        *,
        output: str = "",
        batch: int | None = None,
        length: int = 1,
        difference: float = float("inf"),
    ) -> None:
        super().__init__(message)
        self.output = output
        self.batch = batch
        self.length = length
        self.difference = difference


class RecipeError(Exception):
    """A recipe cannot be found, loaded or run; the message says what to do."""


class DataError(RecipeError):
    """Data that was given or fetched is missing, truncated or something else; nothing half-written is left."""
