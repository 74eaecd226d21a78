"""What goes into calls and what comes of them: requests, answers, errors, and when to try again. Pure, for both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import Message
from grpc_status import rpc_status

from statestream import arguments, causes
from statestream.contract import errors
from statestream.contract.codes import Code
from statestream.contract.errors import StatestreamError, Unsupported, from_status
from statestream.contract.tensors import Array, from_tensors, to_tensor
from statestream.core import Group, OpenTicket, PoolTicket, PredictTicket
from statestream.layout import Layout
from statestream.v1 import inference_pb2 as pb
from statestream.v1.server_pb2 import Limits

TOO_LARGE = "larger than max"
"""What gRPC says of a message that is larger than one side takes."""

LOCAL = "Internal error from Core"
"""What grpc.aio says of a call that was over when it wrote: nothing that a server said."""

RETRY_FIRST = 0.05
RETRY_MOST = 1.0


class PoolError(StatestreamError):
    """Some rows of a pool's step failed; the others were applied.

    Attributes:
        errors: What became of each row that failed, by its index in the call.
        outputs: What the call would have returned; rows that failed are zero.
    """

    reason = "POOL"
    code = Code.ABORTED

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        errors: Mapping[int, StatestreamError] | None = None,
        outputs: Array | dict[str, Array] | None = None,
    ) -> None:
        super().__init__(message, metadata=metadata, retry_after=retry_after)
        self.errors = dict(errors or {})
        self.outputs = outputs


class Attempts:
    """Decides whether and when a failed call is repeated.

    Args:
        timeout: Seconds after which the last error is raised.
        now: The time at which the first try starts.
    """

    def __init__(self, timeout: float, now: float) -> None:
        self._timeout = timeout
        self.heard(now)

    def heard(self, now: float) -> None:
        """Something came: what follows has as much time as a call that starts now."""
        self._until = now + self._timeout
        self.failures = 0

    def after(self, error: StatestreamError, now: float) -> float:
        """Seconds to wait before the next try.

        Raises:
            StatestreamError: The error itself, where another try cannot help or time is up.
        """
        waits = isinstance(error, errors.Unavailable) or (
            isinstance(error, errors.Overloaded) and error.retry_after is not None
        )
        self.failures += 1
        delay = error.retry_after
        if delay is None:
            delay = min(RETRY_MOST, RETRY_FIRST * 2.0 ** min(self.failures - 1, 16))
        if not waits or now + delay > self._until:
            raise error
        return delay


def read_rpc_error(error: grpc.RpcError | grpc.aio.AioRpcError, address: str) -> StatestreamError:
    """The typed error of a failed call."""
    try:
        status = rpc_status.from_call(error)
    except (ValueError, AttributeError):
        status = None
    if status is not None:
        return from_status(status)
    code = error.code() if hasattr(error, "code") else grpc.StatusCode.UNKNOWN
    details = (error.details() if hasattr(error, "details") else "") or str(error)
    return read_code(code, details, address)


def read_code(code: grpc.StatusCode, details: str, address: str) -> StatestreamError:
    """The typed error of a code without details of ours: what a proxy, gRPC itself or a fault of the server says."""
    kinds: dict[grpc.StatusCode, type[StatestreamError]] = {
        grpc.StatusCode.OK: errors.ServerUnavailable,
        grpc.StatusCode.UNAVAILABLE: errors.ServerUnavailable,
        grpc.StatusCode.DEADLINE_EXCEEDED: errors.ServerUnavailable,
        grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
        grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
        grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
        grpc.StatusCode.UNIMPLEMENTED: errors.Unsupported,
        grpc.StatusCode.CANCELLED: errors.Closed,
    }
    kind = kinds.get(code, errors.InternalError)
    if details == LOCAL:
        kind = errors.ServerUnavailable
    if kind is errors.ServerUnavailable:
        return kind(
            f"no Statestream server answers at {address}: {details}. {_doubt(details)}",
            metadata={"details": details},
        )
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED and TOO_LARGE in details:
        if "CLIENT: Received" in details:
            return errors.AnswerTooLarge(
                f"the answer of {address} is larger than this client takes: {details}. Ask for less at a time, or raise"
                " Settings.max_message_bytes"
            )
        return errors.InvalidRequest(f"the request is larger than {address} takes: {details}. Send less at a time")
    if kind is errors.Unsupported:
        return kind(f"{address} is no Statestream server, or of another version: {details}")
    return kind(f"{address}: {code.name}: {details}")


def unavailable(
    addresses: Sequence[str], seconds: float, cause: StatestreamError | None, label: str = ""
) -> StatestreamError:
    """What is raised when no server was reached for too long; `label` says which shard of a client did not."""
    if isinstance(cause, errors.Unauthenticated | errors.PermissionDenied | errors.Unsupported):
        return type(cause)(cause.message, metadata=cause.metadata)
    last = cause.metadata.get("details", cause.message) if cause is not None else "no answer"
    # What a server in TLS makes of a caller without it, and one that goes away of all.
    doubt = "Does it want TLS (tls=True), and is the port right?" if last.endswith("Socket closed") else _doubt(last)
    return errors.ServerUnavailable(
        f"no Statestream server answered at {', '.join(addresses)}{label} for {seconds:.1f} s: {last}. {doubt}",
        metadata={"addresses": ",".join(addresses)},
    )


def _doubt(details: str) -> str:
    """What to look at where no server answered, by what gRPC says of it."""
    if "http1.x server" in details:
        return "That is a port of HTTP; a server's gRPC has its own, 8001 where nothing else is said"
    if "WRONG_VERSION_NUMBER" in details:
        return "What listens there speaks no TLS: leave tls out, or give the server a certificate"
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return "Its certificate is of no authority that is trusted here: tls=statestream.Tls(roots=…) names one"
    return "Is it running, and is the port right?"


def group(model: str, version: int | str | None, *, ephemeral: bool) -> Group:
    """What sessions that are opened together have in common."""
    number, alias = arguments.number_or_alias(version)
    return Group(model, number, ephemeral, alias)


def check_opened(ticket: OpenTicket, ids: Sequence[str]) -> int:
    """The version to which all sessions of a ticket, whose ids these are, are pinned.

    Raises:
        StatestreamError: The error of the only session, PoolError for several, or Unsupported where versions differ.
    """
    if ticket.errors:
        found = {row: causes.named(ticket.errors[row], ids[row]) for row in sorted(ticket.errors)}
        row, first = next(iter(found.items()))
        if len(ticket.handles) == 1:
            raise first
        raise PoolError(
            f"{len(found)} of {len(ticket.handles)} sessions did not open; row {row}{_who(ids[row], first)}: {first}",
            errors=found,
        )
    versions = np.unique(ticket.versions)
    if len(versions) > 1:
        raise Unsupported(
            f"the sessions are pinned to versions {versions.tolist()} of their model; open a pool for each version,"
            " or move them to one with upgrade"
        )
    return int(versions[0]) if len(versions) else 0


def check_pool(
    layout: Layout,
    ticket: PoolTicket,
    single: bool,
    who: Callable[[int], str],
    told: Callable[[Any], Any] | None = None,
    *,
    return_errors: bool,
) -> Any:
    """A pool's outputs, or what `told` makes of them; the PoolError of rows that failed where that is an answer.

    Raises:
        PoolError: Some rows failed, and it is not to be returned.
    """
    if ticket.error is not None:
        raise ticket.error
    outputs = layout.pool_outputs(ticket, single)
    if told is not None:
        outputs = told(outputs)
    if ticket.errors:
        found = {row: causes.of_row(layout, ticket, row, who) for row in sorted(ticket.errors)}
        row, first = next(iter(found.items()))
        error = PoolError(
            f"{len(found)} of {len(ticket.handles)} rows failed; row {row}{_who(who(row), first)}: {first}",
            errors=found,
            outputs=outputs,
        )
        if return_errors:
            return error
        raise error
    return outputs


def check_control(refused: Mapping[int, StatestreamError], who: Callable[[int], str]) -> None:
    """Raises what a flush or a close met: the error of one session, or PoolError for several.

    Args:
        refused: What went wrong, by session.
        who: The id of one of them.
    """
    if refused:
        found = {each: causes.named(error, who(each)) for each, error in refused.items()}
        first = next(iter(found.values()))
        raise first if len(found) == 1 else PoolError(f"{len(found)} sessions: {first}", errors=found)


def _who(id: str, error: StatestreamError) -> str:
    """The id of a row, where what is told of the row does not say it."""
    return "" if repr(id) in error.message else f" ({id!r})"


def predict_request(
    layout: Layout, x: Any, outputs: Sequence[str] | None, version: int | str | None
) -> pb.PredictRequest:
    """One run of a model without memory."""
    arrays = layout.predict(x)
    return pb.PredictRequest(
        model=layout.model.name,
        **arguments.naming(version),
        inputs=[to_tensor(name, array) for name, array in arrays.items()],
        outputs=list(outputs or ()),
    )


def check_size(request: Message, limits: Limits, layout: Layout) -> None:
    """Checks that a request is not larger than the server takes.

    Raises:
        BadTensor: Says how large it is, and how large it may be.
    """
    _check_size(request.ByteSize(), limits.max_message_bytes, layout)


def check_call(ticket: PredictTicket, limits: Limits, layout: Layout) -> None:
    """The same of a call on a stream, by its inputs.

    Raises:
        BadTensor: Says how large it is, and how large it may be.
    """
    _check_size(ticket.kind.row_bytes * ticket.rows, limits.max_message_bytes, layout)


def _check_size(size: int, most: int, layout: Layout) -> None:
    if most and size > most:
        raise errors.BadTensor(
            f"the request to model {layout.model.name!r} has {size:,} bytes; this server takes at most {most:,} "
            "in one. Send fewer rows at a time, or raise its --max-message-bytes.",
            metadata={"field": layout.names[0], "size": str(size), "limit": str(most)},
        )


def check_request(request: Message, limits: Limits) -> None:
    """Checks that a request that has no rows to send fewer of is not larger than the server takes.

    Raises:
        InvalidRequest: Says how large it is, and how large it may be.
    """
    size, most = request.ByteSize(), limits.max_message_bytes
    if most and size > most:
        raise errors.InvalidRequest(
            f"the request has {size:,} bytes; this server takes at most {most:,} in one: raise its --max-message-bytes",
            metadata={"size": str(size), "limit": str(most)},
        )


def read_outputs(tensors: Sequence[Any]) -> Array | dict[str, Array]:
    """One array, or several by name."""
    arrays = from_tensors(tensors)
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays


def joined(answers: Sequence[Any], layout: Layout) -> Any:
    """The answers to some rows after the other, as one.

    Raises:
        Unsupported: They do not have one shape, as what one row comes to depends on those beside it.
    """
    first = answers[0]
    try:
        if isinstance(first, Mapping):
            return {name: np.concatenate([answer[name] for answer in answers]) for name in first}
        return np.concatenate(answers)
    except ValueError as error:
        raise Unsupported(
            f"model {layout.model.name!r} gives some rows other shapes than others ({error}), so they cannot be asked"
            " for some at a time: leave out progress"
        ) from error
