"""What a row's numbers must satisfy to be committed: finite, no NaN, or nothing. Whole numbers always pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from statestream import signature as signatures
from statestream.signature import Signature, StateCheck, StateSpec
from statestream_server.arrays import Array, Bools, every


def is_checked(state: StateSpec) -> bool:
    """Whether anything is asked of a state's new values."""
    return state.check != StateCheck.STATE_CHECK_OFF and signatures.numpy_dtype(state.dtype).kind == "f"


def failing(check: StateCheck, values: Array) -> Bools:
    """Which rows of values [n, ...] fail a check: bool [n]."""
    if values.dtype.kind != "f" or check == StateCheck.STATE_CHECK_OFF:
        return np.zeros(len(values), np.bool_)
    wrong = np.isnan(values) if check == StateCheck.STATE_CHECK_NAN else ~np.isfinite(values)
    return np.asarray(wrong.reshape(len(values), -1).any(axis=1), np.bool_)


class InputCheck:
    """Holds inputs to the strictest check of the states.

    ONNX Runtime's LSTM, GRU and RNN clamp what enters their gates, and whole numbers know no NaN: it becomes an
    ordinary number there, the new state would be finite and wrong, and nobody would know.
    """

    def __init__(self, signature: Signature, *, wanted: bool) -> None:
        """`wanted`: whether the graph has such operators and does not look after NaN itself."""
        checks = {state.check or StateCheck.STATE_CHECK_FINITE for state in signature.states if is_checked(state)}
        self._check = min(checks) if checks and wanted else None

    def __call__(self, inputs: Sequence[Array]) -> Bools | None:
        """Which rows of inputs [n, T, ...] fail: bool [n], or None where none does."""
        if self._check is None:
            return None
        bad: Bools | None = None
        for value in inputs:
            if value.dtype.kind == "f" and not every(np.isfinite(value)):
                found = failing(self._check, value)
                bad = found if bad is None else bad | found
        return bad
