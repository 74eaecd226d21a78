"""Heads: which outputs of a module are the parameters of which distribution, as `export(..., head=...)` takes them.

Parameters are named as in torch.distributions; each is the name of an output. A module gives them as torch takes them:
scales above 0, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence

from statestream.contract.signature import Head, HeadKind


def gaussian(loc: str = "loc", scale: str = "scale") -> Head:
    """`torch.distributions.Normal(loc, scale)`."""
    return Head(kind=HeadKind.HEAD_KIND_GAUSSIAN, parameters={"loc": loc, "scale": scale})


def student_t(df: str = "df", loc: str = "loc", scale: str = "scale") -> Head:
    """`torch.distributions.StudentT(df, loc, scale)`."""
    return Head(kind=HeadKind.HEAD_KIND_STUDENT_T, parameters={"df": df, "loc": loc, "scale": scale})


def negative_binomial(total_count: str = "total_count", *, probs: str = "", logits: str = "", mean: str = "") -> Head:
    """`torch.distributions.NegativeBinomial(total_count, probs or logits)`; or by its mean."""
    ways = {"probs": probs, "logits": logits, "mean": mean}
    parameters = {"total_count": total_count} | {name: output for name, output in ways.items() if output}
    return Head(kind=HeadKind.HEAD_KIND_NEGATIVE_BINOMIAL, parameters=parameters)


def categorical(*, logits: str = "", probs: str = "", values: Sequence[float] = ()) -> Head:
    """`torch.distributions.Categorical(probs or logits)`: a class's number, or what it stands for in `values`."""
    parameters = {name: output for name, output in (("logits", logits), ("probs", probs)) if output}
    return Head(kind=HeadKind.HEAD_KIND_CATEGORICAL, parameters=parameters, values=values)


def quantiles(levels: Sequence[float], output: str = "quantiles") -> Head:
    """Quantiles along the last axis of an output, as a quantile loss trains them; `levels` ascending in (0, 1)."""
    return Head(kind=HeadKind.HEAD_KIND_QUANTILES, parameters={"quantiles": output}, quantiles=levels)
