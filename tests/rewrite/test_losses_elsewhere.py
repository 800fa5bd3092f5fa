"""Losses of other files that half precision cannot compute, or computes too coarsely."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.rewrite.fixing import HEAD, STEP, amplint, put

pytestmark = pytest.mark.usefixtures("own_folder")

LOSSES = """\
import torch
import torch.nn.functional as F
class Spectral(torch.nn.Module):
    def forward(self, f):
        return torch.linalg.svdvals(f)[0]
class Domain(torch.nn.Module):
    def __init__(self, judge=torch.nn.Linear(4, 1), sigmoid=True):
        super().__init__()
        self.judge, self.sigmoid = judge, sigmoid
    def forward(self, f, weight=None):
        seen = self.judge(f)
        if not self.sigmoid:
            return seen.mean()
        return F.binary_cross_entropy(torch.sigmoid(seen), torch.ones_like(seen), weight)
class Certain(torch.nn.Module):
    def forward(self, f):
        return F.binary_cross_entropy(f, torch.ones_like(f))
class Triplet(torch.nn.Module):
    def forward(self, f):
        return f.pow(2).sum(1).expand(f.size(0), f.size(0)).clone().addmm_(f, f.t(), beta=1, alpha=-2).mean()
class Pair(torch.nn.Module):
    def forward(self, fs):
        return torch.linalg.svdvals(fs[0])[0] + fs[1].mean()
class Any(torch.nn.Module):
    def forward(self, *fs):
        return torch.linalg.svdvals(*fs)[0]
class Unused(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.bce = torch.nn.BCELoss()
    def forward(self, f):
        return f.square().mean()
class Judged(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.sure = torch.nn.BCELoss()
    def forward(self, f):
        return self.sure(f, torch.ones_like(f))
class Rated(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = torch.nn.BCELoss()
    def forward(self, f):
        return f.square()
class Wide(torch.nn.Module):
    def forward(self, f):
        return torch.linalg.svdvals(f.float())[0]
class Projected(torch.nn.Module):
    def forward(self, f):
        noise = torch.randn((4, 4), device=f.device)
        turn, _ = torch.linalg.qr(noise.cpu())
        return (f @ turn.to(f.device)).square().mean()
class Transducer(torch.nn.Module):
    def forward(self, f):
        import k2
        return k2.rnnt_loss_simple(f, f.argmax(1), 0)
class Rotated(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linalg.qr(torch.randn(4, 4))[0])
    def forward(self, f):
        return F.linear(f, self.weight).square().mean()
class Odd(torch.nn.Module):
    def forward(self, x):
        return torch.linalg.qr(x)[0]
class Gate(torch.nn.Module):
    def forward(self, x):
        return torch.sigmoid(x)
class Turned(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(4))
    def forward(self, f):
        return F.linear(f, self.weight).square().mean() - torch.slogdet(self.weight)[1]
class Apart(torch.nn.Module):
    def forward(self, f):
        f = f.to("cpu")
        return (f[1:] - f[:-1]).square().mean()
class Shown(torch.nn.Module):
    def forward(self, f):
        print(f.cpu().detach().numpy())
        return f.square().mean()
class Distance:
    def measure(self, f):
        return torch.fft.fft(f)
"""
SVD = "which has no half-precision kernel; make its operand .float() first: in float32 that changes nothing"
OWN = "    seen = model(x.to(device))\n    loss = seen.square().mean() + 0.1 * criterion(seen)"
FLOAT = "    loss = seen.square().mean() + 0.1 * criterion(seen.float())\n    scaler.scale(loss)"
ELSEWHERE = {  # what makes the loss, its statements: what is written, or said
    "its output gets a name": ("Spectral()", "    loss = criterion(model(x))", "loss = criterion(output.float())"),
    "a loss with weights": (
        "Domain()",
        "    f = model(x)\n    loss = criterion(f)",
        "    loss = criterion(f.float())\n",
    ),
    "a loss with a flag": (
        "Domain(sigmoid=False)",
        "    f = model(x)\n    loss = criterion(f)",
        "criterion(f.float())\n",
    ),
    "a part of the loss": ("Triplet()", OWN, FLOAT.replace("seen.square()", "seen.float().square()")),
    "by another name": (
        "Spectral()\nlosses = [criterion]\nbest = criterion",
        "    seen = model(x)\n    loss = seen.mean() + best(seen)",
        "    loss = seen.float().mean() + best(seen.float())\n",
    ),
    "by its module": (
        "losses.Spectral()",
        "    seen = model(x)\n    loss = criterion(seen)",
        "    loss = criterion(seen.float())\n",
    ),
    "whichever of a module": ('losses.__dict__["Spectral"]()', OWN, "calls svdvals(), " + SVD),
    "several at once": (
        "[Spectral(), Triplet()]",
        "    f = model(x)\n    f = f / 2\n    loss = sum(one(f) for one in criterion)",
        "    f = f.float() / 2\n    loss = sum(one(f) for one in criterion)\n",
    ),
    "a tuple, perhaps": ("Pair()", OWN, "calls svdvals(), " + SVD),
    "any arguments": ("Any()", OWN, "calls svdvals(), " + SVD),
    "a model, in the end": ("Odd()", "    loss = criterion(x).mean()\n    loss = loss + model(x).mean()", SVD),
    "a sigmoid in half": (
        "Certain()",
        "    gate = Gate()\n    f = model(x)\n    f = gate(f)\n    loss = criterion(f)",
        "use binary_cross_entropy_with_logits on logits first",
    ),
    "made, and run elsewhere": ("Judged()", OWN, FLOAT.replace("seen.square()", "seen.float().square()")),
    "made, and run by the script": (
        "Rated()",
        "    seen = criterion(model(x))\n    loss = criterion.rate(seen, x)",
        "    seen = criterion(seen_output.float())\n    loss = criterion.rate(seen, x)\n",
    ),
    "never run": ("Unused()", "    loss = criterion(model(x))", "        loss = criterion(model(x))\n"),
    "float32 already": ("Wide()", "    loss = criterion(model(x))", "        loss = criterion(model(x))\n"),
    "of what is made there": ("Projected()", "    loss = criterion(model(x))", "        loss = criterion(model(x))\n"),
    "a loss that is compiled": ("Transducer()", OWN, FLOAT.replace("seen.square()", "seen.float().square()")),
    "of a parameter": ("Turned()", "    loss = criterion(model(x))", "        loss = criterion(model(x))\n"),
    "on the CPU": ("Apart()", "    f = model(x)\n    loss = criterion(f)", "    loss = criterion(f.float())\n"),
    "shown on the CPU": ("Shown()", "    loss = criterion(model(x))", "        loss = criterion(model(x))\n"),
    "at its start": ("Rotated()", "    loss = criterion(model(x))", "        loss = criterion(model(x))\n"),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_loss_in_another_file_that_half_precision_cannot_run(name: str, dtype: str) -> None:
    made, loss, expected = ELSEWHERE[name]
    put(LOSSES, "losses.py")
    names = ", ".join(sorted({*re.findall(r"[A-Z]\w+", made + loss), "Distance"} - {"False"}))
    step = STEP.replace(STEP.splitlines()[2], loss)
    put(f"import losses\nfrom losses import {names}\n{HEAD}criterion = {made}\nmeter = Distance()\n{step}")
    result = amplint("train.py", "--dtype", dtype)
    if result.exit_code:
        assert result.stdout.rstrip().endswith(expected)
    else:
        text = Path("train.py").read_text(encoding="utf-8")
        assert expected.replace("scaler.scale(loss)", "loss" if dtype == "bfloat16" else "scaler.scale(loss)") in text
        assert "autocast" in text


PRECISE = """\
import torch
import torch.nn.functional as F
def choose(*functions):
    return lambda chosen: functions[0]
def turn_torch(x):
    return torch.linalg.svdvals(x)[0]
@choose(turn_torch, max)
def turn(x):
    return x
class Focal(torch.nn.Module):
    def __init__(self, margin=1e-4):
        super().__init__()
        self.margin = margin
    def forward(self, x):
        p = torch.clamp(torch.sigmoid(x), self.margin, 1 - self.margin)
        rest = 1 - p
        return -(p * torch.log(rest)).mean()
class Wide(torch.nn.Module):
    def forward(self, x):
        p = torch.sigmoid(x.float()).clamp(1e-4, 1 - 1e-4)
        return -torch.log(1 - p).mean()
class Coarse(torch.nn.Module):
    def forward(self, x):
        p = torch.sigmoid(x).clamp(0.01, 0.99)
        return -torch.log(1 - p).mean()
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.loss = torch.nn.Linear(4, 4), Focal()
    def forward(self, x):
        return self.loss(self.layer(x))
class Book(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("sums", torch.zeros(4, 4))
    def forward(self, x):
        total = x.t() @ x.argmax(1, keepdim=True)
        self.sums.data.mul_(0.99).add_(total, alpha=0.01)
        return x - self.sums.mean(0)
class Normed(torch.nn.Module):
    def forward(self, x):
        v = self.v
        v.data = unit(torch.mv(self.weight.t(), self.u.data))
        self.u.data = F.normalize(torch.mv(self.weight, v.data), dim=0)
        return x / self.u.dot(self.weight.mv(v))
class Camera(torch.nn.Module):
    def forward(self, depth):
        return depth * torch.matmul(self.inv_K, self.pix_coords)
class Waves(torch.nn.Module):
    def __init__(self, rate=16000):
        super().__init__()
        self.n = 6.28 * torch.arange(100).view(1, -1) / rate
    def forward(self, pitch):
        angles = torch.matmul(pitch, self.n)
        return torch.sin(angles).mean()
class Fourier(torch.nn.Module):
    def forward(self, x):
        return torch.sin(torch.matmul(x, self.weights)).mean()
class Certain(torch.nn.Module):
    def focal(self, x, rest):
        x = x * 2 - 1
        p = torch.sigmoid(x)
        certain = p * rest + (1 - p) * (1 - rest)
        return -certain.log().mean()
    def forward(self, x, rest=0):
        return self.focal(x.view(-1, 4), rest)
class Cautious(torch.nn.Module):
    def forward(self, x):
        return -torch.log(torch.sigmoid(x) + 0.01).mean()
class Mixed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lower = torch.nn.Linear(4, 4)
    def forward(self, x, y):
        return self.lower(x).sigmoid().log().mean()
def ssim(x, y, window=torch.ones(1, 1, 3, 3) / 9):
    mean = F.conv2d(x, window)
    squared = mean.pow(2)
    spread = F.conv2d(x * x, window) - squared
    return 1 - (F.conv2d(x * y, window) / (spread + 1e-3)).mean()
def slope(x):
    return F.avg_pool1d(x**2, 3) - F.avg_pool1d(x, 3)
def table(size):
    angles = torch.einsum("i,j->ij", torch.arange(100), torch.rand(size))
    return torch.sin(angles)
class Table(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = table(4)
    def forward(self, x):
        return (x + self.table[: len(x)]).mean()
class Codes(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("sums", torch.zeros(4, 4))
    def forward(self, x):
        total = torch.nn.functional.one_hot(x.argmax(1), 4).float().t() @ x
        self.sums = 0.99 * self.sums + 0.01 * total
        return x - self.sums.mean(0)
"""
APART = "under torch.autocast(device_type, enabled=False)"
BOUNDED = (
    "loss.py:15 keeps probabilities from 1 by a bound that half precision rounds to 1, and takes log(1 - p); "
    "make them .float() before they are bounded, or use binary_cross_entropy_with_logits on logits"
)
IMPRECISE = {  # what is made, the loss: what is written, or said
    "a bound that is 1": ("criterion = Focal()", "criterion(model(x))", "criterion(output.float())"),
    "a bound in float32": ("criterion = Wide()", "criterion(model(x))", "    loss = criterion(model(x))"),
    "a bound that is none": ("criterion = Coarse()", "criterion(model(x))", "    loss = criterion(model(x))"),
    "a bound in a model": ("", "model(x)", BOUNDED),
    "an average in a buffer": (
        "book = Book()",
        "book(model(x)).mean()",
        "loss.py:38 averages products over the batch in a buffer, where what half precision loses stays; "
        f"compute them on .float() {APART}",
    ),
    "an average that replaces its buffer": (
        "codes = Codes()",
        "codes(model(x)).mean()",
        "loss.py:97 averages products over the batch in a buffer, where what half precision loses stays; "
        f"compute them on .float() {APART}",
    ),
    "a parameter that is set": (
        "normed = Normed()",
        "normed(model(x)).mean()",
        "loss.py:43 sets a parameter to a product, and in half precision it would be a half tensor from then on; "
        f"compute it on .float() {APART}",
    ),
    "pixels of a camera": (
        "cameras = {}\nfor scale in range(4):\n    cameras[scale] = Camera()",
        "cameras[0](model(x)).mean()",
        "loss.py:48 multiplies coordinates of pixels, which half precision rounds to half a pixel; "
        f"compute them on .float() {APART}",
    ),
    "angles of positions": ("waves = Waves()", "waves(model(x))", "    loss = waves(output.float())"),
    "angles of a table": ("turned = Table()", "turned(model(x))", "    loss = turned(model(x))"),
    "angles of features": ("fourier = Fourier()", "fourier(model(x))", "    loss = fourier(model(x))"),
    "a sigmoid's logarithm": ("criterion = Certain()", "criterion(model(x))", "    loss = criterion(output.float())"),
    "one with an eps": ("criterion = Cautious()", "criterion(model(x))", "        loss = criterion(model(x))"),
    "a variance": ("", "ssim(model(x), y)", "    loss = ssim(output.float(), y)"),
    "a difference": ("", "slope(model(x)).mean()", "        loss = slope(model(x)).mean()"),
    "a list that is filled": (
        "several = torch.nn.ModuleList([])\nseveral.append(Focal())",
        "several[0](model(x))",
        BOUNDED,
    ),
    "a decorator's function": ("", "turn(model(x))", "turn(output.float())"),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", IMPRECISE)
def test_what_half_precision_computes_too_coarsely(name: str, dtype: str) -> None:
    made, loss, expected = IMPRECISE[name]
    put(PRECISE, "loss.py")
    head = HEAD.replace("torch.nn.Linear(4, 4)", "Net()") if loss == "model(x)" else HEAD
    put(f"from loss import *\n{head}{made}\n" + STEP.replace(STEP.splitlines()[2], f"    loss = {loss}"))
    result = amplint("train.py", "--dtype", dtype)
    if result.exit_code:
        assert result.stdout.rstrip().endswith(expected)
    else:
        text = Path("train.py").read_text(encoding="utf-8")
        assert expected in text
        assert "autocast" in text


@pytest.mark.parametrize("loss", ["criterion = Certain()", "from loss import ssim as criterion", "criterion = Mixed()"])
def test_a_coarse_loss_of_a_file_that_is_named(loss: str) -> None:
    put(PRECISE, "loss.py")
    put(f"from loss import *\n{HEAD}{loss}\n" + STEP.replace("torch.nn.functional.mse_loss", "criterion"))
    assert amplint("train.py", "loss.py").exit_code == 0
    wide = "criterion(output.float(), y.to(device))" in Path("train.py").read_text(encoding="utf-8")
    assert wide == ("Mixed" not in loss)


def test_what_a_loop_in_another_file_is_given() -> None:
    put(PRECISE, "loss.py")
    body = "".join(f"    {line}\n" for line in STEP.splitlines()).replace(
        "mse_loss(model(x.to(device)), y.to(device))", ""
    )
    loop = body.replace("torch.nn.functional.", "losses[0](model(x.cuda()))")
    put(f"def train(loader, model, losses, optimizer):\n{loop}", "loop.py")
    made = HEAD + "losses = torch.nn.ModuleList([])\nlosses.append(Focal())\ntrain(loader, model, losses, optimizer)\n"
    put("from loop import train\nfrom loss import Focal\n" + made)
    result = amplint("train.py", "loop.py")
    assert result.exit_code == 1
    assert result.stdout.rstrip().endswith(BOUNDED)


JUDGE = """\
from torch import nn
class Judge(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)
    def forward(self, x):
        return nn.Sigmoid()(self.layer(x))
class Rate(nn.Module):
    def forward(self, x):
        return x.softmax(1)
class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.value, self.gate = nn.Linear(4, 1), nn.Linear(4, 1)
    def forward(self, x):
        x = self.value(x) * self.gate(x).sigmoid()
        return x.square()
"""


@pytest.mark.parametrize(("made", "refused"), [("Judge()", True), ("Rate()", False), ("Gated()", False)])
def test_the_logarithm_of_what_a_model_of_another_file_judges(made: str, refused: bool) -> None:
    """The file has no word of training, so that the reading does not enter it."""
    put(JUDGE, "judge.py")
    step = STEP.replace("torch.nn.functional.mse_loss(", "-torch.log(judge(").replace(", y.to(device))", ")).mean()")
    put(f"from judge import *\n{HEAD}judge = {made}.to(device)\n{step}")
    result = amplint("train.py", "--check")
    assert ("it takes the logarithm of a sigmoid, which is 0 or 1 too soon" in result.stdout) == refused
    assert ("converted" in result.stdout) != refused


def test_a_loss_that_a_model_imports_from_where_its_script_has_pointed() -> None:
    """`sys.path.insert(0, "nets")`: what the model's file says is in a folder above it."""
    put(PRECISE, "nets/seen/losses.py")
    put(
        "import torch\nfrom seen import losses\nclass Finder(torch.nn.Linear):\n    def __init__(self):\n"
        "        super().__init__(4, 4)\n        self.criterion = losses.Focal()\n"
        "    def forward(self, x):\n        return self.criterion(super().forward(x))\n",
        "nets/seen/model.py",
    )
    script = HEAD.replace("torch.nn.Linear(4, 4)", "model.Finder()") + STEP
    put(
        "import sys\nsys.path.insert(0, 'nets')\nfrom nets.seen import model\n"
        + script.replace("model = ", "net = ")
        .replace("model.parameters", "net.parameters")
        .replace("mse_loss(model(", "l1_loss(net(")
    )
    said = amplint("train.py").stdout
    assert said.rstrip().endswith(BOUNDED.removeprefix("loss.py:15 ")) and "nets/seen/losses.py:15 keeps" in said
