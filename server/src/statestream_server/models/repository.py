"""The models folder: which versions there are, and how one becomes a loaded model."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from statestream import signature as signatures
from statestream.signature import Signature
from statestream.v1.model_pb2 import BatchInvariance
from statestream_server.models import modelfile, proof, sharing, warming
from statestream_server.models.device_rows import DeviceRows
from statestream_server.models.draws import Draws
from statestream_server.models.fused_rows import FusedRows
from statestream_server.models.fusion import FusionError
from statestream_server.models.model import BatchPolicy, Kind, Model, ModelLoadError
from statestream_server.models.modelfile import ModelFile
from statestream_server.models.numpy_rows import NumpyRows
from statestream_server.models.policies import BucketedRows, PaddedRows, SerialisedRows
from statestream_server.models.rows import Column, Rows, columns_of, is_batched
from statestream_server.models.runtime import Device, DeviceError, Graph, GraphError, providers_for

__all__ = ["BatchPolicy", "Found", "Kind", "Model", "ModelLoadError", "columns", "load", "load_file", "scan"]

_log = logging.getLogger(__name__)
SINGLE, ENCODER, DECODER = "model.onnx", "encoder.onnx", "decoder.onnx"


class Found(NamedTuple):
    """One version in the models folder."""

    name: str
    version: int
    folder: Path


def scan(models_dir: Path) -> list[Found]:
    """Every `<model>/<version>/` with a model.onnx, or an encoder.onnx and a decoder.onnx; by name, then version.

    Anything else in the folder is ignored, hidden folders too.

    Raises:
        OSError: The folder cannot be read.
    """
    found = []
    for folder in models_dir.glob("*/*"):
        name, number = folder.parent.name, folder.name
        if name.startswith(".") or not (number.isascii() and number.isdecimal() and int(number) > 0):
            continue
        if (folder / SINGLE).is_file() or ((folder / ENCODER).is_file() and (folder / DECODER).is_file()):
            found.append(Found(name, int(number), folder))
    return sorted(found)


def load(
    name: str, version: int, folder: Path, *, device: Device | str = "auto", batch_policy: BatchPolicy = BatchPolicy.PAD
) -> Model:
    """Loads one version and checks that it does what its signature says. Takes the time of a few runs.

    Args:
        name: The model's name.
        version: Its version.
        folder: The folder with its files.
        device: What it runs on, or "auto", "cpu", "cuda" or "cuda:<number>".
        batch_policy: What is done where it answers in other bits alone than in a batch.

    Raises:
        ModelLoadError: It cannot be served: the file, the reason, what to do.
    """
    if (folder / SINGLE).is_file():
        return load_file(folder / SINGLE, name=name, version=version, device=device, batch_policy=batch_policy)
    return load_file(folder / DECODER, name=name, version=version, device=device, batch_policy=batch_policy)


def columns(folder: Path) -> Sequence[Column] | None:
    """The columns of the rows that a version would have, without loading it; None where its files do not say."""
    try:
        file = modelfile.read(folder / (SINGLE if (folder / SINGLE).is_file() else DECODER))
        return columns_of(file.signature)
    except (ModelLoadError, signatures.SignatureError):
        return None


def load_file(
    path: Path, *, name: str, version: int, device: Device | str = "auto", batch_policy: BatchPolicy = BatchPolicy.PAD
) -> Model:
    """Loads one file, whatever its folder; an encoder.onnx or decoder.onnx brings the other one.

    Raises:
        ModelLoadError: It cannot be served: the file, the reason, what to do.
    """
    try:
        if path.name not in (ENCODER, DECODER):
            return _load_single(name, version, modelfile.read(path), _device(device), batch_policy)
        encoder, decoder = modelfile.read(path.parent / ENCODER), modelfile.read(path.parent / DECODER)
        return _load_pair(name, version, encoder, decoder, _device(device), batch_policy)
    except DeviceError as error:
        raise ModelLoadError(f"{path}: {error}") from error


def _device(device: Device | str) -> Device:
    return providers_for(device) if isinstance(device, str) else device


def _load_single(name: str, version: int, file: ModelFile, device: Device, policy: BatchPolicy) -> Model:
    if file.signature.HasField("decoding"):
        raise ModelLoadError(f"{file.path}: is a decoder; name it {DECODER} and put its {ENCODER} beside it")
    graph = _graph(file, device)
    where = str(file.path)
    if not file.signature.states:
        way = proof.wiring(graph, file.signature, where, lambda way: way)
        model = Model(name, version, Kind.PREDICT, file.signature, file.digest(), providers=graph.providers)
        model.graph, found = sharing.shared(graph, way, policy, where)
        model.batch_invariance, model.invariance_note = found.finding, found.note
        return model
    model = Model(name, version, Kind.SESSION, file.signature, file.digest())
    return proof.wiring(graph, file.signature, where, lambda way: _with_rows(model, file, graph, device, policy, way))


def _load_pair(
    name: str, version: int, encoder: ModelFile, decoder: ModelFile, device: Device, policy: BatchPolicy
) -> Model:
    if not decoder.signature.HasField("decoding") or not decoder.signature.states:
        raise ModelLoadError(f"{decoder.path}: signature has no states or no decoding; export it as a decoder")
    if encoder.signature.states:
        raise ModelLoadError(f"{encoder.path}: signature has states; an encoder has inputs and outputs only")
    _check_handover(encoder, decoder)
    first, second = _graph(encoder, device), _graph(decoder, device)
    where = str(encoder.path)
    way = proof.wiring(first, encoder.signature, where, lambda way: way)
    shared, found = sharing.shared(first, way, policy, where)
    digest = hashlib.sha256(f"{encoder.digest()} {decoder.digest()}".encode()).hexdigest()
    model = Model(
        name,
        version,
        Kind.GENERATE,
        decoder.signature,
        digest,
        encoder=shared,
        encoder_signature=encoder.signature,
        encoder_invariance=found.finding,
        encoder_note=found.note,
    )
    where = str(decoder.path)
    return proof.wiring(
        second, decoder.signature, where, lambda way: _with_rows(model, decoder, second, device, policy, way)
    )


def _with_rows(model: Model, file: ModelFile, graph: Graph, device: Device, policy: BatchPolicy, way: Draws) -> Model:
    where = str(file.path)
    for spec in (*file.signature.inputs, *file.signature.outputs):
        if min(signatures.step_shape(spec), default=0) < 0:
            raise ModelLoadError(
                f"{where}: {spec.name!r} has steps of shape {list(signatures.step_shape(spec))}; a model with memory"
                " needs steps of one shape, so that sessions can share a batch: export it with fixed lengths"
            )
    rows = _rows(file, graph, device, way)
    if graph.device.apart:
        rows = BucketedRows(rows)
    if not is_batched(file.signature):
        rows = SerialisedRows(rows, single=False)
    found = proof.invariance(rows, PaddedRows(rows), way, where)
    if found.finding == BatchInvariance.BATCH_INVARIANCE_PADDED and policy == BatchPolicy.PAD:
        rows = PaddedRows(rows)
    elif policy == BatchPolicy.SERIALISE and found.difference:
        rows = SerialisedRows(rows, single=True)
    elif found.difference:
        _log.warning("%s: %s", where, found.note)
    if graph.device.apart:
        warming.warm(rows, way, where)
    model.rows, model.providers = rows, graph.providers
    model.batch_invariance, model.invariance_note = found.finding, found.note
    return model


def _rows(file: ModelFile, graph: Graph, device: Device, way: Draws) -> Rows:
    """Rows that the graph itself gathers and commits, where they lie, if it can; else rows that NumPy does."""
    plain = NumpyRows(graph, file.signature, check_inputs=file.hides_nan)
    try:
        fused = _fused(file, device, way)
    except (FusionError, GraphError, MemoryError) as error:
        _log.warning("%s: rows are copied in and out at every step, the graph cannot do it: %s", file.path, error)
        return plain
    if not proof.agree(fused, plain, way) or (device.apart and not proof.refuses_the_same(fused, plain, way)):
        _log.warning("%s: rows are copied in and out at every step: wrapped, the graph gives other results", file.path)
        return plain
    return fused


def _fused(file: ModelFile, device: Device, way: Draws) -> Rows:
    model, signature, checked = file.whole(), file.signature, file.hides_nan
    if not device.apart:
        return FusedRows(model, signature, device, check_inputs=checked)
    rows = DeviceRows(model, signature, device, check_inputs=checked)
    if proof.keeps_others(rows, way):
        return rows
    _log.warning("%s: %s does not commit rows in place; every step copies all of them there", file.path, device.name)
    return DeviceRows(model, signature, device, check_inputs=checked, in_place=False)


def _graph(file: ModelFile, device: Device) -> Graph:
    names = _order(file.signature)
    try:
        return Graph(file.path, device, inputs=names[0], outputs=names[1])
    except GraphError as error:
        raise ModelLoadError(f"{file.path}: ONNX Runtime refuses it ({error}); export it again") from error


def _order(signature: Signature) -> tuple[list[str], list[str]]:
    return [spec.name for spec in signature.inputs], [spec.name for spec in signature.outputs]


def _check_handover(encoder: ModelFile, decoder: ModelFile) -> None:
    """Checks that the encoder gives what the decoder's states start from."""
    outputs = {spec.name: spec for spec in encoder.signature.outputs}
    for state in decoder.signature.states:
        if not state.from_encoder:
            continue
        where = f"{decoder.path}: state {state.input!r} starts from encoder output {state.from_encoder!r}"
        if state.from_encoder not in outputs:
            raise ModelLoadError(f"{where}, which does not exist; the encoder's outputs are {sorted(outputs)}")
        spec = outputs[state.from_encoder]
        given, wanted = (spec.dtype, signatures.step_shape(spec)), (state.dtype, signatures.row_shape(state))
        if given != wanted:
            raise ModelLoadError(
                f"{where}, which is {given[0]}{list(given[1])} a row; expected {wanted[0]}{list(wanted[1])}"
            )
