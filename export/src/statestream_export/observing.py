"""What a signature says of observations: gaps, the time between steps, and the past that scores are compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, TypeAlias

from statestream.contract.observations import POLICIES, UNITS
from statestream.contract.signature import Elapsed, Signature
from statestream_export.errors import ExportError

Policy: TypeAlias = Literal["refuse", "hold", "predict"]
Unit: TypeAlias = "str | float | tuple[str | float, float]"


def describe(signature: Signature, missing: Mapping[str, Policy], elapsed: Mapping[str, Unit], score_past: int) -> None:
    """Writes it into a signature; `export` says what each is.

    Raises:
        ExportError: A name is none of the module's, or a policy or unit is none; says which there are.
    """
    inputs = {spec.name: spec for spec in signature.inputs}
    for option, names in (("missing", missing), ("elapsed", elapsed)):
        for name in names:
            if name not in inputs:
                raise ExportError(f"{option} names {name!r}, which is no input; inputs are {', '.join(inputs)}")
    for name, policy in missing.items():
        if policy not in POLICIES:
            raise ExportError(f"missing[{name!r}] is {policy!r}; expected {', '.join(map(repr, POLICIES))}")
        inputs[name].missing = POLICIES[policy]
    for name, told in elapsed.items():
        unit, first = told if isinstance(told, tuple) else (told, 0.0)
        seconds = UNITS.get(unit) if isinstance(unit, str) else unit
        if seconds is None or isinstance(seconds, bool) or not (math.isfinite(seconds) and seconds > 0):
            raise ExportError(
                f"elapsed[{name!r}] is in {unit!r}; expected {', '.join(map(repr, UNITS))} or a number of seconds"
            )
        inputs[name].elapsed.CopyFrom(Elapsed(seconds=seconds, first=first))
    if isinstance(score_past, bool) or not isinstance(score_past, int) or score_past < 0:
        raise ExportError(f"score_past is {score_past!r}; expected a number of scores, or 0 for 255")
    signature.score_past = score_past
