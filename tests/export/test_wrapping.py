"""Modules that are wrapped, scripted, or remember something: exported as what they are, or refused with the reason."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from statestream_export import ExportError, GateError, State, export
from tests.export.modules import session


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.rnn(x, h)
        return self.head(y), h


class Loop(nn.Module):
    """A cell of its own in a loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.old, self.new = nn.Linear(5, 5), nn.Linear(3, 5)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        out: list[Tensor] = []
        for t in range(x.size(1)):
            h = torch.tanh(self.new(x[:, t]) + self.old(h))
            out.append(h)
        return torch.stack(out, 1), h


class Outer(nn.Module):
    """A plain module with a part that may be anything."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.head = part, nn.Linear(5, 2)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.part(x, h)
        return self.head(y), h


X = torch.randn(1, 6, 3)
LAYER = {"h": State(torch.zeros(1, 1, 5), batch_axis=1)}
ROW = {"h": State(torch.zeros(1, 5))}


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")  # type: ignore[return-value]


def compiled_in_place(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


def check(module: nn.Module, states: dict[str, State], path: Path) -> None:
    made = export(module, {"x": X}, states=states, time_axis=1, path=path)
    x, start = torch.randn(1, 11, 3), states["h"].value
    wanted = module(x, start)[0].detach().numpy()
    (found,) = session(made.path).run(["y"], {"x": x.numpy(), "h": start.numpy()})
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("wrap", [nn.DataParallel, compiled, compiled_in_place, lambda m: compiled(nn.DataParallel(m))])
def test_the_module_inside_is_exported(tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]) -> None:
    check(wrap(Net().eval()), LAYER, tmp_path / "model.onnx")


def test_wrapped_parts_are_taken_out_and_put_back(tmp_path: Path) -> None:
    inner = nn.GRU(3, 5, batch_first=True)
    module = Outer(compiled(inner)).eval()
    check(module, LAYER, tmp_path / "model.onnx")
    assert module.part is not inner


def traced(module: nn.Module) -> Any:
    return torch.jit.trace(module, (X, torch.zeros(1, 1, 5)))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("wrap", [torch.jit.script, traced])
@pytest.mark.filterwarnings("ignore")
def test_scripted_and_traced_modules_are_exported(tmp_path: Path, wrap: Any) -> None:
    module = wrap(Net().eval())
    made = export(module, X, states=LAYER, time_axis=1, path=tmp_path / "model.onnx")
    assert [port.name for port in made.interface.inputs] == ["x"]
    check(module, LAYER, tmp_path / "model.onnx")


@pytest.mark.filterwarnings("ignore")
def test_scripted_loops_keep_any_length(tmp_path: Path) -> None:
    check(torch.jit.script(Loop().eval()), ROW, tmp_path / "model.onnx")
    check(Outer(torch.jit.script(Loop())).eval(), ROW, tmp_path / "model.onnx")


@pytest.mark.slow
def test_a_python_loop_over_steps_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        GateError, match=r"frozen in forward \(a Python loop over steps.*torch\.jit\.script\(module\)"
    ) as caught:
        export(Loop(), X, states=ROW, time_axis=1, path=tmp_path / "model.onnx")
    assert re.search(r"Look at Loop\.forward, line \d+: `for t in range\(x\.size\(1\)\):`\.$", str(caught.value))


def test_the_exporter_that_would_pass_is_named(tmp_path: Path) -> None:
    outer = Outer(torch.jit.script(Loop())).eval()
    with pytest.raises(ExportError, match=r"\(torch\.export\).* exporter='torchscript' would pass"):
        export(outer, X, states=ROW, time_axis=1, exporter="torch.export", path=tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_what_torch_says_at_the_end_of_its_causes_is_told(tmp_path: Path) -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            if x.sum() > 0:
                h = h + x
            return h * 2, h

    with pytest.raises(ExportError, match=r"data-dependent.*torch\.where") as caught:
        export(Branch(), torch.randn(1, 3), states={"h": State(torch.zeros(1, 3))}, path=tmp_path / "model.onnx")
    assert re.search(r"at fault is line \d+, in forward: `if x\.sum\(\) > 0:`$", str(caught.value))
    assert caught.value.__cause__ is not None
    assert "would pass" not in str(caught.value)  # It would, with the branch of the example frozen.
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_torch_export_gave_is_refused(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(3, 2), (torch.randn(2, 3),)).module()
    with pytest.raises(ExportError, match=r"export the nn\.Module that it was made from"):
        export(program, torch.randn(2, 3), path=tmp_path / "model.onnx")


class Keeps(nn.Module):
    """Its hidden state is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 5, batch_first=True)
        self.hidden: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y, self.hidden = self.rnn(x, self.hidden)
        return y


class Buffered(nn.Module):
    """A running sum in a buffer, changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.total: Tensor
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.total += x.sum(0)
        return x + self.total


class Listed(nn.Module):
    """The last inputs in a list."""

    def __init__(self, kind: Callable[[], Any]) -> None:
        super().__init__()
        self.last = kind()

    def forward(self, x: Tensor) -> Tensor:
        self.last.append(x)
        return torch.stack(list(self.last)).sum(0)


class Hides(nn.Module):
    """Counts calls where nobody looks."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = {"made": 0}

    def forward(self, x: Tensor) -> Tensor:
        self.calls["made"] += 1
        return x * self.calls["made"]


REMEMBER: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "an attribute": (Keeps, X, "in 'hidden'"),
    "a buffer": (Buffered, torch.randn(2, 3), "in 'total'"),
    "a list": (lambda: Listed(list), torch.randn(2, 3), "in 'last'"),
    "a queue": (lambda: Listed(deque), torch.randn(2, 3), "in 'last'"),
    "something else": (Hides, torch.randn(2, 3), "or draws random numbers"),
}


@pytest.mark.parametrize("name", REMEMBER)
def test_memory_that_nobody_declared_is_refused(tmp_path: Path, name: str) -> None:
    make, example, where = REMEMBER[name]
    module = make()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(ExportError, match=rf"keeps memory between calls.*{where}.*Make it a state: .*states="):
        export(module, example, time_axis=1 if example.dim() > 2 else None, path=tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    if isinstance(module, Keeps):
        assert module.hidden is None
    if isinstance(module, Listed):
        assert not module.last


def test_what_is_only_looked_at_is_no_memory(tmp_path: Path) -> None:
    """Attention weights that a module keeps for a picture, and what it computed once."""

    class Shown(nn.Linear):
        weights: Tensor | None = None
        cached: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.cached is None:
                self.cached = torch.arange(2.0)
            self.weights = torch.softmax(super().forward(x), -1)
            return self.weights + self.cached

    module = Shown(3, 2)
    export(module, {"x": torch.randn(2, 3)}, path=tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").is_file()


def test_values_that_want_gradients_are_taken_as_numbers(tmp_path: Path) -> None:
    states = {"h": State(torch.zeros(1, 1, 5, requires_grad=True), batch_axis=1)}
    export(Net(), torch.randn(1, 6, 3, requires_grad=True), states=states, time_axis=1, path=tmp_path / "model.onnx")
