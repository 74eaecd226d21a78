"""The soak: short, as it should be; and with a leak, which it must find."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import soak


@given(
    slope=st.floats(-1e6, 1e6),
    start=st.floats(0, 1e9),
    length=st.floats(1, 1e5),
    noise=st.floats(0, 1e6),
    seed=st.integers(0, 2**32),
)
def test_the_growth_of_a_line_is_found_under_noise(
    slope: float, start: float, length: float, noise: float, seed: int
) -> None:
    seconds = np.linspace(5.0, 5.0 + length, 400)
    values = start + slope * seconds + noise * np.random.default_rng(seed).uniform(-1, 1, 400)
    # The fit's standard error over the whole length is about 0.1 of uniform noise; 6 of them never happen.
    assert abs(soak.growth(seconds, values) - slope * length) <= 0.6 * noise + 1e-6 * (start + abs(slope) * length) + 1


@pytest.mark.slow
def test_outputs_are_right_memory_is_flat_and_nothing_is_left(tmp_path: Path) -> None:
    found = soak.run(tmp_path, 25.0)
    assert found["compared"] > 1000
    assert found["different"] == 0
    assert min(found["done"].values()) > 0
    assert len(found["done"]) == 8
    assert max(found["counts"]["kept replies"]) > 0


@pytest.mark.slow
def test_sessions_that_are_never_closed_are_found(tmp_path: Path) -> None:
    with pytest.raises(soak.SoakError, match=r"(sessions|rows|kept replies|handles) grew by [\d,]+ in \d+ s"):
        soak.run(tmp_path, 10.0, leak=True)
