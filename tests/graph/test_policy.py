"""CUDA's autocast on the CPU: what each listed operation gives, and how CUDA's own calls are answered."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")

from amplint.graph.policy import cuda_policy, kinds  # noqa: E402

F = torch.nn.functional
HALF, FULL = torch.float16, torch.float32


def h(*shape: int) -> Any:
    return torch.rand(*shape).half() * 0.5 + 0.25


def f(*shape: int) -> Any:
    return torch.rand(*shape) * 0.5 + 0.25


labels = torch.tensor([0, 1])
ones = torch.ones(2).half()

# A call of each operation on CUDA's lists: FP32 operands where the list lowers, halves where it widens.
LOWER: dict[str, Callable[[], Any]] = {
    "_convolution": lambda: torch._convolution(
        f(1, 2, 5, 5), f(3, 2, 3, 3), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, False, False, False, False
    ),
    "conv1d": lambda: F.conv1d(f(1, 2, 5), f(3, 2, 3)),
    "conv2d": lambda: F.conv2d(f(1, 2, 5, 5), f(3, 2, 3, 3)),
    "conv3d": lambda: F.conv3d(f(1, 2, 5, 5, 5), f(3, 2, 3, 3, 3)),
    "conv_transpose1d": lambda: F.conv_transpose1d(f(1, 2, 5), f(2, 3, 3)),
    "conv_transpose2d": lambda: F.conv_transpose2d(f(1, 2, 5, 5), f(2, 3, 3, 3)),
    "conv_transpose3d": lambda: F.conv_transpose3d(f(1, 2, 5, 5, 5), f(2, 3, 3, 3, 3)),
    "prelu": lambda: F.prelu(f(2, 3), f(3)),
    "addmm": lambda: torch.addmm(f(2, 2), f(2, 3), f(3, 2)),
    "addmv": lambda: torch.addmv(f(2), f(2, 3), f(3)),
    "addr": lambda: torch.addr(f(2, 3), f(2), f(3)),
    "matmul": lambda: f(2, 3) @ f(3, 2),
    "einsum": lambda: torch.einsum("ij,jk->ik", f(2, 3), f(3, 2)),
    "mm": lambda: torch.mm(f(2, 3), f(3, 2)),
    "mv": lambda: torch.mv(f(2, 3), f(3)),
    "linalg_vecdot": lambda: torch.linalg.vecdot(f(2, 3), f(2, 3)),
    "linear": lambda: F.linear(f(2, 3), f(4, 3), f(4)),
    "addbmm": lambda: torch.addbmm(f(2, 2), f(1, 2, 3), f(1, 3, 2)),
    "baddbmm": lambda: torch.baddbmm(f(1, 2, 2), f(1, 2, 3), f(1, 3, 2)),
    "bmm": lambda: torch.bmm(f(1, 2, 3), f(1, 3, 2)),
    "chain_matmul": lambda: torch.chain_matmul(f(2, 3), f(3, 2)),
    "linalg_multi_dot": lambda: torch.linalg.multi_dot([f(2, 3), f(3, 2), f(2, 2)]),
    "lstm_cell": lambda: torch.lstm_cell(f(2, 3), (f(2, 4), f(2, 4)), f(16, 3), f(16, 4), f(16), f(16))[0],
    "gru_cell": lambda: torch.gru_cell(f(2, 3), f(2, 4), f(12, 3), f(12, 4), f(12), f(12)),
    "rnn_tanh_cell": lambda: torch.rnn_tanh_cell(f(2, 3), f(2, 4), f(4, 3), f(4, 4), f(4), f(4)),
    "rnn_relu_cell": lambda: torch.rnn_relu_cell(f(2, 3), f(2, 4), f(4, 3), f(4, 4), f(4), f(4)),
    "scaled_dot_product_attention": lambda: F.scaled_dot_product_attention(*(f(1, 2, 3, 4) for _ in range(3))),
    "lstm.input": lambda: torch.nn.LSTM(3, 4)(f(5, 2, 3))[0],
    "gru.input": lambda: torch.nn.GRU(3, 4)(f(5, 2, 3))[0],
    "rnn_tanh.input": lambda: torch.nn.RNN(3, 4)(f(5, 2, 3))[0],
}
WIDEN: dict[str, Callable[[], Any]] = {
    **{
        name: (lambda name=name: getattr(torch, name)(h(3)))  # type: ignore[misc]
        for name in "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan".split()
    },
    "pow": lambda: h(3) ** 2,
    "pow.Tensor_Tensor": lambda: h(3) ** h(3),
    "pow.Scalar": lambda: 2 ** h(3),
    "square": lambda: h(3).square(),
    "softplus": lambda: F.softplus(h(3)),
    "layer_norm": lambda: F.layer_norm(h(2, 3), (3,)),
    "rms_norm": lambda: F.rms_norm(h(2, 3), (3,)),
    "group_norm": lambda: F.group_norm(h(2, 4, 3), 2),
    "frobenius_norm": lambda: torch.ops.aten.frobenius_norm.dim(h(2, 3), [1]),
    "cosine_similarity": lambda: F.cosine_similarity(h(2, 3), h(2, 3)),
    "poisson_nll_loss": lambda: F.poisson_nll_loss(h(3), h(3)),
    "cosine_embedding_loss": lambda: F.cosine_embedding_loss(h(2, 3), h(2, 3), ones),
    "nll_loss": lambda: F.nll_loss(h(2, 3), labels),
    "cross_entropy": lambda: F.cross_entropy(h(2, 3), labels),
    "hinge_embedding_loss": lambda: F.hinge_embedding_loss(h(2), ones),
    "kl_div": lambda: F.kl_div(h(2, 3), h(2, 3), reduction="batchmean"),
    "l1_loss": lambda: F.l1_loss(h(3), h(3)),
    "smooth_l1_loss": lambda: F.smooth_l1_loss(h(3), h(3)),
    "huber_loss": lambda: F.huber_loss(h(3), h(3)),
    "mse_loss": lambda: F.mse_loss(h(3), h(3)),
    "margin_ranking_loss": lambda: F.margin_ranking_loss(h(2), h(2), ones),
    "soft_margin_loss": lambda: F.soft_margin_loss(h(2), ones),
    "triplet_margin_loss": lambda: F.triplet_margin_loss(h(2, 3), h(2, 3), h(2, 3)),
    "multi_margin_loss": lambda: F.multi_margin_loss(h(2, 3), labels),
    "binary_cross_entropy_with_logits": lambda: F.binary_cross_entropy_with_logits(h(2), ones),
    "dist": lambda: torch.dist(h(3), h(3)),
    "pdist": lambda: F.pdist(h(3, 2)),
    "cdist": lambda: torch.cdist(h(2, 3), h(2, 3)),
    "renorm": lambda: torch.renorm(h(2, 3), 2, 0, 1.0),
    "logsumexp": lambda: h(3).logsumexp(0),
    **{
        f"interpolate {mode}": (  # type: ignore[misc]
            lambda mode=mode, size=size: F.interpolate(h(1, 2, *[4] * size), scale_factor=2.0, mode=mode)
        )
        for mode, size in [
            ("nearest", 1),
            ("nearest", 2),
            ("linear", 1),
            ("bilinear", 2),
            ("bicubic", 2),
            ("trilinear", 3),
        ]
    },
    "prod": lambda: h(3).prod(),
    "prod.dim_int": lambda: h(2, 3).prod(0),
    "softmax": lambda: F.softmax(h(3), 0),
    "softmax, positional": lambda: torch.softmax(h(3), 0, None),
    "log_softmax": lambda: F.log_softmax(h(3), 0),
    "cumprod": lambda: h(3).cumprod(0),
    "cumsum": lambda: h(3).cumsum(0),
    "linalg_vector_norm": lambda: torch.linalg.vector_norm(h(3)),
    "linalg_matrix_norm": lambda: torch.linalg.matrix_norm(h(2, 3)),
    "sum": lambda: h(3).sum(),
    "sum.dim_IntList": lambda: h(2, 3).sum(0),
    "norm.Scalar": lambda: torch.ops.aten.norm.Scalar(h(3), 2),
    "norm.ScalarOpt_dim": lambda: torch.ops.aten.norm.ScalarOpt_dim(h(2, 3), 2, [1]),
    "norm, a method": lambda: h(3).norm(),
}
PROMOTE: dict[str, Callable[[Any], Any]] = {  # given the last operand
    "addcdiv": lambda x: torch.addcdiv(h(3), h(3), x),
    "addcmul": lambda x: torch.addcmul(h(3), h(3), x),
    "atan2": lambda x: torch.atan2(h(3), x),
    "bilinear": lambda x: F.bilinear(h(2, 3), x.new_ones(2, 3), h(4, 3, 3)),
    "cross": lambda x: torch.cross(h(3), x, dim=0),
    "dot": lambda x: torch.dot(h(3), x),
    "grid_sample": lambda x: F.grid_sample(h(1, 1, 4, 4), x.new_zeros(1, 2, 2, 2), align_corners=False),
    "index_put": lambda x: h(3).index_put((torch.tensor([0]),), x[:1]),
    "tensordot": lambda x: torch.tensordot(h(3), x, dims=1),
    "scatter_add": lambda x: h(3).scatter_add(0, torch.tensor([0, 1, 2]), x),
}
KEPT: dict[str, Callable[[], Any]] = {  # half stays half: on no list, in place, with out=, or told which
    **{
        name: (lambda name=name: getattr(torch, name)(h(3)))  # type: ignore[misc]
        for name in "mean var std sqrt sigmoid tanh relu".split()
    },
    "x * x": lambda: h(3) * h(3),
    "gelu": lambda: F.gelu(h(3)),
    "half plus a 0-dim FP32": lambda: h(3) + torch.tensor(1.0),
    "bilinear with an FP32 bias": lambda: F.bilinear(h(2, 3), h(2, 3), h(4, 3, 3), f(4)),
    "masked_fill": lambda: h(3).masked_fill(h(3) > 0, 1.0),
    "batch_norm": lambda: F.batch_norm(h(4, 3), None, None, f(3), f(3), training=True),
    "exp_": lambda: h(3).exp_(),
    "pow_": lambda: h(3).pow_(2),
    "addmm_": lambda: h(2, 2).addmm_(h(2, 3), h(3, 2)),
    "exp, out=": lambda: torch.exp(h(3), out=torch.empty(3, dtype=HALF)),
    "softmax, dtype=half": lambda: F.softmax(h(3), 0, dtype=HALF),
    "sum, dtype=half": lambda: h(3).sum(dtype=HALF),
}


@pytest.mark.parametrize("fake", [False, True], ids=["real", "python dispatcher"])
def test_each_listed_operation_gives_the_dtype_of_its_list(fake: bool) -> None:
    from torch._dispatch.python import enable_python_dispatcher

    wrong = {}
    with cuda_policy(), torch.autocast("cuda"), enable_python_dispatcher() if fake else nullcontext():
        for table, dtype in ((LOWER, HALF), (WIDEN, FULL), (KEPT, HALF)):
            wrong |= {name: str(got) for name, call in table.items() if (got := call().dtype) != dtype}
        for name, call in PROMOTE.items():
            got = call(h(3)).dtype, call(f(3)).dtype
            if got != (HALF, FULL):
                wrong[name] = str(got)
    assert not wrong


def test_the_samples_cover_the_lists() -> None:
    """All that are left out are forms of what is there, or of no use on a CPU."""
    sampled = {name.partition(".")[0] for table in (LOWER, WIDEN, PROMOTE) for name in table}
    listed = {name.removeprefix("aten::").partition(".")[0] for name, kind in kinds().items() if kind != "banned"}
    assert {name for name in listed - sampled if "upsample" not in name} == {
        "_scaled_dot_product_flash_attention", "_thnn_fused_gru_cell", "_thnn_fused_lstm_cell", "conv_tbc",
        "convolution", "grid_sampler", "multilabel_margin_loss", "native_layer_norm", "nll_loss2d", "nuclear_norm",
        "rnn_relu", "vdot",
    }  # fmt: skip


def test_what_autocast_never_casts() -> None:
    with cuda_policy(), torch.autocast("cuda"):
        double = torch.rand(2, 2, dtype=torch.float64)
        assert (double @ double).dtype == torch.float64
        assert torch.dot(h(3), h(3)).dtype == HALF
        with pytest.raises(RuntimeError, match="unsafe to autocast"):
            F.binary_cross_entropy(h(2), ones)
        with pytest.raises(RuntimeError, match="Unexpected floating ScalarType"):
            torch.dot(h(3), h(3).bfloat16())


def test_the_cpus_own_autocast_is_back_afterwards() -> None:
    def state() -> tuple[Any, ...]:
        with torch.autocast("cpu"):
            kept = [F.softmax(h(3), 0).dtype, F.mse_loss(h(3), h(3)).dtype, (f(2, 2) @ f(2, 2)).dtype, h(3).exp().dtype]
        return (
            *kept,
            torch.get_autocast_dtype("cpu"),
            torch.get_autocast_dtype("cuda"),
            torch.is_autocast_enabled("cuda"),
        )

    before = state()
    assert before[0] == HALF and before[2] == torch.bfloat16
    with cuda_policy(), cuda_policy():
        assert state() != before
    assert state() == before
    with pytest.raises(KeyError), cuda_policy(), torch.autocast("cuda"):
        raise KeyError
    assert state() == before
    assert not torch.is_autocast_enabled("cpu")


def test_each_spelling_of_cudas_autocast_is_answered() -> None:
    x = f(2, 2)
    with cuda_policy(), warnings.catch_warnings():
        warnings.simplefilter("error")  # "CUDA is not available. Disabling"
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        spellings: list[Callable[[], Any]] = [
            lambda: torch.autocast("cuda"),
            lambda: torch.autocast(device_type="cuda", dtype=HALF),
            lambda: torch.amp.autocast("cuda", HALF),
            lambda: torch.amp.autocast_mode.autocast("cuda"),
            lambda: torch.cuda.amp.autocast(),
            lambda: torch.cuda.amp.autocast(True, HALF),
        ]
        for spelling in spellings:
            with spelling():
                assert (x @ x).dtype == HALF
                assert torch.is_autocast_enabled("cuda") and torch.is_autocast_enabled()
                assert torch.get_autocast_dtype("cuda") == torch.get_autocast_gpu_dtype() == HALF
                with torch.autocast("cuda", enabled=False):
                    assert (x @ x).dtype == FULL and not torch.is_autocast_enabled()
                    with torch.autocast("cuda", dtype=torch.bfloat16):
                        assert (x @ x).dtype == torch.get_autocast_dtype("cuda") == torch.bfloat16
                        with torch.autocast("cuda"):  # without a dtype: the one around it
                            assert (x @ x).dtype == torch.bfloat16
                assert (x @ x).dtype == HALF

            @spelling()
            def decorated() -> Any:
                return x @ x

            assert decorated().dtype == HALF
            assert (x @ x).dtype == FULL
        torch.set_autocast_enabled(True)
        try:
            assert (x @ x).dtype == HALF
        finally:
            torch.set_autocast_enabled("cuda", False)
        with torch.autocast("cuda", enabled=False):
            assert torch.get_autocast_dtype("cuda") == HALF


def test_custom_functions() -> None:
    class Full(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="cuda", cast_inputs=FULL)
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            seen.append((x.dtype, torch.is_autocast_enabled("cuda")))
            return x @ x

        @staticmethod
        @torch.amp.custom_bwd(device_type="cuda")
        def backward(ctx: Any, gradient: Any) -> Any:
            (x,) = ctx.saved_tensors
            seen.append(((gradient @ x).dtype, torch.is_autocast_enabled("cuda")))
            return gradient @ x.T + x.T @ gradient

    seen: list[Any] = []
    with cuda_policy():
        x = h(2, 2).requires_grad_()
        with torch.autocast("cuda"):
            out = Full.apply(x)
        assert out.dtype == FULL
        out.sum().backward()
    assert seen == [(FULL, False), (FULL, False)] and x.grad is not None


def test_training_under_the_policy_gives_gradients() -> None:
    torch.manual_seed(0)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(10, 8)
            self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
            self.lstm = torch.nn.LSTM(8, 8, batch_first=True)
            self.norm, self.head = torch.nn.LayerNorm(8), torch.nn.Linear(8, 3)

        def forward(self, x: Any) -> Any:
            x = self.table(x)
            x = x + self.attention(x, x, x)[0]
            return self.head(self.norm(self.lstm(x)[0]).mean(1))

    net, x, y = Net(), torch.randint(10, (4, 5)), torch.tensor([0, 1, 2, 0])
    F.cross_entropy(net(x), y).backward()
    expected = {name: one.grad.clone() for name, one in net.named_parameters()}
    net.zero_grad()
    with cuda_policy():
        with torch.autocast("cuda"):
            loss = F.cross_entropy(net(x), y)
        (loss * 1024).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.dtype == FULL
        torch.testing.assert_close(parameter.grad / 1024, expected[name], rtol=0.05, atol=2e-3)


def test_a_recurrent_layer_runs_in_float16_in_every_region() -> None:
    with cuda_policy(), torch.autocast("cuda", dtype=torch.bfloat16):
        hidden = torch.nn.GRU(3, 4)(f(5, 2, 3))[0]
        assert hidden.dtype == HALF and torch.nn.GRUCell(3, 4)(f(2, 3)).dtype == torch.bfloat16
        row, weights = hidden[0, 0], torch.nn.Linear(4, 4)(hidden[0, 0])
        with pytest.raises(RuntimeError, match="at::autocast::prioritize"):
            torch.dot(row, weights)
        with pytest.raises(RuntimeError, match="at::autocast::prioritize"):
            torch.dot(row, weights.float())  # the first of them decides
        assert torch.dot(row.float(), weights).dtype == torch.dot(weights, row.float()).dtype == FULL


def test_another_thread_has_the_policy_too() -> None:
    found = []

    def work() -> None:
        with torch.autocast("cuda"):
            found.append((F.softmax(h(3), 0).dtype, (f(2, 2) @ f(2, 2)).dtype))

    with cuda_policy():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found == [(FULL, HALF)]
