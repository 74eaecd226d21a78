"""Apart: which operators keep sessions apart, and where sessions lie in what they make."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from statestream_server.models.form.places import At, BoundError, Edit, Place, Way

_ALONG_ONE: Final = 13
"""Softmax works along one axis since; before, over all from one on."""
_FAR: Final = 1 << 31
"""An end of a Slice from here on is that of the axis."""


def _elementwise(at: At) -> list[Way]:
    rank, found = len(at.made()), None
    for n in range(len(at.inputs)):
        place = at.place(n)
        if place is not None:
            moved = place._replace(axis=place.axis + rank - len(at.shape(n)))
            at.apart(found in (None, moved))
            found = moved
    assert found is not None
    for n, name in enumerate(at.inputs):
        if name and at.place(n) is None:
            axis = found.axis - rank + len(at.shape(n))
            at.apart(axis < 0 or at.shape(n)[axis] == 1)
    return at.alike(found)


def _reshape(at: At) -> list[Way]:
    old, place, made = at.shape(0), at.only(0), at.made()
    ways, before = list[tuple[Place, Sequence[Edit]]](), math.prod(old[: place.axis]) * place.outer
    if not math.prod(old):
        raise BoundError(f"{at.what} is of an empty array")
    for axis, size in enumerate(made):
        outer, rest = divmod(before, math.prod(made[:axis]))
        if not rest and outer and not size % outer:
            ways.append((new := Place(axis, outer, size // outer), _target(at, place, new)))
    plain = [way for way in ways if way[0].plain]
    at.apart(bool(ways))
    ordered = sorted(plain or ways, key=lambda way: way[0].axis != place.axis)
    return [Way([new], edits) for new, edits in ordered]


def _target(at: At, old: Place, new: Place) -> Sequence[Edit]:
    """What has to change in the target of a Reshape."""
    target = at.constant(1) if at.node.op_type == "Reshape" else None
    if target is None:
        return ()  # It is computed from shapes, or follows by itself.
    if at.attribute("allowzero", 0) and 0 in target:
        raise BoundError(f"{at.what} makes an empty array")
    copies = new.axis == old.axis and target[new.axis] == 0
    fixed = [at.made()[n] if size == 0 and n == old.axis != new.axis else size for n, size in enumerate(target)]
    if (target[new.axis] == -1 or copies) and fixed == target:
        return ()
    fixed[new.axis] = -1
    return (at.edit("target", new.axis, new.outer * new.inner, *fixed),)


def _flatten(at: At) -> list[Way]:
    axis = at.attribute("axis", 1) % max(len(at.shape(0)), 1)
    second = at.only(0).axis >= axis
    return [way for way in _reshape(at) if way.outputs[0] is not None and (way.outputs[0].axis == 1) == second][:1]


def _squeeze(at: At) -> list[Way]:
    place, shape = at.only(0), at.shape(0)
    given = at.whole(1, "axes")
    axes = {n for n, size in enumerate(shape) if size == 1} if given is None else {n % len(shape) for n in given}
    at.apart(place.axis not in axes)
    return at.alike(place._replace(axis=place.axis - sum(axis < place.axis for axis in axes)))


def _unsqueeze(at: At) -> list[Way]:
    place, rank = at.only(0), len(at.made())
    axes = {axis % rank for axis in at.whole(1, "axes") or ()}
    kept = [axis for axis in range(rank) if axis not in axes]
    return at.alike(place._replace(axis=kept[place.axis]))


def _transpose(at: At) -> list[Way]:
    place = at.only(0)
    perm = list(at.attribute("perm") or range(len(at.shape(0)))[::-1])
    return at.alike(place._replace(axis=perm.index(place.axis)))


def _concat(at: At) -> list[Way]:
    axis = at.attribute("axis", 0) % len(at.made())
    having = {place for n in range(len(at.inputs)) if (place := at.place(n)) is not None}
    at.apart(len(having) == 1)
    (place,) = having
    at.apart(place.axis != axis)
    return [Way([place], _spread(at, place, [n for n in range(len(at.inputs)) if at.place(n) is None]))]


def _spread(at: At, place: Place, constants: Sequence[int]) -> list[Edit]:
    """What has to change where constants stand for one session."""
    for n in constants:
        if not place.plain or at.shape(n)[place.axis] != 1:
            raise BoundError(f"{at.what} takes a constant {list(at.shape(n))}, which is not that of one session")
    return [at.edit("spread", n, place.axis, len(at.shape(n))) for n in constants]


def _along(name: str, default: int) -> Callable[[At], list[Way]]:
    """An operator that works along one axis, of its first input."""

    def rule(at: At) -> list[Way]:
        place, axis = at.only(0), at.attribute(name, default)
        at.apart(axis % len(at.shape(0)) != place.axis)
        return at.alike(place)

    return rule


def _softmax(at: At) -> list[Way]:
    place, rank = at.only(0), len(at.shape(0))
    axis = at.attribute("axis", -1 if at.opset >= _ALONG_ONE else 1) % rank
    at.apart(place.axis != axis if at.opset >= _ALONG_ONE else place.axis < axis)
    return at.alike(place)


def _behind(at: At) -> list[Way]:
    """A normalisation over all axes from one on."""
    place = at.only(0)
    at.apart(place.axis < at.attribute("axis", -1) % len(at.shape(0)))
    return [Way([place, *[None] * (len(at.node.output) - 1)])]


def _first(at: At) -> list[Way]:
    """An operator that works on each entry of the first axis by itself: convolutions, poolings, normalisations."""
    place = at.only(0)
    at.apart(place.axis == 0)
    return at.alike(place)


def _slice(at: At) -> list[Way]:
    place = at.only(0)
    starts, ends = at.whole(1, "starts"), at.whole(2, "ends")
    if starts is None or ends is None:
        raise BoundError(f"{at.what} computes its bounds")
    axes = at.whole(3, "axes") or list(range(len(starts)))
    steps = at.whole(4, "steps") or [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if axis % len(at.shape(0)) == place.axis:
            at.apart(start == 0 and end >= _FAR and step == 1)
    return at.alike(place)


def _gather(at: At) -> list[Way]:
    axis, data, indices = at.attribute("axis", 0) % len(at.shape(0)), at.place(0), at.place(1)
    if data is None:
        place = at.only(1)
        return at.alike(place._replace(axis=axis + place.axis))
    at.apart(indices is None and data.axis != axis)
    return at.alike(data if data.axis < axis else data._replace(axis=data.axis - 1 + len(at.shape(1))))


def _reduce(at: At) -> list[Way]:
    place, rank = at.only(0), len(at.shape(0))
    axes = at.whole(1, "axes")
    if at.node.op_type in ("ArgMax", "ArgMin"):
        axes = [at.attribute("axis", 0)]
    if not axes and at.attribute("noop_with_empty_axes", 0):
        return at.alike(place)
    gone = {axis % rank for axis in axes} if axes else set(range(rank))
    at.apart(place.axis not in gone)
    if at.attribute("keepdims", 1):
        return at.alike(place)
    return at.alike(place._replace(axis=place.axis - sum(axis < place.axis for axis in gone)))


def _matmul(at: At) -> list[Way]:
    rank, found = len(at.made()), set[Place]()
    for n in (0, 1):
        place, own = at.place(n), len(at.shape(n))
        if place is None:
            continue
        if own == 1 or (place.axis == own - 1 if n == 0 else place.axis == own - 2):
            at.apart(False)  # It is summed over.
        # A vector on the other side takes its axis away; leading axes are broadcast from the right.
        moved = place.axis + rank - own + (len(at.shape(1 - n)) == 1)
        inside = place.axis >= own - 2
        at.apart(not inside or at.place(1 - n) is None)
        found.add(place._replace(axis=moved))
        other = at.shape(1 - n)
        axis = place.axis - own + len(other)
        at.apart(inside or at.place(1 - n) is not None or axis < 0 or other[axis] == 1)
    at.apart(len(found) == 1)
    return at.alike(found.pop())


def _gemm(at: At) -> list[Way]:
    first, second = at.place(0), at.place(1)
    at.apart((first is None) != (second is None))
    side, place = (0, first) if first is not None else (1, second)
    assert place is not None
    turned = at.attribute("transA" if side == 0 else "transB", 0)
    at.apart(place.axis == (side if not turned else 1 - side))
    new = place._replace(axis=side)
    if len(at.inputs) > 2 and at.inputs[2]:
        third, shape = at.place(2), at.shape(2)
        axis = side - 2 + len(shape)
        at.apart(third._replace(axis=third.axis + 2 - len(shape)) == new if third else axis < 0 or shape[axis] == 1)
    return at.alike(new)


def _recurrent(at: At) -> list[Way]:
    first = bool(at.attribute("layout", 0))
    axis = 0 if first else 1
    place = at.place(0)
    at.apart(place is not None and place.axis == axis and not any(at.place(n) for n in (1, 2, 3, 7)))
    assert place is not None
    edits = list[Edit]()
    for n, along in ((4, 0), (5, axis), (6, axis)):
        if n < len(at.inputs) and at.inputs[n]:
            wanted = place._replace(axis=along)
            if at.place(n) is None:
                edits += _spread(at, wanted, [n])
            at.apart(at.place(n) in (None, wanted))
    whole = place._replace(axis=0 if first else 2)
    return [Way([whole, place._replace(axis=axis), place._replace(axis=axis)][: len(at.node.output)], edits)]


def _pad(at: At) -> list[Way]:
    place, rank = at.only(0), len(at.shape(0))
    pads = at.whole(1, "pads") or []
    axes = [axis % rank for axis in at.constant(3) or range(rank)]
    around = {axis: (pads[n], pads[n + len(axes)]) for n, axis in enumerate(axes)}
    at.apart(around.get(place.axis, (0, 0)) == (0, 0))
    return at.alike(place)


def _tile(at: At) -> list[Way]:
    place = at.only(0)
    at.apart((at.whole(1, "repeats") or [])[place.axis : place.axis + 1] == [1])
    return at.alike(place)


def _expand(at: At) -> list[Way]:
    place = at.only(0)
    new = place._replace(axis=place.axis + len(at.made()) - len(at.shape(0)))
    target = at.constant(1)
    back = new.axis - len(at.made()) + len(target or ())
    at.apart(target is None or back < 0 or target[back] == 1)
    return at.alike(new)


def _resize(at: At) -> list[Way]:
    place = at.only(0)
    at.apart(at.made()[place.axis] == at.shape(0)[place.axis] and (len(at.inputs) < 4 or not at.inputs[3]))
    return at.alike(place)


def _cumsum(at: At) -> list[Way]:
    place, axis = at.only(0), at.constant(1)
    at.apart(axis is not None and axis[0] % len(at.shape(0)) != place.axis)
    return at.alike(place)


def _scaled(at: At) -> list[Way]:
    """What is quantised by scales that are constants: one, or one for each entry of another axis."""
    place = at.only(0)
    many = math.prod(at.shape(1)) > 1
    at.apart(not many or at.attribute("axis", 1) % len(at.shape(0)) != place.axis)
    return at.alike(place)


def _einsum(at: At) -> list[Way]:
    equation = at.attribute("equation", b"").decode().replace(" ", "")
    given, arrow, made = equation.partition("->")
    terms = given.split(",")
    at.apart(bool(arrow) and "." not in equation)
    letters = {term[place.axis] for n, term in enumerate(terms) if (place := at.place(n)) is not None}
    at.apart(len(letters) == 1 and letters <= set(made))
    (letter,) = letters
    for n, term in enumerate(terms):
        at.apart((letter in term) == (at.place(n) is not None))
    places = {place._replace(axis=made.index(letter)) for n in range(len(terms)) if (place := at.place(n)) is not None}
    at.apart(len(places) == 1)
    return at.alike(places.pop())


_ELEMENTWISE: Final = (
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift Cast Ceil Celu Clip Cos Cosh Div Dropout Elu Equal Erf Exp"
    " Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max"
    " Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus"
    " Softsign Sqrt Sub Sum Tan Tanh ThresholdedRelu Where Xor"
)
_ON_FIRST: Final = (
    "AveragePool BatchNormalization Conv ConvInteger ConvTranspose DepthToSpace GlobalAveragePool GlobalMaxPool"
    " GroupNormalization InstanceNormalization LRN MaxPool SpaceToDepth"
)
_REDUCTIONS: Final = (
    "ArgMax ArgMin ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum"
    " ReduceSumSquare"
)
RULES: Final[Mapping[str, Callable[[At], list[Way]]]] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_ON_FIRST.split(), _first),
    **dict.fromkeys(_REDUCTIONS.split(), _reduce),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("MatMul", "MatMulInteger"), _matmul),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _scaled),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    "Concat": _concat,
    "CumSum": _cumsum,
    "Einsum": _einsum,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "LayerNormalization": _behind,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _along("axis", 0),
    "Squeeze": _squeeze,
    "Tile": _tile,
    "TopK": _along("axis", -1),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
