"""Building: a model is made of its files by what their trial found."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from statestream.contract.signature import Signature, as_sent
from statestream_server.models.files import couples
from statestream_server.models.files.modelfile import ModelFile
from statestream_server.models.graphs.refused import FusionError, GuardError
from statestream_server.models.graphs.runtime import Device, DeviceError, Graph, GraphError
from statestream_server.models.memory.contexts import context_of
from statestream_server.models.memory.fused_rows import FusedRows, unfolded_slice
from statestream_server.models.memory.numpy_rows import NumpyRows
from statestream_server.models.memory.observed import observed
from statestream_server.models.memory.policies import BucketedRows, PaddedRows, SerialisedRows
from statestream_server.models.model import BatchPolicy, Kind, Model, ModelLoadError
from statestream_server.models.proof.verdict import Verdict, watch
from statestream_server.models.rows import FIRST_ROW, Rows, columns_of, is_batched

if TYPE_CHECKING:
    import onnx

    from statestream_server.models.graphs.fused_names import Wrapped
    from statestream_server.models.proof.sharing import SharedGraph, Sharing

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
    except (DeviceError, GuardError) as error:
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
        encoder, file = couples.read(path)
        file = formed(file, verdict.plan)
        encoder = None if encoder is None else formed(encoder, verdict.encoder_plan)
        digest = couples.digest(encoder, file)
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
            model.encoder_signature = encoder.signature
            model.encoder, found = _shared(graph_of(encoder, device), encoder.signature, verdict.encoder_shared, policy)
            model.encoder_invariance, model.encoder_note = found.finding, found.note
            _give_words(model, path)
        if kind == Kind.PREDICT:
            graph = graph_of(file, device)
            model.graph, _ = _shared(graph, file.signature, verdict.shared, policy)
            model.providers = graph.providers
        else:
            alone = None if verdict.fused else graph_of(file, device)
            rows = in_batches(rows_of(verdict, file, alone, device), file.signature, device)
            model.rows, model.providers = WAYS[verdict.policy](rows), tuple(name for name, _ in device.providers)
            if device.apart:
                from statestream_server.models.proof import draws, warming

                model.rows.grow(FIRST_ROW + 1)
                warming.warm(model.rows, draws.Draws(file.signature, draws.Kind(verdict.draws)), str(file.path))
            if kind == Kind.SESSION:
                model.rows, model.signature = observed(model.rows, file.signature), as_sent(file.signature)
        for one in (file, encoder):
            if one is not None:
                one.check_unchanged()
                model.files += tuple(stamp.path for stamp in one.stamps)
        return model


def formed(file: ModelFile, plan: Mapping[str, Any] | None) -> ModelFile:
    """A file in the form that its trial found; as it is where that is its own."""
    if plan is None:
        return file
    from statestream_server.models.form.plan import Plan

    return file.formed(Plan.of_values(plan))


def _shared(
    graph: Graph, signature: Signature, found: tuple[Any, ...], policy: BatchPolicy
) -> tuple[SharedGraph, Sharing]:
    """A graph without memory whose calls share runs as its trial found."""
    from statestream_server.models.proof.sharing import SharedGraph, Sharing

    sharing = Sharing(*found)
    return SharedGraph(graph, signature, sharing, policy), sharing


def _give_words(model: Model, path: Path) -> None:
    """Gives an encoder-decoder what its texts are: the vocabularies of its signatures, else the tokenizer beside it."""
    from statestream_server.models.files import tokenizer
    from statestream_server.models.words import Vocabulary

    assert model.encoder_signature is not None
    texts = (model.encoder_signature.inputs[0].text, model.signature.decoding.text)
    read = tokenizer.beside(path) if not all(text.vocabulary for text in texts) else None
    other = None if read is None else read.words
    model.reads, model.writes = (Vocabulary(text) if text.vocabulary else other for text in texts)
    if read is not None:
        model.files += (read.path,)
        model.digest = hashlib.sha256(f"{model.digest} {read.digest}".encode()).hexdigest()


WAYS: Final[Mapping[str, Callable[[Rows], Rows]]] = {
    "plain": lambda rows: rows,
    "padded": PaddedRows,
    "serial": lambda rows: SerialisedRows(rows, single=True),
}


def unfolded_model(file: ModelFile) -> tuple[onnx.ModelProto, Signature] | None:
    """A file as it takes several steps at once; None where it cannot, or would take too much memory."""
    row = sum(column.nbytes for column in columns_of(file.signature))
    if file.nbytes > _MOST_TWICE or unfolded_slice(row) < _LEAST_STEPS:
        return None
    from statestream_server.models.form import unfold

    return unfold.unfolded(file.whole(), file.signature)


def rows_of(verdict: Verdict, file: ModelFile, graph: Graph | None, device: Device) -> Rows:
    """The rows that a verdict speaks of; `graph` only where they are not fused."""
    signature, hides = file.signature, verdict.hides
    if graph is not None:
        return NumpyRows(graph, signature, check_inputs=hides, context=context_of(file.proto, signature))
    if not device.apart:
        wrapped, unfolded = wrapped_of(verdict, file)
        return FusedRows(wrapped, signature, device, check_inputs=hides, unfolded=unfolded)
    from statestream_server.models.graphs.guards import guarded
    from statestream_server.models.memory.device_rows import DeviceRows

    return DeviceRows(guarded(file.whole()), signature, device, check_inputs=hides, in_place=verdict.in_place)


def wrapped_of(verdict: Verdict, file: ModelFile) -> tuple[Wrapped, tuple[Wrapped, Signature] | None]:
    """The graphs of fused rows on the CPU: for one step, and where the verdict says so for several at once.

    Raises:
        FusionError: The graph cannot be wrapped.
    """
    from statestream_server.models.graphs.fusion import wrapped
    from statestream_server.models.graphs.guards import guarded

    model, signature = guarded(file.whole()), file.signature
    context = context_of(model, signature)
    unfolded = None
    if verdict.unfolded:
        from statestream_server.models.form import unfold

        if (several := unfold.unfolded(model, signature)) is not None:
            unfolded = wrapped(several[0], several[1], context), several[1]
    return wrapped(model, signature, context), unfolded


def in_batches(rows: Rows, signature: Signature, device: Device) -> Rows:
    """Rows in batches that the device and the graph can take."""
    if device.apart:
        rows = BucketedRows(rows)
    return rows if is_batched(signature) else SerialisedRows(rows, single=False)


def graph_of(file: ModelFile, device: Device) -> Graph:
    """A file's graph as its author wrote it, loaded.

    Raises:
        ModelLoadError: ONNX Runtime does not take it.
    """
    watch.doing("loading it into ONNX Runtime")
    from statestream_server.models.graphs.guards import guarded

    names = _order(file.signature)
    try:
        # From their own file weights would be mapped: whoever writes over it would change, or end, what serves.
        proto = file.whole()
    except FusionError:  # Too large for one message.
        proto = file.proto
    safe = guarded(proto)
    source = file.path if safe is file.proto and not file.changed else safe.SerializeToString()
    try:
        return Graph(source, device, inputs=names[0], outputs=names[1], folder=file.path.parent)
    except GraphError as error:
        from statestream_server.models.proof import refusals

        raise ModelLoadError(f"{file.path}: {refusals.told(proto, str(error))}") from error


def _order(signature: Signature) -> tuple[list[str], list[str]]:
    return [spec.name for spec in signature.inputs], [spec.name for spec in signature.outputs]
