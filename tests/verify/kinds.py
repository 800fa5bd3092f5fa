"""Training steps of many kinds, for a run under the probe and one without: `kinds.py cuda` or `kinds.py cpu`."""

import copy
import io
import pickle
import sys
import threading
import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

warnings.simplefilter("ignore")
device = sys.argv[1]


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))


def x(*shape):
    return torch.randn(*(shape or (4, 8)), device=device)


def mean(output):
    return output.float().square().mean()


def train(name, make, loss_of=lambda net: mean(net(x())), kind=torch.optim.AdamW, scaled=True, **options):
    torch.manual_seed(0)
    net = make().to(device)
    optimizer, scaler = kind(net.parameters(), **options), torch.amp.GradScaler("cuda", enabled=scaled)
    for _ in range(3):
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_of(net)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    print(name, f"{loss.item():.6f}", flush=True)
    return net, optimizer, scaler


def penalty(net):
    data = x().requires_grad_()
    (gradient,) = torch.autograd.grad(net(data).sum(), data, create_graph=True)
    return gradient.norm() + net(x()).mean()


@torch.jit.script
def compiled_mean(y: torch.Tensor):
    return (y * y).mean()


def per_sample(net):
    weights = {name: value.detach() for name, value in net.named_parameters()}
    made = vmap(grad(lambda w, one: functional_call(net, w, (one,)).square().sum()), in_dims=(None, 0))(weights, x())
    return net(x()).mean() + sum(value.mean() for value in made.values())


class Product(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float16)
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx, gradient):
        a, b = ctx.saved_tensors
        return gradient @ b.t(), a.t() @ gradient


def hooked(net):
    net[0].register_full_backward_hook(lambda module, given, made: None)
    net[0].register_forward_hook(lambda module, given, made: made * 1.0)
    with torch.autograd.graph.save_on_cpu():
        return mean(net(x()))


def ctc(net):
    lengths = torch.tensor([6, 6]), torch.tensor([2, 2])
    return F.ctc_loss(net(x(6, 2, 8)).log_softmax(-1), torch.tensor([[1, 2], [2, 3]]), *lengths)


class Odd(torch.Tensor):
    pass


net, optimizer, scaler = train("mlp", mlp)
for one in (net, optimizer):
    copy.deepcopy(one)
    pickle.dumps(one)
torch.save(net, io.BytesIO())
scaler.load_state_dict(scaler.state_dict() or {"scale": 1}) if scaler.is_enabled() else None
torch.optim.swa_utils.AveragedModel(net).update_parameters(net)
for name in ("Adadelta", "Adagrad", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD", "Adafactor"):
    if hasattr(torch.optim, name):
        train(name, mlp, kind=getattr(torch.optim, name))
train("foreach", mlp, foreach=True)
train("fused", mlp, fused=True)
train(
    "sparse",
    lambda: nn.Embedding(9, 4, sparse=True),
    lambda net: mean(net(torch.tensor([1, 2]))),
    torch.optim.SparseAdam,
)
train("checkpoint", mlp, lambda net: mean(checkpoint(net, x().requires_grad_(), use_reentrant=True)))
train("again", mlp, lambda net: mean(checkpoint(net, x(), use_reentrant=False)))
train("norms", lambda: nn.Sequential(spectral_norm(nn.Linear(8, 8)), weight_norm(nn.Linear(8, 2))))
train("penalty", mlp, penalty)
train("scripted loss", mlp, lambda net: compiled_mean(net(x())))
train("traced", lambda: torch.jit.trace(nn.Linear(8, 4), torch.randn(4, 8)))
train("scripted", lambda: torch.jit.script(nn.Linear(8, 4)))
train("per sample", mlp, per_sample)
train(
    "transformer",
    lambda: nn.Transformer(8, 2, 1, 1, 16, 0.0, batch_first=True),
    lambda net: mean(net(x(2, 3, 8), x(2, 3, 8))),
)
train("lstm", lambda: nn.LSTM(8, 4, 2, bidirectional=True), lambda net: mean(net(x(3, 2, 8))[0]))
train("cell", lambda: nn.LSTMCell(8, 4), lambda net: mean(net(x())[0]))
train(
    "images",
    lambda: nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.InstanceNorm2d(4), nn.ConvTranspose2d(4, 1, 2, 2)),
    lambda net: mean(net(x(1, 1, 8, 8))),
)
train(
    "volumes",
    lambda: nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2), nn.MaxPool3d(2)),
    lambda net: mean(net(x(2, 1, 6, 6, 6))),
)
train("spectrum", mlp, lambda net: torch.fft.rfft(net(x()).float()).abs().mean())
train("ctc", lambda: nn.Linear(8, 5), ctc)
train("custom", lambda: nn.Linear(8, 8), lambda net: mean(Product.apply(x(), net.weight)))
train("hooks", mlp, hooked)
train("parallel", lambda: nn.DataParallel(mlp()))
train("attention", mlp, lambda net: mean(F.scaled_dot_product_attention(*[net(x(2, 2, 5, 8))] * 3, is_causal=True)))
train("subclass", mlp, lambda net: mean(net(x().as_subclass(Odd))))
thread = threading.Thread(target=train, args=("thread", mlp))
thread.start()
thread.join()
with torch.device(device):
    train("context", lambda: nn.Linear(8, 4))
