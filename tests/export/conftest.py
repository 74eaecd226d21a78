"""What holds for all tests of export."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.support import torchlib


@pytest.fixture(scope="session", autouse=True)
def shared_torchlib() -> None:
    """What torch reads for each export it reads once."""
    torchlib.share()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small models are fastest on one thread, the more so where tests share the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
