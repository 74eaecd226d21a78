"""What a row's numbers must satisfy to be committed: finite, no NaN, or nothing. Whole numbers always pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from statestream.contract import signature as signatures
from statestream.contract.signature import Signature, StateCheck
from statestream_server.arrays import Array, Bools, every
from statestream_server.models.rows import is_checked


def failing(check: StateCheck, values: Array) -> Bools:
    """Which rows of values [n, ...] fail a check: bool [n]."""
    if values.dtype.kind != "f" or check == StateCheck.STATE_CHECK_OFF:
        return np.zeros(len(values), np.bool_)
    wrong = np.isnan(values) if check == StateCheck.STATE_CHECK_NAN else ~np.isfinite(values)
    return np.asarray(wrong.reshape(len(values), -1).any(axis=1), np.bool_)


class InputCheck:
    """Holds inputs to the strictest check of the states, where their NaN or infinity would vanish on its way there.

    ONNX Runtime's LSTM, GRU and RNN clamp what enters their gates, and whole numbers know no NaN: it becomes an
    ordinary number there, the new state would be finite and wrong, and nobody would know.
    """

    def __init__(self, signature: Signature, *, wanted: bool | Mapping[str, str]) -> None:
        """`wanted`: by input what of it vanishes ("nan", "inf", "nan inf"; see hiding.py); True for all of each."""
        checks = {state.check or StateCheck.STATE_CHECK_FINITE for state in signature.states if is_checked(state)}
        self._checks: list[tuple[int, str]] = []
        if not checks or not wanted:
            return
        finite = min(checks) == StateCheck.STATE_CHECK_FINITE
        for place, spec in enumerate(signature.inputs):
            kinds = "nan inf" if wanted is True else wanted.get(spec.name, "")
            kinds = kinds if finite else kinds.replace("inf", "").strip()
            if kinds and signatures.numpy_dtype(spec.dtype).kind == "f":
                self._checks.append((place, kinds))

    def __call__(self, inputs: Sequence[Array]) -> Bools | None:
        """Which rows of inputs [n, T, ...] fail: bool [n], or None where none does."""
        bad: Bools | None = None
        for place, kinds in self._checks:
            value = inputs[place]
            if not every(np.isfinite(value)):
                wrong = ~np.isfinite(value) if kinds == "nan inf" else _WRONG[kinds](value)
                found = np.asarray(wrong.reshape(len(value), -1).any(axis=1), np.bool_)
                bad = found if bad is None else bad | found
        return bad


EVERYTHING: Final = "nan inf"
"""All that an input may hold and no number is; see `InputCheck`."""
_WRONG: Final[Mapping[str, Callable[[Array], Bools]]] = {"nan": np.isnan, "inf": np.isinf}
