"""Reflection: what is told of services and their messages, those of the other protocol by its names on the wire."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection

from statestream_server.edges.grpc import oip
from statestream_server.edges.oip import oip_pb2

_PACKAGE: Final = oip.SERVICE.rpartition(".")[0]
_FILE: Final = f"{_PACKAGE}.proto"


def servicer(services: Sequence[str], files: Iterable[FileDescriptor]) -> Any:
    """What answers reflection of services of ours, which these files describe, and of the Open Inference Protocol."""
    # Another pool than that of the process, in which tritonclient may have the protocol's names for itself.
    pool, known = DescriptorPool(), set[str]()
    for file in [*files, *oip_pb2.DESCRIPTOR.dependencies]:
        _add(pool, file, known)
    pool.AddSerializedFile(_renamed().SerializeToString())
    return reflection.aio.ReflectionServicer([*services, oip.SERVICE], pool=pool)


def _add(pool: DescriptorPool, file: FileDescriptor, known: set[str]) -> None:
    """Adds a file behind those that it needs."""
    if file.name in known:
        return
    known.add(file.name)
    for needed in file.dependencies:
        _add(pool, needed, known)
    pool.AddSerializedFile(file.serialized_pb)


def _renamed() -> FileDescriptorProto:
    """The file of the other protocol with the package that it has on the wire."""
    file = FileDescriptorProto()
    oip_pb2.DESCRIPTOR.CopyToProto(file)
    old, file.name, file.package = f".{file.package}.", _FILE, _PACKAGE
    for message in file.message_type:
        _rename(message, old)
    for service in file.service:
        for method in service.method:
            method.input_type = _new(method.input_type, old)
            method.output_type = _new(method.output_type, old)
    return file


def _rename(message: DescriptorProto, old: str) -> None:
    for nested in message.nested_type:
        _rename(nested, old)
    for field in message.field:
        if field.type_name:
            field.type_name = _new(field.type_name, old)


def _new(name: str, old: str) -> str:
    return f".{_PACKAGE}.{name.removeprefix(old)}" if name.startswith(old) else name
