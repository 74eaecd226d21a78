"""The recipes that give distributions: streamed as at once, and through a server as in torch's own loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from statestream import aio
from statestream_export import export
from statestream_export.datasets.series import read_tsf
from statestream_export.recipes import deepar, deepar_sales, levels, yearly
from statestream_export.recipes.deepar import DeepAR, Kind
from statestream_export.recipes.global_rnn import GlobalRnn, GlobalRnnRecipe
from statestream_export.training import reproducible
from tests.export.sets import yearly_folder
from tests.support.serving import serving

KINDS: tuple[Kind, ...] = ("gaussian", "student_t", "negative_binomial")
H = 5


class Made:
    """The models in a folder, and their modules."""

    def __init__(self, folder: Path) -> None:
        draw = np.random.default_rng(1)
        self.folder, self.modules = folder, dict[str, DeepAR]()
        self.y = draw.poisson(np.linspace(20, 40, 30)[None, :, None] * [[[1]], [[3]], [[9]]]).astype(np.float32)
        self.known = draw.integers(0, 2, (3, 30 + H, 2)).astype(np.float32)
        self.data = read_tsf(yearly_folder(folder / "data") / "m1_yearly_dataset.tsf", "made")
        with reproducible(0):
            for kind in KINDS:
                module = self.modules[kind] = DeepAR(kind, known=2, hidden=8).eval()
                export(
                    module,
                    {"y": torch.tensor(self.y), "known": torch.tensor(self.known[:, 1:31])},
                    states=module.states(),
                    outputs=list(deepar.OUTPUTS[kind]),
                    time_axis=1,
                    head=deepar.HEADS[kind],
                    feedback={"y": "y"},
                    ahead=["known"],
                    path=folder / "models" / kind / "1",
                )
            recipe = GlobalRnnRecipe(hidden=8)
            self.ahead: GlobalRnn = recipe.module(self.data).eval()
            (folder / "models" / "ahead" / "1").mkdir(parents=True)
            recipe.export(self.ahead, self.data, folder / "models" / "ahead" / "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("probabilistic"))


@pytest.fixture
async def client(made: Made) -> AsyncIterator[aio.Client]:
    async with serving(made.folder / "models") as local, aio.connect(local.address) as client:
        yield client


def test_a_level_is_the_same_step_by_step_and_at_once() -> None:
    y = torch.cumsum(torch.randn(3, 40, 1, generator=torch.Generator().manual_seed(0)), 1) * torch.tensor(
        [[[1.0]], [[1e3]], [[1e6]]]
    )
    module, past = levels.Levels(), torch.zeros(3, levels.WIDTH)
    whole, parts = module(y, past), []
    for start, stop in ((0, 1), (1, 2), (2, 9), (9, 40)):
        part = module(y[:, start:stop], past)
        past = part.past
        parts.append(part)
    torch.testing.assert_close(torch.cat([part.features for part in parts], 1), whole.features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(past, whole.past, rtol=1e-5, atol=1e-5)


def test_a_level_does_not_depend_on_the_unit_and_its_change_is_the_scale_of_mase() -> None:
    y = torch.cumsum(torch.randn(1, 25, 1, generator=torch.Generator().manual_seed(1)) + 0.5, 1)
    small, large = (levels.Levels()(y * unit, torch.zeros(1, levels.WIDTH)) for unit in (1.0, 4096.0))
    torch.testing.assert_close(small.features, large.features, rtol=1e-5, atol=1e-5)
    assert float(small.change[0, -1]) == pytest.approx(float(y[0].diff(dim=0).abs().mean()), rel=1e-5)


def loop(module: DeepAR, made: Made, path: np.ndarray | None) -> tuple[list[Any], np.ndarray]:
    """Torch's own loop: the distribution of every step, where its mean, or a path [N, H], is fed back."""
    y, known = torch.tensor(made.y), torch.tensor(made.known)
    said, fed = [], []
    with torch.no_grad():
        *given, past, h, c = module(y, known[:, 1:31], *module.start(3))
        given = [each[:, -1:] for each in given]
        for step in range(H):
            said.append(deepar.distribution(module.kind, tuple(given)))
            value = said[-1].mean if path is None else torch.tensor(path[:, step : step + 1, None])
            fed.append(value)
            if step + 1 < H:
                *given, past, h, c = module(value, known[:, 31 + step : 32 + step], past, h, c)
    return said, torch.cat(fed, 1).numpy()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_closed_loop_is_torchs(made: Made, client: aio.Client, kind: Kind) -> None:
    past = {"y": made.y, "known": made.known[:, :30]}
    found = await client.forecast(kind, past, h=H, future=made.known[:, 30:])
    _, expected = loop(made.modules[kind], made, None)
    assert np.abs(found / expected - 1).max() < 1e-3


@pytest.mark.parametrize("kind", KINDS)
async def test_draws_have_torchs_moments(made: Made, client: aio.Client, kind: Kind) -> None:
    """Of the first step against the distribution itself, of the last against paths of torch's own loop."""
    module, past = made.modules[kind], {"y": made.y, "known": made.known[:, :30]}
    drawn = await client.forecast(kind, past, h=H, future=made.known[:, 30:], samples=True, num_samples=2000, seed=5)
    with reproducible(0):
        known = torch.tensor(made.known)
        own = deepar.paths(
            module, torch.tensor(made.y), torch.full((3,), 30), H, 2000, (known[:, 1:31], known[:, 30:])
        ).numpy()
    for level in (0.1, 0.5, 0.9):
        for step in (0, H - 1):
            low, high = np.quantile(own[:, :, step], [level - 0.06, level + 0.06], axis=1)
            served = np.quantile(drawn[:, :, step, 0], level, axis=1)
            assert ((low <= served) & (served <= high)).all(), (level, step)


async def test_quantiles_are_the_modules_own_and_go_on_from_the_median(made: Made, client: aio.Client) -> None:
    past = [series[:, None].astype(np.float32) for series in made.data.histories]
    found = await client.forecast("ahead", past, h=6, quantiles=yearly.LEVELS)
    expected = GlobalRnnRecipe(hidden=8).forecast(made.ahead, made.data)
    assert np.abs(found[:, :, 0] / expected - 1).max() < 1e-4
    assert (np.diff(found, axis=-1) >= 0).all(), "quantiles do not cross"
    longer = await client.forecast("ahead", past, h=9)
    assert longer.shape == (len(past), 9, 1)
    assert np.abs(longer[:, :6, 0] / expected[..., yearly.MIDDLE] - 1).max() < 1e-4


def test_sales_cannot_be_known_better_than_what_they_were_drawn_of() -> None:
    data = deepar_sales.sales()
    assert float(data.sold.min()) >= 0
    assert torch.equal(data.sold, data.sold.round())
    assert float((data.sold / data.mean).mean()) == pytest.approx(1, abs=0.02)
    assert deepar_sales.recipe.card.target.metric == "loss_above_truth"
