"""What `amplint fix` refuses: the file stays as it is, and one line says why and what a person can do."""

from __future__ import annotations

import pytest

from tests.rewrite.fixing import HEAD, STEP, TWO, amplint, put

pytestmark = pytest.mark.usefixtures("own_folder")

REFUSED = {
    "closure": (
        HEAD.replace("SGD(model.parameters(), lr=0.1)", "LBFGS(model.parameters())")
        + "def closure():\n    optimizer.zero_grad()\n    loss = model(x).mean()\n    loss.backward()\n"
        + "    return loss\n"
        + "for x in loader:\n    optimizer.step(closure)\n",
        "its step() runs the backward in a closure; a GradScaler cannot drive it: keep float32",
    ),
    "covariances": (
        HEAD + "def coral(x, y):\n    cx, cy = x - x.mean(0), y - y.mean(0)\n    cx = torch.matmul(cx.t(), cx)\n"
        "    cy = torch.matmul(cy.t(), cy)\n    return torch.mean(torch.mul(cx - cy, cx - cy)) / 4\n"
        "class Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.out = torch.nn.Linear(4, 8)\n    def forward(self, x, y):\n"
        "        return coral(self.out(x), self.out(y))\n"
        "net = Net().to(device)\noptimizer = torch.optim.SGD(net.parameters(), lr=0.1)\n"
        "for x, y in loader:\n    loss = net(x.to(device), y.to(device))\n    loss.backward()\n"
        "    optimizer.step()\n    optimizer.zero_grad()\n",
        "train.py:9 squares differences of products of matrices, whose gradients vanish in half precision; compute "
        "them on .float() under torch.autocast(device_type, enabled=False)",
    ),
    "mel bands in a model": (
        "import torch\nimport torchaudio\nfrom torch import nn\n\n\nclass Speaker(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.bank = nn.Sequential(torchaudio.transforms.MelSpectrogram(16000))\n"
        "        self.out = nn.Linear(128, 10)\n\n"
        "    def forward(self, wave):\n        return self.out((self.bank(wave) + 1e-6).log().mean(-1))\n\n\n"
        "model = Speaker().cuda()\noptimizer = torch.optim.Adam(model.parameters())\n"
        "for wave, label in loader:\n    loss = nn.functional.cross_entropy(model(wave.cuda()), label.cuda())\n"
        "    optimizer.zero_grad()\n    loss.backward()\n    optimizer.step()\n",
        "train.py:13 sums a power spectrum into bands, a product of matrices that overflows in half precision; call it "
        "under torch.autocast(device_type, enabled=False)",
    ),
    "twice on one batch": (
        HEAD.replace("torch.optim.SGD(", "SAM(").replace("import torch\n", "import torch\nfrom sam import SAM\n")
        + "for x, y in loader:\n    loss = model(x.to(device)).mean()\n    loss.backward()\n"
        + "    optimizer.first_step(zero_grad=True)\n    loss = model(x.to(device)).mean()\n    loss.backward()\n"
        + "    optimizer.second_step(zero_grad=True)\n",
        "its optimizer steps twice on one batch (SAM), which a GradScaler cannot drive; keep float32",
    ),
    "a setting that chooses the precision": (
        HEAD.replace("lr=0.1", "lr=0.1 if args.train_dtype == torch.bfloat16 else 0.2") + STEP,
        "args.train_dtype chooses the precision (line 4); torch.autocast(device_type, dtype=args.train_dtype) around "
        "forward and loss, and the scaler for float16 alone",
    ),
    "a preconditioner": (
        HEAD.replace(
            "model =",
            "class Natural(torch.optim.Optimizer):\n    def __init__(self, model):\n"
            "        super().__init__(model.parameters(), {})\nmodel =",
        )
        + "natural = Natural(model)\n"
        + STEP.replace("    optimizer.step()", "    natural.step()\n    optimizer.step()"),
        "Natural() is handed a model whose gradients another optimizer steps, too: both would unscale them; "
        "unscale_ them once, before it, and call its step() yourself",
    ),
    "steps of a library that the loss is differentiated through": (
        "import higher\n"
        + HEAD
        + "for x, y in loader:\n    with higher.innerloop_ctx(model, inner) as (fast, steps):\n"
        + "        steps.step(fast(x.to(device)).mean())\n        loss = fast(x.to(device)).mean()\n"
        + "        loss.backward()\n    optimizer.step()\n",
        "it differentiates through the steps of higher.innerloop_ctx, whose gradients no GradScaler scales: "
        "small ones become zero; use --dtype bfloat16",
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
    "anomaly mode": (
        HEAD + STEP.replace("    loss.", "    with torch.autograd.detect_anomaly():\n        loss."),
        "train.py:8 turns on anomaly mode, which raises on overflows that a GradScaler means to skip; "
        "turn it off, or use --dtype bfloat16",
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
    "zeroed outside the loop": (
        HEAD
        + "for x, y in loader:\n    optimizer.zero_grad()\n    for part in range(4):\n"
        + "".join(f"    {line}\n" for line in STEP.splitlines()[2:]),
        "nothing sets the gradients in the loop of line 7 to zero, and a GradScaler would mix scaled and "
        "unscaled ones; call zero_grad() before each backward, or use --dtype bfloat16",
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


@pytest.mark.parametrize(("torch", "moved"), [("2.2", '.to("cpu")'), ("2.2", ".to(near)"), ("2.4", ".cpu()")])
def test_a_loss_on_the_cpu_is_scaled_from_2_3_on(torch: str, moved: str) -> None:
    head = HEAD + 'near = torch.device("cpu")\n'
    put(head + STEP.replace("model(x.to(device)), y.to(device)", f"model(x.to(device)){moved}, y"))
    result = amplint("train.py", "--target-torch", torch)
    assert (result.exit_code == 1) == (torch == "2.2")
    assert ("its loss is computed on the CPU" in result.stdout) == (torch == "2.2")
