"""What the server would make of a model file, in words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from statestream.contract import signature as signatures
from statestream.contract.signature import (
    Head,
    HeadKind,
    Missing,
    Quantization,
    Signature,
    StateCheck,
    StateSpec,
    TensorSpec,
    Window,
    WindowStart,
    score_outputs,
)
from statestream.v1.model_pb2 import BatchInvariance
from statestream_server.models.files import repository
from statestream_server.models.model import Kind, Model, ModelLoadError
from statestream_server.models.proof import loading

_WHY = {
    Kind.PREDICT: "no memory: client.predict",
    Kind.SESSION: "states: client.session, one row of memory each",
    Kind.GENERATE: "encoder and decoder: client.generate",
}


_GROUPS = {
    "file": ("file", "kind", "sizes", "about", "quantised"),
    "form": (
        "form",
        "wire",
        "evidence",
        "follows",
        "surgery",
        "left out",
        "lengths",
        "no effect",
        "one at a time",
        "a window?",
    ),
    "tensors": ("input", "output", "state", "window", "missing", "time", "feedback", "head", "scores"),
}
_FILLED = {
    "refuse": "the step is refused",
    "hold": "the last one stands in",
    "predict": "what the model predicted stands in",
}
_MOST_NAMED = 8
_WARNED = ("one at a time", "no effect", "a window?")


def describe(path: Path, *, device: str = "auto") -> str:
    """What `facts` finds, a line each."""
    lines = facts(path, device=device)
    width = max(len(key) for key, _ in lines)
    return "\n".join(f"{key:<{width}}  {value}" for key, value in lines)


def show(path: Path, *, device: str = "auto") -> None:
    """Prints what `facts` finds on a terminal, as a table: the file, why it is what it is, its tensors, the proof."""
    table, before = Table("what"), ""
    table.add_column("finding", overflow="fold")
    for key, value in facts(path, device=device):
        group = next((name for name, keys in _GROUPS.items() if key.removeprefix("encoder ") in keys), "proof")
        if before and group != before:
            table.add_section()
        table.add_row(Text(key, "bold"), Text(value, "yellow" if key in _WARNED else ""))
        before = group
    Console().print(table)


def facts(path: Path, *, device: str = "auto") -> list[tuple[str, str]]:
    """Loads a file as the server would and says what it is: kind, inputs, outputs, memory, invariance, digest.

    Args:
        path: An .onnx file (of an encoder-decoder either one), the model.toml of a chain, or the folder of one version.
        device: What to run it on; see `loading.load`.

    Raises:
        ModelLoadError: The server would refuse it: the file, the reason, what to do.
    """
    file = path if path.is_file() or (path.suffix and not path.is_dir()) else repository.file_of(path)
    if path.is_dir() and not file.exists():
        told = repository.scan([path])
        there = ", ".join(str(found.path) for found in told.found[:_MOST_NAMED])
        raise ModelLoadError(
            f"{path}: is a folder of {len(told.found)} models; inspect one of them: {there}"
            if told.found
            else repository.nothing([path], told)
        )
    sizes = repository.sizes(file)
    model = loading.load_file(file, name=path.stem, version=1, size=sizes[0] if sizes else "", device=device)
    lines = [("file", str(file)), ("kind", f"{model.kind}, {_WHY[model.kind]}")]
    if sizes:
        names = ", ".join(f"NAME-{size}" for size in sizes)
        lines.append(("sizes", f"served once for each, as {names}; this is what is found of the first"))
    lines += model.form or [("form", "as the signature in the file says")]
    if model.signature.description:
        lines.append(("about", model.signature.description))
    if model.signature.HasField("quantization"):
        lines.append(("quantised", _quantised(model.signature.quantization)))
    if model.encoder_signature is not None:
        lines += [("encoder " + key, value) for key, value in _tensors(model.encoder_signature)]
    lines += _tensors(model.signature)
    lines += [("state", _state(state)) for state in model.signature.states]
    lines += [("window", _window(window)) for window in model.signature.windows]
    lines += [line for spec in model.signature.inputs for line in _observed(spec)]
    lines += [("feedback", f"{each.output} → {each.input}") for each in model.signature.feedback]
    lines += [("head", _head(head)) for head in model.signature.heads]
    if scores := score_outputs(model.signature):
        lines.append(("scores", ", ".join(spec.name.removeprefix("score:") for spec in scores)))
    lines += _memory(model)
    lines += [("runs on", model.providers[0]), ("digest", model.digest)]
    return lines


def _observed(spec: TensorSpec) -> Iterator[tuple[str, str]]:
    """What becomes of an input on its way to the model, in words."""
    if spec.missing:
        policy = Missing.Name(spec.missing).removeprefix("MISSING_").lower()
        yield "missing", f"{spec.name}: where it is NaN {_FILLED[policy]}"
    if spec.HasField("elapsed"):
        told = f"the model is told the time since the step before, in units of {spec.elapsed.seconds:g} s"
        yield "time", f"{spec.name}: that of each step in ns; {told}, {spec.elapsed.first:g} at first"


def _head(head: Head) -> str:
    """A distribution, in words."""
    kind = HeadKind.Name(head.kind).removeprefix("HEAD_KIND_").lower().replace("_", " ")
    given = ", ".join(f"{name} = {output}" for name, output in sorted(head.parameters.items()))
    levels = f" at {', '.join(f'{q:g}' for q in head.quantiles)}" if head.quantiles else ""
    return f"{head.name}: {kind} of {given}{levels}"


def _memory(model: Model) -> Iterator[tuple[str, str]]:
    if model.encoder is not None:
        yield "encoder runs", _batching(model.encoder_invariance, model.encoder_note)
    if model.rows is not None:
        most = f"up to {model.rows.max_slice} steps in one run" if model.rows.max_slice > 1 else "one step in one run"
        yield "row", f"{model.rows.row_nbytes} bytes, {most}"
    yield "batching", _batching(model.batch_invariance, model.invariance_note)


def _batching(found: BatchInvariance, note: str) -> str:
    finding = BatchInvariance.Name(found).removeprefix("BATCH_INVARIANCE_").lower()
    return f"{finding}: {note}" if found else note


def _quantised(done: Quantization) -> str:
    layers = ", ".join(f"{name} ×{count}" for name, count in sorted(done.layers.items()))
    return f"{done.dtype}: {layers}; outputs {done.loss:.2%} of their spread from the float graph's"


def _tensors(signature: Signature) -> Iterator[tuple[str, str]]:
    for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
        yield from ((kind, _tensor(spec)) for spec in specs)


def _tensor(spec: TensorSpec) -> str:
    text = f"{spec.name} {spec.dtype}{_shape(spec)}"
    for kind, names in (("columns", spec.columns), ("classes", spec.classes), ("symbols", spec.text.vocabulary)):
        if names:
            more = f", … ({len(names)})" if len(names) > 8 else ""
            text += f", {kind} " + ", ".join(repr(name) for name in names[:8]) + more
    return text + _ranges(spec)


def _ranges(spec: TensorSpec | StateSpec) -> str:
    """What is known of its values."""
    shown = [f"{known.lowest:g} to {known.highest:g}{' whole' if known.whole else ''}" for known in spec.ranges[:8]]
    if not shown:
        return ""
    counted = ", counts steps" if spec.ranges[0].counts_steps else ""
    more = f", … ({len(spec.ranges)})" if len(spec.ranges) > 8 else ""
    return f", values {', '.join(shown)}{more}{counted}"


def _window(window: Window) -> str:
    before = {
        WindowStart.WINDOW_START_PAD: "before the first step stands that step",
        WindowStart.WINDOW_START_HOLD: f"outputs are NaN, or 0, before {window.steps} steps came"
        + (f", as {window.full} tells" if window.full else ""),
    }
    told = before.get(window.before, f"before the first step stands what {window.state} starts at")
    return f"{window.input}: the last {window.steps} steps, of which callers send the newest; {told}"


def _state(spec: StateSpec) -> str:
    start = f"from encoder output {spec.from_encoder}" if spec.from_encoder else "starts at "
    if not spec.from_encoder:
        start += f"{spec.start[0]:g}" if len(spec.start) == 1 else "values of its own" if spec.start else "0"
    if spec.constant:
        start = start.replace("starts at", "set when a session is opened, else")
    check = StateCheck.Name(spec.check or StateCheck.STATE_CHECK_FINITE).removeprefix("STATE_CHECK_").lower()
    row = list(signatures.row_shape(spec))
    shown = f"{spec.input} → {spec.output} {spec.dtype}{_shape(spec)}"
    return f"{shown}, a row is {row}, {start}, check {check}{_ranges(spec)}"


def _shape(spec: TensorSpec | StateSpec) -> str:
    names = {spec.batch_axis: "batch"} if spec.HasField("batch_axis") else {}
    if isinstance(spec, TensorSpec) and spec.HasField("time_axis"):
        names[spec.time_axis] = "time"
    sizes = ["free" if size < 0 else str(size) for size in spec.shape]
    return "[" + ", ".join(names.get(axis, size) for axis, size in enumerate(sizes)) + "]"
