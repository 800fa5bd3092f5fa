"""Operations that move values and change none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from amplint.graph.ranges.domain import CELLS, Box, flushed, limit, make, merge
from amplint.graph.ranges.transfer.table import Call, transfer


def moved(box: Box, shape: tuple[int, ...], move: Callable[[Tensor], Tensor], **known: Any) -> Box:
    """The box with its cells and those of its logarithm moved by a function that leaves the first dimension alone."""
    log = None
    if box.log is not None and box.log.shape[1:] == box.cells.shape[1:]:
        log = move(box.log)
    known = {"form": None, "of": None, "exact": None, **known}
    return limit(replace(box, shape=shape, cells=move(box.cells), log=log, **known))


def reshaped(box: Box, shape: tuple[int, ...]) -> Box:
    """A box in another shape: cells survive where the dimensions they tell apart do."""
    old = box.shape
    if box.cells[0].numel() == 1 or 0 in old or 0 in shape:
        return moved(box, shape, lambda cells: cells.reshape(-1, *[1] * len(shape)) if cells[0].numel() == 1 else cells)
    plan = []  # (old dimensions, new dimensions) of equal size
    i = j = 0
    while i < len(old) or j < len(shape):
        start = (i, j)
        left = right = 1
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(shape):
            right, j = shape[j], j + 1
        while left != right:
            if left < right and i < len(old):
                left, i = left * old[i], i + 1
            elif j < len(shape):
                right, j = right * shape[j], j + 1
            else:
                break
        plan.append((range(start[0], i), range(start[1], j)))
    sizes: list[int] = []
    held = box.cells[0].numel()
    grown = list(box.cells.shape)
    for before, after in plan:
        part = [box.cells.shape[1 + dim] for dim in before]
        whole = [old[dim] for dim in before]
        if all(size == 1 for size in part):
            sizes += [1] * len(after)
            continue
        if part != whole:
            missing = [dim for dim, size in zip(before, part, strict=True) if size != old[dim]]
            extra = 1
            for dim in missing:
                extra *= old[dim]
            split = _splits(part, whole, [shape[dim] for dim in after])
            if split is not None:
                sizes += split
                continue
            if held * extra > CELLS:
                box = merge(box, list(before))
                grown = list(box.cells.shape) if held else grown
                sizes += [1] * len(after)
                continue
            target = list(box.cells.shape)
            for dim in missing:
                target[1 + dim] = old[dim]
            log = box.log
            if log is not None and log.shape[1:] == box.cells.shape[1:]:
                log = log.expand(2, *target[1:])
            box = replace(box, cells=box.cells.expand(target), log=log)
            held *= extra
        sizes += [shape[dim] for dim in after]
    return moved(box, shape, lambda cells: cells.reshape(cells.shape[0], *sizes))


def _splits(part: list[int], whole: list[int], after: list[int]) -> list[int] | None:
    """(T, C) with cells (1, C) into (…, C): the last dimension keeps its cells if the new one ends with it, too."""
    if len(part) > 1 and len(after) > 1 and part[-1] == whole[-1] == after[-1] and set(part[:-1]) == {1}:
        return [1] * (len(after) - 1) + [after[-1]]
    if len(part) > 1 and len(after) > 1 and part[0] == whole[0] == after[0] and set(part[1:]) == {1}:
        return [after[0]] + [1] * (len(after) - 1)
    return None


@transfer(
    "view reshape _unsafe_view flatten unsqueeze squeeze unflatten view_as reshape_as _reshape_alias ravel",
    structural=True,
)
def _reshape(call: Call) -> Box:
    box = call.box("self")
    if call.name == "unflatten" and box.shape and len(call.shape) > len(box.shape):
        return reshaped(box, call.shape)
    if call.name == "view" and isinstance(call.get("dtype"), torch.dtype):
        return make(call.shape, float("-inf"), float("inf"), unknown="view.dtype")
    result = reshaped(box, call.shape)
    return replace(result, form=_norm_form(box))


def _norm_form(box: Box) -> tuple[Any, ...] | None:
    """A norm kept or given its dimension back is still the norm."""
    return box.form if box.form and len(box.form) == 4 else None


@transfer(
    "permute transpose t swapaxes movedim numpy_T mT adjoint",
    structural=True,
)
def _permute(call: Call) -> Box:
    box = call.box("self")
    rank = len(box.shape)
    if call.name == "numpy_T":
        order = list(range(rank))[::-1]
    elif call.name == "permute":
        order = [dim % rank for dim in call["dims"]]
    elif call.name == "movedim":
        source, target = call["source"], call["destination"]
        source = [source] if isinstance(source, int) else list(source)
        target = [target] if isinstance(target, int) else list(target)
        order = _moved_order(rank, source, target)
    else:
        first, second = _swapped(call, rank)
        order = list(range(rank))
        if rank > 1:
            order[first], order[second] = order[second], order[first]
    form = None
    if rank > 1 and order == [*range(rank - 2), rank - 1, rank - 2]:
        form = ("transposed", call.source("self"))
    return moved(box, call.shape, lambda cells: cells.permute(0, *(dim + 1 for dim in order)), form=form)


def _swapped(call: Call, rank: int) -> tuple[int, int]:
    names = [name for name in ("dim0", "dim1", "axis0", "axis1") if name in call]
    if len(names) == 2:
        return call[names[0]] % max(rank, 1), call[names[1]] % max(rank, 1)
    return max(rank - 2, 0), max(rank - 1, 0)


def _moved_order(rank: int, source: list[int], target: list[int]) -> list[int]:
    source, target = [one % rank for one in source], [one % rank for one in target]
    order = [-1] * rank
    for one, to in zip(source, target, strict=True):
        order[to] = one
    rest = iter(dim for dim in range(rank) if dim not in source)
    return [dim if dim >= 0 else next(rest) for dim in order]


@transfer("expand expand_as broadcast_to", structural=True)
def _expand(call: Call) -> Box:
    box = call.box("self")
    extra = len(call.shape) - len(box.shape)
    form = None
    if box.form and len(box.form) == 4 and (1,) * extra + box.shape == box.form[3]:
        form = (*box.form[:3], call.shape)
    return moved(
        box, call.shape, lambda cells: cells.reshape(cells.shape[0], *[1] * extra, *cells.shape[1:]), form=form
    )


@transfer("repeat tile repeat_interleave roll flip rot90", structural=True)
def _repeat(call: Call) -> Box:
    box = call.box("self" if "self" in call else "repeats")
    extra = len(call.shape) - len(box.shape)
    if extra < 0:
        return reshaped(merge(box, list(range(len(box.shape)))), call.shape)
    if extra:
        box = moved(
            box, (1,) * extra + box.shape, lambda cells: cells.reshape(cells.shape[0], *[1] * extra, *cells.shape[1:])
        )
    rolled = call.name in ("roll", "flip", "rot90")
    changed = [dim for dim in range(len(call.shape)) if call.shape[dim] != box.shape[dim]]
    if rolled:
        changed = [dim % len(call.shape) for dim in call.get("dims", list(range(len(call.shape))))]
    box = merge(box, changed)
    return moved(box, call.shape, lambda cells: cells)


@transfer("slice select narrow", structural=True)
def _slice(call: Call) -> Box:
    box = call.box("self")
    dim = int(call.get("dim", 0)) % len(box.shape)
    if call.name == "select":
        return moved(
            box, call.shape, lambda cells: cells.select(dim + 1, int(call["index"]) if cells.shape[dim + 1] > 1 else 0)
        )
    if box.cells.shape[dim + 1] == 1:
        return moved(box, call.shape, lambda cells: cells)
    start = call.get("start", 0)
    if not isinstance(start, int):
        return moved(merge(box, [dim]), call.shape, lambda cells: cells)
    size, step = box.shape[dim], int(call.get("step", 1))
    start = max(start + size, 0) if start < 0 else min(start, size)
    stop = start + (call.shape[dim] - 1) * step + 1
    return moved(box, call.shape, lambda cells: _cut(cells, dim + 1, start, stop, step))


def _cut(cells: Tensor, dim: int, start: int, stop: int, step: int = 1) -> Tensor:
    index: list[Any] = [slice(None)] * cells.ndim
    index[dim] = slice(start, max(stop, start), step)
    return cells[tuple(index)]


@transfer("split split_with_sizes chunk tensor_split unsafe_split", structural=True)
def _split(call: Call) -> tuple[Box, ...]:
    box = call.box("self")
    dim = int(call.get("dim", 0)) % len(box.shape)
    parts, start = [], 0
    for val in call.vals:
        shape = tuple(int(size) for size in val.shape)
        stop = start + shape[dim]
        if box.cells.shape[dim + 1] == 1:
            parts.append(moved(box, shape, lambda cells: cells))
        else:
            parts.append(moved(box, shape, lambda cells, start=start, stop=stop: _cut(cells, dim + 1, start, stop)))  # type: ignore[misc]
        start = stop
    return tuple(parts)


@transfer("unbind", structural=True)
def _unbind(call: Call) -> tuple[Box, ...]:
    box = call.box("self")
    dim = int(call.get("dim", 0)) % len(box.shape)
    shape = box.shape[:dim] + box.shape[dim + 1 :]
    held = box.cells.shape[dim + 1] > 1
    return tuple(
        moved(box, shape, lambda cells, index=index: cells.select(dim + 1, index if held else 0))  # type: ignore[misc]
        for index in range(len(call.vals))
    )


@transfer("cat concat concatenate stack hstack vstack column_stack", structural=True)
def _cat(call: Call) -> Box:
    boxes = [box for box in call.listed("tensors") if box.size]
    if call.name in ("hstack", "vstack", "column_stack"):
        return joined(call, boxes)
    if call.name == "stack":
        rank = len(call.shape)
        dim = int(call.get("dim", 0)) % rank
        boxes = [
            moved(box, (*box.shape[:dim], 1, *box.shape[dim:]), lambda cells: cells.unsqueeze(dim + 1)) for box in boxes
        ]
    else:
        dim = int(call.get("dim", 0)) % len(call.shape)
    sizes = [_common([_without(box, dim) for box in boxes])]
    if sizes[0].numel() * call.shape[dim] > CELLS:
        boxes = [merge(box, [one for one in range(len(call.shape)) if one != dim]) for box in boxes]
        sizes = [torch.Size([1] * len(call.shape))]
    if sizes[0].numel() * call.shape[dim] > CELLS or len(boxes) == 0:
        return joined(call, boxes)
    parts = []
    for box in boxes:
        target = list(sizes[0])
        target[dim] = box.shape[dim]
        parts.append(box.cells.expand(6, *target))
    return limit(Box(call.shape, torch.cat(parts, dim + 1), **_either(boxes)))


def _common(sizes: list[list[int]]) -> torch.Size:
    return torch.Size(torch.broadcast_shapes(*sizes))  # type: ignore[no-untyped-call]


def _without(box: Box, dim: int) -> list[int]:
    sizes = list(box.cells.shape[1:])
    sizes[dim] = 1
    return sizes


def _either(boxes: list[Box]) -> dict[str, Any]:
    """What holds of a tensor that is made of these."""
    size = sum(box.size for box in boxes) or 1
    flush = None
    if any(box.flush is not None or box.log is not None for box in boxes):
        flush = sum(flushed(box) * box.size for box in boxes if not bool(torch.isnan(box.cells[2:]).any())) / size
    return {
        "zero": any(box.zero for box in boxes),
        "infinite": any(box.infinite for box in boxes),
        "masked": sum(box.masked * box.size for box in boxes) / size,
        "flush": flush,
        "unknown": next((box.unknown for box in boxes if box.unknown), ""),
    }


def joined(call: Call, boxes: list[Box], weights: list[float] | None = None) -> Box:
    """A tensor whose elements come from these boxes, nobody knows where: one cell."""
    weights = weights or [float(box.size) for box in boxes]
    whole = sum(weights) or 1.0
    rank = len(call.shape)
    plain = [merge(box, list(range(len(box.shape)))).cells.reshape(6) for box in boxes]
    mean = sum(w * one[2] for w, one in zip(weights, plain, strict=True)) / whole
    square = sum(w * (one[3] + one[2] ** 2) for w, one in zip(weights, plain, strict=True)) / whole
    every = torch.stack(plain)
    parts = [every[:, 0].min(), every[:, 1].max(), mean, square - mean**2, every[:, 4].min(), every[:, 5].max()]
    return make(call.shape, *(torch.as_tensor(part).reshape((1,) * rank) for part in parts), **_either(boxes))


@transfer(
    "pixel_shuffle pixel_unshuffle unfold im2col channel_shuffle diagonal tril triu",
    structural=True,
)
def _anywhere(call: Call) -> Box:
    """Values keep, places change: one cell."""
    box = call.box("self" if "self" in call else "input")
    whole = merge(box, list(range(len(box.shape))))
    result = reshaped(replace(whole, flush=box.flush), call.shape)
    if call.name in ("tril", "triu", "im2col"):
        cells = result.cells.clone()
        cells[0].clamp_max_(0), cells[1].clamp_min_(0)
        result = replace(result, cells=cells, zero=True)
    return result


@transfer("view_as_real view_as_complex real imag conj", structural=True)
def _complex(call: Call) -> Box:
    """Complex numbers: a box of their parts."""
    box = call.box("self")
    return reshaped(merge(box, list(range(len(box.shape)))), call.shape)


@transfer("_to_copy to type_as clone contiguous detach alias lift_fresh lift_fresh_copy", structural=True)
def _same(call: Call) -> Box:
    """Casts and copies. To an integer the fraction is cut off."""
    box = call.box("self")
    if call.dtype == torch.bool:
        return make(call.shape, 0, 1, 0.5 if box.zero else 1.0, 0.25 if box.zero else 0.0, zero=box.zero)
    if not call.dtype.is_floating_point and not call.dtype.is_complex:
        low = torch.trunc(box.low)
        return make(call.shape, low, torch.trunc(box.high), *box.cells[2:], zero=box.zero or bool((low <= 0).any()))
    return replace(box, exact=None)


@transfer("nan_to_num")
def _nan_to_num(call: Call) -> Box:
    box = call.box("self")
    least, most = call.get("neginf", -3.4028234663852886e38), call.get("posinf", 3.4028234663852886e38)
    nan = call.get("nan", 0.0)
    low, high = box.low.clamp(min(least, most)).clamp_max(nan), box.high.clamp_max(most).clamp_min(nan)
    return make(call.shape, low, high, *box.cells[2:], zero=True)
