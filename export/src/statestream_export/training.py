"""The training loop that recipes share: progress, the best weights so far, and Ctrl-C."""

from __future__ import annotations

import atexit
import contextlib
import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from statestream_export.datasets.files import Source
from statestream_export.errors import RecipeError


@dataclass(slots=True)
class Curve:
    """What happened in training.

    Attributes:
        losses: The training loss of every epoch.
        scores: The score of every epoch (lower is better); empty where the loss is the score.
        best: The epoch, from 0, whose weights were kept; -1 where nothing was trained.
        interrupted: Whether Ctrl-C ended it early.
    """

    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    best: int = -1
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a recipe: how thorough, with which seed, and where it reports.

    Attributes:
        quick: Whether a few epochs are enough (tests); figures need not be reached then.
        seed: What torch's generator was seeded with.
        console: Where progress is shown.
        folder: Where the files of the recipe's data set are; None where it was not said.
        look: Whether a published data set is looked for on this machine.
        fetch: Whether it may be fetched.
        checkpoint: The file of weights to start from; recipes that take one ask for `weights`.
        asked: What a recipe has asked for: "source", "weights".
    """

    quick: bool
    seed: int
    console: Console
    folder: Path | None = None
    look: bool = False
    fetch: bool = False
    checkpoint: Path | None = None
    asked: set[str] = field(default_factory=set)

    @property
    def weights(self) -> Path | None:
        """The checkpoint to start from."""
        self.asked.add("weights")
        return self.checkpoint

    @property
    def source(self) -> Source:
        """Where data comes from. A quick run fetches nothing."""
        self.asked.add("source")
        return Source(self.folder, self.look, self.fetch and not self.quick, self.console)

    def generator(self) -> np.random.Generator:
        """A NumPy generator from the run's seed."""
        return np.random.default_rng(self.seed)

    def epochs(self, full: int) -> int:
        """How many epochs this run trains where a full one trains `full`."""
        return max(2, full // 20) if self.quick else full

    def fit(
        self,
        module: nn.Module,
        epoch: Callable[[], float],
        *,
        epochs: int,
        score: Callable[[], float] | None = None,
        until: float | None = None,
    ) -> Curve:
        """Trains for some epochs (a twentieth of them in a quick run) and leaves the best weights in the module.

        Ctrl-C ends the training and keeps the best weights so far.

        Args:
            module: Put in train mode for `epoch` and in eval mode for `score`; left in eval mode.
            epoch: Trains one epoch and returns its mean loss.
            epochs: How many at most.
            score: Judges the weights, without gradients, lower is better; the loss where not given.
            until: Training ends once the score is this or lower.
        """
        curve = Curve()
        best = copy.deepcopy(module.state_dict())
        total = self.epochs(epochs)
        with (
            contextlib.suppress(KeyboardInterrupt),
            _drawn(self.console, TextColumn("loss {task.fields[loss]:.4g}")) as progress,
        ):
            task = progress.add_task(type(module).__name__, total=total, loss=float("nan"))
            curve.interrupted = True
            for number in range(total):
                module.train()
                loss = _number("epoch", epoch())
                module.eval()
                judged = loss
                if score is not None:
                    with torch.no_grad():
                        judged = _number("score", score())
                    curve.scores.append(judged)
                curve.losses.append(loss)
                seen = curve.scores or curve.losses
                if curve.best < 0 or judged < seen[curve.best]:
                    curve.best = number
                    best = copy.deepcopy(module.state_dict())
                progress.update(task, advance=1, loss=loss)
                if until is not None and judged <= until:
                    break
            curve.interrupted = False
        module.load_state_dict(best)
        module.eval()
        return curve


def _number(what: str, value: object) -> float:
    """What an epoch or a score returned as a number of Python's; a tensor of one will do."""
    try:
        return float(value.detach() if isinstance(value, torch.Tensor) else value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        came = "None" if value is None else type(value).__name__
        raise RecipeError(f"{what} returned {came}; expected one number, lower where it is better") from error


def epochs(count: int, what: str = "training") -> Iterator[int]:
    """The numbers of epochs, from 0, for a training loop of one's own; a bar tells meanwhile how many are done.

    The bar is drawn on standard error, in a terminal or a notebook; elsewhere there is none. It ends with the loop,
    however that ends.

    Args:
        count: How many there are.
        what: What is trained, for the bar.
    """
    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield from range(count)
        return
    drawn = _drawn(console)
    # A loop that Ctrl-C or an error ends, and with it the program, may never let go of this iterator: the terminal gets
    # its cursor back all the same.
    atexit.register(drawn.stop)
    try:
        with drawn:
            yield from drawn.track(range(count), description=what)
    finally:
        atexit.unregister(drawn.stop)


def _drawn(console: Console, *more: ProgressColumn) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("epoch"),
        MofNCompleteColumn(),
        *more,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        # What is printed meanwhile goes above the bar where both are on one terminal; into a file it goes as ever.
        redirect_stdout=console.is_terminal and not console.is_jupyter and sys.stdout.isatty(),
        redirect_stderr=console.is_terminal and not console.is_jupyter,
    )


def falling(optimizer: Optimizer, steps: int) -> LRScheduler:
    """A rate that falls to 0 along half a cosine; its `step` is called after every step of the optimizer."""
    return CosineAnnealingLR(optimizer, max(1, steps))


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seeds torch, keeps it to one thread and to deterministic algorithms; puts all back afterwards.

    One thread is also the fastest for models of this size, and sums in the same order everywhere.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic)
