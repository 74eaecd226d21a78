"""Making: a file is proved in a process of its own, and built by what was found where it serves."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import onnx

from statestream.contract import signature as signatures
from statestream.contract.signature import Signature
from statestream.v1.model_pb2 import BatchInvariance
from statestream_server.models.files import modelfile
from statestream_server.models.files.modelfile import ModelFile
from statestream_server.models.files.repository import DECODER, ENCODER
from statestream_server.models.form import told, unfold
from statestream_server.models.form.draft import drafted
from statestream_server.models.form.pairs import UnsettledError
from statestream_server.models.form.plan import Plan, counted
from statestream_server.models.form.surgery import Change
from statestream_server.models.graphs import guards, operators
from statestream_server.models.graphs.fusion import FusionError
from statestream_server.models.graphs.runtime import Device, DeviceError, Graph, GraphError
from statestream_server.models.memory.device_rows import DeviceRows
from statestream_server.models.memory.fused_rows import FusedRows, unfolded_slice
from statestream_server.models.memory.numpy_rows import NumpyRows
from statestream_server.models.memory.policies import BucketedRows, PaddedRows, SerialisedRows
from statestream_server.models.model import BatchPolicy, Kind, Model, ModelLoadError
from statestream_server.models.proof import batches, draws, forming, hiding, proof, refusals, sharing, warming, wiring
from statestream_server.models.proof.draws import Draws
from statestream_server.models.proof.sharing import SharedGraph, Sharing
from statestream_server.models.proof.verdict import Verdict, watch
from statestream_server.models.rows import EVERYTHING, FIRST_ROW, Rows, columns_of, is_batched

_log = logging.getLogger(__name__)
_MOST_TWICE: Final = 32 << 20
"""Bytes of a file that is loaded once for one step and once for several."""
_LEAST_STEPS: Final = 8
"""Steps of one run from which on that is worth it."""


@contextlib.contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Whatever goes wrong with a file is one line about it."""
    try:
        yield
    except ModelLoadError:
        raise
    except (DeviceError, guards.GuardError) as error:
        raise ModelLoadError(f"{path}: {error}") from error
    except GraphError as error:
        raise ModelLoadError(
            f"{path}: a run that tried it failed ({error}); if it takes only some values, export it with an example of"
            " real ones"
        ) from error
    except MemoryError as error:
        raise ModelLoadError(f"{path}: there is not enough memory for it; serve fewer or smaller models") from error
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ModelLoadError(f"{path}: cannot be loaded ({what}); export it again") from error


def prove(path: Path, device: Device, policy: BatchPolicy = BatchPolicy.PAD, *, said: str | None = None) -> Verdict:
    """Loads and tries a version in this process, which it may end; see trials.py.

    Args:
        path: Its file; of an encoder-decoder either one.
        device: What it runs on.
        policy: What is done where it answers in other bits alone than in a batch.
        said: What is told of the file in place of its model.toml; None for that.

    Raises:
        ModelLoadError: It cannot be served: the file, the reason, what to do.
    """
    with refusing(path):
        watch.doing("reading it")
        watch.sized(_size(path), 0)
        encoder, file = _read(path, said)
        _check_kind(encoder, file)
        both = [file] if encoder is None else [encoder, file]
        nbytes = sum(one.nbytes for one in both)
        watch.sized(nbytes, sum(column.nbytes for column in columns_of(file.signature)))
        refused, first = list[str](), None
        for form in _forms(file, device, refused) if encoder is None else [file]:
            try:
                verdict = _prove_form(encoder, form, nbytes, device, policy)
            except ModelLoadError as error:
                first = first or error
                refused.append(str(error).removeprefix(f"{path}: "))
                continue
            for one in both:
                one.check_unchanged()
            return verdict
        assert first is not None
        raise first


@dataclasses.dataclass(frozen=True, slots=True)
class _Source:
    """A file as it is tried; see `batches.Source`."""

    file: ModelFile
    device: Device

    def graph(self, changes: Sequence[Change]) -> Graph:
        return _graph(self._formed(changes), self.device)

    def model(self, changes: Sequence[Change]) -> onnx.ModelProto:
        return self._formed(changes).whole()

    def load(self, model: onnx.ModelProto) -> Graph:
        return Graph(guards.guarded(model).SerializeToString(), self.device)

    def _formed(self, changes: Sequence[Change]) -> ModelFile:
        return self.file.formed(Plan(self.file.signature, changes))


def _forms(file: ModelFile, device: Device, refused: list[str]) -> Iterator[ModelFile]:
    """A file as it is proved: as its signature says, or in the forms that it may have, those that allow most first."""
    beside, found = file.path.with_suffix(".toml").name, 0
    if file.described:
        if file.path.with_name(beside).exists():
            _log.warning("%s: its %s is not read, it has a signature of its own", file.path, beside)
        yield file
        return
    try:
        said = told.loads(file.told[0]) if file.told else told.Told()
        if said.chain and file.chain is None:
            raise told.ToldError(
                f"it names a chain, and {file.path.name} beside it is a model; a folder holds one of both"
            )
        if said.by_size():
            raise told.ToldError(f"sizes has {', '.join(said.by_size())}; tell the shapes of one of them")
        draft = drafted(file.proto, said, file.chain)
        draft = dataclasses.replace(draft, notes=[*draft.notes, *file.made])
        if not draft.states:
            yield file.formed(forming.plain(draft, said))
            return
        watch.doing("looking for its axes")
        for plan in forming.plans(draft, said, _Source(file, device), refused):
            found += 1
            yield file.formed(plan)
    except told.ToldError as error:
        raise ModelLoadError(f"{file.path.with_suffix('.toml')}: {error}") from error
    except UnsettledError as error:
        if refused and found:
            return  # What was found against its forms says more.
        where = "it" if file.chain is not None else f"{beside} beside it"
        raise ModelLoadError(f"{file.path}: {error}; say in {where}: {' or '.join(error.lines)}") from error


def _prove_form(
    encoder: ModelFile | None, file: ModelFile, nbytes: int, device: Device, policy: BatchPolicy
) -> Verdict:
    """Proves a file as its signature says that it is."""
    watch.sized(nbytes, sum(column.nbytes for column in columns_of(file.signature)))
    if not file.signature.states:
        file, found, way = _prove_calls(file, device, policy)
        told = None if file.plan is None else file.plan.values()
        return Verdict(_digest(encoder, file), plan=told, shared=tuple(found), batch_invariance=found.finding,
                       invariance_note=found.note, draws=way.kind)  # fmt: skip
    verdict = Verdict(_digest(encoder, file), plan=None if file.plan is None else file.plan.values())
    if encoder is not None:
        verdict = dataclasses.replace(verdict, encoder_shared=tuple(_prove_calls(encoder, device, policy)[1]))
    file = dataclasses.replace(file, signature=counted(file.signature, full=True))
    graph = _graph(file, device)
    watch.doing("running it as its author wrote it")
    return wiring.proved(
        graph,
        file.signature,
        str(file.path),
        lambda way: _prove_rows(verdict, file, graph, device, policy, way),
    )


def _prove_calls(file: ModelFile, device: Device, policy: BatchPolicy) -> tuple[ModelFile, Sharing, Draws]:
    """A file without memory, what was found of its graph, and how its inputs are drawn.

    A graph that says itself what it is may say lengths of its author's example where they are free.
    """
    graph, where = _graph(file, device), str(file.path)
    watch.doing("running it as its author wrote it")
    freed = list[str]()
    while True:
        try:
            way = wiring.proved(graph, file.signature, where, lambda way: way)
            break
        except wiring.ShapeError as error:
            if file.plan is None or freed.count(error.name) > 1:
                raise
            file = file.formed(file.plan.freed(error.name, error.rank, rows=error.name not in freed))
            freed.append(error.name)
    if not is_batched(file.signature):
        wiring.first_runs(graph, way)
    watch.doing("running batches of calls")
    found = sharing.shared(graph, way, policy, where)[1]
    if found.rows > 1 and all(spec.HasField("batch_axis") for spec in file.signature.inputs):
        source = _Source(file, device)
        why = batches.across_calls(file.signature, file.whole, source.load)
        found = found.apart(why) if why else found
    return file, found, way


def _prove_rows(
    verdict: Verdict, file: ModelFile, graph: Graph, device: Device, policy: BatchPolicy, way: Draws
) -> Verdict:
    where = str(file.path)
    for spec in (*file.signature.inputs, *file.signature.outputs):
        if min(signatures.step_shape(spec), default=0) < 0:
            raise ModelLoadError(
                f"{where}: {spec.name!r} has steps of shape {list(signatures.step_shape(spec))}; a model with memory"
                " needs steps of one shape, so that sessions can share a batch: export it with fixed lengths"
            )
    watch.doing("looking for what hides NaN")
    verdict = dataclasses.replace(verdict, hides=_hidden(file, device, way), draws=way.kind)
    rows, verdict = _proved(verdict, file, graph, device, way)
    rows = _arranged(rows, file, device)
    watch.doing("running batches of rows")
    found = proof.invariance(rows, PaddedRows(rows), way, where, rounded=_rounded(file))
    if verdict.fused and not device.apart and (wide := _unfolded(file)) is not None:
        watch.doing("running several steps at once")
        several = dataclasses.replace(verdict, unfolded=True)
        with contextlib.suppress(FusionError, GraphError, ModelLoadError):
            together = _rows(several, file, None, device)
            same = proof.invariance(
                together, PaddedRows(together), Draws(wide[1], way.kind), where, rounded=_rounded(file)
            )
            if same.finding == found.finding:
                rows, found, verdict = together, same, several
    arranged = "plain"
    if found.finding == BatchInvariance.BATCH_INVARIANCE_PADDED and policy == BatchPolicy.PAD:
        arranged = "padded"
    elif policy == BatchPolicy.SERIALISE and found.difference:
        arranged = "serial"
    elif found.difference:
        _log.warning("%s: %s", where, found.note)
    verdict = dataclasses.replace(verdict, policy=arranged, batch_invariance=found.finding, invariance_note=found.note)
    if device.apart:
        watch.doing("warming its device")
        warming.warm(_WAYS[arranged](rows), way, where)
    return verdict


def _rounded(file: ModelFile) -> Mapping[str, float]:
    return proof.COARSE if operators.rounds_coarsely(file.proto) else proof.ROUNDED


def _hidden(file: ModelFile, device: Device, way: Draws) -> Mapping[str, str]:
    try:
        return hiding.hidden(file.whole(), way, device)
    except FusionError:  # Too large to be taken apart: then nothing is let through.
        return dict.fromkeys((spec.name for spec in file.signature.inputs), EVERYTHING)


def _proved(verdict: Verdict, file: ModelFile, graph: Graph, device: Device, way: Draws) -> tuple[Rows, Verdict]:
    """Rows that the graph itself gathers and commits, where they lie, if it can; else rows that NumPy does."""
    plain = NumpyRows(graph, file.signature, check_inputs=verdict.hides)
    watch.doing("wrapping it with its memory")
    verdict = dataclasses.replace(verdict, fused=True)
    try:
        fused = _rows(verdict, file, None, device)
        if device.apart and not proof.keeps_others(fused, way):
            text = "%s: %s does not commit rows in place; every step copies all of them there"
            _log.warning(text, file.path, device.name)
            verdict = dataclasses.replace(verdict, in_place=False)
            fused = _rows(verdict, file, None, device)
    except (FusionError, GraphError, MemoryError) as error:
        _log.warning("%s: rows are copied in and out at every step, the graph cannot do it: %s", file.path, error)
        return plain, dataclasses.replace(verdict, fused=False)
    watch.doing("comparing it wrapped and alone")
    same = proof.agree(fused, plain, way, _rounded(file))
    if not same or (device.apart and not proof.refuses_the_same(fused, plain, way)):
        _log.warning("%s: rows are copied in and out at every step: wrapped, the graph gives other results", file.path)
        return plain, dataclasses.replace(verdict, fused=False)
    return fused, verdict


def build(
    path: Path,
    verdict: Verdict,
    *,
    name: str,
    version: int,
    device: Device,
    policy: BatchPolicy = BatchPolicy.PAD,
) -> Model:
    """Builds a version that was tried, without trying it again.

    Args:
        path: Its file; of an encoder-decoder either one.
        verdict: What the trial found.
        name: The model's name.
        version: Its version.
        device: What it runs on.
        policy: What is done where it answers in other bits alone than in a batch.

    Raises:
        ModelLoadError: The files are not those that were tried, or ONNX Runtime does not take them here.
    """
    with refusing(path):
        encoder, file = _read(path)
        if verdict.plan is not None:
            file = file.formed(Plan.of_values(verdict.plan))
        digest = _digest(encoder, file)
        if digest != verdict.digest:
            raise ModelLoadError(
                f"{path}: changed between its trial and now; load it again once it is written whole (write new"
                " versions beside, then rename their folder)"
            )
        kind = Kind.GENERATE if encoder is not None else Kind.SESSION if file.signature.states else Kind.PREDICT
        model = Model(name, version, kind, file.signature, digest)
        model.batch_invariance, model.invariance_note = verdict.batch_invariance, verdict.invariance_note
        if file.plan is not None:
            model.form = file.plan.notes
        if encoder is not None:
            model.encoder_signature, found = encoder.signature, Sharing(*verdict.encoder_shared)
            model.encoder = SharedGraph(_graph(encoder, device), encoder.signature, found, policy)
            model.encoder_invariance, model.encoder_note = found.finding, found.note
        if kind == Kind.PREDICT:
            graph = _graph(file, device)
            model.graph = SharedGraph(graph, file.signature, Sharing(*verdict.shared), policy)
            model.providers = graph.providers
        else:
            alone = None if verdict.fused else _graph(file, device)
            rows = _arranged(_rows(verdict, file, alone, device), file, device)
            model.rows, model.providers = _WAYS[verdict.policy](rows), tuple(name for name, _ in device.providers)
            if device.apart:
                model.rows.grow(FIRST_ROW + 1)
                warming.warm(model.rows, Draws(file.signature, draws.Kind(verdict.draws)), str(file.path))
        for one in (file, encoder):
            if one is not None:
                one.check_unchanged()
                model.files += tuple(stamp.path for stamp in one.stamps)
        return model


_WAYS: Final[Mapping[str, Callable[[Rows], Rows]]] = {
    "plain": lambda rows: rows,
    "padded": PaddedRows,
    "serial": lambda rows: SerialisedRows(rows, single=True),
}


def _unfolded(file: ModelFile) -> tuple[onnx.ModelProto, Signature] | None:
    """A file as it takes several steps at once; None where it cannot, or would take too much memory."""
    row = sum(column.nbytes for column in columns_of(file.signature))
    if file.nbytes > _MOST_TWICE or unfolded_slice(row) < _LEAST_STEPS:
        return None
    return unfold.unfolded(file.whole(), file.signature)


def _rows(verdict: Verdict, file: ModelFile, graph: Graph | None, device: Device) -> Rows:
    """The rows that a verdict speaks of; `graph` only where they are not fused."""
    signature, hides = file.signature, verdict.hides
    if graph is not None:
        return NumpyRows(graph, signature, check_inputs=hides)
    model = guards.guarded(file.whole())
    if not device.apart:
        unfolded = unfold.unfolded(model, signature) if verdict.unfolded else None
        return FusedRows(model, signature, device, check_inputs=hides, unfolded=unfolded)
    return DeviceRows(model, signature, device, check_inputs=hides, in_place=verdict.in_place)


def _arranged(rows: Rows, file: ModelFile, device: Device) -> Rows:
    """Rows in batches that the device and the graph can take."""
    if device.apart:
        rows = BucketedRows(rows)
    return rows if is_batched(file.signature) else SerialisedRows(rows, single=False)


def _size(path: Path) -> int:
    """Bytes of the files before they are read; what is too large to be read is refused."""
    pair = path.name in (ENCODER, DECODER)
    parts = [path.with_name(ENCODER), path.with_name(DECODER)] if pair else modelfile.parts(path)
    return sum(modelfile.check_size(each).size for each in parts)


def _read(path: Path, said: str | None = None) -> tuple[ModelFile | None, ModelFile]:
    """The encoder, where there is one, and the file with the memory."""
    if path.name not in (ENCODER, DECODER):
        return None, modelfile.read(path, said)
    return modelfile.read(path.parent / ENCODER), modelfile.read(path.parent / DECODER)


def _check_kind(encoder: ModelFile | None, file: ModelFile) -> None:
    if encoder is None:
        if file.signature.HasField("decoding"):
            raise ModelLoadError(f"{file.path}: is a decoder; name it {DECODER} and put its {ENCODER} beside it")
        return
    if not file.signature.HasField("decoding") or not file.signature.states:
        raise ModelLoadError(f"{file.path}: signature has no states or no decoding; export it as a decoder")
    if encoder.signature.states:
        raise ModelLoadError(f"{encoder.path}: signature has states; an encoder has inputs and outputs only")
    _check_handover(encoder, file)


def _digest(encoder: ModelFile | None, file: ModelFile) -> str:
    if encoder is None:
        return file.digest()
    return hashlib.sha256(f"{encoder.digest()} {file.digest()}".encode()).hexdigest()


def _graph(file: ModelFile, device: Device) -> Graph:
    watch.doing("loading it into ONNX Runtime")
    names = _order(file.signature)
    try:
        # From their own file weights would be mapped: whoever writes over it would change, or end, what serves.
        proto = file.whole()
    except FusionError:  # Too large for one message.
        proto = file.proto
    safe = guards.guarded(proto)
    source = file.path if safe is file.proto and not file.changed else safe.SerializeToString()
    try:
        return Graph(source, device, inputs=names[0], outputs=names[1], folder=file.path.parent)
    except GraphError as error:
        raise ModelLoadError(f"{file.path}: {refusals.told(proto, str(error))}") from error


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
