"""Modules that are wrapped, and what they keep between calls: the module inside, and memory that nobody declared."""

from __future__ import annotations

import contextlib
import copy
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from statestream_export.adapting import inner
from statestream_export.errors import ExportError
from statestream_export.interface import run

_DEPTH = 3
"""How deep lists and mappings of tensors are looked into."""
_KINDS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel or torch.compile; any other is itself."""
    while (inner := _inner(module)) is not None:
        module = inner
    return module


@contextlib.contextmanager
def bare(module: nn.Module) -> Iterator[None]:
    """While this is entered, wrapped parts of a module are replaced by what they wrap, and nothing is compiled."""
    replaced = [
        (part, name, child)
        for part in module.modules()
        if not isinstance(part, torch.jit.ScriptModule)
        for name, child in part.named_children()
        if _inner(child) is not None
    ]
    compiled = [(part, part._compiled_call_impl) for part in module.modules() if _is_compiled(part)]
    for part, name, child in replaced:
        setattr(part, name, unwrapped(child))
    for part, _ in compiled:
        part._compiled_call_impl = None
    try:
        yield
    finally:
        for part, name, child in replaced:
            setattr(part, name, child)
        for part, call in compiled:
            part._compiled_call_impl = call


def _inner(module: nn.Module) -> nn.Module | None:
    if isinstance(module, _KINDS):
        return cast(nn.Module, module.module)
    if type(module).__name__ != "OptimizedModule":  # What torch.compile gives; importing it would import dynamo.
        return None
    inner = module._modules.get("_orig_mod")
    return inner if isinstance(inner, nn.Module) else None


def _is_compiled(module: nn.Module) -> bool:
    return not isinstance(module, torch.jit.ScriptModule) and module.__dict__.get("_compiled_call_impl") is not None


def refuse_memory(module: nn.Module, values: Sequence[Tensor]) -> None:
    """Refuses a module that remembers calls in itself: forward twice on the same values must give the same.

    What forward changed in the module is put back.

    Raises:
        ExportError: It gives something else the second time, though random numbers were the same.
    """
    own = inner(module)
    before = _kept(own)
    runs, changed = [], list[str]()
    try:
        for _ in range(2):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                runs.append(run(module, [value.clone() for value in values]))
        changed = _changed(before, _kept(own))
    finally:
        _restore(own, before)
    if len(runs[0]) == len(runs[1]) and all(map(_same, *runs)):
        return
    where = f" in {', '.join(repr(name) for name in changed[:3])}" if changed else " (or draws random numbers)"
    name = changed[0].rsplit(".", 1)[-1] if changed else "h"
    raise ExportError(
        f"{type(module).__name__} keeps memory between calls{where}: forward twice on the same inputs gives different"
        " outputs. A file has no such memory, and sessions must not share it. Make it a state: take it as an argument"
        f" and return its new value, forward(x, {name}) -> (y, {name}), and export with"
        f" states={{{name!r}: State(torch.zeros(…), batch_axis=…)}}"
    )


_Kept = dict[str, tuple[Any, str, Any, list[Tensor], Any]]
"""By path: the part, the attribute's name, what it was, its tensors copied, and a container copied."""


def _kept(module: nn.Module) -> _Kept:
    """The attributes and buffers of a module that may hold tensors."""
    found: _Kept = {}
    for path, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            items: dict[str, Any] = dict(part.named_buffers(recurse=False))
        else:
            own = {n: v for n, v in part.__dict__.items() if n not in _OWN}
            items = {**own, **part.__dict__.get("_buffers", {})}
        for name, value in items.items():
            if value is None or isinstance(value, list | deque | dict) or _tensors(value, _DEPTH):
                shallow = copy.copy(value) if isinstance(value, list | deque | dict) else None
                found[f"{path}.{name}" if path else name] = (part, name, value, _tensors(value, _DEPTH), shallow)
    return found


_OWN = frozenset(nn.Module().__dict__) | {"_flat_weights", "_flat_weight_refs", "_all_weights"}


def _tensors(value: object, depth: int) -> list[Tensor]:
    """Copies of the tensors in a value."""
    if isinstance(value, nn.Parameter):
        return []
    if isinstance(value, Tensor):
        return [value.detach().clone()]
    if depth and isinstance(value, Mapping):
        value = list(value.values())
    if depth and isinstance(value, list | tuple | set | deque):
        return [tensor for item in value for tensor in _tensors(item, depth - 1)]
    return []


def _changed(before: _Kept, after: _Kept) -> list[str]:
    return [
        path
        for path in {**before, **after}
        if path not in before
        or path not in after
        or len(before[path][3]) != len(after[path][3])
        or not all(map(_same, before[path][3], after[path][3]))
    ]


def _restore(module: nn.Module, before: _Kept) -> None:
    """Puts back what was changed, as far as it was attributes, tensors and lists of them."""
    for path, (part, name, _, _, _) in _kept(module).items():
        if path not in before and name in part.__dict__:
            delattr(part, name)
    for part, name, value, copies, shallow in before.values():
        if isinstance(value, Tensor) and not _same(value.detach(), copies[0]):
            with torch.no_grad(), contextlib.suppress(RuntimeError):
                value.copy_(copies[0])
        elif isinstance(value, list | deque):
            value.clear()
            value.extend(shallow)
        elif isinstance(value, dict):
            value.clear()
            value.update(shallow)
        if not isinstance(part, torch.jit.ScriptModule) and getattr(part, name, value) is not value:
            setattr(part, name, value)


def _same(one: Tensor, other: Tensor) -> bool:
    return (
        one.shape == other.shape
        and one.dtype == other.dtype
        and bool(
            torch.equal(one, other) or torch.allclose(one.double(), other.double(), rtol=0, atol=0, equal_nan=True)
        )
    )
