"""Forecasts that show themselves: what is drawn is well formed whatever the numbers, and what is computed is plain."""

from __future__ import annotations

import pickle
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from statestream.fans import Fan, Forecast, Panel, drawn, shown
from statestream.forecasts import Told, Wish
from tests.client.fake_server import Fake
from tests.client.twins import Connect, Twin
from tests.client.world import ones

SVG = "{http://www.w3.org/2000/svg}"


def charts(html: str) -> list[ElementTree.Element]:
    return ElementTree.fromstring(html).findall(f"{SVG}svg")


async def test_a_forecast_is_an_array_that_shows_itself(connect: Connect, twin: Twin, fake: Fake) -> None:
    fake.models["sum"].signature.outputs[0].columns.extend(["<b>a</b>", "b"])
    client = await connect()
    one: Any = await twin.call(client.forecast, "sum", ones(5), h=3)
    html = one._repr_html_()
    assert [chart[0].text for chart in charts(html)] == ["<b>a</b>", "b"]
    assert len(charts(html)[0].findall(f"{SVG}path")) == 2, "the past, and what is ahead"
    assert len(html) < 3000
    many: Any = await twin.call(client.forecast, "sum", [ones(5)] * 30, h=3)
    assert len(charts(many._repr_html_())) == 4
    assert "… and 56 more" in many._repr_html_()
    for computed in (many + 1, many.mean(axis=0), np.exp(many), np.asarray(many), pickle.loads(pickle.dumps(many))):
        assert type(computed) is np.ndarray
    assert not isinstance(many.sum(), np.ndarray)
    assert many[0]._repr_html_() is None
    assert many.copy()._repr_html_() is None
    assert repr(many).startswith("array([[[")
    assert np.array_equal(many[0], one)
    pool = await twin.call(client.sessions, "sum", ids=["<north>", "south"])
    points = np.ones((2, 3, 2))
    ahead: Any = shown(pool._layout, Wish(3), Told({"y": points}, {}, {}), None, points, pool.ids)
    assert [chart[0].text for chart in charts(ahead._repr_html_())][::2] == ["<north>, <b>a</b>", "south, <b>a</b>"]


@pytest.mark.parametrize("past", [[], [1.0], [np.nan] * 3, [np.inf, 1, -np.inf], [1e308, -1e308], [5, 5, 5]])
@pytest.mark.parametrize("ahead", [[2.0], [np.nan] * 4, [5, np.nan, 5], [-1e308, 1e308], [0.0, 0.0]])
def test_whatever_the_numbers(past: list[float], ahead: list[float]) -> None:
    middle = np.asarray(ahead)
    with np.errstate(over="ignore"):
        bands = {80.0: np.stack([middle - 1, middle + 1], axis=1)}
    html = drawn(Fan("a & <script>", len(ahead), [Panel("", np.asarray(past, float), middle, bands)], 1))
    (chart,) = charts(html)
    for shape in chart.iter():
        for place in ("points", "d"):
            assert "nan" not in shape.get(place, "")
            assert "inf" not in shape.get(place, "")
    assert "<script>" not in html


def test_one_that_was_made_by_hand_shows_nothing() -> None:
    assert np.zeros(3).view(Forecast)._repr_html_() is None
