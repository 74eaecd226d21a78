"""M1 yearly of the Monash archive: forecasts through a server, beside what was published and what statsmodels does.

`python -m benchmarks.monash` trains `global-rnn` and `deepar` with five seeds, serves them, asks `client.forecast` for
the last six years of 181 series, and prints a table; with --docs it writes that of docs/monash.md and its pictures.
"""

from __future__ import annotations

import io
import json
import re
import statistics
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from rich.console import Console
from rich.progress import track

import statestream
from benchmarks import processes
from statestream_export import accuracy
from statestream_export.datasets.files import Source
from statestream_export.datasets.series import Several, m1_yearly
from statestream_export.recipes import load, yearly
from statestream_export.recipes.yearly import LEVELS, MIDDLE
from statestream_export.runs import execute

RECIPES: Final = ("global-rnn", "deepar")
SEEDS: Final = 5
DRAWN: Final = 500
"""Paths of each series."""
PUBLISHED: Final[Mapping[str, float]] = {
    "TBATS": 3.499,
    "ETS": 3.771,
    "Theta": 4.191,
    "N-BEATS": 4.384,
    "DeepAR": 4.603,
    "WaveNet": 4.666,
    "SES": 4.938,
}
"""Mean MASE, as the archive has it (Godahewa and others, 2021)."""
_DOCS = Path(__file__).parents[1] / "docs"
PAGE, FILE = _DOCS / "monash.md", _DOCS / "images" / "monash.json"


def judged(quantiles: np.ndarray, data: Several) -> dict[str, float]:
    """What quantiles [N, h, len(LEVELS)] are worth; of [N, h, 1], the forecast alone, its MASE."""
    middle = quantiles[..., MIDDLE if quantiles.shape[-1] > 1 else 0]
    found = {"mase": float(accuracy.mase(middle, data.truths, data.histories).mean())}
    if quantiles.shape[-1] > 1:
        found["wql"] = float(accuracy.quantile_loss(quantiles, data.truths, LEVELS).mean())
        found["coverage_80"] = accuracy.coverage(quantiles[..., 1], quantiles[..., -2], data.truths)
        found["coverage_95"] = accuracy.coverage(quantiles[..., 0], quantiles[..., -1], data.truths)
    return found


def naive(past: np.ndarray, horizon: int) -> np.ndarray:
    """The seasonal naive of yearly series, whose season is one year: the last value, [h, 1]."""
    return np.full((horizon, 1), past[-1])


def holt(past: np.ndarray, horizon: int) -> np.ndarray:
    """Additive trend, fitted by statsmodels, [h, 1]."""
    from statsmodels.tsa.holtwinters import ExponentialSmoothing

    return np.asarray(ExponentialSmoothing(past, trend="add").fit().forecast(horizon))[:, None]


def ets(past: np.ndarray, horizon: int) -> np.ndarray:
    """The form with the least AICc of statsmodels' without a season, [h, 1]."""
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    found: list[tuple[float, np.ndarray]] = []
    for error in ("add", "mul"):
        for trend, damped in ((None, False), ("add", False), ("add", True)):
            fitted = ETSModel(past, error=error, trend=trend, damped_trend=damped).fit(disp=False)
            if np.isfinite(fitted.aicc):
                found.append((float(fitted.aicc), np.asarray(fitted.forecast(horizon))))
    return min(found, key=lambda each: each[0])[1][:, None]


METHODS: Final = {
    "seasonal naive (a season is one year)": naive,
    "ETS by AICc (statsmodels)": ets,
    "Holt (statsmodels)": holt,
}


def classical(data: Several) -> dict[str, dict[str, float]]:
    """The methods that fit each series for itself."""
    found = {}
    for name, method in METHODS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of fits that did not converge: they count as they are.
            said = np.stack([method(past, data.horizon) for past in track(data.histories, name)])
        found[name] = judged(said, data)
    return found


def trained(models: Path, runs: Path, source: Source, seeds: int, *, quick: bool = False) -> None:
    """Every recipe with every seed, each as a model of its own: of a name, a server has the newest version alone."""
    ways = [(name, seed) for name in RECIPES for seed in range(seeds)]
    for name, seed in track(ways, "training"):
        quiet = Console(file=io.StringIO())
        done = execute(
            load(name), models, runs, quick=quick, seed=seed, console=quiet, folder=source.folder, look=source.look
        )
        if done.curve.interrupted:
            raise KeyboardInterrupt
        done.model.parent.rename(models / f"{name}-{seed}")


def asked(client: Any, name: str, seed: int, data: Several) -> np.ndarray:
    """Quantiles [N, h, len(LEVELS)] through the server, each series in its own units."""
    past = [series[:, None].astype(np.float32) for series in data.histories]
    drawn = {} if name == "global-rnn" else {"num_samples": DRAWN}
    found = client.forecast(f"{name}-{seed}", past, h=data.horizon, quantiles=LEVELS, seed=0, **drawn)
    return np.asarray(found[:, :, 0], np.float64)


def measure(folder: Path, source: Source, seeds: int = SEEDS, *, quick: bool = False) -> tuple[dict[str, Any], Any]:
    """Trains, serves and asks; the figures, and the quantiles of the first seeds by recipe."""
    data, first = m1_yearly(source), dict[str, np.ndarray]()
    trained(folder / "models", folder / "runs", source, seeds, quick=quick)
    served: dict[str, Any] = {}
    with (
        processes.statestream(folder / "models", folder, "--threads", "1") as server,
        statestream.connect(server.address) as client,
    ):
        for name in RECIPES:
            several = [asked(client, name, seed, data) for seed in range(seeds)]
            first[name] = several[0]
            each = [judged(quantiles, data) for quantiles in several]
            served[name] = {key: [round(one[key], 4) for one in each] for key in each[0]}
    each_alone = {name: {key: round(value, 4) for key, value in one.items()} for name, one in classical(data).items()}
    found = {"series": len(data.names), "horizon": data.horizon, "served": served, "classical": each_alone}
    return found, (data, first)


def table(found: Mapping[str, Any]) -> str:
    """Every method, the best first."""
    rows: list[tuple[float, str]] = []
    for name, values in found["served"].items():
        mean = {key: statistics.fmean(several) for key, several in values.items()}
        spread = f" ({min(values['mase']):.3f} … {max(values['mase']):.3f})"
        bands = f"{mean['wql']:.4f} | {100 * mean['coverage_80']:.1f} % | {100 * mean['coverage_95']:.1f} %"
        rows.append(
            (
                mean["mase"],
                f"| **{name}**, served, {len(values['mase'])} seeds | {mean['mase']:.3f}{spread} | {bands} |",
            )
        )
    rows += [(one["mase"], f"| {name} | {one['mase']:.3f} | | | |") for name, one in found["classical"].items()]
    rows += [(mase, f"| {name}, published | {mase:.3f} | | | |") for name, mase in PUBLISHED.items()]
    head = [
        "| method | mean MASE | weighted quantile loss | within 80 % | within 95 % |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    return "\n".join(head + [row for _, row in sorted(rows)])


def filled(page: str, found: Mapping[str, Any]) -> str:
    """The page with its table as the figures have it."""
    part = re.compile(r"(<!-- monash[^>]*-->\n).*?(<!-- end -->)", re.DOTALL)
    return part.sub(lambda match: f"{match[1]}{table(found)}\n{match[2]}", page)


@click.command()
@click.option("--docs", is_flag=True, help="Writes the table of docs/monash.md, its figures and its pictures.")
@click.option("--seeds", default=SEEDS, show_default=True, type=click.IntRange(min=1), help="Trainings of each recipe.")
def main(docs: bool, seeds: int) -> None:
    """Trains, serves, forecasts M1 yearly and compares; some minutes."""
    if docs and seeds != SEEDS:
        raise click.UsageError(f"--docs writes whole runs only, of {SEEDS} seeds; leave out --seeds")
    with tempfile.TemporaryDirectory() as name:
        found, (data, first) = measure(Path(name), Source(None, True, False, Console(stderr=True)), seeds)
    click.echo(table(found))
    if docs:
        FILE.write_text(json.dumps(found, indent=1) + "\n")
        PAGE.write_text(filled(PAGE.read_text(), found))
        for recipe, quantiles in first.items():
            picture = yearly.fan(f"{recipe}: client.forecast, six years of M1 yearly", data, quantiles)
            picture.savefig(FILE.with_name(f"monash-{recipe}.png"), dpi=80)


if __name__ == "__main__":
    main()
