"""What the model "counter" takes and gives: numbers, and their sums so far."""

from __future__ import annotations

import numpy as np

from tests.support.speaker import Answer, Refusal


def numbers(*values: float) -> dict[str, np.ndarray]:
    """Inputs, a step each."""
    return {"x": np.asarray(values, np.float32)[:, None]}


def sums(answer: Answer | Refusal) -> list[float]:
    """The sum after each step of a chunk, which must have been applied."""
    assert isinstance(answer, Answer), answer
    return answer.outputs["y"].ravel().tolist()
