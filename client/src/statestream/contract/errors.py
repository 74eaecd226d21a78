"""Every error that a caller can meet: its reason, its code and what to do about it.

The server raises these, the edges carry them as `google.rpc.Status` with `ErrorInfo`, and the client
raises them again, so a reason has one class on both sides.

    StatestreamError
    ├── NotFound            ModelNotFound · SessionNotFound
    ├── InvalidRequest      BadTensor · BadFrame · SnapshotInvalid
    ├── PositionError       PositionGap · AlreadyApplied · PositionConflict
    ├── Moved               SessionMoved · NotOwner
    ├── Unavailable         ServerUnavailable · StoreUnavailable · Draining
    ├── Overloaded          TooManySessions · WindowFull
    └── of no family        SessionExists · AlreadyOpen · NonFiniteState · ModelChanged · Unsupported · Unimplemented ·
                            AnswerTooLarge · SlowReader · ModelInUse · Quarantined · StateLost · RecordTooLarge ·
                            Unauthenticated · PermissionDenied · Closed · InternalError
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from statestream.contract.codes import Code

DOMAIN = "statestream"


class StatestreamError(Exception):
    """An error with a stable reason.

    Attributes:
        reason: The stable name of what went wrong; programs compare this, never the message.
        code: The code of the status that carries it.
        message: What came, what was expected, what to do.
        metadata: Facts for programs, by name: `expected_position`, `field`, ….
        retry_after: Seconds after which another try may succeed, or None.
    """

    reason: ClassVar[str] = "INTERNAL"
    code: ClassVar[Code] = Code.INTERNAL

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.metadata, self.retry_after))


class NotFound(StatestreamError):
    """There is no such thing."""

    reason = "NOT_FOUND"
    code = Code.NOT_FOUND


class ModelNotFound(NotFound):
    """No such model or version is served; `client.models()` lists those that are."""

    reason = "MODEL_NOT_FOUND"


class SessionNotFound(NotFound):
    """No such session; open it with mode "either" or "create"."""

    reason = "SESSION_NOT_FOUND"


class InvalidRequest(StatestreamError):
    """The request cannot be read as what it claims to be."""

    reason = "INVALID_REQUEST"
    code = Code.INVALID_ARGUMENT


class BadTensor(InvalidRequest):
    """An input has the wrong name, dtype, shape or size; `metadata["field"]` names it."""

    reason = "BAD_TENSOR"


class BadFrame(InvalidRequest):
    """A field of the request or a column of the frame is wrong; `metadata["field"]` names it."""

    reason = "BAD_FRAME"


class SnapshotInvalid(InvalidRequest):
    """The snapshot is damaged, or was not made by Statestream."""

    reason = "SNAPSHOT_INVALID"


class SessionExists(StatestreamError):
    """The id is taken; choose another, or open with mode "either" or "resume"."""

    reason = "SESSION_EXISTS"
    code = Code.ALREADY_EXISTS


class AlreadyOpen(StatestreamError, ValueError):
    """This client has the session open, and it was asked for in a way that would end or change it; close it first."""

    reason = "ALREADY_OPEN"
    code = Code.FAILED_PRECONDITION


class PositionError(StatestreamError):
    """A chunk does not start where the session stands."""

    reason = "POSITION_ERROR"
    code = Code.FAILED_PRECONDITION


class PositionGap(PositionError):
    """The chunk starts beyond the session's position; send from `metadata["expected_position"]` on."""

    reason = "POSITION_GAP"
    code = Code.OUT_OF_RANGE


class AlreadyApplied(PositionError):
    """The chunk was applied and its reply acknowledged; the reply is gone, nothing is wrong."""

    reason = "ALREADY_APPLIED"
    code = Code.ALREADY_EXISTS


class PositionConflict(PositionError):
    """Another chunk was applied at this position: two callers write, or one changed its inputs."""

    reason = "POSITION_CONFLICT"


class NonFiniteState(StatestreamError):
    """The chunk would have put NaN or infinity into the state, and was not applied; leave the input out, or reset."""

    reason = "NON_FINITE_STATE"
    code = Code.FAILED_PRECONDITION


class ModelChanged(StatestreamError):
    """The state is of another model or version; serve that one, move the session (`upgrade`), or start it anew."""

    reason = "MODEL_CHANGED"
    code = Code.FAILED_PRECONDITION


class Unsupported(StatestreamError):
    """This model, or this server, does not do that, or speaks no version of the protocol that the client speaks."""

    reason = "UNSUPPORTED"
    code = Code.FAILED_PRECONDITION


class Unimplemented(StatestreamError):
    """The protocol has this call, or this way of saying it; this server has not. The message says what to use."""

    reason = "UNIMPLEMENTED"
    code = Code.UNIMPLEMENTED


class AnswerTooLarge(StatestreamError):
    """The outputs would be larger than the server sends or keeps: `metadata["size"]`, `metadata["limit"]`, in bytes.

    Nothing was applied. Ask for fewer steps, rows or outputs at a time, or raise the limit that the message names.
    """

    reason = "ANSWER_TOO_LARGE"
    code = Code.RESOURCE_EXHAUSTED


class SlowReader(StatestreamError):
    """The caller read nothing of what it asked for, for so long that the server gave up; read on, or ask again."""

    reason = "SLOW_READER"
    code = Code.DEADLINE_EXCEEDED


class ModelInUse(StatestreamError):
    """The model has sessions in memory; close them first."""

    reason = "MODEL_IN_USE"
    code = Code.FAILED_PRECONDITION


class Quarantined(StatestreamError):
    """`metadata["quarantine"]` was running when servers died, and is not run until an operator frees it."""

    reason = "QUARANTINED"
    code = Code.FAILED_PRECONDITION


class Moved(StatestreamError):
    """Somebody else has the session now."""

    reason = "MOVED"
    code = Code.ABORTED


class SessionMoved(Moved):
    """A newer writer opened the session; open it again only if you mean to take it back."""

    reason = "SESSION_MOVED"


class NotOwner(Moved):
    """Another replica has the session; `metadata["owner"]` names it where known. Open it here to move it."""

    reason = "NOT_OWNER"


class StateLost(StatestreamError):
    """Steps that were applied are gone; `metadata["position"]` is what is left. Replay from there or start anew."""

    reason = "STATE_LOST"
    code = Code.DATA_LOSS


class RecordTooLarge(StatestreamError):
    """The session is larger than what is stored: what was applied is not durable until its replies are acknowledged."""

    reason = "RECORD_TOO_LARGE"
    code = Code.FAILED_PRECONDITION


class Unavailable(StatestreamError):
    """Not now; trying again is safe."""

    reason = "UNAVAILABLE"
    code = Code.UNAVAILABLE


class ServerUnavailable(Unavailable):
    """No server answered in time, also where the connection stands; is it running, is the port right?"""

    reason = "SERVER_UNAVAILABLE"


class StoreUnavailable(Unavailable):
    """The server's store does not answer, cannot be written, or has what a newer release wrote; see the message."""

    reason = "STORE_UNAVAILABLE"


class Draining(Unavailable):
    """The server is leaving and takes no new sessions; try another, or again when it is back."""

    reason = "DRAINING"


class Overloaded(StatestreamError):
    """Too much waits to run, or the chunk is beyond its stream's window; try again after `retry_after` seconds."""

    reason = "OVERLOADED"
    code = Code.RESOURCE_EXHAUSTED


class TooManySessions(Overloaded):
    """The server holds as many sessions as it may; close some, or raise --max-sessions."""

    reason = "TOO_MANY_SESSIONS"


class WindowFull(Overloaded):
    """Too many chunks of the session are not acknowledged; acknowledge replies before sending more."""

    reason = "WINDOW_FULL"


class Unauthenticated(StatestreamError):
    """No token, or one that is wrong, has expired or was revoked; see `connect(token=…)`."""

    reason = "UNAUTHENTICATED"
    code = Code.UNAUTHENTICATED


class PermissionDenied(StatestreamError):
    """The token does not have the right that the call needs, which `metadata["right"]` names."""

    reason = "PERMISSION_DENIED"
    code = Code.PERMISSION_DENIED


class Closed(StatestreamError):
    """The client or the session was closed by this program."""

    reason = "CLOSED"
    code = Code.CANCELLED


class InternalError(StatestreamError):
    """A fault of the server; its log has the details."""

    reason = "INTERNAL"


def _tree(root: type[StatestreamError]) -> dict[str, type[StatestreamError]]:
    found = {root.reason: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


REASONS: Mapping[str, type[StatestreamError]] = _tree(StatestreamError)
"""The class of every reason."""

_MESSAGE_BYTES, _VALUE_BYTES, _VALUES = 800, 128, 8
"""Of a message (there twice where a request was not valid), of a value of the metadata, values of it: on the wire."""

_OF_CODES: Mapping[int, type[StatestreamError]] = {
    Code.UNAVAILABLE: ServerUnavailable,
    Code.UNAUTHENTICATED: Unauthenticated,
    Code.PERMISSION_DENIED: PermissionDenied,
    Code.RESOURCE_EXHAUSTED: Overloaded,
    Code.NOT_FOUND: NotFound,
    Code.INVALID_ARGUMENT: InvalidRequest,
    Code.CANCELLED: Closed,
}
"""What a status without a reason of ours is."""


def _rebuild(
    kind: type[StatestreamError], message: str, metadata: Mapping[str, str], retry_after: float | None
) -> StatestreamError:
    return kind(message, metadata=metadata, retry_after=retry_after)


def shortened(text: str, most: int = 64) -> str:
    """A text of about `most` bytes at most: a longer one loses its middle, and says how many characters that was."""
    if len(text) <= most and len(text.encode(errors="replace")) <= most:
        return text
    # Where characters have several bytes, fewer of them fit.
    fit = most if text.isascii() else most // 4
    head, tail = text[: fit - fit // 3], text[len(text) - fit // 3 :]
    return f"{head}…({len(text) - len(head) - len(tail)} more)…{tail}" if len(head) + len(tail) < len(text) else text


def quoted(text: str, most: int = 64) -> str:
    """What a caller sent, in quotes and shortened, for a message."""
    return repr(shortened(text, most))


def to_status(error: StatestreamError) -> status_pb2.Status:
    """Writes an error as `google.rpc.Status`: ErrorInfo always, RetryInfo and BadRequest where they apply.

    It has less than 4 KB, whatever callers' texts the message quotes: trailers have a limit, and an error beyond it
    would arrive as another one.
    """
    message = shortened(error.message, _MESSAGE_BYTES).encode(errors="replace").decode()
    metadata = {name: shortened(value, _VALUE_BYTES) for name, value in list(error.metadata.items())[:_VALUES]}
    details: list[error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo | error_details_pb2.BadRequest] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    ]
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, InvalidRequest):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=metadata.get("field", ""), description=message, reason=error.reason
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    status = status_pb2.Status(code=error.code, message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def from_status(status: status_pb2.Status) -> StatestreamError:
    """Reads `google.rpc.Status` as the exception of its reason; an unknown reason falls back to its code."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    reason, metadata, retry_after = "", dict[str, str](), None
    for detail in status.details:
        if detail.Unpack(info) and info.domain == DOMAIN:
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    kind = REASONS.get(reason) or _OF_CODES.get(status.code, InternalError)
    return kind(status.message, metadata=metadata, retry_after=retry_after)
