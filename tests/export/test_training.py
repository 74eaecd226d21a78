from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from rich.console import Console
from torch import nn

from statestream_export.training import Run, reproducible


def steps(module: nn.Linear, losses: list[float | BaseException]) -> Callable[[], float]:
    """Epochs that write their number into the weight and give, or raise, what they are told."""
    left = list(enumerate(losses))

    def epoch() -> float:
        number, loss = left.pop(0)
        assert module.training
        nn.init.constant_(module.weight, number)
        if isinstance(loss, BaseException):
            raise loss
        return loss

    return epoch


def fit(losses: list[float | BaseException], **more: object) -> tuple[nn.Linear, object]:
    module = nn.Linear(1, 1)
    run = Run(False, 0, Console(file=io.StringIO()))
    return module, run.fit(module, steps(module, losses), epochs=len(losses), **more)  # type: ignore[arg-type]


def test_the_best_weights_are_kept() -> None:
    module, curve = fit([3.0, 1.0, 2.0])
    assert module.weight.item() == 1
    assert (curve.best, curve.losses, curve.interrupted) == (1, [3.0, 1.0, 2.0], False)  # type: ignore[attr-defined]
    assert not module.training


def test_ctrl_c_keeps_the_best_so_far() -> None:
    module, curve = fit([3.0, 1.0, 2.0, KeyboardInterrupt(), 0.0])
    assert module.weight.item() == 1
    assert (curve.best, len(curve.losses), curve.interrupted) == (1, 3, True)  # type: ignore[attr-defined]


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        fit([3.0, ZeroDivisionError()])


def test_a_score_decides_where_there_is_one() -> None:
    scores = iter([5.0, 4.0, 6.0])
    module, curve = fit([3.0, 2.0, 1.0], score=lambda: next(scores))
    assert module.weight.item() == 1
    assert curve.scores == [5.0, 4.0, 6.0]  # type: ignore[attr-defined]


def test_training_ends_once_it_is_good_enough() -> None:
    _, curve = fit([3.0, 1.0, 0.1, 0.0], until=0.5)
    assert curve.losses == [3.0, 1.0, 0.1]  # type: ignore[attr-defined]


def test_reproducible_puts_everything_back() -> None:
    threads, before = torch.get_num_threads(), torch.random.get_rng_state()
    with reproducible(3):
        first = torch.rand(2)
        assert torch.get_num_threads() == 1
    with reproducible(3):
        assert torch.equal(torch.rand(2), first)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()
