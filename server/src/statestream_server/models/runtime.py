"""ONNX Runtime: loading graphs, running them, and what they run on. The only module that imports onnxruntime."""

from __future__ import annotations

import functools
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from statestream_server.arrays import Array

try:
    import onnxruntime as ort
except ImportError as missing:
    raise ImportError(
        "statestream-server needs ONNX Runtime: install statestream-server[cpu], or statestream-server[gpu] for CUDA"
        " (one of them, never both: they overwrite each other)"
    ) from missing

_log = logging.getLogger(__name__)
CPU: Final = "CPUExecutionProvider"
"""ONNX Runtime's name for the CPU."""
_CUDA = "CUDAExecutionProvider"
_FEATURES = ("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_tile")
_DTYPES = {
    "tensor(bool)": "bool",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
}


class DeviceError(RuntimeError):
    """The device asked for is not there; the message says what is missing and what to do."""


class GraphError(RuntimeError):
    """ONNX Runtime refused a graph or a run of it; the message is its own, in one line."""


class Port(NamedTuple):
    """One input or output of a graph; `dtype` is "" for what is no tensor, `shape` has -1 where free."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Device:
    """What graphs run on.

    Attributes:
        name: "cpu" or "cuda".
        providers: ONNX Runtime's providers with their options, the preferred one first.
        required: Whether falling back to the CPU is an error.
    """

    name: str
    providers: tuple[tuple[str, Mapping[str, str]], ...]
    required: bool


def providers_for(device: str) -> Device:
    """What "auto", "cpu", "cuda" or "cuda:<number>" stands for on this machine.

    "auto" is CUDA where the installed ONNX Runtime has it, and falls back to the CPU where it does not start.

    Raises:
        DeviceError: CUDA was asked for by name and the installed ONNX Runtime does not have it, or no such name.
    """
    name, _, number = device.partition(":")
    if name not in ("auto", "cpu", "cuda") or (number and not (name == "cuda" and number.isdecimal())):
        raise DeviceError(f"device {device!r} does not exist; expected auto, cpu, cuda or cuda:<number>")
    cpu: tuple[str, Mapping[str, str]] = (CPU, {})
    if name != "cpu" and _CUDA in ort.get_available_providers():
        # Finds the CUDA and cuDNN libraries that came as Python packages.
        ort.preload_dlls()
        return Device("cuda", ((_CUDA, {"device_id": number or "0"}), cpu), required=name == "cuda")
    if name == "cuda":
        raise DeviceError(
            f"device {device!r} was asked for, but this ONNX Runtime has no CUDA: in a fresh environment install"
            " statestream-server[gpu], or serve with --device cpu"
        )
    return Device("cpu", (cpu,), required=False)


def fingerprint(providers: Sequence[str] = (CPU,)) -> str:
    """What the bits of results depend on: ONNX Runtime's version, the preferred provider, the processor's features."""
    return f"onnxruntime {ort.__version__}; {providers[0]}; {_processor()}"


class Graph:
    """One loaded ONNX graph. `run` may be called from several threads."""

    def __init__(
        self,
        model: Path | bytes,
        device: Device,
        *,
        inputs: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> None:
        """Loads a graph from a file or from its bytes.

        Args:
            model: The file, or a serialised ModelProto.
            device: What it is to run on.
            inputs: The order of inputs in `predict`; None for the graph's own.
            outputs: The order of outputs in `predict`; None for the graph's own.

        Raises:
            GraphError: ONNX Runtime does not take the graph.
            DeviceError: The device is required and does not start.
        """
        source = str(model) if isinstance(model, Path) else model
        try:
            self.session = ort.InferenceSession(source, _options(), providers=list(device.providers))
        except Exception as error:  # ONNX Runtime raises a class per status, all direct subclasses of Exception.
            raise GraphError(_one_line(error)) from error
        self.providers: tuple[str, ...] = tuple(self.session.get_providers())
        if self.providers[0] != device.providers[0][0]:
            message = f"{device.providers[0][0]} did not start (are its libraries installed?); {self.providers[0]} did"
            if device.required:
                raise DeviceError(message)
            _log.warning("%s and serves instead", message)
        self.inputs = tuple(_port(node) for node in self.session.get_inputs())
        self.outputs = tuple(_port(node) for node in self.session.get_outputs())
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        self._order = list(inputs) if inputs is not None else [port.name for port in self.inputs]
        self._fetches = list(outputs) if outputs is not None else [port.name for port in self.outputs]

    def run(self, feeds: Mapping[str, Array], fetches: Sequence[str]) -> list[Array]:
        """Runs the graph once: arrays by input name in, the named outputs out. Lets other threads run.

        Raises:
            GraphError: ONNX Runtime refused the arrays or failed.
        """
        try:
            results: list[Array] = self.session.run(fetches, feeds)
        except Exception as error:  # As above.
            raise GraphError(_one_line(error)) from error
        return results

    def predict(self, inputs: Sequence[Array]) -> list[Array]:
        """Runs the graph once: arrays in the signature's order and the graph's axes in, the same out.

        Raises:
            GraphError: ONNX Runtime refused the arrays or failed.
        """
        return self.run(dict(zip(self._order, inputs, strict=True)), self._fetches)


class Binding:
    """A graph with its arrays bound in place, for one caller at a time.

    What is bound is neither copied nor kept alive: the caller holds the arrays until `run` returns.
    """

    def __init__(self, graph: Graph) -> None:
        """Nothing bound yet. Only for graphs that run on the CPU."""
        self._session = graph.session._sess
        self._device = ort.OrtDevice.make("cpu", 0)._get_c_device()
        self._io = ort.IOBinding(graph.session)._iobinding

    def give(self, name: str, array: Array) -> None:
        """Binds an input to a C-contiguous array."""
        self._io.bind_input(name, array)

    def fix(self, name: str, output: str, array: Array) -> None:
        """Binds an input and an output to one C-contiguous array, which the run changes in place."""
        place = (self._device, array.dtype.type, array.shape, array.ctypes.data)
        self._io.bind_input(name, *place)
        self._io.bind_output(output, *place)

    def take(self, name: str, array: Array) -> None:
        """Binds an output to a C-contiguous array of its shape."""
        self._io.bind_output(name, self._device, array.dtype.type, array.shape, array.ctypes.data)

    def leave(self, name: str) -> None:
        """Binds an output to memory that the run allocates; `taken` has it afterwards."""
        self._io.bind_output(name, self._device)

    def run(self) -> None:
        """Runs the graph once. Lets other threads run.

        Raises:
            GraphError: ONNX Runtime refused the arrays or failed.
        """
        try:
            self._session.run_with_iobinding(self._io, None)
        except Exception as error:  # As above.
            raise GraphError(_one_line(error)) from error

    def taken(self, place: int) -> Array:
        """A copy of the output that was bound as number `place`, counted in the order of first binding."""
        value: Array = self._io.get_outputs()[place].numpy()
        return value


def _options() -> Any:
    options = ort.SessionOptions()
    # Models with memory are small: one thread each beats several, and threads that spin steal from the others.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Patterns are kept for every combination of shapes ever seen, and batches have many.
    options.enable_mem_pattern = False
    # Errors are raised and told once, by us.
    options.log_severity_level = 4
    return options


def _port(node: Any) -> Port:
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return Port(node.name, _DTYPES.get(node.type, ""), shape)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".strip()
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return " ".join([platform.machine(), *(feature for feature in _FEATURES if feature in flags)])
