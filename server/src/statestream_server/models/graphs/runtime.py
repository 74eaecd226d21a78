"""ONNX Runtime: loading graphs, running them, and what they run on. The only module that imports onnxruntime."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import io
import math
import platform
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from statestream_server.arrays import Array
from statestream_server.models.graphs import cuda
from statestream_server.models.graphs.refused import explained

try:
    import onnxruntime as ort
except ImportError as missing:
    raise ImportError(
        "statestream-server needs ONNX Runtime: pip install 'statestream-server[cpu]', or 'statestream-server[gpu]' for"
        " CUDA (one of them, never both: they overwrite each other)"
    ) from missing

CPU: Final = "CPUExecutionProvider"
"""ONNX Runtime's name for the CPU."""
_CUDA = "CUDAExecutionProvider"
_CUDA_OPTIONS: Final = {
    # TensorFloat-32 cuts float32 factors to 10 bits of mantissa; answers are to agree with the CPU's but for rounding.
    "use_tf32": "0",
    # The default tries algorithms against the clock, and the winner decides the bits.
    "cudnn_conv_algo_search": "HEURISTIC",
    "arena_extend_strategy": "kSameAsRequested",
}
_WARNING, _FATAL = 2, 4
"""Levels of ONNX Runtime's own log."""
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
        kind: "cpu" or "cuda".
        number: Which of its kind; 0 for the CPU.
        providers: ONNX Runtime's providers with their options, the preferred one first.
        hardware: What results depend on: the processor's features, or the GPU and NVIDIA's libraries.
        threads: Processors that one run may use; the calling thread is one of them.
        note: Why it is not CUDA where that was tried and did not start, or "".
    """

    kind: str
    number: int
    providers: tuple[tuple[str, Mapping[str, str]], ...]
    hardware: str
    threads: int = 1
    note: str = ""

    @property
    def name(self) -> str:
        """As on the command line: "cpu", "cuda:0"."""
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.number}"

    @property
    def apart(self) -> bool:
        """Whether it has memory of its own, to which arrays of this process travel."""
        return self.kind != "cpu"


def providers_for(device: str, threads: int = 1) -> Device:
    """What "auto", "cpu", "cuda" or "cuda:<number>" stands for on this machine.

    CUDA counts as there once a graph ran on it; that is tried once in a process. "auto" is CUDA where that succeeds,
    and else the CPU, with a `note` that says why where there is a GPU, or a build of ONNX Runtime for one.

    Raises:
        DeviceError: CUDA was asked for by name and is not there, or no such name.
    """
    name, _, number = device.partition(":")
    if name not in ("auto", "cpu", "cuda") or (number and not (name == "cuda" and number.isdecimal())):
        raise DeviceError(f"device {device!r} does not exist; expected auto, cpu, cuda or cuda:<number>")
    cpu: tuple[str, Mapping[str, str]] = (CPU, {})
    if name == "cpu":
        return Device("cpu", 0, (cpu,), _processor(), threads)
    found = _cuda(int(number or 0))
    if isinstance(found, Device):
        return dataclasses.replace(found, threads=threads)
    if name == "cuda":
        raise DeviceError(f"device {device!r} was asked for, but {found}; or serve with --device cpu")
    # Who has neither a GPU nor a build for one is not told what they lack.
    wanted = _CUDA in ort.get_available_providers() or cuda.has_driver()
    return Device("cpu", 0, (cpu,), _processor(), threads, found if wanted else "")


def fingerprint(device: Device) -> str:
    """What the bits of results depend on: ONNX Runtime's version, the preferred provider, the hardware, the threads.

    LSTM and GRU gave the same bits with 1 to 4 threads; an RNN of 256 hidden units other ones with 4.
    """
    return f"onnxruntime {ort.__version__}; {device.providers[0][0]}; {device.hardware}; threads {device.threads}"


@functools.cache
def _cuda(number: int) -> Device | str:
    """CUDA on one GPU if it really runs, else why not and what to do."""
    if _CUDA not in ort.get_available_providers():
        return "this ONNX Runtime has no CUDA: in a fresh environment install statestream-server[gpu]"
    try:
        gpus = cuda.gpus()
    except cuda.DriverError as error:
        return f"{error}: install NVIDIA's driver, and give a container its GPUs"
    if number >= len(gpus):
        return f"there is no GPU {number}: this process sees {len(gpus)}, numbered from 0"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # It prints what it does not find.
        # Finds the CUDA and cuDNN libraries that came as Python packages.
        ort.preload_dlls()
    providers: tuple[tuple[str, Mapping[str, str]], ...] = (
        (_CUDA, {"device_id": str(number), **_CUDA_OPTIONS}),
        (CPU, {}),
    )
    device = Device("cuda", number, providers, "")
    try:
        problem = _trial(device)
    except Exception as error:  # ONNX Runtime raises a class per status, all direct subclasses of Exception.
        problem = _one_line(error)
    if problem:
        libraries = " ".join(re.findall(r"Failed to load (\S+):", said.getvalue()))
        missing = f" (libraries not found: {libraries})" if libraries else ""
        return (
            f"{_CUDA} does not start on {gpus[number]}{missing}: {problem}; install statestream-server[gpu], which"
            f" brings NVIDIA's libraries for CUDA {ort.cuda_version}, and a driver that is new enough for it"
        )
    return dataclasses.replace(device, hardware="; ".join(filter(None, (str(gpus[number]), cuda.libraries()))))


def _trial(device: Device) -> str:
    """Runs one small graph on a device; "" where that went well."""
    from onnx import TensorProto, helper

    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "trial", [shape], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ort.set_default_logger_severity(_FATAL)  # It also tells why in the log, at length; we tell it in one line.
    try:
        session = _session(model.SerializeToString(), device)
        ran = session.get_providers()[0]
        if ran != device.providers[0][0]:
            return f"{ran} did instead"
        (y,) = session.run(None, {"x": np.full((2, 2), 3, np.float32)})
    finally:
        ort.set_default_logger_severity(_WARNING)
    return "" if (y == 18).all() else f"3·3 + 3·3 came out as {y[0, 0]}"


class Graph:
    """One loaded ONNX graph. `run` may be called from several threads."""

    def __init__(
        self,
        model: Path | bytes,
        device: Device,
        *,
        inputs: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Loads a graph from a file or from its bytes.

        Args:
            model: The file, or a serialised ModelProto.
            device: What it is to run on.
            inputs: The order of inputs in `predict`; None for the graph's own.
            outputs: The order of outputs in `predict`; None for the graph's own.
            folder: Where the weights are that a graph from bytes has in files of their own.

        Raises:
            GraphError: ONNX Runtime does not take the graph.
            DeviceError: The device does not start, although it did before.
        """
        try:
            self.session = _session(str(model) if isinstance(model, Path) else model, device, folder)
        except Exception as error:  # ONNX Runtime raises a class per status, all direct subclasses of Exception.
            raise GraphError(_one_line(error)) from error
        self.device = device
        self.providers: tuple[str, ...] = tuple(self.session.get_providers())
        if self.providers[0] != device.providers[0][0]:
            raise DeviceError(
                f"{device.providers[0][0]} did not start and {self.providers[0]} did; it ran before: is its memory"
                " full (nvidia-smi)? Serve fewer models on it, or serve with --device cpu"
            )
        self.inputs = tuple(_port(node) for node in self.session.get_inputs())
        self.outputs = tuple(_port(node) for node in self.session.get_outputs())
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        self._order = list(inputs) if inputs is not None else [port.name for port in self.inputs]
        self._fetches = list(outputs) if outputs is not None else [port.name for port in self.outputs]

    def elsewhere(self, nodes: Collection[str]) -> list[str]:
        """Which nodes, by name, run on another provider than the preferred one."""
        return [
            node.name
            for part in self.session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
            if part.ep_name != self.providers[0] and node.name in nodes
        ]

    def run(self, feeds: Mapping[str, Array], fetches: Sequence[str]) -> list[Array]:
        """Runs the graph once: arrays by input name in, the named outputs out. Lets other threads run.

        Raises:
            GraphError: ONNX Runtime refused the arrays or failed.
        """
        try:
            results: list[Array] = self.session.run(fetches, feeds)
        except Exception as error:  # As above.
            raise GraphError(explained(_one_line(error))) from error
        return results

    def predict(self, inputs: Sequence[Array]) -> list[Array]:
        """Runs the graph once: arrays in the signature's order and the graph's axes in, the same out.

        Raises:
            GraphError: ONNX Runtime refused the arrays or failed.
        """
        return self.run(dict(zip(self._order, inputs, strict=True)), self._fetches)


class Memory:
    """An array in the memory of a device. What it holds at first is unspecified."""

    def __init__(self, device: Device, shape: Sequence[int], dtype: np.dtype[np.generic]) -> None:
        """Memory for `shape` values of `dtype`.

        Raises:
            MemoryError: The device does not have that much left.
        """
        try:
            self.value = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype.type, device.kind, device.number)
        except Exception as error:  # As above.
            nbytes = math.prod(shape) * dtype.itemsize
            raise MemoryError(f"{device.name} does not give {nbytes} bytes for rows: {_one_line(error)}") from error


class Binding:
    """A graph with its arrays bound in place, for one caller at a time.

    Arrays of this process are neither copied nor kept alive where the graph runs on the CPU: the caller holds them
    until `run` returns. A graph that runs on a device takes its copy of an input when it is given, and writes outputs
    back at the end of the run. Memory of the device is never copied; it is kept until another takes its place.
    """

    def __init__(self, graph: Graph) -> None:
        """Nothing bound yet."""
        self._session = graph.session._sess
        self._device = ort.OrtDevice.make("cpu", 0)._get_c_device()
        self._io = ort.IOBinding(graph.session)._iobinding

    def give(self, name: str, array: Array) -> None:
        """Binds an input to a C-contiguous array."""
        self._io.bind_input(name, array)

    def fix(self, name: str, output: str, array: Array) -> None:
        """Binds an input and an output to one C-contiguous array, which the run changes in place. On the CPU only."""
        place = (self._device, array.dtype.type, array.shape, _address(array))
        self._io.bind_input(name, *place)
        self._io.bind_output(output, *place)

    def take(self, name: str, array: Array) -> None:
        """Binds an output to a C-contiguous array of its shape."""
        self._io.bind_output(name, self._device, array.dtype.type, array.shape, _address(array))

    def hold(self, name: str, memory: Memory) -> None:
        """Binds an input to memory of the graph's device."""
        self._io.bind_ortvalue_input(name, memory.value._ortvalue)

    def fill(self, name: str, memory: Memory) -> None:
        """Binds an output to memory of the graph's device; where an input holds the same, it is changed in place."""
        self._io.bind_ortvalue_output(name, memory.value._ortvalue)

    def clear(self) -> None:
        """Lets go of all that is bound."""
        self._io.clear_binding_inputs()
        self._io.clear_binding_outputs()

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
            raise GraphError(explained(_one_line(error))) from error

    def taken(self, place: int) -> Array:
        """A copy of the output that was bound as number `place`, counted in the order of first binding."""
        value: Array = self._io.get_outputs()[place].numpy()
        return value


def _address(array: Array) -> int:
    # A fifth of what `array.ctypes.data` costs; a batch needs several.
    return ctypes.addressof(ctypes.c_char.from_buffer(array.data)) if array.nbytes else array.ctypes.data


def _session(source: str | bytes, device: Device, folder: Path | None = None) -> Any:
    options = _options(device)
    if folder is not None and isinstance(source, bytes):
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
    # Without its own fallback, which prints, and would serve on the CPU what was asked for on a device.
    return ort.InferenceSession(source, options, providers=list(device.providers), enable_fallback=0)


def _options(device: Device) -> Any:
    options = ort.SessionOptions()
    # Threads that spin between runs steal from those who have work.
    options.intra_op_num_threads = device.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Patterns are kept for every combination of shapes ever seen, and batches have many.
    options.enable_mem_pattern = False
    # Errors are raised and told once, by us.
    options.log_severity_level = _FATAL
    if device.apart:
        # Sums in an order of chance are as good as any, and never twice the same.
        options.use_deterministic_compute = True
    # For `elsewhere`.
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
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
