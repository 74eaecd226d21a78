"""What signals do to a process: the first stops it, and the same one told twice is no second."""

from __future__ import annotations

import os
import time

import pytest

from statestream_server import signals


@pytest.mark.parametrize(("after", "ends"), [(0.0, False), (0.1, False), (0.3, True), (60.0, True)])
async def test_a_second_signal_ends_the_process_and_one_told_twice_does_not(
    monkeypatch: pytest.MonkeyPatch, after: float, ends: bool
) -> None:
    now, left = [100.0], list[int]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(os, "_exit", left.append)
    stop = signals.Stop()
    stop.hear()
    assert (stop.is_set(), left) == (True, [])
    now[0] += after
    stop.hear()
    assert left == [130] * ends
