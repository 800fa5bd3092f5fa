"""`amplint fix`: case files (a script, `# output` and what it becomes, `# said` and what is said), and refusals."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner, Result

from amplint.cli import cli

CASES = Path(__file__).parent / "cases"


class Case(NamedTuple):
    """A script, the options to convert it with, what it becomes ("": what it was), and the summary."""

    options: list[str]
    script: str
    output: str
    said: str


def case(name: str) -> Case:
    script, _, rest = (CASES / f"{name}.case").read_text(encoding="utf-8").partition("# output\n")
    options = ""
    if script.startswith("# options: "):
        options, _, script = script.removeprefix("# options: ").partition("\n")
    output, _, said = rest.partition("# said\n")
    return Case(shlex.split(options), script, output, said)


NAMES = sorted(path.stem for path in CASES.glob("*.case"))


def amplint(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["fix", *arguments], catch_exceptions=False)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def put(text: str, name: str = "train.py") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", NAMES)
def test_case(name: str) -> None:
    options, script, output, said = case(name)
    path = put(script)
    result = amplint("train.py", *options)
    assert path.read_text(encoding="utf-8") == (output or script)
    assert result.stdout == said
    assert result.exit_code == 0
    again = amplint("train.py", *options)
    assert path.read_text(encoding="utf-8") == (output or script)
    assert "converted" not in again.stdout


# -- what is refused --------------------------------------------------------------------------------------------------

HEAD = """\
import torch
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model = torch.nn.Linear(4, 4).to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
"""
STEP = """\
for x, y in loader:
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(x.to(device)), y.to(device))
    loss.backward()
    optimizer.step()
"""
TWO = HEAD + "head = torch.nn.Linear(4, 4).to(device)\nslow = torch.optim.SGD(head.parameters(), lr=0.01)\n"
REFUSED = {
    "closure": (
        HEAD.replace("SGD(model.parameters(), lr=0.1)", "LBFGS(model.parameters())")
        + "def closure():\n    optimizer.zero_grad()\n    loss = model(x).mean()\n    loss.backward()\n"
        + "    return loss\n"
        + "for x in loader:\n    optimizer.step(closure)\n",
        "its step() runs the backward in a closure; a GradScaler cannot drive it: keep float32",
    ),
    "twice on one batch": (
        HEAD.replace("torch.optim.SGD(", "SAM(").replace("import torch\n", "import torch\nfrom sam import SAM\n")
        + "for x, y in loader:\n    loss = model(x.to(device)).mean()\n    loss.backward()\n"
        + "    optimizer.first_step(zero_grad=True)\n    loss = model(x.to(device)).mean()\n    loss.backward()\n"
        + "    optimizer.second_step(zero_grad=True)\n",
        "its optimizer steps twice on one batch (SAM), which a GradScaler cannot drive; keep float32",
    ),
    "by hand": (
        HEAD.replace("optimizer = ", "unused = ")
        + "for x, y in loader:\n    loss = model(x.to(device)).mean()\n    loss.backward()\n"
        + "    with torch.no_grad():\n        for p in model.parameters():\n            p -= 0.1 * p.grad\n",
        "no optimizer steps after this backward: the parameters are updated by hand; use an optimizer from torch.optim",
    ),
    "also by hand": (
        HEAD + STEP + "    for p in model.parameters():\n        p.data.add_(p.grad, alpha=-0.1)\n",
        "parameters are also updated by hand; a GradScaler only steps optimizers: keep float32",
    ),
    "float64": (
        HEAD.replace(".to(device)", ".double().to(device)") + STEP,
        "the model is float64; float64 is there for a reason: keep it",
    ),
    "half by hand": (
        HEAD.replace(".to(device)", ".to(device).half()")
        + STEP.replace("loss.backward()", "(loss * loss_scale).backward()").replace("x.to(device)", "x.half()"),
        "the model's weights are cast to float16 (line 3); remove the casts first: autocast keeps weights in float32",
    ),
    "half by a flag that does more": (
        HEAD.replace("optimizer =", "if fp16:\n    model.half()\n    announce()\noptimizer =") + STEP,
        "the model's weights are cast to float16 (line 5); remove the casts first: autocast keeps weights in float32",
    ),
    "weights in bfloat16": (
        HEAD.replace(".to(device)", ".to(device, torch.bfloat16)") + STEP,
        "the model's weights are cast to bfloat16 (line 3); remove the casts first: autocast keeps weights in float32",
    ),
    "a device that may be None": (
        HEAD.partition("model =")[0]
        + "class Layer(torch.nn.Linear):\n    def __init__(self, a, b, device=None):\n"
        + "        super().__init__(a, b, device=device)\n"
        + "        self.opt = torch.optim.SGD(self.parameters(), lr=0.1)\n"
        + "    def fit(self, x):\n        loss = self.forward(x).mean()\n        self.opt.zero_grad()\n"
        + "        loss.backward()\n        self.opt.step()\n"
        + "layer = Layer(4, 4).to(device)\nfor x in loader:\n    layer.fit(x.to(device))\n",
        "the device is not known where the optimizer is made; make the optimizer after the device",
    ),
    "hogwild": (
        HEAD + "model.share_memory()\n" + STEP,
        "processes share the parameters without locks (Hogwild); keep float32",
    ),
    "sparse gradients": (
        HEAD.replace("Linear(4, 4)", "Embedding(4, 4, sparse=True)") + STEP,
        "it uses sparse tensors, which have no half-precision kernels everywhere; keep float32",
    ),
    "never zeroed": (
        HEAD + STEP.replace("    optimizer.zero_grad()\n", ""),
        "nothing sets its gradients to zero, and a GradScaler would mix scaled and unscaled ones; "
        "call zero_grad() before each backward, or use --dtype bfloat16",
    ),
    "fully_shard": (
        "from torch.distributed.fsdp import fully_shard\n"
        + HEAD.replace("optimizer =", "fully_shard(model)\noptimizer =")
        + STEP,
        "its parameters are sharded by fully_shard(); "
        "pass mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16) to that instead",
    ),
    "sharded, with a policy": (
        "from torch.distributed.fsdp import FullyShardedDataParallel as FSDP\n"
        + HEAD.replace("optimizer =", "model = FSDP(model, mixed_precision=policy)\noptimizer =")
        + STEP,
        "its FSDP has a mixed precision of its own; set its MixedPrecision policy",
    ),
    "games": (
        "import gymnasium\n" + HEAD + STEP,
        "it is reinforcement learning: rollout and update must agree in precision; "
        "say which with --dtype bfloat16 or --dtype float16, and compare the returns",
    ),
    "an environment of its own": (
        HEAD + STEP + "    seen, reward, over, info = env.step(act(x))\n",
        "it is reinforcement learning: rollout and update must agree in precision; "
        "say which with --dtype bfloat16 or --dtype float16, and compare the returns",
    ),
    "what was played": (
        HEAD + STEP.replace("    loss.b", "    loss = loss * advantages - action_log_probs.mean()\n    loss.b"),
        "it is reinforcement learning: rollout and update must agree in precision; "
        "say which with --dtype bfloat16 or --dtype float16, and compare the returns",
    ),
    "until small": (
        HEAD + STEP + "    if loss.item() < 1e-3:\n        break\n",
        "its loop ends on a loss threshold, which half precision may never reach; keep float32",
    ),
    "while large": (
        HEAD
        + "loss = torch.tensor(1.0)\nwhile loss > 1e-3:\n    optimizer.zero_grad()\n    loss = model(x).mean()\n"
        + "    loss.backward()\n    optimizer.step()\n",
        "its loop ends on a loss threshold, which half precision may never reach; keep float32",
    ),
    "only sometimes": (
        HEAD.replace("optimizer = ", "if tune:\n    optimizer = ") + STEP,
        "the optimizer exists only under some conditions; convert it by hand",
    ),
    "unknown caller": (
        "import torch\ndef train(model, device, loader, optimizer):\n"
        + "".join(f"    {line}\n" for line in STEP.splitlines()),
        "the optimizer comes from elsewhere: its caller is not in this file; convert it by hand",
    ),
    "passed around": (
        HEAD.replace("import torch\n", "import torch\nimport tasks\n")
        + "def train(optimizer):\n"
        + "".join(f"    {line}\n" for line in STEP.splitlines())
        + "train(optimizer)\ntasks.later(train)\n",
        "train is passed around, not only called; convert it by hand",
    ),
    "called elsewhere, too": (
        "import torch\ndevice = torch.device('cuda')\nmodel = torch.nn.Linear(4, 4).to(device)\n"
        + "def train(optimizer):\n"
        + "".join(f"    {line}\n" for line in STEP.splitlines())
        + "def main():\n    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n    train(optimizer)\n"
        + "def other(optimizer):\n    train(optimizer)\nmain()\n",
        "train() is also called where the scaler is not at hand; convert it by hand",
    ),
    "shared by other steps": (
        TWO
        + "for i, x in enumerate(loader):\n    loss = head(model(x.to(device))).mean()\n    slow.zero_grad()\n"
        + "    loss.backward()\n    slow.step()\n    if i % 4 == 3:\n        optimizer.step()\n"
        + "        optimizer.zero_grad()\n",
        "a backward is shared by steps that are not taken together; convert it by hand",
    ),
    "gradient penalty": (
        HEAD
        + "for x in loader:\n    optimizer.zero_grad()\n    y = model(x.to(device)).sum()\n"
        + "    g = torch.autograd.grad(y, x, create_graph=True)[0]\n    loss = y + g.square().mean()\n"
        + "    loss.backward()\n    optimizer.step()\n",
        "a gradient penalty is a part of all that it computes, and stays in float32; keep float32",
    ),
    "second order": (
        HEAD + STEP.replace("backward()", "backward(create_graph=True)"),
        "it takes gradients of gradients (create_graph=True), which a GradScaler does not unscale; "
        "scale and unscale those of the penalty by hand, or use --dtype bfloat16",
    ),
    "methods around what stays in float32": (
        "import torch, torch.nn.functional as F\nfrom nets import Coder\ncoder = Coder().cuda()\n"
        + "optimizer = torch.optim.Adam(coder.parameters())\n"
        + "def volume(x):\n    return torch.linalg.svdvals(x).sum()\n"
        + "for x in loader:\n    optimizer.zero_grad()\n    code = coder.encode(x.cuda())\n    size = volume(code)\n"
        + "    loss = F.l1_loss(coder.decode(code), x.cuda()) + size\n    loss.backward()\n    optimizer.step()\n",
        "its loss is float32 in part, and amplint does not see what the model's methods run; convert it by hand",
    ),
    "backward outside": (
        HEAD + "def update():\n    optimizer.step()\n    optimizer.zero_grad()\n",
        "no backward was seen before this step: what calls update() may run it; convert both by hand",
    ),
    "penalty on weights": (
        HEAD
        + STEP.replace(
            "    loss.backward",
            "    g = torch.autograd.grad(loss, model.parameters(), create_graph=True)\n"
            "    loss = loss + sum(one.square().sum() for one in g)\n    loss.backward",
        ),
        "it takes gradients of gradients (create_graph=True), which a GradScaler does not unscale; "
        "scale and unscale those of the penalty by hand, or use --dtype bfloat16",
    ),
    "meta-learning": (
        HEAD
        + "for x, y in loader:\n    optimizer.zero_grad()\n    inner = F.mse_loss(model(x.to(device)), y)\n"
        + "    steps = torch.autograd.grad(inner, model.parameters())\n"
        + "    fast = [p - 0.1 * g for p, g in zip(model.parameters(), steps)]\n"
        + "    loss = F.mse_loss(model(x.to(device), fast), y)\n    loss.backward()\n    optimizer.step()\n",
        "it uses the gradients that autograd.grad returns, which no GradScaler scales: small ones become zero; "
        "multiply the loss by scaler.get_scale() there and divide the gradients by it, or use --dtype bfloat16",
    ),
    "no sigmoid": (
        HEAD + STEP.replace("mse_loss", "binary_cross_entropy"),
        "its loss is binary cross entropy on probabilities, which CUDA autocast refuses; "
        "use binary_cross_entropy_with_logits on logits first",
    ),
    "unnamed loss": (
        HEAD
        + "loss = []\nfor x in loader:\n    optimizer.zero_grad()\n"
        + "    model(x).sum().backward()\n    optimizer.step()\n",
        "the loss is computed where its backward is called; name the loss on a line of its own first",
    ),
    "hidden sigmoid": (
        HEAD.replace("Linear(4, 4)", "Sequential(torch.nn.Linear(4, 4), torch.nn.Sigmoid())")
        + "import reports\nreports.try_out(model)\n"
        + STEP.replace(
            "loss = torch.nn.functional.mse_loss(model(x.to(device)), y.to(device))",
            "p = model(x.to(device))\n    loss = torch.nn.functional.binary_cross_entropy(p, y.to(device))",
        ),
        "its loss is binary cross entropy on probabilities, which CUDA autocast refuses; "
        "use binary_cross_entropy_with_logits on logits first",
    ),
    "logarithm of a sigmoid": (
        HEAD.replace("Linear(4, 4)", "Sequential(torch.nn.Linear(4, 4), torch.nn.Sigmoid())")
        + "import reports\nreports.try_out(model)\n"
        + "for x in loader:\n    optimizer.zero_grad()\n    p = model(x.to(device))\n"
        + "    loss = -torch.log(1.0 - p).mean()\n    loss.backward()\n    optimizer.step()\n",
        "it takes the logarithm of a sigmoid, which is 0 or 1 too soon in half precision; "
        "use logsigmoid or binary_cross_entropy_with_logits on what the sigmoid is given",
    ),
    "a hook that clips": (
        HEAD + "for p in model.parameters():\n    p.register_hook(lambda g: g.clamp(-1, 1))\n" + STEP,
        "a hook changes gradients while they are scaled; clip them after the backward instead",
    ),
    "gram matrix": (
        HEAD + "def gram(f):\n    n, m = f.shape\n    return f @ f.t() / (n * m)\n" + STEP.replace("model(x", "gram(x"),
        "it compares products of a tensor with itself (Gram matrices), whose sums overflow float16; "
        "compute it on .float() under torch.autocast(device_type, enabled=False), or use --dtype bfloat16",
    ),
    "gram matrices that are compared": (
        HEAD
        + STEP.replace(
            "loss = torch.nn.functional.mse_loss(model(x.to(device)), y.to(device))",
            "f, g = model(x.to(device)), y.to(device)\n    f = f.flatten(1)\n    f = torch.mm(f, f.t())\n"
            "    g = torch.mm(g, g.t())\n    loss = torch.mean((f - g) ** 2) / x.numel()",
        ),
        "it compares products of a tensor with itself (Gram matrices), whose sums overflow float16; "
        "compute it on .float() under torch.autocast(device_type, enabled=False), or use --dtype bfloat16",
    ),
    "clipped on other steps": (
        HEAD
        + "for i, x in enumerate(loader):\n    loss = model(x.to(device)).mean()\n    loss.backward()\n"
        + "    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n    if i % 4 == 3:\n"
        + "        optimizer.step()\n        optimizer.zero_grad()\n",
        "gradients are clipped or read on steps that the optimizer does not take; convert it by hand",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    script, reason = REFUSED[name]
    path = put(script)
    result = amplint("train.py")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines
    assert {line.partition(": refused: ")[2] for line in lines} == {reason}
    assert path.read_text(encoding="utf-8") == script


def test_a_model_that_runs_where_nothing_looks_keeps_its_sigmoid() -> None:
    """BCEWithLogitsLoss only where all that its model returns is seen to reach the loss."""
    script = case("bce_on_logits").script
    for use in ("def rate(x):\n    return judge(x)\n", "def rate(net, x):\n    return net(x)\nlater(rate(judge, 1))\n"):
        path = put(script + use)
        assert amplint("train.py").exit_code == 0
        assert "nn.BCELoss()" in path.read_text(encoding="utf-8")


def test_a_script_is_converted_whole_or_not_at_all() -> None:
    script = TWO.replace("slow = ", "if tune:\n    slow = ") + STEP + "    slow.step()\n"
    path = put(script)
    result = amplint("train.py")
    assert result.exit_code == 1
    assert path.read_text(encoding="utf-8") == script
    assert result.stdout.splitlines() == [
        "train.py:12: refused: the step on line 13 of the same script is refused; see there",
        "train.py:13: refused: the optimizer exists only under some conditions; convert it by hand",
    ]


def test_reinforcement_learning_is_converted_in_the_dtype_that_is_named() -> None:
    put("import gymnasium\n" + HEAD + STEP)
    assert "converted" in amplint("train.py", "--check", "--dtype", "float16").stdout
    assert "converted" in amplint("train.py", "--check", "--target-dtype", "bfloat16").stdout


def test_a_cast_behind_the_training_stays() -> None:
    path = put(HEAD + STEP + "model.half()\ntorch.save(model.state_dict(), 'small.pt')\n")
    assert "casts" not in amplint("train.py").stdout
    text = path.read_text(encoding="utf-8")
    assert "scaler.step(optimizer)" in text
    assert "\nmodel.half()\n" in text
    path = put(HEAD + STEP + "    model.half()\n    torch.save(model.state_dict(), 'small.pt')\n")
    assert "refused: the model's weights are cast to float16 (line 10)" in amplint("train.py").stdout


def test_a_step_with_four_results_is_no_game() -> None:
    put(HEAD + STEP + "    total, first, second, scores = judge.step(x)\n")
    assert "converted" in amplint("train.py", "--check").stdout


def test_a_backward_that_trains_nothing_is_not_refused() -> None:
    put("import torch\nmodel = torch.nn.Linear(4, 4)\nmodel(torch.rand(2, 4)).sum().backward()\n")
    result = amplint("train.py")
    assert (result.exit_code, result.stdout) == (0, "")


def test_numpy_has_no_bfloat16() -> None:
    """Values are cast; what may hold integers, for all that is seen, is left to a person."""
    put(HEAD + STEP + "    print(model(x).max(1)[0].detach().cpu().numpy().shape)\n")
    assert "converted" in amplint("train.py").stdout
    step = STEP.replace("    loss = ", "    output = model(x.to(device))\n    found = output.max(1)[0]\n    loss = ")
    step = step.replace("model(x.to(device)), y", "output, y")
    put(HEAD + step + "    print(found.detach().cpu().numpy().shape)\n")
    result = amplint("train.py", "--dtype", "bfloat16")
    assert "refused: it turns model outputs into NumPy arrays, which have no bfloat16" in result.stdout


def test_auto_does_not_switch_the_region_off_with_the_scaler() -> None:
    path = put(case("functions").script)
    assert amplint("train.py", "--dtype", "auto").exit_code == 0
    text = path.read_text(encoding="utf-8")
    assert "is_enabled" not in text
    assert text.count("def amp_dtype():") == 1
    assert text.count("dtype=amp_dtype(), enabled=device.type") == 2
    assert amplint("train.py", "--dtype", "auto").stdout.endswith("already AMP\n")


@pytest.mark.slow
@pytest.mark.parametrize(("gpu", "bf16", "dtype"), [(0, 0, "float16"), (1, 0, "float16"), (1, 1, "bfloat16")])
def test_auto_asks_the_gpu(gpu: bool, bf16: bool, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    put(case("functions").script)
    amplint("train.py", "--dtype", "auto")
    function = Path("train.py").read_text(encoding="utf-8").partition("def ")[2].partition("\n\n")[0]
    constant = "amp_dtype" + case("auto").output.partition("amp_dtype")[2].partition(")\n\n")[0] + ")"
    for text in ("chosen = (lambda: amp_dtype)\n" + constant, f"chosen = lambda: amp_dtype()\ndef {function}"):
        names: dict[str, Any] = {}
        exec("import torch\n" + text, names)
        assert names["chosen"]() is getattr(torch, dtype)


def test_what_already_amp_could_still_do_with_is_said() -> None:
    put(
        HEAD.replace("optimizer =", "scaler = torch.amp.GradScaler('cuda')\noptimizer =")
        + "for x in loader:\n    optimizer.zero_grad()\n    with torch.autocast('cuda', dtype=torch.float16):\n"
        "        loss = model(x).square().mean()\n    scaler.scale(loss).backward()\n    scaler.step(optimizer)\n"
        "    scaler.update()\ntorch.save({'model': model.state_dict(), 'optimizer': optimizer.state_dict()}, 'x.pt')\n"
    )
    result = amplint("train.py", "--check")
    assert result.exit_code == 0
    assert result.stdout.endswith(
        "already AMP; the scaler's state is not in its checkpoint (amplint check says more)\n"
    )


def test_older_versions_of_torch_get_the_names_that_they_have() -> None:
    path = put(HEAD + STEP)
    amplint("train.py", "--target-torch", "2.1")
    assert '\nscaler = torch.cuda.amp.GradScaler(enabled=device.type == "cuda")\n' in path.read_text(encoding="utf-8")


# -- several files, and what is written -------------------------------------------------------------------------------

MODEL = """\
import torch
class Net(torch.nn.Module):
    def forward(self, x, mask):
        scores = torch.matmul(x, x)
        return scores.masked_fill(mask, -1e9).softmax(dim=-1)
"""
USES = "from model import Net\n" + HEAD.replace("torch.nn.Linear(4, 4)", "Net()") + STEP.replace("x.to(device)", "x, y")


def test_a_file_that_must_change_is_named() -> None:
    put(MODEL, "model.py"), put(USES)
    result = amplint("train.py")
    assert result.exit_code == 1
    assert "refused: model.py:5 cannot run in half precision: " in result.stdout
    assert result.stdout.endswith("; amplint fix model.py train.py changes both\n")
    assert Path("train.py").read_text(encoding="utf-8") == USES
    both = amplint("model.py", "train.py")
    assert both.exit_code == 0
    assert "finfo(" in Path("model.py").read_text(encoding="utf-8")
    assert "scaler.step(optimizer)" in Path("train.py").read_text(encoding="utf-8")


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
class Wide(torch.nn.Module):
    def forward(self, f):
        return torch.linalg.svdvals(f.float())[0]
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
    "never run": ("Unused()", "    loss = criterion(model(x))", "        loss = criterion(model(x))\n"),
    "float32 already": ("Wide()", "    loss = criterion(model(x))", "        loss = criterion(model(x))\n"),
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
"""
BOUNDED = (
    "loss.py:14 keeps probabilities from 1 by a bound that half precision rounds to 1, and takes log(1 - p); "
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
        "loss.py:37 averages products over the batch in a buffer, where what half precision loses stays; "
        "compute them on .float() under torch.autocast(device_type, enabled=False)",
    ),
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


FUNCTION = """\
import torch
import fused
class Bias(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return fused.add_bias(x)
    @staticmethod
    def backward(ctx, grad):
        return fused.add_bias_backward(grad)
class Net(torch.nn.Module):
    def forward(self, x, mask):
        return Bias.apply(x) * mask
"""


def test_what_hands_tensors_to_compiled_code_stays_in_float32() -> None:
    path = put(FUNCTION, "model.py")
    put(USES)
    result = amplint("train.py")
    assert result.exit_code == 1
    assert result.stdout.endswith("Bias has no custom_fwd; amplint fix model.py train.py changes both\n")
    assert amplint("train.py", "model.py", "--target-torch", "2.2").exit_code == 0
    text = path.read_text(encoding="utf-8")
    assert "@torch.cuda.amp.custom_fwd(cast_inputs=torch.float32)\n    def forward(ctx, x):" in text
    assert "@torch.cuda.amp.custom_bwd\n    def backward(ctx, grad):" in text
    path.write_text(FUNCTION, encoding="utf-8"), put(USES)
    assert amplint("train.py", "model.py").exit_code == 0
    text = path.read_text(encoding="utf-8")
    assert '@torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)\n    def forward(ctx, x):' in text
    assert amplint("train.py", "model.py").exit_code == 0
    assert path.read_text(encoding="utf-8") == text


def test_a_function_with_a_context_of_its_own_cannot_be_decorated() -> None:
    text = FUNCTION.replace("class Net", "    @staticmethod\n    def setup_context(ctx, x, y): pass\nclass Net")
    put(text, "model.py"), put(USES)
    result = amplint("train.py", "model.py")
    assert result.exit_code == 1
    assert (
        "Bias is a custom autograd function with a setup_context(), which custom_fwd cannot decorate" in result.stdout
    )


def test_a_refused_step_leaves_the_files_it_uses_alone() -> None:
    put(MODEL, "model.py"), put("import gymnasium\n" + USES)
    assert amplint("model.py", "train.py").exit_code == 1
    assert Path("model.py").read_text(encoding="utf-8") == MODEL


def test_all_files_are_written_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from amplint import files

    texts = {name: put(HEAD + STEP, name) for name in ("a.py", "b.py", "c.py")}
    write = files.write

    def fail_on_b(path: str, data: bytes, expected: bytes) -> None:
        if path.endswith("b.py"):
            raise files.Unreadable("disk full")
        write(path, data, expected)

    monkeypatch.setattr(files, "write", fail_on_b)
    result = amplint("a.py", "b.py", "c.py")
    assert result.exit_code == 2
    assert "b.py:1:1: AMP902 disk full" in result.stderr
    assert all(path.read_text(encoding="utf-8") == HEAD + STEP for path in texts.values())


def test_check_and_diff_write_nothing() -> None:
    path = put(HEAD + STEP)
    checked, diff = amplint("train.py", "--check"), amplint("train.py", "--diff")
    assert path.read_text(encoding="utf-8") == HEAD + STEP
    assert (checked.exit_code, diff.exit_code) == (1, 0)
    assert "train.py:9: converted: " in checked.stdout
    assert "+scaler = torch.amp.GradScaler(" in diff.stdout
    assert "train.py:9: converted: " in diff.stderr
    assert amplint("train.py").exit_code == 0
    assert amplint("train.py", "--check").exit_code == 0


def test_comments_that_hide_findings_are_honoured() -> None:
    text = MODEL.replace("softmax(dim=-1)", "softmax(dim=-1)  # amplint: ignore[AMP401] never filled")
    path = put(text, "model.py")
    amplint("model.py")
    assert "-1e9" in path.read_text(encoding="utf-8")


# -- the result runs --------------------------------------------------------------------------------------------------

_ELSEWHERE = ("loader", "sklearn", "gymnasium", ".cuda(args.gpu")  # needs what is not here: data, a library, a GPU
RUNNABLE = [name for name in NAMES if not any(word in case(name).script for word in _ELSEWHERE)]


def run(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a script prints."""
    monkeypatch.setattr("sys.argv", ["train.py"])
    (tmp_path / "state.pt").unlink(missing_ok=True)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(script, "train.py", "exec"), {"__name__": "__main__"})  # the test's own script
    return out.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNNABLE)
def test_without_a_gpu_it_trains_as_before(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without the target device the output is the FP32 script, bit for bit."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options, script, output, _ = case(name)
    if "cpu" in options:
        pytest.skip("it targets the CPU")
    before = run(script, tmp_path, monkeypatch)
    assert before
    assert run(output, tmp_path, monkeypatch) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNNABLE)
def test_switched_off_it_is_the_same_script(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converted for the CPU, with autocast and the scaler switched off: the same losses, to the last digit."""
    torch = pytest.importorskip("torch")
    script = case(name).script
    path = put(script)
    assert amplint("train.py", "--device", "cpu").exit_code == 0
    converted = path.read_text(encoding="utf-8")
    assert "autocast" in converted
    before = run(script, tmp_path, monkeypatch)
    autocast, scaler = torch.autocast, torch.amp.GradScaler
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: autocast(*a, **{**k, "enabled": False}))
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **k: scaler(*a, **{**k, "enabled": False}))
    assert run(converted, tmp_path, monkeypatch) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNNABLE if name not in ("own_switch", "half_amp_in_functions")])
def test_switched_on_it_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converted for the CPU in bfloat16 it runs, and its first loss is that of the script."""
    pytest.importorskip("torch")
    script = case(name).script
    path = put(script)
    assert amplint("train.py", "--device", "cpu", "--dtype", "bfloat16").exit_code == 0
    before = run(script, tmp_path, monkeypatch)
    after = run(path.read_text(encoding="utf-8"), tmp_path, monkeypatch)
    first, second = (_numbers(text) for text in (before, after))
    assert len(first) == len(second)
    assert second == pytest.approx(first, rel=0.05, abs=0.05)


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split() if word.replace(".", "").replace("-", "").isdigit()]


def test_what_is_to_be_ignored_is_not_brought_up_to_date_along_with_other_edits() -> None:
    script = (HEAD + STEP).replace("    loss = ", "    with torch.cuda.amp.autocast():\n        loss = ")
    put(script), put(script, "other.py")
    assert "torch.amp.autocast(" in amplint("other.py", "--diff").stdout
    assert "torch.amp.autocast(" not in amplint("train.py", "--diff", "--ignore", "AMP601").stdout
    assert "GradScaler" in amplint("train.py", "--diff", "--ignore", "AMP601", "--select", "AMP6").stdout
    assert "torch.amp.autocast(" not in amplint("train.py", "--diff", "--ignore", "AMP601", "--select", "AMP6").stdout


# -- why-comments -----------------------------------------------------------------------------------------------------

EXPLAINED = {
    "    # scales the loss, so that small gradients do not become zero in float16": "    scaler = torch.amp.Grad",
    "        # checkpoints from before have none": "        if state.get(",
    "        # forward and loss in half precision, where that is safe; backward stays outside": "        with torch",
    "        # the gradients come scaled, too, until unscale_() or step()": "        scaler.scale(",
    "        # leaves the weights alone where a gradient is inf or nan": "        scaler.step(",
    "        # adapts the scale: once, after the last step of the iteration": "        scaler.update(",
    "                # so that a resumed run goes on with the same scale": "                'scaler_state_dict': ",
}


def test_explain_writes_why_above_the_first_edit_of_each_kind() -> None:
    _, script, output, _ = case("checkpoints")
    path = put(script)
    assert amplint("train.py", "--explain").exit_code == 0
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line not in EXPLAINED] == output.splitlines()
    assert [line for line in lines if line in EXPLAINED] == list(EXPLAINED)
    assert all(lines[lines.index(comment) + 1].startswith(below) for comment, below in EXPLAINED.items())


@pytest.mark.parametrize("name", NAMES)
def test_comments_are_all_that_explain_adds(name: str) -> None:
    options, script, output, _ = case(name)
    path = put(script.replace("\n", "\r\n"))
    amplint("train.py", "--explain", *options)
    explained = path.read_bytes().decode()
    assert explained.count("\n") == explained.count("\r\n")
    assert ast.dump(ast.parse(explained)) == ast.dump(ast.parse(output or script))
    amplint("train.py", "--explain", *options)
    assert path.read_bytes().decode() == explained
