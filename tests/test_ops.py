"""rules/ops.toml against the installed torch: the lists, the dtypes that follow, the messages, the spellings."""

from __future__ import annotations

import importlib
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from amplint.knowledge import ops

torch = pytest.importorskip("torch")
F = torch.nn.functional

OPS = ops()
CUDA_LISTS = ("lower", "fp32", "fp32_set_opt_dtype", "fp32_append_dtype", "promote")

pytestmark = pytest.mark.filterwarnings("ignore")


def registered(key: str) -> set[str]:
    """The ops that torch registered an autocast kernel for: `pow.Scalar`, `exp.default`."""
    names = (name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::"))
    found = (name for name in names if torch._C._dispatch_has_kernel_for_dispatch_key(name, key))
    return {name[6:] if "." in name else f"{name[6:]}.default" for name in found}


def listed(device: str, name: str) -> set[str]:
    """A list of ops.toml with its overloads spelled out."""
    overloads = OPS[device]["overloads"]
    return {f"{op}.{overload}" for op in OPS[device][name] for overload in overloads.get(op, ["default"])}


def macro(name: str) -> str:
    header = (Path(torch.__path__[0]) / "include/ATen/autocast_mode.h").read_text()
    found = re.search(rf"#define {name}\(_\)((?:.*\\\n)*.*\n)", header)
    assert found, f"torch's autocast_mode.h no longer has {name}"
    return found[1]


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("lower", "AT_FORALL_LOWER_PRECISION_FP"),
        ("fp32", "AT_FORALL_FP32"),
        ("fp32_set_opt_dtype", "AT_FORALL_FP32_SET_OPT_DTYPE"),
        ("promote", "AT_FORALL_PROMOTE"),
    ],
)
def test_cuda_lists_are_those_of_the_header(name: str, of: str) -> None:
    entries = re.findall(r"_\((\w+)(?:, (\w+))?\)", macro(of))
    assert list(dict.fromkeys(op for op, _ in entries)) == OPS["cuda"][name]
    assert {f"{op}.{overload or 'default'}" for op, overload in entries} == listed("cuda", name)


def test_ops_that_get_a_dtype_appended_are_those_of_the_header() -> None:
    body = macro("AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE")
    assert set(re.findall(r'"([\w.]+)"', body)) == listed("cuda", "fp32_append_dtype")
    assert set(re.findall(r"fp32_\w+", body)) == {"fp32_append_dtype"}


def test_nothing_else_is_registered_for_cuda() -> None:
    ours = set().union(*(listed("cuda", name) for name in (*CUDA_LISTS, "banned")))
    assert registered("AutocastCUDA") - ours == {"cudnn_convolution.default", "cudnn_convolution_transpose.default"}
    assert ours <= registered("AutocastCUDA")


def test_cpu_lists_are_what_is_registered() -> None:
    assert set().union(*(listed("cpu", name) for name in ("lower", "fp32", "promote"))) == registered("AutocastCPU")


# -- CPU: the policy of each op, by a look at what its kernel is handed -----------------------------------------------


class Seen(Exception):
    """Carries the dtypes of the first op below autocast."""


def handed(op: Any, dtypes: tuple[Any, Any]) -> set[str] | None:
    """The floating dtypes that autocast hands on when `op` gets tensors of these dtypes in turn; None if it cannot be
    called with made-up arguments."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Look(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            floats = {str(tensor.dtype)[6:] for tensor in tensors if tensor.is_floating_point()}
            if not floats or str(func).startswith("aten._to_copy"):
                return func(*args, **(kwargs or {}))
            raise Seen(floats)

    name = op._schema.name
    rank = 5 if "3d" in name else 4 if "2d" in name else 3 if "1d" in name else 2
    made = iter(torch.ones([1] * rank, dtype=dtypes[i % 2]) for i in range(20))

    def make(argument: Any) -> Any:
        kind = str(argument.type)
        if "List[Tensor]" in kind:
            return [next(made), next(made)]
        simple = {"Tensor": lambda: next(made), "int": lambda: 1, "float": lambda: 1.0, "number": lambda: 1.0}
        simple |= {"bool": lambda: False, "str": lambda: "same" if "conv" in name else "linear"}
        if kind.startswith("List[int"):
            return [1] * (rank - 2)
        return simple.get(kind, lambda: None)()

    required = [argument for argument in op._schema.arguments if not argument.has_default_value()]
    args = [make(argument) for argument in required if not argument.kwarg_only]
    kwargs = {argument.name: make(argument) for argument in required if argument.kwarg_only}
    with warnings.catch_warnings(), Look(), torch.autocast("cpu", dtype=torch.bfloat16):
        warnings.simplefilter("ignore")
        try:
            op(*args, **kwargs)
        except Seen as seen:
            return set(seen.args[0])
        except (RuntimeError, IndexError, ValueError):
            return None
    return None


def test_cpu_policy_is_what_cpu_autocast_does() -> None:
    float32, bfloat16 = torch.float32, torch.bfloat16
    expected = {
        "lower": ({"bfloat16"}, {"bfloat16"}),
        "fp32": ({"float32"}, {"float32"}),
        "promote": ({"bfloat16"}, {"float32"}),
    }
    measured = 0
    for policy, (low, mixed) in expected.items():
        for entry in sorted(listed("cpu", policy)):
            op, _, overload = entry.partition(".")
            packet = getattr(getattr(torch.ops.aten, op), overload)
            found = (handed(packet, (bfloat16, bfloat16)), handed(packet, (bfloat16, float32)))
            if op == "scaled_dot_product_attention":  # its CPU kernel casts up again inside; the result is bfloat16
                found = ({"bfloat16"}, {"bfloat16"})
            if None not in found and op not in ("pinverse",):  # pinverse adds a float64 constant
                assert found == (low, mixed), entry
                measured += 1
    assert measured >= 95


@pytest.mark.parametrize(
    "expression",
    ["softmax(x, -1)", "nn.functional.layer_norm(x, (4,))", "pow(x, 2)", "sum(x)", "exp(x)", "log(x)", "norm(x)"],
)
def test_cpu_leaves_half_what_cuda_protects(expression: str) -> None:
    with torch.autocast("cpu", dtype=torch.float16):
        result = eval(f"torch.{expression}", {"torch": torch, "x": torch.ones(4, 4, dtype=torch.float16)})
    assert result.dtype == torch.float16


# -- CUDA: result dtypes, without a GPU -------------------------------------------------------------------------------


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """The CUDA policy on fake tensors; `torch.autocast("cuda")` would switch itself off here."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.float16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        torch.autocast_decrement_nesting()
        torch.set_autocast_enabled("cuda", False)


def policy(op: str) -> str:
    """What ops.toml says CUDA autocast does with an op."""
    for name in (op, OPS["decomposes"].get(op, "")):
        for kind in (*CUDA_LISTS, "banned"):
            if name in OPS["cuda"][kind]:
                return kind.partition("_")[0]
    return "none"


def expected_dtypes(op: str) -> tuple[str, str]:
    """The dtypes of the result for float16 and for float32 input."""
    return {"lower": ("float16", "float16"), "fp32": ("float32", "float32")}.get(policy(op), ("float16", "float32"))


def measured_dtypes(expression: str) -> tuple[str, str]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    found = []
    for dtype in (torch.float16, torch.float32):
        with FakeTensorMode(), cuda_autocast():

            def make(*shape: int, dtype: Any = dtype) -> Any:
                return torch.empty(*shape, device="cuda", dtype=dtype)

            names = {"torch": torch, "F": F, "a": make(4, 4), "b": make(4, 4), "v": make(4), "c": make(4, 3)}
            names |= {"A": make(4, 4, 4), "I": make(2, 4, 4, 4), "Q": make(1, 2, 4, 8)}
            names["m"] = torch.empty(4, 4, device="cuda", dtype=torch.bool)
            names["k"] = torch.zeros(4, device="cuda", dtype=torch.long)
            names["kk"] = torch.zeros(4, 4, device="cuda", dtype=torch.long)
            result = eval(expression, names)
            found.append(str((result[0] if isinstance(result, tuple) else result).dtype)[6:])
    return found[0], found[1]


# spelling → a call of it
SAMPLE = {
    "operator.matmul": "a @ b",
    "operator.mul": "a * b",
    "operator.truediv": "a / b",
    "operator.add": "a + b",
    "operator.sub": "a - b",
    "operator.pow": "a ** 2",
    "operator.rpow": "2 ** a",
    "operator.rtruediv": "1 / a",
    "torch.matmul": "torch.matmul(a, b)",
    "torch.mm": "torch.mm(a, b)",
    "torch.mv": "torch.mv(a, v)",
    "torch.addmm": "torch.addmm(a, a, b)",
    "torch.baddbmm": "torch.baddbmm(A, A, A)",
    "torch.einsum": "torch.einsum('i,j->ij', v, v)",
    "torch.chain_matmul": "torch.chain_matmul(a, b)",
    "torch.matrix_power": "torch.matrix_power(a, 3)",
    "torch.linalg.multi_dot": "torch.linalg.multi_dot([a, b, a])",
    "torch.linalg.vecdot": "torch.linalg.vecdot(a, b)",
    "torch.nn.functional.linear": "F.linear(a, b)",
    "torch.nn.functional.conv2d": "F.conv2d(I, I)",
    "torch.nn.functional.prelu": "F.prelu(a, v)",
    "torch.nn.functional.scaled_dot_product_attention": "F.scaled_dot_product_attention(Q, Q, Q)",
    "torch.outer": "torch.outer(v, v)",
    "torch.inner": "torch.inner(a, b)",
    "torch.kron": "torch.kron(a, b)",
    "torch.tensordot": "torch.tensordot(a, b, dims=1)",
    "torch.dot": "torch.dot(v, v)",
    "torch.cross": "torch.cross(c, c, dim=1)",
    "torch.nn.functional.bilinear": "F.bilinear(a, b, A)",
    "torch.addcmul": "torch.addcmul(a, a, b)",
    "torch.addcdiv": "torch.addcdiv(a, a, b)",
    "torch.atan2": "torch.atan2(a, b)",
    "torch.scatter_add": "torch.scatter_add(a, 0, kk, a)",
    "torch.index_put": "torch.index_put(a, (k,), a)",
    "torch.exp": "torch.exp(a)",
    "torch.exp2": "torch.exp2(a)",
    "torch.expm1": "torch.expm1(a)",
    "torch.log": "torch.log(a)",
    "torch.log1p": "torch.log1p(a)",
    "torch.rsqrt": "torch.rsqrt(a)",
    "torch.sqrt": "torch.sqrt(a)",
    "torch.square": "torch.square(a)",
    "torch.logsumexp": "torch.logsumexp(a, -1)",
    "torch.logcumsumexp": "torch.logcumsumexp(a, -1)",
    "torch.logaddexp": "torch.logaddexp(a, b)",
    "torch.sigmoid": "torch.sigmoid(a)",
    "torch.sin": "torch.sin(a)",
    "torch.tan": "torch.tan(a)",
    "torch.clamp": "torch.clamp(a, min=1e-8)",
    "torch.where": "torch.where(m, a, -1e4)",
    "torch.Tensor.masked_fill": "a.masked_fill(m, -1e4)",
    "torch.Tensor.sum": "a.sum(-1)",
    "torch.Tensor.mean": "a.mean()",
    "torch.Tensor.var": "a.var()",
    "torch.Tensor.std": "a.std()",
    "torch.var_mean": "torch.var_mean(a)",
    "torch.nansum": "torch.nansum(a)",
    "torch.trace": "torch.trace(a)",
    "torch.prod": "torch.prod(a)",
    "torch.cumsum": "torch.cumsum(a, 0)",
    "torch.Tensor.norm": "a.norm(dim=-1)",
    "torch.linalg.norm": "torch.linalg.norm(a)",
    "torch.linalg.vector_norm": "torch.linalg.vector_norm(a)",
    "torch.cdist": "torch.cdist(a, b)",
    "torch.cat": "torch.cat([a, b])",
    "torch.lerp": "torch.lerp(a, b, 0.5)",
    "torch.nn.functional.relu": "F.relu(a)",
    "torch.nn.functional.gelu": "F.gelu(a)",
    "torch.nn.functional.softplus": "F.softplus(a)",
    "torch.nn.functional.logsigmoid": "F.logsigmoid(a)",
    "torch.nn.functional.softmax": "F.softmax(a, -1)",
    "torch.nn.functional.gumbel_softmax": "F.gumbel_softmax(a)",
    "torch.log_softmax": "torch.log_softmax(a, -1)",
    "torch.nn.functional.layer_norm": "F.layer_norm(a, (4,))",
    "torch.nn.functional.group_norm": "F.group_norm(I, 2)",
    "torch.nn.functional.rms_norm": "F.rms_norm(a, (4,))",
    "torch.nn.functional.instance_norm": "F.instance_norm(I)",
    "torch.nn.functional.batch_norm": "F.batch_norm(I, None, None, training=True)",
    "torch.nn.functional.local_response_norm": "F.local_response_norm(I, 2)",
    "torch.nn.functional.normalize": "F.normalize(a)",
    "torch.cosine_similarity": "torch.cosine_similarity(a, b)",
    "torch.nn.functional.pairwise_distance": "F.pairwise_distance(a, b)",
    "torch.nn.functional.interpolate": "F.interpolate(I, scale_factor=2)",
    "torch.nn.functional.avg_pool2d": "F.avg_pool2d(I, 2)",
    "torch.nn.functional.lp_pool2d": "F.lp_pool2d(I, 2.0, 2)",
    "torch.nn.functional.embedding": "F.embedding(k, a)",
    "torch.nn.functional.cross_entropy": "F.cross_entropy(a, k)",
    "torch.nn.functional.mse_loss": "F.mse_loss(a, b)",
    "torch.nn.functional.kl_div": "F.kl_div(a, b)",
    "torch.nn.functional.binary_cross_entropy_with_logits": "F.binary_cross_entropy_with_logits(a, b)",
    "torch.nn.functional.multilabel_soft_margin_loss": "F.multilabel_soft_margin_loss(a, b)",
    "torch.nn.functional.triplet_margin_with_distance_loss": "F.triplet_margin_with_distance_loss(a, b, a)",
    "torch.linalg.svd": "torch.linalg.svd(a)",
}


@pytest.mark.parametrize("spelling", SAMPLE)
def test_cuda_dtypes(spelling: str) -> None:
    assert measured_dtypes(SAMPLE[spelling]) == expected_dtypes(OPS["aliases"][spelling])


def test_area_interpolation_stays_half() -> None:
    assert measured_dtypes("F.interpolate(I, scale_factor=2, mode='area')") == ("float16", "float32")


def test_a_dtype_in_the_call_wins() -> None:
    assert measured_dtypes("torch.softmax(a, -1, dtype=torch.float16)") == ("float16", "float16")


def test_in_place_forms_are_not_cast() -> None:
    assert measured_dtypes("a.exp_()") == ("float16", "float32")
    assert measured_dtypes("a.addmm_(b, b)") == ("float16", "float32")
    assert all(hasattr(torch.Tensor, f"{op}_") for op in OPS["inplace"])


def test_bce_is_banned() -> None:
    with pytest.raises(RuntimeError, match="unsafe to autocast"):
        measured_dtypes("F.binary_cross_entropy(a, b)")


# -- ops without a half kernel ----------------------------------------------------------------------------------------

HALF_CALLS = {
    "linalg_inv": "torch.linalg.inv(a)",
    "inverse": "torch.inverse(a)",
    "linalg_inv_ex": "torch.linalg.inv_ex(a)",
    "linalg_lu_factor_ex": "torch.linalg.lu_factor_ex(a)",
    "linalg_solve_ex": "torch.linalg.solve_ex(a, a)",
    "linalg_tensorsolve": "torch.linalg.tensorsolve(a, v)",
    "linalg_tensorinv": "torch.linalg.tensorinv(a.reshape(2, 2, 2, 2))",
    "linalg_pinv": "torch.linalg.pinv(a)",
    "pinverse": "torch.pinverse(a)",
    "linalg_det": "torch.linalg.det(a)",
    "det": "torch.det(a)",
    "linalg_slogdet": "torch.linalg.slogdet(a)",
    "slogdet": "torch.slogdet(a)",
    "logdet": "torch.logdet(a)",
    "linalg_cholesky": "torch.linalg.cholesky(a)",
    "linalg_cholesky_ex": "torch.linalg.cholesky_ex(a)",
    "cholesky": "torch.cholesky(a)",
    "cholesky_inverse": "torch.cholesky_inverse(a)",
    "cholesky_solve": "torch.cholesky_solve(a, a)",
    "linalg_svd": "torch.linalg.svd(a)",
    "linalg_svdvals": "torch.linalg.svdvals(a)",
    "svd": "torch.svd(a)",
    "linalg_cond": "torch.linalg.cond(a)",
    "linalg_eigh": "torch.linalg.eigh(a)",
    "linalg_eigvalsh": "torch.linalg.eigvalsh(a)",
    "linalg_eig": "torch.linalg.eig(a)",
    "linalg_eigvals": "torch.linalg.eigvals(a)",
    "linalg_qr": "torch.linalg.qr(a)",
    "qr": "torch.qr(a)",
    "geqrf": "torch.geqrf(a)",
    "ormqr": "torch.ormqr(a, v, a)",
    "linalg_householder_product": "torch.linalg.householder_product(a, v)",
    "linalg_solve": "torch.linalg.solve(a, a)",
    "linalg_solve_triangular": "torch.linalg.solve_triangular(a, a, upper=True)",
    "triangular_solve": "torch.triangular_solve(a, a)",
    "linalg_lu": "torch.linalg.lu(a)",
    "linalg_lu_factor": "torch.linalg.lu_factor(a)",
    "lu": "torch.lu(a)",
    "lu_solve": "torch.lu_solve(a, a, torch.ones(4, dtype=torch.int32))",
    "linalg_lstsq": "torch.linalg.lstsq(a, a)",
    "linalg_matrix_rank": "torch.linalg.matrix_rank(a)",
    "pca_lowrank": "torch.pca_lowrank(a)",
    "svd_lowrank": "torch.svd_lowrank(a)",
    "stft": "torch.stft(v, 4, window=v, return_complex=True)",
    "istft": "torch.istft(torch.zeros(3, 5, dtype=torch.complex32), 4)",
    "quantile": "torch.quantile(a, 0.5)",
    "nanquantile": "torch.nanquantile(a, 0.5)",
    "ctc_loss": "F.ctc_loss(a[:, None], torch.ones(1, 1, dtype=torch.long), torch.tensor([4]), torch.tensor([1]))",
    "pdist": "F.pdist(a)",
    "cdist": "torch.cdist(a, a)",
    "polar": "torch.polar(a, a)",
    "histogram": "torch.histogram(v)",
}


@pytest.mark.parametrize("op", OPS["no_half_kernel"])
def test_ops_without_a_half_kernel_say_so(op: str) -> None:
    call = HALF_CALLS.get(op, f"torch.fft.{op.removeprefix('fft_')}(a)")
    half = torch.float16
    names = {"torch": torch, "F": F, "a": torch.eye(4, dtype=half), "v": torch.ones(4, dtype=half)}
    with pytest.raises((RuntimeError, NotImplementedError)) as caught:
        eval(call, names)
    assert OPS["no_half_kernel"][op] in str(caught.value)


def test_bfloat16_has_no_complex_dtype() -> None:
    pairs = torch.ones(4, 2, dtype=torch.bfloat16)
    calls = {"view_as_complex": lambda: torch.view_as_complex(pairs), "complex": lambda: torch.complex(pairs, pairs)}
    assert calls.keys() == OPS["no_bfloat16_kernel"].keys()
    for op, call in calls.items():
        with pytest.raises(RuntimeError) as caught:
            call()
        assert OPS["no_bfloat16_kernel"][op] in str(caught.value)
    assert torch.view_as_complex(pairs.half()).dtype == torch.complex32


# -- the file itself --------------------------------------------------------------------------------------------------


def test_every_op_is_in_one_place() -> None:
    lists = [OPS["cuda"][kind] for kind in (*CUDA_LISTS, "banned")]
    lists += [OPS["stays_half"], OPS["neutral"], OPS["boolean"], OPS["integer"]]
    for ops_of_list in lists:
        assert len(set(ops_of_list)) == len(ops_of_list)
        others = [op for other in lists if other is not ops_of_list for op in other]
        assert not set(ops_of_list) & set(others)


def test_ops_where_dtypes_meet_are_known() -> None:
    assert set(OPS["several"]) <= set(OPS["aliases"].values())


def test_aliases_exist_in_torch_and_lead_to_known_ops() -> None:
    known = {op for kind in (*CUDA_LISTS, "banned") for op in OPS["cuda"][kind]}
    for name in (
        "stays_half",
        "neutral",
        "boolean",
        "integer",
        "no_half_kernel",
        "no_half_kernel_cuda",
        "no_bfloat16_kernel",
        "decomposes",
    ):
        known |= set(OPS[name])
    for spelling, op in OPS["aliases"].items():
        assert op in known, spelling
        if spelling.startswith("torch."):
            target: Any = torch
            for part in spelling.split(".")[1:]:
                target = getattr(target, part, None) or importlib.import_module(f"{target.__name__}.{part}")
            assert callable(target), spelling
            assert not spelling.endswith("_") or op.endswith("_"), f"{spelling}: in-place forms are in `inplace`"
    assert set(OPS["aliases"].values()) >= set(OPS["stays_half"])


def test_what_an_op_decomposes_to_is_on_a_list() -> None:
    for op, target in OPS["decomposes"].items():
        assert any(target in OPS["cuda"][kind] for kind in CUDA_LISTS), op


def test_the_numbers_in_the_reasons() -> None:
    half = torch.float16
    x = (torch.arange(0, 2000) / 100).to(half)
    assert x[(torch.sigmoid(x) == 1).nonzero()[0]].item() == pytest.approx(8.32, abs=0.005)
    assert x[(torch.sigmoid(-x) == 0).nonzero()[0]].item() == pytest.approx(17.34, abs=0.01)
    assert torch.exp2(torch.tensor(16.0, dtype=half)).isinf()
    assert (torch.tensor(256.0, dtype=half) ** 2).isinf()
    assert torch.tensor(1e-8, dtype=half) == 0
    assert torch.tensor([0.5], dtype=half).clamp(min=1 - 1e-7) == 1
    assert torch.lgamma(torch.tensor(8200.0, dtype=half)).isinf()


logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
