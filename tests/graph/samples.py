"""Calls of every operation that has a transfer function: what test_transfer.py runs and compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

aten = torch.ops.aten


@dataclass(frozen=True)
class Given:
    """A tensor of a call. normal: mean a, deviation b, within 6 deviations; uniform: from a to b; integer: from a to
    b - 1; bool: True with share a; weight: a constant, normal with mean a and deviation b."""

    kind: str
    shape: tuple[int, ...]
    a: float = 0.0
    b: float = 1.0


@dataclass(frozen=True)
class Sample:
    """One call. `bits`: how far log2(estimate / true) of the largest |x| may be off; None: no estimate is expected."""

    op: Any
    args: tuple[Any, ...]
    bits: float | None = 0.7
    kwargs: dict[str, Any] = field(default_factory=dict)


def n(*shape: int, mean: float = 0.0, std: float = 1.0) -> Given:
    return Given("normal", shape, mean, std)


def u(low: float, high: float, *shape: int) -> Given:
    return Given("uniform", shape, low, high)


def i(low: int, high: int, *shape: int) -> Given:
    return Given("integer", shape, low, high)


def b(*shape: int, share: float = 0.5) -> Given:
    return Given("bool", shape, share)


def w(*shape: int, mean: float = 0.0, std: float = 1.0) -> Given:
    return Given("weight", shape, mean, std)


def s(op: Any, *args: Any, bits: float | None = 0.7, **kwargs: Any) -> Sample:
    return Sample(op, args, bits, kwargs)


X = n(16, 64)
WIDE = n(16, 64, mean=1.0, std=3.0)
POSITIVE = u(0.5, 4.0, 16, 64)
IMAGE = n(4, 8, 12, 12)
SIGNAL = n(4, 8, 48)
VOLUME = n(2, 4, 6, 6, 6)
WHOLE = i(1, 9, 16, 64)
TOKENS = n(2, 4, 32, 16)

SAMPLES: dict[str, list[Sample]] = {}


def _simple(names: str, *givens: Given, bits: float | None = 0.7, args: tuple[Any, ...] = ()) -> None:
    """Operations of one tensor and these further arguments."""
    for name in names.split():
        SAMPLES[name] = [s(getattr(aten, name).default, given, *args, bits=bits) for given in givens]


_simple(
    "relu relu6 gelu silu mish hardswish hardsigmoid elu selu celu leaky_relu sigmoid log_sigmoid tanh softplus erf "
    "abs neg square sign sgn floor ceil trunc round atan asinh hardshrink softshrink hardtanh sin cos frac",
    X,
    WIDE,
    bits=1.0,
)
for _name in ("exp", "exp2", "expm1", "sinh", "cosh"):  # one element decides: the largest
    SAMPLES[_name] = [s(getattr(aten, _name).default, X, bits=2.0), s(getattr(aten, _name).default, WIDE, bits=8.0)]
_simple("erfc", X)
_simple("log log2 log10 log1p sqrt rsqrt reciprocal", POSITIVE, bits=1.0)
SAMPLES["log"].append(s(aten.log.default, u(1e-6, 1.0, 16, 64), bits=1.5))
SAMPLES["gelu"].append(s(aten.gelu.default, X, approximate="tanh"))
SAMPLES["reciprocal"].append(s(aten.reciprocal.default, X, bits=None))
_simple("isnan isinf isfinite isneginf isposinf logical_not signbit any all", X, bits=None)
_simple("clone contiguous detach alias lift_fresh lift_fresh_copy nan_to_num ravel", X)
_simple("median mode argmax argmin argsort nonzero", X, bits=None)
_simple("t", n(16, 64))
SAMPLES |= {
    "_to_copy": [s(aten._to_copy.default, X), s(aten._to_copy.default, WIDE, dtype=torch.int64, bits=None)],
    "to": [s(aten.to.dtype, X, torch.float64), s(aten.to.dtype, X, torch.bool, bits=None)],
    "type_as": [s(aten.type_as.default, X, n(2))],
    "clamp": [
        s(aten.clamp.default, WIDE, -2.0, 2.5),
        s(aten.clamp.default, WIDE, None, 1.0),
        s(aten.clamp.Tensor, WIDE, n(16, 64), None, bits=1.0),
    ],
    "clamp_min": [s(aten.clamp_min.default, X, 0.5)],
    "clamp_max": [s(aten.clamp_max.default, X, 0.5)],
    "clip": [s(aten.clip.default, X, -1.0, 1.0)],
    "pow": [
        s(aten.pow.Tensor_Scalar, X, 2),
        s(aten.pow.Tensor_Scalar, WIDE, 3),
        s(aten.pow.Tensor_Scalar, POSITIVE, -0.5, bits=1.0),
        s(aten.pow.Tensor_Scalar, POSITIVE, 1.7, bits=1.0),
        s(aten.pow.Scalar, 10000.0, u(0, 1, 16, 64), bits=3.0),
        s(aten.pow.Tensor_Scalar, X, -1, bits=None),
        s(aten.pow.Tensor_Scalar, X, -2, bits=None),
    ],
    "add": [
        s(aten.add.Tensor, X, WIDE),
        s(aten.add.Tensor, X, n(64), alpha=-3),
        s(aten.add.Tensor, X, 5.0),
        s(aten.add.Tensor, n(16, 1), w(64, std=2.0)),
    ],
    "sub": [s(aten.sub.Tensor, X, WIDE), s(aten.sub.Tensor, X, 2.0)],
    "subtract": [s(aten.subtract.Tensor, X, WIDE)],
    "rsub": [s(aten.rsub.Scalar, X, 1.0), s(aten.rsub.Tensor, X, WIDE)],
    "mul": [s(aten.mul.Tensor, X, WIDE, bits=1.0), s(aten.mul.Tensor, WIDE, -0.1), s(aten.mul.Tensor, X, w(64))],
    "multiply": [s(aten.multiply.Tensor, X, X, bits=1.0)],
    "div": [
        s(aten.div.Tensor, X, POSITIVE, bits=1.5),
        s(aten.div.Tensor, X, -8.0),
        s(aten.div.Tensor_mode, WIDE, 2.0, rounding_mode="floor"),
        s(aten.div.Tensor_mode, WIDE, POSITIVE, rounding_mode="trunc", bits=1.5),
        s(aten.div.Tensor, X, WIDE, bits=None),
    ],
    "divide": [s(aten.divide.Tensor, X, 4.0)],
    "true_divide": [s(aten.true_divide.Tensor, X, POSITIVE, bits=1.5)],
    "maximum": [s(aten.maximum.default, X, WIDE, bits=1.0)],
    "minimum": [s(aten.minimum.default, X, WIDE, bits=1.0)],
    "fmax": [s(aten.fmax.default, X, WIDE, bits=1.0)],
    "fmin": [s(aten.fmin.default, X, WIDE, bits=1.0)],
    "addcmul": [s(aten.addcmul.default, X, X, WIDE, value=0.5, bits=1.0)],
    "addcdiv": [s(aten.addcdiv.default, X, X, POSITIVE, value=-2.0, bits=1.5)],
    "lerp": [s(aten.lerp.Tensor, X, WIDE, u(0, 1, 16, 64), bits=1.0), s(aten.lerp.Scalar, X, WIDE, 1.5, bits=1.0)],
    "atan2": [s(aten.atan2.default, X, WIDE)],
    "remainder": [s(aten.remainder.Scalar, WHOLE, 4), s(aten.remainder.Scalar, WIDE, 2.0)],
    "fmod": [s(aten.fmod.Scalar, WIDE, 2.0)],
    "floor_divide": [s(aten.floor_divide.Scalar, WHOLE, 2), s(aten.floor_divide.Scalar, WIDE, -3.0)],
    "logical_and": [s(aten.logical_and.default, b(4, 4), b(4, 4), bits=None)],
    "logical_or": [s(aten.logical_or.default, b(4, 4), b(4, 4), bits=None)],
    "logical_xor": [s(aten.logical_xor.default, b(4, 4), b(4, 4), bits=None)],
    "bitwise_not": [s(aten.bitwise_not.default, b(4, 4), bits=None), s(aten.bitwise_not.default, WHOLE, bits=None)],
    "isin": [s(aten.isin.Tensor_Tensor, WHOLE, i(0, 9, 3), bits=None)],
}
for _name in ("bitwise_and", "bitwise_or", "bitwise_xor", "__and__", "__or__", "__xor__"):
    SAMPLES[_name] = [s(getattr(aten, _name).Tensor, one, one, bits=None) for one in (b(4, 4), WHOLE)]
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    SAMPLES[_name] = [
        s(getattr(aten, _name).Tensor, WHOLE, WHOLE, bits=None),
        s(getattr(aten, _name).Scalar, X, 0.5, bits=None),
    ]

# views
SAMPLES |= {
    "view": [s(aten.view.default, n(4, 6, 8), [24, 8]), s(aten.view.default, w(4, 6, 8), [2, 2, 48])],
    "reshape": [s(aten.reshape.default, w(4, 6, 8), shape) for shape in ([192], [4, 48], [8, 3, 8], [4, 2, 3, 2, 4])],
    "_unsafe_view": [s(aten._unsafe_view.default, n(4, 6), [24])],
    "_reshape_alias": [s(aten._reshape_alias.default, n(4, 6), [24], [1])],
    "view_as": [s(aten.view_as.default, n(4, 6), n(24))],
    "reshape_as": [s(aten.reshape_as.default, n(4, 6), n(24))],
    "flatten": [s(aten.flatten.using_ints, w(4, 6, 8), 1)],
    "unflatten": [s(aten.unflatten.int, w(4, 24), 1, [3, 8])],
    "unsqueeze": [s(aten.unsqueeze.default, w(4, 6), -1)],
    "squeeze": [s(aten.squeeze.dim, w(4, 1, 6), 1), s(aten.squeeze.default, w(4, 1, 6))],
    "permute": [s(aten.permute.default, w(4, 6, 8), [2, 0, -2])],
    "transpose": [s(aten.transpose.int, w(4, 6, 8), -1, 0)],
    "numpy_T": [s(aten.numpy_T.default, w(4, 6))],
    "mT": [s(aten.mT.default, w(3, 4, 6))],
    "adjoint": [s(aten.adjoint.default, w(3, 4, 6))],
    "swapaxes": [s(aten.swapaxes.default, w(4, 6, 8), 0, 1)],
    "movedim": [s(aten.movedim.int, w(4, 6, 8), 0, 2), s(aten.movedim.intlist, w(4, 6, 8), [0, 1], [2, 0])],
    "expand": [s(aten.expand.default, w(6, 1), [3, 6, 8])],
    "expand_as": [s(aten.expand_as.default, w(6, 1), n(6, 8))],
    "broadcast_to": [s(aten.broadcast_to.default, w(6, 1), [6, 8])],
    "repeat": [s(aten.repeat.default, w(2, 3), [2, 2, 1])],
    "tile": [s(aten.tile.default, w(2, 3), [2, 1])],
    "repeat_interleave": [s(aten.repeat_interleave.self_int, w(2, 3), 2, 1)],
    "roll": [s(aten.roll.default, w(6, 8), [2], [1]), s(aten.roll.default, w(6, 8), [5])],
    "flip": [s(aten.flip.default, w(6, 8), [0])],
    "rot90": [s(aten.rot90.default, w(6, 8), 1, [0, 1])],
    "slice": [s(aten.slice.Tensor, w(6, 8), 1, 2, -1, 2), s(aten.slice.Tensor, w(6, 8), 0, -3, 9223372036854775807)],
    "select": [s(aten.select.int, w(6, 8), 1, -2)],
    "narrow": [s(aten.narrow.default, w(6, 8), 1, 2, 4)],
    "split": [s(aten.split.Tensor, w(6, 8), 3, 1)],
    "split_with_sizes": [s(aten.split_with_sizes.default, w(6, 8), [5, 3], 1)],
    "chunk": [s(aten.chunk.default, w(6, 8), 2, 1)],
    "tensor_split": [s(aten.tensor_split.sections, w(6, 8), 3, 1)],
    "unsafe_split": [s(aten.unsafe_split.Tensor, w(6, 8), 3, 1)],
    "unbind": [s(aten.unbind.int, w(3, 8), 0)],
    "cat": [
        s(aten.cat.default, [X, WIDE], 1),
        s(aten.cat.default, [w(4, 6), n(2, 6)], 0),
        s(aten.cat.default, [n(1, 512, 9), w(1, 512, 1)], 2, bits=1.0),
    ],
    "concat": [s(aten.concat.default, [X, WIDE], 0)],
    "concatenate": [s(aten.concatenate.default, [X, WIDE], 0)],
    "stack": [s(aten.stack.default, [X, WIDE], 1)],
    "hstack": [s(aten.hstack.default, [X, WIDE])],
    "vstack": [s(aten.vstack.default, [X, WIDE])],
    "column_stack": [s(aten.column_stack.default, [X, WIDE])],
    "pixel_shuffle": [s(aten.pixel_shuffle.default, IMAGE, 2)],
    "pixel_unshuffle": [s(aten.pixel_unshuffle.default, IMAGE, 2)],
    "channel_shuffle": [s(aten.channel_shuffle.default, IMAGE, 2)],
    "unfold": [s(aten.unfold.default, w(4, 12), 1, 4, 2)],
    "im2col": [s(aten.im2col.default, IMAGE, [3, 3], [1, 1], [1, 1], [1, 1])],
    "diagonal": [s(aten.diagonal.default, w(8, 8), bits=1.5)],
    "tril": [s(aten.tril.default, X)],
    "triu": [s(aten.triu.default, X)],
    "view_as_complex": [s(aten.view_as_complex.default, n(4, 2), bits=None)],
    "view_as_real": [],
    "real": [],
    "imag": [],
    "conj": [],
}

# contractions
_DEEP = w(32, 64, std=0.2)
SAMPLES |= {
    "linear": [
        s(aten.linear.default, X, _DEEP, w(32)),
        s(aten.linear.default, n(2, 8, 64, mean=2.0), _DEEP),
        s(aten.linear.default, X, n(32, 64)),
        s(aten.linear.default, n(64), _DEEP, bits=1.5),
    ],
    "addmm": [
        s(aten.addmm.default, w(32), X, w(64, 32)),
        s(aten.addmm.default, w(32), X, w(64, 32), beta=0.5, alpha=2),
    ],
    "conv1d": [
        s(aten.conv1d.default, SIGNAL, w(6, 8, 3), w(6)),
        s(aten.conv1d.default, SIGNAL, w(8, 1, 3), None, [1], [1], [1], 8),
    ],
    "conv2d": [
        s(aten.conv2d.default, IMAGE, w(6, 8, 3, 3), w(6), [2, 2], [1, 1]),
        s(aten.conv2d.default, IMAGE, w(8, 4, 3, 3), None, [1, 1], [0, 0], [1, 1], 2),
        s(aten.conv2d.default, n(4, 8, 12, 12, mean=3), w(16, 1, 3, 3), None, [1, 1], [1, 1], [1, 1], 8),
        s(aten.conv2d.padding, IMAGE, w(6, 8, 3, 3), None, [1, 1], "same"),
        s(aten.conv2d.default, IMAGE, n(6, 8, 3, 3), w(6)),
    ],
    "conv3d": [s(aten.conv3d.default, VOLUME, w(4, 4, 3, 3, 3), w(4))],
    "convolution": [
        s(aten.convolution.default, IMAGE, w(6, 8, 3, 3), w(6), [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
        s(aten.convolution.default, IMAGE, w(8, 3, 2, 2), None, [2, 2], [0, 0], [1, 1], True, [0, 0], 2),
    ],
    "_convolution": [
        s(
            aten._convolution.default,
            IMAGE,
            w(6, 8, 3, 3),
            w(6),
            [1, 1],
            [1, 1],
            [1, 1],
            False,
            [0, 0],
            1,
            False,
            False,
            True,
            True,
        )
    ],
    "conv_transpose1d": [s(aten.conv_transpose1d.default, SIGNAL, w(8, 6, 4), w(6), [2])],
    "conv_transpose2d": [
        s(aten.conv_transpose2d.input, IMAGE, w(8, 6, 4, 4), w(6), [2, 2], [1, 1]),
        s(aten.conv_transpose2d.input, IMAGE, w(8, 3, 2, 2), None, [2, 2], [0, 0], [0, 0], 2),
    ],
    "conv_transpose3d": [s(aten.conv_transpose3d.input, VOLUME, w(4, 3, 2, 2, 2))],
    "matmul": [
        s(aten.matmul.default, TOKENS, n(2, 4, 16, 32)),
        s(aten.matmul.default, X, w(64, 32)),
        s(aten.matmul.default, n(64), n(64), bits=None),
        s(aten.matmul.default, n(16, 64, mean=2.0), n(64, 8)),
        s(aten.matmul.default, w(8, 8), n(4, 8, 6)),
    ],
    "_grouped_mm": [
        s(aten._grouped_mm.default, n(16, 32), matrices, Given("offsets", (4,), 4))
        for matrices in (w(4, 32, 16), n(4, 32, 16, mean=1.0))
    ],
    "mm": [s(aten.mm.default, X, n(64, 16))],
    "bmm": [s(aten.bmm.default, n(4, 16, 32), n(4, 32, 8))],
    "mv": [s(aten.mv.default, X, n(64), bits=1.2)],
    "dot": [s(aten.dot.default, n(64), n(64), bits=None)],
    "inner": [s(aten.inner.default, n(64), n(64), bits=None)],
    "baddbmm": [s(aten.baddbmm.default, n(4, 16, 8), n(4, 16, 32), n(4, 32, 8), beta=0.5, alpha=0.2)],
    "addmv": [s(aten.addmv.default, n(16), X, n(64), bits=1.2)],
    "einsum": [
        s(aten.einsum.default, "bhid,bhjd->bhij", [TOKENS, TOKENS], bits=1.0),
        s(aten.einsum.default, "bij,jk", [n(4, 8, 16), w(16, 6)]),
        s(aten.einsum.default, "...ij->...i", [n(4, 8, 16)], bits=1.0),
        s(aten.einsum.default, "i,j->ij", [n(32), n(48)], bits=1.0),
    ],
    "scaled_dot_product_attention": [
        s(aten.scaled_dot_product_attention.default, TOKENS, TOKENS, TOKENS, bits=1.0),
        s(aten.scaled_dot_product_attention.default, TOKENS, TOKENS, TOKENS, None, 0.0, True, bits=1.0),
        s(aten.scaled_dot_product_attention.default, TOKENS, TOKENS, TOKENS, w(32, 32), bits=1.2),
    ],
    "_scaled_dot_product_flash_attention_for_cpu": [
        s(aten._scaled_dot_product_flash_attention_for_cpu.default, TOKENS, TOKENS, TOKENS, bits=1.0)
    ],
    "bilinear": [s(aten.bilinear.default, X, n(16, 8), w(4, 64, 8), w(4))],
    "cdist": [s(aten.cdist.default, X, n(8, 64), bits=1.0)],
    "cosine_similarity": [s(aten.cosine_similarity.default, X, X, bits=1.5)],
}

# normalisation
_CHANNELS = w(8, mean=1.0, std=0.3)
SAMPLES |= {
    "layer_norm": [
        s(aten.layer_norm.default, WIDE, [64], w(64), w(64), bits=1.0),
        s(aten.layer_norm.default, n(4, 6, 8), [6, 8], None, None),
    ],
    "_weight_norm": [s(aten._weight_norm.default, w(16, 8, 3), w(16, 1, 1), 0, bits=1.0)],
    "native_layer_norm": [s(aten.native_layer_norm.default, WIDE, [64], w(64), w(64), 1e-5, bits=1.0)],
    "rms_norm": [s(aten.rms_norm.default, WIDE, [64], w(64), bits=1.0)],
    "_fused_rms_norm": [s(aten._fused_rms_norm.default, WIDE, [64], w(64), 1e-6, bits=1.0)],
    "group_norm": [s(aten.group_norm.default, n(4, 8, 12, 12, std=9), 2, _CHANNELS, w(8))],
    "native_group_norm": [s(aten.native_group_norm.default, IMAGE, _CHANNELS, w(8), 4, 8, 144, 2, 1e-5)],
    "instance_norm": [s(aten.instance_norm.default, IMAGE, _CHANNELS, w(8), None, None, True, 0.1, 1e-5, False)],
    "batch_norm": [
        s(
            aten.batch_norm.default,
            n(4, 8, 12, 12, std=9),
            _CHANNELS,
            w(8),
            w(8),
            w(8, mean=2, std=0.1),
            mode,
            0.1,
            1e-5,
            False,
        )
        for mode in (True, False)
    ],
    "native_batch_norm": [
        s(aten.native_batch_norm.default, IMAGE, _CHANNELS, w(8), w(8), w(8, mean=2, std=0.1), mode, 0.1, 1e-5)
        for mode in (True, False)
    ],
    "_native_batch_norm_legit": [
        s(aten._native_batch_norm_legit.no_stats, IMAGE, _CHANNELS, w(8), True, 0.1, 1e-5),
    ],
    "_native_batch_norm_legit_no_training": [
        s(
            aten._native_batch_norm_legit_no_training.default,
            IMAGE,
            _CHANNELS,
            w(8),
            w(8),
            w(8, mean=2, std=0.1),
            0.1,
            1e-5,
        )
    ],
    "softmax": [s(aten.softmax.int, one, -1, bits=1.5) for one in (X, WIDE, n(16, 64, std=20.0))],
    "_softmax": [s(aten._softmax.default, X, 0, False, bits=1.5)],
    "_safe_softmax": [s(aten._safe_softmax.default, X, -1, bits=1.5)],
    "log_softmax": [s(aten.log_softmax.int, WIDE, -1)],
    "_log_softmax": [s(aten._log_softmax.default, X, -1, False)],
    "dropout": [s(aten.dropout.default, X, 0.3, True), s(aten.dropout.default, X, 0.3, False)],
    "native_dropout": [s(aten.native_dropout.default, X, 0.3, True)],
    "feature_dropout": [s(aten.feature_dropout.default, IMAGE, 0.3, True)],
}

# reductions
SAMPLES |= {
    "sum": [
        s(aten.sum.dim_IntList, WIDE, [1]),
        s(aten.sum.default, X, bits=None),
        s(aten.sum.dim_IntList, POSITIVE, [0], True),
    ],
    "mean": [s(aten.mean.dim, WIDE, [-1], True), s(aten.mean.default, WIDE, bits=None)],
    "nansum": [s(aten.nansum.default, WIDE, [1])],
    "nanmean": [s(aten.nanmean.default, WIDE, [1])],
    "amax": [s(aten.amax.default, X, [1])],
    "amin": [s(aten.amin.default, X, [1])],
    "max": [s(aten.max.dim, X, 1), s(aten.max.default, X, bits=1.0), s(aten.max.other, X, WIDE, bits=1.0)],
    "min": [s(aten.min.dim, X, 1), s(aten.min.default, X, bits=1.0), s(aten.min.other, X, WIDE, bits=1.0)],
    "aminmax": [s(aten.aminmax.default, X, dim=1)],
    "cummax": [s(aten.cummax.default, X, 1)],
    "cummin": [s(aten.cummin.default, X, 1)],
    "kthvalue": [s(aten.kthvalue.default, X, 3, 1, bits=2.0)],
    "searchsorted": [s(aten.searchsorted.Tensor, w(8), X, bits=None)],
    "bucketize": [s(aten.bucketize.Tensor, X, w(8), bits=None)],
    "multinomial": [s(aten.multinomial.default, POSITIVE, 3, bits=None)],
    "histc": [s(aten.histc.default, X, 10, -6, 6, bits=None)],
    "bincount": [s(aten.bincount.default, i(0, 5, 64), bits=None)],
    "sort": [s(aten.sort.default, X, 1)],
    "topk": [s(aten.topk.default, X, 5, 1)],
    "msort": [s(aten.msort.default, X)],
    "var": [s(aten.var.correction, WIDE, [1], correction=1, bits=1.0), s(aten.var.dim, X, [1], False, bits=1.0)],
    "std": [s(aten.std.correction, WIDE, [1], correction=1), s(aten.std.dim, X, [1], True, True)],
    "var_mean": [s(aten.var_mean.correction, WIDE, [1], correction=0, keepdim=True, bits=1.0)],
    "std_mean": [s(aten.std_mean.correction, WIDE, [1], correction=1)],
    "norm": [s(aten.norm.ScalarOpt_dim, X, 2, [1]), s(aten.norm.ScalarOpt_dim, X, 1, [1])],
    "linalg_vector_norm": [
        s(aten.linalg_vector_norm.default, X, 2, [1], True),
        s(aten.linalg_vector_norm.default, X, float("inf"), [1]),
        s(aten.linalg_vector_norm.default, X),
    ],
    "frobenius_norm": [s(aten.frobenius_norm.dim, X, [0, 1])],
    "linalg_norm": [s(aten.linalg_norm.default, X)],
    "logsumexp": [s(aten.logsumexp.default, X, [1]), s(aten.logsumexp.default, WIDE, [1])],
    "cumsum": [s(aten.cumsum.default, X, 1), s(aten.cumsum.default, WIDE, 0)],
    "logcumsumexp": [s(aten.logcumsumexp.default, X, 1, bits=None)],
    "cumprod": [s(aten.cumprod.default, u(0, 1, 4, 8), 1, bits=None), s(aten.cumprod.default, n(4, 4), 1, bits=None)],
    "prod": [s(aten.prod.dim_int, u(0.9, 1.1, 4, 8), 1), s(aten.prod.default, n(2, 3), bits=None)],
}

# pooling and interpolation
for _count, _given in ((1, SIGNAL), (2, IMAGE), (3, VOLUME)):
    _two = [2] * _count
    SAMPLES |= {
        f"max_pool{_count}d": [s(getattr(aten, f"max_pool{_count}d").default, _given, _two)],
        f"avg_pool{_count}d": [
            s(getattr(aten, f"avg_pool{_count}d").default, _given, _two, _two, [1] * _count, bits=1.0)
        ],
        f"adaptive_max_pool{_count}d": [s(getattr(aten, f"adaptive_max_pool{_count}d").default, _given, _two)],
        f"adaptive_avg_pool{_count}d": [
            s(getattr(aten, f"adaptive_avg_pool{_count}d").default, _given, _two, bits=1.0)
        ],
        f"reflection_pad{_count}d": [s(getattr(aten, f"reflection_pad{_count}d").default, _given, [1, 2] * _count)],
        f"replication_pad{_count}d": [s(getattr(aten, f"replication_pad{_count}d").default, _given, [1, 2] * _count)],
        f"upsample_nearest{_count}d": [
            s(getattr(aten, f"upsample_nearest{_count}d").vec, _given, None, [2.0] * _count)
        ],
    }
SAMPLES |= {
    "max_pool2d_with_indices": [s(aten.max_pool2d_with_indices.default, IMAGE, [3, 3], [2, 2], [1, 1])],
    "max_pool3d_with_indices": [s(aten.max_pool3d_with_indices.default, VOLUME, [2, 2, 2])],
    "_adaptive_avg_pool2d": [s(aten._adaptive_avg_pool2d.default, IMAGE, [1, 1], bits=1.0)],
    "_adaptive_avg_pool3d": [s(aten._adaptive_avg_pool3d.default, VOLUME, [1, 1, 1], bits=1.0)],
    "upsample_linear1d": [s(aten.upsample_linear1d.vec, SIGNAL, None, False, [2.0], bits=1.0)],
    "upsample_bilinear2d": [s(aten.upsample_bilinear2d.vec, IMAGE, None, True, [2.0, 2.0], bits=1.0)],
    "upsample_trilinear3d": [s(aten.upsample_trilinear3d.vec, VOLUME, None, False, [2.0, 2.0, 2.0], bits=1.5)],
    "upsample_bicubic2d": [s(aten.upsample_bicubic2d.vec, IMAGE, None, False, [2.0, 2.0], bits=1.0)],
    "_upsample_nearest_exact1d": [s(aten._upsample_nearest_exact1d.vec, SIGNAL, None, [2.0])],
    "_upsample_nearest_exact2d": [s(aten._upsample_nearest_exact2d.vec, IMAGE, None, [2.0, 2.0])],
    "_upsample_bilinear2d_aa": [s(aten._upsample_bilinear2d_aa.vec, IMAGE, None, False, [2.0, 2.0], bits=1.0)],
    "_upsample_bicubic2d_aa": [s(aten._upsample_bicubic2d_aa.vec, IMAGE, None, False, [2.0, 2.0], bits=1.0)],
    "grid_sampler": [
        s(aten.grid_sampler.default, IMAGE, u(-1.2, 1.2, 4, 5, 5, 2), mode, 0, False, bits=1.2) for mode in (0, 2)
    ],
    "grid_sampler_2d": [s(aten.grid_sampler_2d.default, IMAGE, u(-1.2, 1.2, 4, 5, 5, 2), 0, 0, False, bits=1.2)],
    "grid_sampler_3d": [s(aten.grid_sampler_3d.default, VOLUME, u(-1.2, 1.2, 2, 5, 5, 5, 3), 0, 0, False, bits=1.5)],
    "pad": [s(aten.pad.default, X, [1, 1], "constant", 3.0), s(aten.pad.default, IMAGE, [1, 1, 1, 1], "circular")],
    "constant_pad_nd": [s(aten.constant_pad_nd.default, X, [1, 1], -2.0)],
}

# tensors from nothing
SAMPLES |= {
    "zeros": [s(aten.zeros.default, [2, 3], bits=None)],
    "zeros_like": [s(aten.zeros_like.default, X, bits=None)],
    "new_zeros": [s(aten.new_zeros.default, X, [2, 3], bits=None)],
    "empty": [s(aten.empty.memory_format, [2, 3], bits=None)],
    "empty_like": [s(aten.empty_like.default, X, bits=None)],
    "new_empty": [s(aten.new_empty.default, X, [2, 3], bits=None)],
    "empty_strided": [s(aten.empty_strided.default, [2, 3], [3, 1], bits=None)],
    "ones": [s(aten.ones.default, [2, 3])],
    "ones_like": [s(aten.ones_like.default, X)],
    "new_ones": [s(aten.new_ones.default, X, [2, 3])],
    "full": [s(aten.full.default, [2, 3], 7.5)],
    "full_like": [s(aten.full_like.default, X, -7.5)],
    "new_full": [s(aten.new_full.default, X, [2, 3], -7.5)],
    "fill": [s(aten.fill.Scalar, X, -7.5), s(aten.fill.Tensor, X, n(), bits=None)],
    "scalar_tensor": [s(aten.scalar_tensor.default, 3.0)],
    "arange": [s(aten.arange.default, 9), s(aten.arange.start_step, 8, 1, -1)],
    "linspace": [s(aten.linspace.default, -1, 3, 9)],
    "eye": [s(aten.eye.default, 4)],
    "randn": [s(aten.randn.default, [16, 64])],
    "randn_like": [s(aten.randn_like.default, X)],
    "normal": [s(aten.normal.float_float, 1.0, 2.0, [16, 64])],
    "normal_functional": [s(aten.normal_functional.default, X, 1.0, 2.0)],
    "rand": [s(aten.rand.default, [16, 64])],
    "rand_like": [s(aten.rand_like.default, X)],
    "uniform": [s(aten.uniform.default, X, -2.0, 5.0)],
    "bernoulli": [s(aten.bernoulli.p, X, 0.3), s(aten.bernoulli.default, u(0, 1, 16, 64))],
    "randint": [s(aten.randint.low, 3, 9, [16, 64])],
    "randint_like": [s(aten.randint_like.default, WHOLE, 9)],
    "random": [s(aten.random.to, WHOLE, 9)],
    "randperm": [s(aten.randperm.default, 16)],
    "exponential": [s(aten.exponential.default, X, 2.0, bits=1.0)],
}

# choosing
_AT = i(0, 16, 16, 64)
SAMPLES |= {
    "where": [
        s(aten.where.self, b(16, 64), X, WIDE),
        s(aten.where.ScalarOther, b(16, 64), X, -5.0),
        s(aten.where.self, b(16, 1, share=0.1), POSITIVE, X),
    ],
    "masked_fill": [
        s(aten.masked_fill.Scalar, X, b(16, 64), 9.0),
        s(aten.masked_fill.Scalar, X, b(64), -1e9, bits=None),
    ],
    "embedding": [s(aten.embedding.default, w(30, 16), i(0, 30, 4, 9))],
    "embedding_bag": [s(aten.embedding_bag.default, w(30, 16), i(0, 30, 12), i(0, 1, 1), bits=None)],
    "index": [
        s(aten.index.Tensor, w(8, 6), [i(0, 8, 5, 3)]),
        s(aten.index.Tensor, w(8, 6, 4), [None, i(0, 6, 5)]),
        s(aten.index.Tensor, w(8, 6, 4), [i(0, 8, 5), None, i(0, 4, 5)], bits=1.5),
        s(aten.index.Tensor, X, [b(16)]),
    ],
    "_unsafe_index": [s(aten._unsafe_index.Tensor, w(8, 6), [i(0, 8, 5)])],
    "index_select": [s(aten.index_select.default, w(8, 6), 1, i(0, 6, 9))],
    "gather": [s(aten.gather.default, X, 0, _AT)],
    "take": [s(aten.take.default, X, i(0, 1024, 50), bits=1.0)],
    "take_along_dim": [s(aten.take_along_dim.default, X, _AT, 0)],
    "masked_select": [s(aten.masked_select.default, X, b(16, 64))],
    "index_put": [
        s(aten.index_put.default, X, [i(0, 16, 3)], n(3, 64, std=4)),
        s(aten.index_put.default, X, [i(0, 16, 3)], n(3, 64), True, bits=2.0),
    ],
    "_unsafe_index_put": [s(aten._unsafe_index_put.default, X, [i(0, 16, 3)], n(3, 64, std=4))],
    "index_copy": [s(aten.index_copy.default, X, 0, w_at := i(0, 16, 1), n(1, 64, std=4))],
    "index_fill": [s(aten.index_fill.int_Scalar, X, 0, w_at, 5.0)],
    "slice_scatter": [s(aten.slice_scatter.default, X, n(4, 64, std=4), 0, 2, 6)],
    "select_scatter": [s(aten.select_scatter.default, X, n(64, std=4), 0, 2)],
    "masked_scatter": [s(aten.masked_scatter.default, X, b(16, 64), n(16, 64, std=4))],
    "scatter": [s(aten.scatter.src, X, 0, _AT, n(16, 64, std=4)), s(aten.scatter.value, X, 0, _AT, 7.0)],
    "scatter_reduce": [s(aten.scatter_reduce.two, X, 0, _AT, n(16, 64), "sum", bits=2.0)],
    "scatter_add": [s(aten.scatter_add.default, X, 0, _AT, n(16, 64), bits=2.0)],
    "index_add": [s(aten.index_add.default, X, 0, i(0, 16, 16), n(16, 64), bits=2.0)],
    "put": [s(aten.put.default, X, i(0, 1024, 5), n(5, std=4), bits=2.0)],
    "copy": [s(aten.copy.default, X, n(64))],
    "one_hot": [s(aten.one_hot.default, i(0, 5, 9), 5)],
}

# recurrent layers: input 6, hidden 5, one layer
_CELLS = [w(20, 6), w(20, 5), w(20), w(20)]
_GATES = [w(15, 6), w(15, 5), w(15), w(15)]
_PLAIN = [w(5, 6), w(5, 5), w(5), w(5)]
_HIDDEN = n(1, 3, 5)
_TAIL: tuple[Any, ...] = (True, 1, 0.0, False, False, True)
SAMPLES |= {
    "lstm": [s(aten.lstm.input, n(3, 7, 6), [_HIDDEN, _HIDDEN], _CELLS, *_TAIL, bits=None)],
    "gru": [s(aten.gru.input, n(3, 7, 6), _HIDDEN, _GATES, *_TAIL, bits=None)],
    "rnn_tanh": [s(aten.rnn_tanh.input, n(3, 7, 6), _HIDDEN, _PLAIN, *_TAIL, bits=None)],
    "rnn_relu": [s(aten.rnn_relu.input, n(3, 7, 6), _HIDDEN, _PLAIN, *_TAIL, bits=None)],
    "lstm_cell": [s(aten.lstm_cell.default, n(3, 6), [n(3, 5), n(3, 5)], *_CELLS, bits=None)],
    "gru_cell": [s(aten.gru_cell.default, n(3, 6), n(3, 5), *_GATES, bits=None)],
    "rnn_tanh_cell": [s(aten.rnn_tanh_cell.default, n(3, 6), n(3, 5), *_PLAIN, bits=None)],
}

# losses
_CLASS = i(0, 64, 16)
_LOGS = u(-5, 0, 16, 64)
SAMPLES |= {
    "cross_entropy_loss": [
        s(aten.cross_entropy_loss.default, X, _CLASS, None, how, bits=1.0 if how else 1.5) for how in (0, 1, 2)
    ]
    + [s(aten.cross_entropy_loss.default, X, _CLASS, u(0.1, 3, 64), 1, -100, 0.1, bits=1.0)],
    "nll_loss": [s(aten.nll_loss.default, _LOGS, _CLASS, bits=1.0)],
    "nll_loss_nd": [s(aten.nll_loss_nd.default, _LOGS, _CLASS, None, 2, bits=1.0)],
    "nll_loss2d": [s(aten.nll_loss2d.default, u(-5, 0, 2, 4, 6, 6), i(0, 4, 2, 6, 6), bits=1.0)],
    "nll_loss_forward": [s(aten.nll_loss_forward.default, _LOGS, _CLASS, None, 1, -100, bits=None)],
    "mse_loss": [s(aten.mse_loss.default, X, WIDE, 1), s(aten.mse_loss.default, X, WIDE, 0, bits=1.5)],
    "l1_loss": [s(aten.l1_loss.default, X, WIDE, 1), s(aten.l1_loss.default, X, WIDE, 2)],
    "smooth_l1_loss": [s(aten.smooth_l1_loss.default, X, WIDE, bits=1.0)],
    "huber_loss": [s(aten.huber_loss.default, X, WIDE, 1, 2.0, bits=1.5)],
    "binary_cross_entropy_with_logits": [
        s(aten.binary_cross_entropy_with_logits.default, X, u(0, 1, 16, 64), bits=1.0)
    ],
    "binary_cross_entropy": [s(aten.binary_cross_entropy.default, u(0.01, 0.99, 16, 64), u(0, 1, 16, 64), bits=1.0)],
    "soft_margin_loss": [s(aten.soft_margin_loss.default, X, n(16, 64), bits=1.5)],
    "kl_div": [s(aten.kl_div.default, _LOGS, u(0, 1, 16, 64), bits=None)],
}

Draw = Callable[[Given, torch.Generator], torch.Tensor]


def draw(given: Given, generator: torch.Generator) -> torch.Tensor:
    shape = given.shape
    match given.kind:
        case "normal":
            return given.a + given.b * torch.randn(shape, generator=generator).clamp(-6, 6)
        case "weight":
            value = given.a + given.b * torch.randn(shape, generator=generator)
            return value.abs() if given.a > 1 else value
        case "uniform":
            return given.a + (given.b - given.a) * torch.rand(shape, generator=generator)
        case "offsets":
            return torch.arange(1, shape[0] + 1, dtype=torch.int32) * int(given.a)
        case "integer":
            return torch.randint(int(given.a), int(given.b), shape, generator=generator)
        case _:
            return torch.rand(shape, generator=generator) < given.a
