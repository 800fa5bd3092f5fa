"""The cast plan: the graph with explicit casts gives, without autocast, what autocast gives, bit for bit."""

from dataclasses import replace

import pytest
import test_ops
import torch
from torch import nn
from torch.nn import functional as F

from amplint.graph.capture.captured import Precision
from amplint.graph.capture.ladder import capture
from amplint.graph.casting import cast_graph, name_of
from amplint.graph.plan import plan
from amplint.graph.policy import cuda_policy, kinds
from amplint.graph.run import run

HALF, FULL = torch.float16, torch.float32


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.down = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2), nn.GroupNorm(4, 16), nn.SiLU())
        self.up = nn.ConvTranspose2d(16, 8, 4, stride=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.up(self.down(self.stem(x)))
        return F.softmax(self.head(F.interpolate(x, scale_factor=0.5).mean((2, 3)).square()), -1)


class Attention(nn.Module):
    """Residual sums of a half and a float32 tensor, a norm by hand, a region in float32, a tied weight."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(40, 16)
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.gain = nn.Parameter(torch.ones(16))
        self.mlp = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Dropout(0.0), nn.Linear(64, 16))

    def forward(self, ids, labels):
        x = self.words(ids)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        weights = q @ k.transpose(-2, -1) / 4
        weights = weights.masked_fill(torch.ones(6, 6).tril() == 0, torch.finfo(weights.dtype).min)
        x = x + weights.softmax(-1).type_as(v) @ v
        with torch.autocast("cuda", enabled=False):
            x = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain
        x = x + self.mlp(x)
        logits = x @ self.words.weight.t()
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1), logits


class Mixed(nn.Module):
    """What each list casts in its own way: dtypes that are set, operands in a list, sizes that promote."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Bilinear(8, 8, 8)
        self.p = nn.PReLU()

    def forward(self, x):
        h = self.a(x)
        parts = [h.sum(-1), h.sum(-1, dtype=torch.float64).float(), h.norm(), h.norm(2, -1), h.cumsum(-1), h.prod(-1)]
        parts += [torch.einsum("bi,bj->bij", h, x), torch.tensordot(h, x, ([0], [0])), torch.stack([h, x])]
        parts += [torch.cat([h, h]), torch.addcmul(h, h, x), F.cosine_similarity(h, x), self.b(h, x), self.p(h)]
        parts += [torch.log_softmax(h, -1), torch.logsumexp(h, -1), F.kl_div(F.log_softmax(h, -1), F.softmax(x, -1))]
        parts += [F.smooth_l1_loss(h, x), F.mse_loss(h, x), torch.cdist(h, x), F.cross_entropy(h, torch.arange(4))]
        parts += [
            torch.dot(h[0], x[0]),
            torch.index_put(h, (torch.arange(2),), h[:2]),
            F.scaled_dot_product_attention(h, x, x),
        ]
        parts += [h.clone().add_(x), h.pow(2), 2.0**h, h.float().half() + h, torch.linalg.multi_dot([h, x.t(), x])]
        return [one.clone() for one in parts]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(8, 12, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0].exp()


IDS = torch.arange(12).reshape(2, 6)
MODELS = {
    "conv": (Conv, (torch.randn(4, 3, 8, 8),)),
    "attention": (Attention, (IDS, IDS)),
    "mixed": (Mixed, (torch.randn(4, 8),)),
    "recurrent": (Recurrent, (torch.randn(2, 5, 8),)),
}


def agrees(captured):
    """The values of both, and no cast left to autocast."""
    with torch.random.fork_rng(), cuda_policy():
        torch.manual_seed(0)
        wanted = run(captured, full=False)
    graph = cast_graph(captured).graph
    with torch.random.fork_rng():
        torch.manual_seed(0)
        given = run(replace(captured, graph=graph), full=False)
    for one, other in zip(torch.utils._pytree.tree_leaves(wanted), torch.utils._pytree.tree_leaves(given), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))
    return wanted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_the_graph_with_casts_gives_what_autocast_gives(name, dtype):
    torch.manual_seed(1)
    model, inputs = MODELS[name]
    captured = capture(model(), inputs, {}, Precision("amp", dtype))
    assert captured.frontend == "export"
    lower = torch.float16 if name == "recurrent" else dtype  # as cuDNN runs it in every region
    assert any(one.dtype == lower for one in plan(captured).casts)
    agrees(captured)


class Calls(nn.Module):
    """Expressions of a, b, …, each of float32 or of half tensors, or of both."""

    def __init__(self, expressions):
        super().__init__()
        self.expressions = expressions

    def forward(self, names):
        found = [eval(one, {"torch": torch, "F": F}, dict(names)) for one in self.expressions]
        return [one.clone() for one in torch.utils._pytree.tree_leaves(found) if isinstance(one, torch.Tensor)]


# What leaves half where half comes in, and what has no half kernel on a CPU: there is no policy to hold to.
SKIPPED = {"torch.linalg.svd", "torch.lerp"}


@pytest.mark.parametrize(("first", "second"), [(HALF, HALF), (FULL, FULL), (HALF, FULL), (FULL, HALF)])
def test_every_listed_operation_is_cast_as_autocast_casts_it(first, second):
    torch.manual_seed(2)
    names = {
        "a": torch.rand(4, 4, dtype=first) + 0.5,
        "b": torch.rand(4, 4, dtype=second),
        "v": torch.rand(4, dtype=second),
    }
    names |= {
        "A": torch.rand(4, 4, 4, dtype=first),
        "I": torch.rand(2, 4, 4, 4, dtype=second),
        "c": torch.rand(4, 3, dtype=first),
    }
    names |= {"Q": torch.rand(1, 2, 4, 8, dtype=first), "m": torch.rand(4, 4) > 0.5, "k": torch.arange(4)}
    names["kk"] = torch.arange(16).reshape(4, 4) % 4
    calls = [one for spelling, one in test_ops.SAMPLE.items() if spelling not in SKIPPED]
    calls = [one for one in calls if runs(one, names)]
    assert len(calls) > 70
    captured = capture(Calls(calls), (names,), {}, Precision(), "recorder")
    assert {kinds().get(name_of(node), "") for node in captured.nodes()} >= {
        "lower",
        "fp32",
        "fp32_set_opt_dtype",
        "promote",
    }
    agrees(captured)


def runs(call, names):
    """Whether a CPU has kernels for it under the policy."""
    try:
        with cuda_policy(), torch.autocast("cuda"):
            Calls([call])(names)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def test_the_casts_of_a_tied_weight_and_of_what_promotes():
    """One cast for a parameter that two linears use, one for each use of another tensor; none where dtypes fit."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(8, 8, bias=False), nn.LayerNorm(8)

        def forward(self, x):
            h = self.norm(self.linear(x))
            return torch.addcmul(h, self.linear(h), self.linear(h)).softmax(-1)

    found = plan(capture(Tied(), (torch.randn(4, 8),), {}, Precision()))
    casts = sorted((one.source.name, str(one.dtype)[6:], len(one.users), one.bytes) for one in found.casts)
    assert casts == [
        ("layer_norm", "float16", 1, 4 * 8 * 6),
        ("layer_norm", "float16", 1, 4 * 8 * 6),
        ("linear", "float32", 1, 4 * 8 * 6),
        ("linear_1", "float32", 1, 4 * 8 * 6),
        ("linear_2", "float32", 1, 4 * 8 * 6),
        ("p_linear_weight", "float16", 3, 8 * 8 * 6),
        ("x", "float16", 1, 4 * 8 * 6),
    ]
    assert (found.made, found.bytes) == (7, 6 * 4 * 8 * 6 + 8 * 8 * 6)
    assert found.counts == {"lower": 3, "fp32": 2, "promote": 1, "other": 0}
    assert found.flops == {torch.float16: 3 * 2 * 4 * 8 * 8} and found.fp32_share == 0.0


def test_work_that_stays_in_float32():
    class Island(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 24)

        def forward(self, x):
            x = self.a(x)
            with torch.autocast("cuda", enabled=False):
                return self.b(x.float())

    found = plan(capture(Island(), (torch.randn(4, 8),), {}, Precision()))
    assert found.fp32_share == 0.75
    assert [node.target for node in found.own] == [torch.ops.aten.to.dtype]


def test_a_model_that_is_half_itself_has_no_plan():
    captured = capture(nn.Linear(8, 8), (torch.randn(4, 8),), {}, Precision("half"))
    found = plan(captured)
    assert (found.casts, found.counts["other"]) == ((), 1)
    agrees(captured)
