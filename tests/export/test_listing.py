"""The list in docs/ says what the recorded runs reached, of the recipes as they are now."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner

from statestream_export import RecipeError, catalogue, listing
from statestream_export.cli import recipes, train
from statestream_export.recipes import NAMES, load, rows
from statestream_export.recipes.deepar import DeepARRecipe
from statestream_export.recipes.global_rnn import GlobalRnnRecipe

DOCS = Path(__file__).resolve().parents[2] / "docs"
RECORDED = DOCS / "recipes"


def test_the_list_is_what_the_recorded_runs_say() -> None:
    answer = CliRunner().invoke(recipes, ["--markdown", "--runs", str(RECORDED)])
    assert answer.exit_code == 0, answer.output
    assert (DOCS / "recipes.md").read_text("utf-8") == answer.output, "run tools/record_recipes.py"


def test_every_recipe_is_recorded_on_a_page_of_its_family() -> None:
    assert sorted(name for _, names in listing.FAMILIES.values() for name in names) == sorted(NAMES)
    assert set(listing.read(RECORDED)) == set(NAMES)
    for page, (title, names) in listing.FAMILIES.items():
        text = (RECORDED / f"{page}.md").read_text("utf-8")
        assert text.startswith(f"# {title}\n")
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == list(names)
        pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
        assert pictures == [f"{name}/picture.png" for name in names]
        for picture in pictures:
            assert (RECORDED / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_run_was_full_and_of_the_recipe_as_it_is(name: str) -> None:
    report = listing.read(RECORDED)[name]
    card = load(name).card
    assert report["recipe"] == {**asdict(card), "target": str(card.target)}
    assert report["target_reached"]
    assert card.target.reached(report["metrics"])
    assert not report["training"]["quick"]
    assert not report["training"]["interrupted"]


@pytest.mark.parametrize("name", [name for _, names in catalogue.RECIPES for name in names])
def test_what_has_published_data_is_recorded_on_it_and_on_what_stands_for_it(name: str) -> None:
    data = {published.name for published, names in catalogue.RECIPES if name in names}
    assert listing.read(RECORDED)[name]["metrics"]["data"] in data
    built_in = listing.read(RECORDED)[name].get(listing.STANDS_IN)
    if name in ("fashion", "deepar", "global-rnn"):  # Nothing stands for their data.
        assert built_in is None
        return
    assert built_in is not None
    assert built_in["training"]["built_in"]
    assert built_in["target_reached"]
    assert built_in["metrics"]["data"] not in data


def test_rows_is_trained_in_the_way_that_does_best_on_held_back_images() -> None:
    choice = json.loads((RECORDED / "rows" / "choice.json").read_text("utf-8"))
    best = min(choice["ways"], key=lambda way: way["held_back_loss"])
    assert (rows.Rows.rate, rows.Rows.batch, rows.Rows.epochs) == (best["rate"], best["batch"], best["epochs"])
    report = listing.read(RECORDED)["rows"]
    assert choice["seed"] not in report["seeds"]["seeds"]
    assert choice["data"] == report["metrics"]["data"]


@pytest.mark.parametrize("recipe", [GlobalRnnRecipe(), DeepARRecipe()])
def test_sizes_are_those_that_did_best_before_the_test(recipe: GlobalRnnRecipe | DeepARRecipe) -> None:
    choice = json.loads((RECORDED / recipe.card.name / "choice.json").read_text("utf-8"))
    best = min(choice["ways"], key=lambda way: way["mase"])
    for name, value in best.items():
        if name in ("kind", "hidden", "epochs"):
            assert getattr(recipe, name) == value
    report = json.loads((RECORDED / recipe.card.name / "metrics.json").read_text("utf-8"))
    assert not set(choice["seeds"]) & set(report["seeds"]["seeds"])


def test_the_page_tells_of_rows_over_five_seeds() -> None:
    page = (RECORDED / "images.md").read_text("utf-8")
    report = listing.read(RECORDED)["rows"]
    for key in ("test_accuracy_as_in_the_notes", "test_accuracy"):
        figure = report["seeds"]["figures"][key]
        each = ", ".join(f"{100 * value:.2f}" for value in figure["values"])
        assert len(figure["values"]) == 5
        assert f"| {100 * figure['mean']:.2f} ± {100 * figure['deviation']:.2f} % | {each} |" in page
    largest, median = (report["metrics"][f"{which}_gradient_norm_as_in_the_notes"] for which in ("largest", "median"))
    assert f"up to {largest:.0f} where the median is {median:.0f}," in page


def test_another_figure_is_another_list(tmp_path: Path) -> None:
    shutil.copytree(RECORDED / "linear", tmp_path / "linear" / "7")
    path = tmp_path / "linear" / "7" / "metrics.json"
    (tmp_path / "linear" / "2").mkdir()
    before = listing.markdown(listing.read(tmp_path))
    report = json.loads(path.read_text("utf-8"))
    report["metrics"]["largest_error"] = 0.5
    path.write_text(json.dumps({**report, "target_reached": False}), "utf-8")
    after = listing.markdown(listing.read(tmp_path))
    assert before != after
    assert "| 0.5 (not reached) |" in after
    assert "not run" in after
    path.write_text("{", "utf-8")
    with pytest.raises(RecipeError, match="is no JSON"):
        listing.read(tmp_path)
    with pytest.raises(RecipeError, match="there is no folder"):
        listing.read(tmp_path / "nowhere")


def test_the_recipe_of_the_manual_trains(tmp_path: Path) -> None:
    text = (DOCS / "own-recipe.md").read_text("utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.strip().splitlines()) <= 12
    mine = tmp_path / "my_recipe.py"
    mine.write_text(code, "utf-8")
    answer = CliRunner().invoke(
        train, [str(mine), "--quick", "--out", str(tmp_path / "models"), "--runs", str(tmp_path / "runs")]
    )
    assert answer.exit_code == 0, answer.output
    assert (tmp_path / "models" / "sine-wider" / "1" / "model.onnx").is_file()
