from __future__ import annotations

import contextlib
import io
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from rich.console import Console
from torch import nn

from statestream_export.training import Run, epochs, reproducible
from statestream_export.waiting import waiting
from tests.support.terminal import rest


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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stopped", [False, True])
def test_a_loop_of_ones_own_has_a_bar_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stopped: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", seen := Terminal())
    for number in epochs(3, "air"):
        print(number)
        if stopped and number == 1:
            break
    assert capsys.readouterr().out == ("0\n1\n" if stopped else "0\n1\n2\n"), (
        "it is in a file, and so not drawn above the bar"
    )
    text = seen.getvalue()
    assert "air" in text
    assert "epoch" in text
    assert ("3/3" in text) is not stopped
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is there again"


def test_a_loop_of_ones_own_says_nothing_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert [*epochs(3)] == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_what_counts_nothing_says_meanwhile_what_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    seen = Terminal()
    with contextlib.suppress(KeyboardInterrupt), waiting(Console(file=seen), "loading [torch]"):
        print("a figure")
        raise KeyboardInterrupt
    assert capsys.readouterr().out == "a figure\n", "it is in a file, and so not drawn above the line"
    text = seen.getvalue()
    assert "loading [torch]" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is there again"
    with waiting(Console(file=(piped := io.StringIO())), "loading"):
        print("another")
    assert (piped.getvalue(), capsys.readouterr().out) == ("", "another\n")


@pytest.mark.slow
def test_ctrl_c_in_a_loop_of_ones_own_leaves_a_terminal_as_it_was() -> None:
    typed = (
        "from statestream_export.training import epochs\nfor _ in epochs(2):\n    print('now', flush=True)\n    input()"
    )
    outer, inner = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", typed],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=inner,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        start_new_session=True,
    ) as process:
        os.close(inner)
        assert process.stdout is not None
        assert process.stdout.readline() == b"now\n"
        process.send_signal(signal.SIGINT)
        seen = rest(outer)
    assert process.returncode == -signal.SIGINT
    assert b"KeyboardInterrupt" in seen
    assert seen.count(b"\x1b[?25l") == seen.count(b"\x1b[?25h") == 1, "the cursor is there again"
