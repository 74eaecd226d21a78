"""The lessons of docs/lessons: formulas are torch's, the command makes pictures, the pages say what was measured."""

from __future__ import annotations

import io
import json
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from torch import nn

from statestream_export import lessons
from statestream_export.lessons import __main__ as command
from statestream_export.lessons import gates, neighbours, vanishing
from statestream_export.training import Run, reproducible

PAGES = Path(__file__).resolve().parents[2] / "docs" / "lessons"
LARGEST = 150_000
"""How many bytes a picture may have."""


def recorded(name: str) -> tuple[dict[str, Any], str]:
    """The figures of a lesson, and its page, in one line."""
    page = (PAGES / f"{name}.md").read_text("utf-8")
    return json.loads((PAGES / f"{name}.json").read_text("utf-8")), " ".join(page.split())


@pytest.mark.parametrize("name", lessons.NAMES)
def test_the_command_makes_the_picture_and_the_figures_of_a_page(tmp_path: Path, name: str) -> None:
    answer = CliRunner().invoke(command.main, [name, "--quick", "--out", str(tmp_path / "out")])
    assert answer.exit_code == 0, answer.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{name}.json", f"{name}.png"]
    picture = (tmp_path / "out" / f"{name}.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) <= LARGEST
    assert set(json.loads((tmp_path / "out" / f"{name}.json").read_text("utf-8"))) == set(recorded(name)[0])


@pytest.mark.parametrize("name", lessons.NAMES)
def test_a_page_shows_its_picture_and_names_its_command(name: str) -> None:
    _, page = recorded(name)
    assert f"]({name}.png)" in page
    assert f"python -m statestream_export.lessons {name} " in page
    assert "Sources: " in page
    picture = (PAGES / f"{name}.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) <= LARGEST


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_the_formulas_of_the_gates_page_are_what_torch_computes(kind: type[gates.Layer]) -> None:
    torch.manual_seed(0)
    layer, x = kind(2, 4, batch_first=True), torch.randn(1, 30, 2)
    with torch.no_grad():
        inside = gates.inside(layer, x[0])
        said, last = layer(x)
    torch.testing.assert_close(inside["state h"], said[0], rtol=1e-5, atol=1e-6)
    if kind is nn.LSTM:
        torch.testing.assert_close(inside["cell c"][-1], last[1][0, 0], rtol=1e-5, atol=1e-6)
    assert set(gates.GATES[kind.__name__]) <= set(inside)


def test_what_has_to_be_kept_is_the_value_of_the_last_mark() -> None:
    x, wanted = gates.sequences(20, 30, torch.Generator().manual_seed(0))
    for values, kept in zip(x, wanted, strict=True):
        for step in range(len(values)):
            last = max(at for at in range(step + 1) if values[at, 1] > 0.5)
            assert kept[step] == values[last, 0]


def test_a_gradient_is_measured_where_it_arrives() -> None:
    x, labels = vanishing.sequences(vanishing.BATCH, 5, torch.Generator().manual_seed(3))
    assert torch.equal(x[:, 0, 0], labels * 2 - 1)
    module = vanishing.First(nn.RNN)
    shares = vanishing.reach(module, 5, torch.Generator().manual_seed(3))
    x.requires_grad_()
    torch.autograd.backward(nn.functional.binary_cross_entropy_with_logits(module(x), labels))
    assert x.grad is not None
    norms = [float(x.grad[:, step].norm()) for step in range(5)]
    assert shares == pytest.approx([norm / norms[-1] for norm in reversed(norms)], rel=1e-4)


def test_an_open_forget_gate_is_open_in_torchs_layer() -> None:
    layer = vanishing.First(nn.LSTM, vanishing.OPEN).layer
    with torch.no_grad():
        forget = gates.inside(layer, torch.zeros(1, 1))["forget gate f"]
    torch.testing.assert_close(forget, torch.full_like(forget, 3).sigmoid())


def test_every_word_of_the_embedding_has_one_kind() -> None:
    assert sorted(word for words in neighbours.KINDS.values() for word in words) == sorted(neighbours.WORDS)
    vectors = torch.eye(len(neighbours.WORDS))
    good, fine = neighbours.WORDS.index("good"), neighbours.WORDS.index("clever")
    vectors[fine] = vectors[good] * 0.5 + vectors[fine] * 0.1
    [(word, alike)] = neighbours.nearest(vectors, "good", 1)
    assert word == "clever"
    assert alike == pytest.approx(0.5 / 0.26**0.5)


def test_the_gates_page_says_what_was_measured() -> None:
    figures, page = recorded("gates")
    for name, values in figures.items():
        if "gate" in name:
            assert f"| {name} | {values['marked']:.2f} | {values['not_marked']:.2f} |" in page
    errors = figures["mean_squared_error"]
    assert f"{errors['RNN']:.2g} for the RNN, {errors['LSTM']:.2g} for the LSTM and {errors['GRU']:.2g} for the" in page
    assert f"would be {figures['guessing']:.2g}." in page


def test_the_page_of_the_vanishing_gradient_says_what_was_measured() -> None:
    figures, page = recorded("vanishing")
    left = {name: f"{shares['50']:.0e}" for name, shares in figures["share_of_gradient"].items()}
    assert (
        f"RNN {left['RNN']} is left after 50 steps; and for the LSTM as torch starts it hardly more, {left['LSTM']},"
        in page
    )
    assert f"and {figures['share_of_gradient']['LSTM, forget gate open']['50']:.2f} is left" in page
    learnt = {
        name: max(int(length) for length, values in by_length.items() if statistics.median(values) > 0.95)
        for name, by_length in figures["accuracy"].items()
    }
    assert f"The RNN learns up to {learnt['RNN']} steps" in page
    assert f"learns only up to {learnt['LSTM']};" in page
    assert f"with open forget gates it learns up to {learnt['LSTM, forget gate open']}." in page


def test_the_page_of_the_neighbours_says_what_was_measured() -> None:
    figures, page = recorded("neighbours")
    torchs, small = figures["starts"]
    assert f"{torchs['of_one_kind_after']} of {figures['words']} words have" in page
    assert f"{torchs['of_one_kind_before']} before training" in page
    assert f"it is {small['of_one_kind_after']} of {figures['words']}" in page
    assert torchs["test_accuracy"] == small["test_accuracy"] == 1
    for word in neighbours.SHOWN:
        cells = [
            ", ".join(f"{near} {alike:.2f}" for near, alike in one["nearest"][word].items()) for one in (torchs, small)
        ]
        assert f"| {word} | {cells[0]} | {cells[1]} |" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gates", "neighbours"])
def test_the_recorded_figures_come_again(name: str) -> None:
    with reproducible(0):
        shown = lessons.load(name).show(Run(False, 0, Console(file=io.StringIO())))
    came, kept = (dict(leaves(figures)) for figures in (shown.figures, recorded(name)[0]))
    assert came == pytest.approx(kept, rel=0.2)


def leaves(figures: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """All numbers, by where they stand."""
    if isinstance(figures, dict | list | tuple):
        for key, value in figures.items() if isinstance(figures, dict) else enumerate(figures):
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(figures, int | float):
        yield path, figures


def test_unknown_lessons_and_places_are_refused(tmp_path: Path) -> None:
    unknown = CliRunner().invoke(command.main, ["gate", "--out", str(tmp_path / "out")])
    assert unknown.exit_code == 2
    assert "'gates', 'vanishing', 'neighbours'" in unknown.output
    (tmp_path / "file").write_text("")
    refused = CliRunner().invoke(command.main, ["gates", "--out", str(tmp_path / "file")])
    assert refused.exit_code == 2
    assert not (tmp_path / "out").exists()
    below = CliRunner().invoke(command.main, ["gates", "--out", str(tmp_path / "file" / "out")])
    assert below.exit_code == 1
    assert "cannot be made" in below.output  # before anything is trained


def test_ctrl_c_in_training_leaves_no_file(tmp_path: Path) -> None:
    script = [sys.executable, "-u", "-m", "statestream_export.lessons", "gates", "--out", str(tmp_path / "out")]
    with subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout is not None
        said = running.stdout.readline()  # the lesson's name: training begins
        assert "gates" in said
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(2)
        running.send_signal(signal.SIGINT)
        rest, _ = running.communicate(timeout=60)
    # Python itself ends by the signal where that came while it ran source text, as libraries do at times.
    assert running.returncode in (1, -signal.SIGINT), rest
    assert re.search("Aborted", rest), rest
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
