"""One ONNX file as it lies on the disk: its graph, its signature, its digest. Nothing is run here."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from statestream.contract import signature as signatures
from statestream.contract.signature import Signature, StateSpec, TensorSpec
from statestream_server.models.files import digest, files
from statestream_server.models.files.repository import settling
from statestream_server.models.graphs.refused import FusionError
from statestream_server.models.model import ModelLoadError
from statestream_server.models.rows import Column, columns_of, is_checked, observed_columns

if TYPE_CHECKING:
    import onnx

    # What makes forms of files is imported where there is a form to be made: most starts only read what has one.
    from statestream_server.models.form.chain import Joined
    from statestream_server.models.form.plan import Note, Plan
    from statestream_server.models.form.tensors import Tensors

_TOML = ".toml"
_MOST_AXES = 32
_MOST_ROW_BYTES = 1 << 30
"""Of one tensor of one session and step."""
_MOST_BYTES = (1 << 31) - (1 << 20)
"""Protocol Buffers' limit of 2 GiB, less the wrapping."""
_QUICK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file that was read.

    Attributes:
        path: The file.
        proto: Its contents; weights that lie in files of their own are not in it.
        signature: What the file says of itself; else of its form, or as long as it has none what its inputs and outputs
            say.
        described: Whether the file has a signature of its own.
        stamps: The file, or all of a chain, and those with weights, as they were when it was read.
        told: The text of the model.toml beside a file without a signature, and the stamp of that; None where there is
            none.
        plan: How the file became what `proto` is; None where it is as it lies on the disk.
        chain: What `proto` was joined from, where that are several files: `path` is the model.toml that names them.
        made: What was done to outputs that are no tensors when it was read.
    """

    path: Path
    proto: onnx.ModelProto
    signature: Signature
    described: bool
    stamps: tuple[files.Stamp, ...] = ()
    told: tuple[str, files.Stamp] | None = None
    plan: Plan | None = None
    chain: Joined | None = None
    made: Sequence[Note] = ()

    @property
    def changed(self) -> bool:
        """Whether its graph is another than the one on the disk."""
        return self.chain is not None or bool(self.made) or (self.plan is not None and bool(self.plan.changes))

    @property
    def weights(self) -> tuple[files.Stamp, ...]:
        """The files that hold weights and no graph."""
        return self.stamps[len(self.chain.files) if self.chain is not None else 1 :]

    @property
    def external(self) -> bool:
        """Whether weights lie in files of their own."""
        return bool(self.weights)

    @property
    def nbytes(self) -> int:
        """Bytes of the file and of those with its weights."""
        return sum(stamp.size for stamp in self.stamps)

    def check_unchanged(self) -> None:
        """Checks that the files on the disk are still those that were read.

        Raises:
            ModelLoadError: One was written or replaced meanwhile.
        """
        for stamp in self.stamps:
            stamp.check()
        if self.told is not None:
            self.told[1].check()

    def formed(self, plan: Plan) -> ModelFile:
        """The file in its normal form.

        Raises:
            ModelLoadError: The plan was made for another file, or asks for absurd sizes.
        """
        try:
            _check_sizes(plan.signature)
            self._name_classes(plan.signature)
            return dataclasses.replace(
                self, proto=plan.applied(self.proto), signature=plan.signature, plan=plan, described=False
            )
        except (KeyError, ValueError) as error:
            raise ModelLoadError(f"{self.path}: {' '.join(str(error).split())}") from error

    def _name_classes(self, signature: Signature) -> None:
        """Puts the classes that the file tells of into the signature of its form."""
        told = {spec.name: spec.classes for spec in self.signature.outputs}
        for spec in signature.outputs:
            if not spec.classes:
                spec.classes.extend(told.get(spec.name, ()))

    def whole(self) -> onnx.ModelProto:
        """The graph with all its weights in it.

        Raises:
            FusionError: They are too large for one message.
        """
        if not self.external:
            return self.proto
        if self.nbytes > _MOST_BYTES:
            raise FusionError(f"its weights are {self.nbytes} bytes; one message holds {_MOST_BYTES}")
        whole = type(self.proto)()
        whole.CopyFrom(self.proto)
        files.take_in(self.path, whole)
        return whole

    def digest(self) -> str:
        """SHA-256 in hex over graph, weights and signature; labels, comments and the producer do not count."""
        told = self.told[0] if self.told is not None and self.plan is None else ""
        return digest.of(self.proto, [stamp.path for stamp in self.weights], told, self.signature)


def check_size(path: Path) -> files.Stamp:
    """Looks at an ONNX file without reading it.

    Raises:
        ModelLoadError: It is no regular file, or larger than an ONNX file can be.
    """
    stamp = files.stamp(path)
    if stamp.size > _MOST_BYTES:
        raise ModelLoadError(
            f"{path}: {stamp.size} bytes; an ONNX file holds {_MOST_BYTES}: export it with its weights in files of"
            " their own"
        )
    return stamp


def read(path: Path, said: str | None = None) -> ModelFile:
    """Reads an ONNX file, or the files of a chain that a model.toml names.

    A file without a signature is what its inputs and outputs say until it is `formed`.

    Args:
        path: The file.
        said: What is told of it in place of its model.toml; None for that.

    Raises:
        ModelLoadError: It cannot be read, is not ONNX, or its signature is wrong.
    """
    if path.suffix == _TOML:
        return _read_chain(path, said)
    proto, stamps = _parsed(path)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    with _signed(path):
        if signatures.METADATA_KEY in metadata:
            signature = signatures.loads(metadata[signatures.METADATA_KEY])
            _check_sizes(signature)
            return ModelFile(path, proto, signature, True, stamps)
        made, signature = _derived(path, proto)
        told = (said, stamps[0]) if said is not None else files.told(settling(path))
    return ModelFile(path, made.model, signature, False, stamps, told, made=made.notes)


def parts(path: Path) -> tuple[Path, ...]:
    """The graphs that a path stands for: itself, or of a chain those that its model.toml names, if that can be read.

    None of them is looked at.
    """
    if path.suffix != _TOML:
        return (path,)
    from statestream_server.models.form.entries import loads
    from statestream_server.models.form.told import ToldError

    try:
        text = files.told(path.with_suffix(_TOML))
        return tuple(path.with_name(name) for name in loads(text[0]).chain) if text is not None else ()
    except (ModelLoadError, ToldError):
        return ()  # Reading it says why.


def _read_chain(path: Path, said: str | None) -> ModelFile:
    from statestream_server.models.form.chain import joined
    from statestream_server.models.form.edits import opset_of
    from statestream_server.models.form.entries import loads
    from statestream_server.models.form.pairs import UnsettledError
    from statestream_server.models.form.told import ToldError

    found = files.told(path.with_suffix(_TOML))
    if found is None:
        raise ModelLoadError(f"{path}: there is no such file; it names the files of a chain")
    told = (said if said is not None else found[0], found[1])
    try:
        entries = loads(told[0])
        if not entries.chain:
            single = path.with_suffix(".onnx")
            if single.exists():
                raise ToldError(f"it tells of {single.name} beside it; serve that")
            raise ToldError(
                f"there is no {single.name} beside it, and it names no files; put the model there, or write"
                ' chain = ["model_1.onnx", "model_2.onnx"]'
            )
        read = {name: _part(path.with_name(name)) for name in entries.chain}
        if len({opset_of(proto) for proto, _ in read.values()}) > 1:
            for name, (proto, _) in read.items():
                files.take_in(path.with_name(name), proto)  # What changes versions loses where weights lie.
        chain = joined({name: proto for name, (proto, _) in read.items()}, entries)
    except ToldError as error:
        raise ModelLoadError(f"{path}: {error}") from error
    except UnsettledError as error:
        raise ModelLoadError(f"{path}: {error}; say in it: {' or '.join(error.lines)}") from error
    graphs = [stamps[0] for _, stamps in read.values()]
    weights = dict.fromkeys(stamp for _, stamps in read.values() for stamp in stamps[1:])
    with _signed(path):
        made, signature = _derived(path, chain.model)
    return ModelFile(path, made.model, signature, False, (*graphs, *weights), told, chain=chain, made=made.notes)


def _part(path: Path) -> tuple[onnx.ModelProto, tuple[files.Stamp, ...]]:
    """A file of a chain, which lies in its folder."""
    try:
        real = path.resolve()
    except (OSError, RuntimeError) as error:
        raise ModelLoadError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if not real.is_relative_to(path.parent.resolve()):
        raise ModelLoadError(f"{path}: a link leads out of the chain's folder, to {real}, and is not followed; copy it")
    return _parsed(path)


def _parsed(path: Path) -> tuple[onnx.ModelProto, tuple[files.Stamp, ...]]:
    """What a file holds, and the stamps of it and of those with its weights."""
    import onnx

    stamp = check_size(path)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(b"".join(files.blocks(path)))
    except (ModelLoadError, MemoryError):
        raise
    except Exception as error:  # Whatever a parser makes of bytes that are no ONNX.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelLoadError(f"{path}: not a readable ONNX file ({reason}); export it again") from error
    if not proto.graph.node and not proto.graph.output:
        raise ModelLoadError(f"{path}: not an ONNX file, or one without a graph; export it again")
    return proto, (stamp, *files.outside_weights(path, proto))


@contextlib.contextmanager
def _signed(path: Path) -> Iterator[None]:
    """Whatever is wrong with a signature is one line."""
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as error:  # A signature is JSON that anybody may have written: deep, or with absurd numbers.
        raise ModelLoadError(f"{path}: {_one_line(error)}; export it again with statestream_export.export") from error


def columns(path: Path) -> Sequence[Column] | None:
    """The columns of the rows that a version would have, without loading it; None where its file does not say.

    Nothing is run, and a file that is large or wrong says nothing.
    """
    try:
        if files.stamp(path).size > _QUICK_BYTES:
            return None
        signature = read(path).signature
        return (*columns_of(signature), *observed_columns(signature))
    except Exception:  # It is only for the words of another error.
        return None


def _check_sizes(signature: Signature) -> None:
    """Refuses what no array can be: too many axes, too many bytes, whole numbers that start at fractions or NaN."""
    columns_of(signature)
    specs: list[TensorSpec | StateSpec] = [*signature.inputs, *signature.outputs, *signature.states]
    for spec in specs:
        name = spec.name if isinstance(spec, TensorSpec) else spec.input
        if len(spec.shape) > _MOST_AXES:
            raise signatures.SignatureError(f"{name!r} has {len(spec.shape)} axes; expected {_MOST_AXES} at most")
        dtype = signatures.numpy_dtype(spec.dtype)
        row = signatures.step_shape(spec) if isinstance(spec, TensorSpec) else signatures.row_shape(spec)
        nbytes = math.prod(max(size, 1) for size in row) * dtype.itemsize
        if nbytes > _MOST_ROW_BYTES:
            raise signatures.SignatureError(
                f"{name!r} has {nbytes} bytes for one session and step; expected {_MOST_ROW_BYTES} at most"
            )
        if isinstance(spec, StateSpec):
            _check_start(spec, dtype)


def _check_start(spec: StateSpec, dtype: np.dtype[np.generic]) -> None:
    start = np.asarray(spec.start, np.float64)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            held = np.isfinite(start.astype(dtype)).all()
        if is_checked(spec) and not held:
            raise signatures.SignatureError(
                f"state {spec.input!r} starts at what its own check refuses; expected finite numbers of {dtype}"
            )
        return
    lowest, highest = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype.name).min, np.iinfo(dtype.name).max)
    if not (np.isfinite(start).all() and (start >= lowest).all() and (start <= highest).all()):
        raise signatures.SignatureError(
            f"state {spec.input!r} starts at {start[:3].tolist()}; {dtype} does not hold it"
        )


def _one_line(error: Exception) -> str:
    said = " ".join(str(error).split())
    return said if isinstance(error, signatures.SignatureError) else f"its signature is wrong ({said})"


def _derived(path: Path, proto: onnx.ModelProto) -> tuple[Tensors, Signature]:
    """A file without a signature, its outputs tensors, and the signature that its inputs and outputs say."""
    from statestream_server.models.form.tensors import tensors

    made = tensors(proto)
    graph = made.model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [_spec(path, value, _SENT) for value in graph.input if value.name not in weights]
    outputs = [_spec(path, value, _GIVEN) for value in graph.output]
    for spec in outputs:
        spec.classes.extend(made.classes.get(spec.name, ()))
    signature = Signature(format=signatures.FORMAT, inputs=inputs, outputs=outputs)
    signatures.check(signature)
    _check_sizes(signature)
    return made, signature


_SENT = (
    "callers send numbers: train with codes (an OrdinalEncoder outside of the pipeline) in place of text, and with one"
    " tensor of features in place of maps and sequences"
)
_GIVEN = (
    "only numbers are served, and the graph does not say which it is made of: export it so that it gives tensors (a"
    " classifier of scikit-learn, with skl2onnx's options={'zipmap': False} and labels that are whole numbers)"
)


def _spec(path: Path, value: onnx.ValueInfoProto, advice: str) -> TensorSpec:
    import onnx

    from statestream_server.models.form import narrow
    from statestream_server.models.form.tensors import is_tensor, kind

    tensor = value.type.tensor_type
    if not is_tensor(value):
        what = "input" if advice is _SENT else "output"
        raise ModelLoadError(f"{path}: {what} {value.name!r} is {kind(value)}; {advice}")
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    except KeyError:
        dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    dtype = narrow.WIDE if dtype == narrow.NAME else dtype  # So it is in its form.
    shape = [size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim]
    spec = TensorSpec(name=value.name, dtype=dtype, shape=shape)
    if shape and shape[0] < 0:
        spec.batch_axis = 0
    return spec
