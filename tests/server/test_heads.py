"""Heads against torch.distributions: moments, quantiles and likelihoods; draws by counter against NumPy's Philox."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions

from statestream.signature import Head, HeadKind
from statestream_server.drivers import heads
from statestream_server.drivers.randoms import Draws

PATHS = 20_000


def _nb(total: float, mean: float) -> Any:
    return distributions.NegativeBinomial(
        torch.tensor(total).double(), probs=torch.tensor(mean / (total + mean)).double()
    )


CASES: dict[str, tuple[int, Mapping[str, Any], Any]] = {
    "gaussian": (HeadKind.HEAD_KIND_GAUSSIAN, {"loc": 1.0, "scale": 2.0}, distributions.Normal(1.0, 2.0)),
    "student_t": (
        HeadKind.HEAD_KIND_STUDENT_T,
        {"df": 5.0, "loc": 1.0, "scale": 2.0},
        distributions.StudentT(torch.tensor(5.0).double(), 1.0, 2.0),
    ),
    "few counts": (HeadKind.HEAD_KIND_NEGATIVE_BINOMIAL, {"total_count": 0.5, "mean": 3.0}, _nb(0.5, 3)),
    "many counts": (HeadKind.HEAD_KIND_NEGATIVE_BINOMIAL, {"total_count": 30.0, "mean": 2000.0}, _nb(30, 2000)),
    "counts by probs": (
        HeadKind.HEAD_KIND_NEGATIVE_BINOMIAL,
        {"total_count": 4.0, "probs": 0.3},
        _nb(4, 4 * 0.3 / 0.7),
    ),
    "counts by logits": (
        HeadKind.HEAD_KIND_NEGATIVE_BINOMIAL,
        {"total_count": 4.0, "logits": 0.5},
        _nb(4, 4 * np.exp(0.5)),
    ),
    "classes": (
        HeadKind.HEAD_KIND_CATEGORICAL,
        {"probs": [0.2, 0.3, 0.5]},
        distributions.Categorical(torch.tensor([0.2, 0.3, 0.5])),
    ),
    "classes by logits": (
        HeadKind.HEAD_KIND_CATEGORICAL,
        {"logits": [0.0, 2.0, -1.0]},
        distributions.Categorical(logits=torch.tensor([0.0, 2.0, -1.0])),
    ),
}


def _spread(parameters: Mapping[str, Any], *lead: int) -> dict[str, np.ndarray]:
    return {
        name: np.broadcast_to(np.asarray(value, np.float64), (*lead, *np.shape(value)))
        for name, value in parameters.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_draws_have_torchs_distribution(case: str) -> None:
    """By Kolmogorov and Smirnov against as many draws of torch's; so far apart as one in ten thousand would be."""
    kind, parameters, torchs = CASES[case]
    head = Head(name="y", kind=kind, parameters={name: name for name in parameters})  # type: ignore[arg-type]
    drawn = heads.sample(head, _spread(parameters, 1, PATHS), Draws(3, np.zeros(1, np.uint64), PATHS, 0))[0]
    torch.manual_seed(0)
    other = torchs.sample((PATHS,)).numpy()
    both = np.sort(np.concatenate([drawn, other]))
    apart = np.abs(
        np.searchsorted(np.sort(drawn), both, side="right") - np.searchsorted(np.sort(other), both, side="right")
    ).max()
    assert apart / PATHS < 2.23 * np.sqrt(2 / PATHS)


@pytest.mark.parametrize("case", CASES)
def test_likelihoods_are_torchs(case: str) -> None:
    kind, parameters, torchs = CASES[case]
    head = Head(name="y", kind=kind, parameters={name: name for name in parameters})  # type: ignore[arg-type]
    value = torchs.sample((50,)).double().numpy()
    found = heads.log_prob(head, _spread(parameters, 50), value)
    assert np.abs(found - torchs.log_prob(torch.tensor(value)).double().numpy()).max() < 1e-5


def test_a_draw_is_numpys_philox_at_its_counter() -> None:
    draws = Draws(7, np.arange(5, 8, dtype=np.uint64), 6, step=2, stream=1)
    words = (
        np.random.Philox(key=np.array([7, 6], np.uint64), counter=np.array([0, 2, 1, 3], np.uint64))
        .random_raw(6 * 8)
        .reshape(6, 8)[:, :5]
    )
    expected = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    assert draws.uniforms(5, attempt=3)[1].tobytes() == expected.tobytes()


@given(
    seed=st.integers(0, 2**64 - 1),
    series=st.lists(st.integers(0, 2**63), min_size=1, max_size=4, unique=True),
    paths=st.integers(1, 9),
    step=st.integers(0, 4000),
)
def test_a_path_is_the_same_whatever_else_is_drawn(seed: int, series: list[int], paths: int, step: int) -> None:
    """Among other series and other numbers of paths, of counts by rejection too."""
    head = Head(
        name="y", kind=HeadKind.HEAD_KIND_NEGATIVE_BINOMIAL, parameters={"total_count": "total_count", "mean": "mean"}
    )
    given_ = {"total_count": 2.0, "mean": 30.0}
    numbers = np.asarray(series, np.uint64)
    many = heads.sample(head, _spread(given_, len(series), 9), Draws(seed, numbers, 9, step))
    few = heads.sample(head, _spread(given_, 1, paths), Draws(seed, numbers[-1:], paths, step))
    assert few[0].tobytes() == np.ascontiguousarray(many[-1, :paths]).tobytes()


def test_the_logarithm_of_gamma_is_torchs() -> None:
    x = np.concatenate([np.logspace(-8, 8, 400), np.linspace(0.1, 20, 200)])
    expected = torch.lgamma(torch.tensor(x).double()).numpy()
    assert np.abs(heads.log_gamma(x) - expected).max() <= 1e-9 * np.abs(expected).max()
    assert np.abs(heads.log_gamma(x[:200]) - expected[:200]).max() < 1e-9
