"""Good code, as people write it: no rule may raise an error or a warning on any of these scripts."""

from __future__ import annotations

import textwrap

import pytest

from amplint import checks
from amplint.config import Settings
from amplint.findings import Severity
from amplint.knowledge import rules
from amplint.source.module import Module

SILENT: dict[str, str] = {}


def silent(name: str, script: str) -> None:
    assert name not in SILENT
    SILENT[name] = textwrap.dedent(script).lstrip("\n")


# -- 1: inference, export, saving --------------------------------------------------------------------------------------

silent(
    "a model is halved for inference",
    """
    import torch
    from torchvision.models import resnet50

    model = resnet50(weights="DEFAULT").half().eval().cuda()


    @torch.inference_mode()
    def predict(images):
        return model(images.half().cuda()).softmax(-1).argmax(-1)


    for batch in torch.utils.data.DataLoader(pictures, batch_size=64):
        print(predict(batch).tolist())
    """,
)
silent(
    "a model is halved for export after training",
    """
    import torch
    import torch.nn.functional as F
    from torch import nn

    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.LazyLinear(10)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(x.cuda()), y.cuda()).backward()
        optimizer.step()

    model.eval().half()
    torch.onnx.export(model, torch.randn(1, 3, 32, 32, device="cuda").half(), "model.onnx")
    """,
)
silent(
    "a halved copy is saved",
    """
    import copy
    import torch
    import torch.nn.functional as F
    from torch import nn

    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    for epoch in range(10):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x.cuda()), y.cuda()).backward()
            optimizer.step()
        torch.save({"epoch": epoch, "model": copy.deepcopy(model).half()}, f"{epoch}.pt")
    torch.save({name: weight.half() for name, weight in model.state_dict().items()}, "release.pt")
    """,
)
silent(
    "evaluation of a halved model on CPU in bfloat16",
    """
    import argparse
    import torch
    from torch import nn

    parser = argparse.ArgumentParser()
    parser.add_argument("--half", action="store_true")
    args = parser.parse_args()
    model = nn.Transformer()
    model.load_state_dict(torch.load("weights.pt"))
    if args.half:
        model = model.to(torch.bfloat16)
    model.eval()
    with torch.no_grad():
        for source, target in loader:
            if args.half:
                source, target = source.bfloat16(), target.bfloat16()
            print(model(source, target).float().mean())
    """,
)

silent(
    "the modes of one script",
    """
    import torch
    import torch.nn.functional as F
    from absl import app, flags

    FLAGS = flags.FLAGS
    flags.DEFINE_enum("mode", "train", ["train", "profile", "test", "benchmark"], "")
    flags.DEFINE_bool("amp", False, "")


    def main(argv):
        model = build(FLAGS).cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if FLAGS.amp and (FLAGS.mode == "train" or FLAGS.mode == "profile"):
            print("training in mixed precision")
        elif FLAGS.amp:
            model = model.half()
        if FLAGS.mode == "benchmark":
            if FLAGS.amp:
                model = model.half()
            measure(model)
            return
        if FLAGS.mode == "train":
            train(model, optimizer, FLAGS.loader)
        if FLAGS.mode == "profile":
            with torch.autograd.profiler.emit_nvtx():
                train(model, optimizer, FLAGS.loader)


    def train(model, optimizer, loader):
        for x, y in loader:
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=FLAGS.amp):
                loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


    app.run(main)
    """,
)

# -- 2: frozen halves --------------------------------------------------------------------------------------------------

silent(
    "a frozen encoder in half next to a trained head",
    """
    import torch
    import torch.nn.functional as F
    from torch import nn
    from torchvision.models import vit_b_16

    encoder = vit_b_16(weights="DEFAULT").cuda()
    encoder.requires_grad_(False)
    encoder.half().eval()
    head = nn.Linear(1000, 5).cuda()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cuda")

    for images, labels in loader:
        optimizer.zero_grad()
        with torch.no_grad():
            features = encoder(images.cuda().half())
        with torch.autocast("cuda", dtype=torch.float16):
            loss = F.cross_entropy(head(features), labels.cuda())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    """,
)
silent(
    "weights in float16, adapters in float32",
    """
    import torch
    import torch.nn.functional as F
    from accelerate import Accelerator
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from peft import LoraConfig

    accelerator = Accelerator(mixed_precision="fp16")
    vae = AutoencoderKL.from_pretrained("base", subfolder="vae")
    unet = UNet2DConditionModel.from_pretrained("base", subfolder="unet")
    vae.requires_grad_(False)
    unet.requires_grad_(False)
    vae.to(accelerator.device, dtype=torch.float16)
    unet.to(accelerator.device, dtype=torch.float16)
    unet.add_adapter(LoraConfig(r=4))
    trained = [p for p in unet.parameters() if p.requires_grad]
    for p in trained:
        p.data = p.data.float()
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    unet, optimizer, loader = accelerator.prepare(unet, optimizer, loader)

    for batch in loader:
        with accelerator.accumulate(unet):
            latents = vae.encode(batch["pixels"].to(torch.float16)).latent_dist.sample()
            noise = torch.randn_like(latents)
            loss = F.mse_loss(unet(latents + noise, batch["t"], batch["text"]).sample.float(), noise.float())
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    """,
)

# -- 3: what autocast handles itself -----------------------------------------------------------------------------------

silent(
    "softmax, norms and losses inside autocast",
    """
    import torch
    import torch.nn.functional as F
    from torch import nn


    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.norm = nn.LayerNorm(width, eps=1e-12)
            self.group = nn.GroupNorm(4, width, eps=1e-12)
            self.up = nn.Linear(width, width)

        def forward(self, x):
            gate = self.up(self.norm(x)).softmax(-1)
            return x + gate * F.normalize(x, dim=-1) + gate.sum(-1, keepdim=True) + x.norm(dim=-1, keepdim=True)


    model = nn.Sequential(Block(64), nn.Linear(64, 10)).cuda()
    optimizer = torch.optim.Adam(model.parameters(), eps=1e-8)
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = F.cross_entropy(model(x.cuda()), y.cuda())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    """,
)

# -- 4: islands of float32 ---------------------------------------------------------------------------------------------

silent(
    "an island around a criterion",
    """
    import torch
    import torch.nn.functional as F
    from torch import nn


    class Criterion(nn.Module):
        def forward(self, outputs, boxes):
            with torch.autocast("cuda", enabled=False):
                scores = outputs["scores"].float().sigmoid()
                overlap = scores @ boxes.float().transpose(0, 1)
                return F.binary_cross_entropy(scores, boxes.float()) - torch.log(overlap + 1e-12).mean()


    def train(model, optimizer, loader, scaler):
        criterion = Criterion()
        for images, boxes in loader:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = criterion(model(images), boxes)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    """,
)
silent(
    "a decorator keeps a quantiser in float32",
    """
    import torch
    import torch.nn.functional as F
    from torch import nn


    class Quantiser(nn.Module):
        def __init__(self, codes, width):
            super().__init__()
            self.codebook = nn.Parameter(torch.randn(codes, width))

        @torch.autocast("cuda", enabled=False)
        def forward(self, x):
            x = x.float()
            distance = x.pow(2).sum(-1, keepdim=True) - 2 * x @ self.codebook.t() + self.codebook.pow(2).sum(-1)
            nearest = distance.argmin(-1)
            q = F.embedding(nearest, self.codebook)
            return x + (q - x).detach(), F.mse_loss(q, x.detach())
    """,
)
silent(
    "an island, but not while it is scripted",
    """
    import torch
    from torch import nn


    class LinearAttention(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.qkv = nn.Linear(width, 3 * width)
            self.eps = 1e-6

        def _attend(self, q, k, v):
            q, k, v = q.float(), k.float(), v.float()
            summed = k.transpose(-1, -2) @ v
            return (q @ summed) / (q @ k.sum(-2, keepdim=True).transpose(-1, -2) + self.eps)

        def forward(self, x):
            q, k, v = self.qkv(x).relu().chunk(3, dim=-1)
            if not torch.jit.is_scripting():
                with torch.autocast(device_type=x.device.type, enabled=False):
                    out = self._attend(q, k, v)
            else:
                out = self._attend(q, k, v)
            return out.to(x.dtype)


    class Encoder(nn.Module):
        def __init__(self, width, depth):
            super().__init__()
            self.layers = nn.ModuleList(LinearAttention(width) for _ in range(depth))

        def forward(self, x):
            for layer in self.layers:
                x = x + layer(x)
            return x
    """,
)
silent(
    "rotary angles in an island",
    """
    import torch
    from torch import nn


    class Rotary(nn.Module):
        def __init__(self, width, base=10000.0):
            super().__init__()
            self.register_buffer("frequencies", 1.0 / base ** (torch.arange(0, width, 2).float() / width))

        @torch.no_grad()
        def forward(self, x, positions):
            kind = x.device.type if x.device.type != "mps" else "cpu"
            with torch.autocast(device_type=kind, enabled=False):
                angles = positions[:, :, None].float() @ self.frequencies[None, None, :].float()
                both = torch.cat((angles, angles), dim=-1)
                cos, sin = both.cos(), both.sin()
            return cos.to(x.dtype), sin.to(x.dtype)
    """,
)

# -- 5: bfloat16 -------------------------------------------------------------------------------------------------------

silent(
    "bfloat16 without a scaler",
    """
    import torch
    import torch.nn.functional as F
    from torch import nn

    model = nn.Linear(8, 2).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    for x, y in loader:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x.cuda()), y.cuda())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    """,
)
silent(
    "a scaler that is off for bfloat16",
    """
    import argparse
    import torch
    import torch.nn.functional as F
    from torch import nn

    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="bfloat16")
    args = parser.parse_args()
    dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}[args.dtype]
    model = nn.Linear(8, 2).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=dtype):
            loss = F.cross_entropy(model(x.cuda()), y.cuda())
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    """,
)
silent(
    "float16 has a scaler, bfloat16 none",
    """
    import torch
    import torch.nn.functional as F


    def train(model, optimizer, loader, precision):
        dtype = torch.float16 if precision == "fp16" else torch.bfloat16
        scaler = torch.amp.GradScaler("cuda") if precision == "fp16" else None
        for x, y in loader:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=dtype):
                loss = F.cross_entropy(model(x), y)
            if scaler is not None:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            else:
                loss.backward()
                optimizer.step()
    """,
)

# -- 6: complete branches and flags ------------------------------------------------------------------------------------

silent(
    "each branch is complete",
    """
    import torch
    import torch.nn.functional as F


    class Trainer:
        def __init__(self, model, config):
            self.model = model.cuda()
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr)
            self.use_amp = config.use_amp
            if self.use_amp:
                self.scaler = torch.amp.GradScaler("cuda")

        def step(self, x, y):
            self.optimizer.zero_grad()
            if self.use_amp:
                with torch.autocast("cuda", dtype=torch.float16):
                    loss = F.cross_entropy(self.model(x), y)
                self.scaler.scale(loss).backward()
                self.scaler.unscale_(self.optimizer)
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.scaler.step(self.optimizer)
                self.scaler.update()
            else:
                loss = F.cross_entropy(self.model(x), y)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
            return loss.item()
    """,
)
silent(
    "a null context and accumulation, at module level",
    """
    import torch
    from contextlib import nullcontext
    from torch import nn

    device = "cuda"
    dtype = "float16"
    accumulate = 8
    for key, value in settings.items():
        globals()[key] = value
    kind = "cuda" if "cuda" in device else "cpu"
    half = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    ctx = nullcontext() if kind == "cpu" else torch.amp.autocast(device_type=kind, dtype=half)
    model = nn.TransformerEncoderLayer(64, 4).to(device)
    scaler = torch.amp.GradScaler(kind, enabled=(dtype == "float16"))
    optimizer = torch.optim.AdamW(model.parameters())
    x = next_batch()
    while True:
        for micro in range(accumulate):
            with ctx:
                loss = model(x).pow(2).mean() / accumulate
            x = next_batch()
            scaler.scale(loss).backward()
        if clip != 0.0:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
    """,
)
silent(
    "enabled= everywhere",
    """
    import argparse
    import torch
    import torch.nn.functional as F
    from torch import nn

    parser = argparse.ArgumentParser()
    parser.add_argument("--no-amp", dest="amp", action="store_false")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    amp = args.amp and device.type == "cuda"
    model = nn.Linear(8, 2).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device.type, enabled=amp)
    for epoch in range(5):
        for x, y in loader:
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype=torch.float16, enabled=amp):
                loss = F.cross_entropy(model(x.to(device)), y.to(device))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                    "scaler": scaler.state_dict()}, "last.pt")
    """,
)
silent(
    "a callable scaler, or none",
    """
    import argparse
    from contextlib import suppress
    import torch
    from torch import nn


    class LossScaler:
        def __init__(self):
            self.scaler = torch.amp.GradScaler("cuda")

        def __call__(self, loss, optimizer, clip=None, parameters=None):
            self.scaler.scale(loss).backward()
            if clip is not None:
                self.scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(parameters, clip)
            self.scaler.step(optimizer)
            self.scaler.update()


    def main(args):
        model = build(args).cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
        amp_autocast, loss_scaler = suppress, None
        if args.amp:
            amp_autocast = torch.cuda.amp.autocast
            loss_scaler = LossScaler()
        for epoch in range(args.epochs):
            train_epoch(model, optimizer, args, amp_autocast=amp_autocast, loss_scaler=loss_scaler)


    def train_epoch(model, optimizer, args, amp_autocast=suppress, loss_scaler=None):
        for x, y in args.loader:
            with amp_autocast():
                loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            if loss_scaler is not None:
                loss_scaler(loss, optimizer, clip=args.clip, parameters=model.parameters())
            else:
                loss.backward()
                if args.clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), args.clip)
                optimizer.step()


    main(argparse.ArgumentParser().parse_args())
    """.replace("torch.cuda.amp.autocast", "torch.autocast"),
)

# -- 7: several optimizers ---------------------------------------------------------------------------------------------

_GAN = """
    import torch
    import torch.nn.functional as F
    from torch import nn

    netG = nn.Sequential(nn.Linear(100, 784), nn.Tanh()).cuda()
    netD = nn.Linear(784, 1).cuda()
    optG = torch.optim.Adam(netG.parameters(), lr=2e-4)
    optD = torch.optim.Adam(netD.parameters(), lr=2e-4)
"""
silent(
    "one update per half-cycle of a GAN",
    _GAN
    + """
    scaler = torch.amp.GradScaler("cuda")
    for real in loader:
        real = real.cuda()
        one, zero = torch.ones(len(real), 1, device="cuda"), torch.zeros(len(real), 1, device="cuda")
        optD.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            fake = netG(torch.randn(len(real), 100, device="cuda"))
            lossD = F.binary_cross_entropy_with_logits(netD(real), one)
            lossD = lossD + F.binary_cross_entropy_with_logits(netD(fake.detach()), zero)
        scaler.scale(lossD).backward()
        scaler.step(optD)
        scaler.update()

        optG.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            lossG = F.binary_cross_entropy_with_logits(netD(fake), one)
        scaler.scale(lossG).backward()
        scaler.step(optG)
        scaler.update()
    """,
)
silent(
    "one scaler per optimizer",
    _GAN
    + """
    scalerG, scalerD = torch.amp.GradScaler("cuda"), torch.amp.GradScaler("cuda")
    for real in loader:
        real = real.cuda()
        optD.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            fake = netG(torch.randn(len(real), 100, device="cuda"))
            lossD = F.softplus(netD(fake.detach())).mean() + F.softplus(-netD(real)).mean()
        scalerD.scale(lossD).backward()
        scalerD.unscale_(optD)
        nn.utils.clip_grad_norm_(netD.parameters(), 1.0)
        scalerD.step(optD)
        scalerD.update()
        optG.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            lossG = F.softplus(-netD(fake)).mean()
        scalerG.scale(lossG).backward()
        scalerG.step(optG)
        scalerG.update()
    """,
)
silent(
    "scalers made in a set-up loop",
    """
    import torch
    from torch import nn


    class Cascade(nn.Module):
        def __init__(self, stages):
            super().__init__()
            self.stages = nn.ModuleList(stages)
            for number, stage in enumerate(self.stages):
                setattr(self, f"optim{number}", torch.optim.Adam(stage.parameters()))
                setattr(self, f"scaler{number}", torch.amp.GradScaler("cuda"))

        def train_stage(self, number, x):
            optim, scaler = getattr(self, f"optim{number}"), getattr(self, f"scaler{number}")
            with torch.autocast("cuda", dtype=torch.float16):
                loss = self.stages[number](x).pow(2).mean()
            scaler.scale(loss).backward()
            scaler.unscale_(optim)
            nn.utils.clip_grad_norm_(self.stages[number].parameters(), 1.0)
            scaler.step(optim)
            scaler.update()
            optim.zero_grad()
    """,
)
silent(
    "optimizers in a dict, one loop for each verb",
    """
    import torch


    class Brain:
        def __init__(self, modules, opt_class, precision):
            self.modules = modules
            self.optimizers = {name: opt_class(module.parameters()) for name, module in modules.items()}
            self.scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16")
            self.optimizer_step = 0

        def valid(self):
            return {name: opt for name, opt in self.optimizers.items() if name not in self.frozen}

        def step(self, batch):
            with torch.autocast("cuda", dtype=torch.float16):
                loss = self.compute(batch)
            self.scaler.scale(loss).backward()
            valid = self.valid()
            for opt in valid.values():
                self.scaler.unscale_(opt)
            for module in self.modules.values():
                torch.nn.utils.clip_grad_norm_(module.parameters(), 5.0)
            for opt in valid.values():
                self.scaler.step(opt)
            self.scaler.update()
            for opt in valid.values():
                opt.zero_grad(set_to_none=True)
            self.optimizer_step += 1
    """,
)
silent(
    "two optimizers, either may be frozen",
    """
    import torch
    import torch.nn.functional as F


    def train(model, dense, sparse, loader, flags):
        scaler = torch.amp.GradScaler("cuda", enabled=flags.amp)
        for x, y in loader:
            dense.zero_grad()
            sparse.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16, enabled=flags.amp):
                loss = F.binary_cross_entropy_with_logits(model(x), y)
            scaler.scale(loss).backward()
            if not flags.freeze_dense:
                scaler.step(dense)
            if not flags.freeze_sparse:
                scaler.step(sparse)
            scaler.update()
    """,
)
silent(
    "a second optimizer that is never stepped with amp",
    """
    import torch
    import torch.nn.functional as F
    from torch import nn


    def main(args):
        model = nn.Sequential(nn.Embedding(1000, 64, sparse=args.sparse), nn.Linear(64, 1000)).cuda()
        if args.sparse:
            dense = [p for p in model[1].parameters()]
            sparse = [p for p in model[0].parameters()]
            optimizer_sparse = torch.optim.SparseAdam(sparse, lr=args.lr)
            optimizer = torch.optim.Adam(dense, lr=args.lr)
        else:
            optimizer_sparse = None
            optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
        scaler = torch.amp.GradScaler("cuda")
        for x in args.loader:
            model.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16, enabled=args.fp16):
                loss = F.cross_entropy(model(x[:-1]), x[1:])
            if args.fp16:
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
            else:
                loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), args.clip)
            if args.fp16:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
                if optimizer_sparse is not None:
                    optimizer_sparse.step()
    """,
)

# -- 8, 9: linear edits, measuring -------------------------------------------------------------------------------------

_LOOP = """
    import math
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F
    from torch import nn

    model = nn.Linear(8, 2).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = F.cross_entropy(model(x.cuda()), y.cuda())
        scaler.scale(loss).backward()
"""
silent(
    "scaled gradients are averaged over workers",
    _LOOP
    + """
        for p in model.parameters():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            dist.all_reduce(p.grad)
            p.grad.div_(dist.get_world_size())
        scaler.step(optimizer)
        scaler.update()
    """,
)
silent(
    "a scaled gradient is scaled down by the number of micro-batches",
    _LOOP
    + """
        for p in model.parameters():
            if p.grad is not None:
                p.grad /= 4
                p.grad.mul_(0.5)
        scaler.step(optimizer)
        scaler.update()
    """,
)
silent(
    "the norm is measured after unscale_",
    _LOOP
    + """
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
        print(norm.item())
        scaler.step(optimizer)
        scaler.update()
    """,
)
silent(
    "the norm is measured with no limit",
    _LOOP
    + """
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), math.inf)
        scaler.step(optimizer)
        scaler.update()
    """,
)

# -- 10: context managers, benchmarks, attacks -------------------------------------------------------------------------

silent(
    "a context manager of one's own",
    """
    import contextlib
    import torch
    import torch.nn.functional as F


    @contextlib.contextmanager
    def mixed(enabled=True):
        with torch.autocast("cuda", dtype=torch.float16, enabled=enabled):
            yield


    def train(model, optimizer, scaler, loader):
        for x, y in loader:
            optimizer.zero_grad()
            with mixed():
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    """,
)
silent(
    "an adversarial example needs no scaler",
    """
    import torch
    import torch.nn.functional as F


    def attack(model, x, y, eps=8 / 255, steps=10):
        x_adv = x.clone().requires_grad_(True)
        for _ in range(steps):
            with torch.autocast("cuda", dtype=torch.float16):
                loss = F.cross_entropy(model(x_adv), y)
            loss.backward()
            with torch.no_grad():
                x_adv += eps / steps * x_adv.grad.sign()
                x_adv.grad = None
        return x_adv.detach()
    """,
)
silent(
    "a benchmark of a forward in half",
    """
    import time
    import torch
    from torchvision.models import resnet18

    model = resnet18().cuda().half().eval()
    x = torch.randn(64, 3, 224, 224, device="cuda", dtype=torch.float16)
    with torch.no_grad():
        for _ in range(10):
            model(x)
        torch.cuda.synchronize()
        start = time.time()
        for _ in range(100):
            model(x)
        torch.cuda.synchronize()
    print((time.time() - start) / 100)
    """,
)
silent(
    "warm-up passes that no step uses",
    """
    import torch
    import torch.nn.functional as F


    def main(model, optimizer, loader, args):
        for size in args.sizes:
            x = torch.randn(size, 8, device="cuda")
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=args.amp):
                loss = model(x).mean()
            loss.backward()
            model.zero_grad()
        for epoch in range(args.epochs):
            for number, (x, y) in enumerate(loader):
                with torch.autocast("cuda", dtype=torch.bfloat16, enabled=args.amp):
                    loss = F.cross_entropy(model(x), y) / args.accumulate
                loss.backward()
                if (number + 1) % args.accumulate == 0:
                    optimizer.step()
                    optimizer.zero_grad()
    """,
)

# -- 11: engines and explicit master weights ---------------------------------------------------------------------------

silent(
    "explicit master weights",
    """
    import torch
    import torch.nn.functional as F
    from torch import nn

    model = nn.Linear(8, 2).cuda().half()
    masters = [p.detach().clone().float().requires_grad_(True) for p in model.parameters()]
    optimizer = torch.optim.SGD(masters, lr=0.1)
    scale = 1024.0
    for x, y in loader:
        loss = F.cross_entropy(model(x.cuda().half()).float(), y.cuda())
        model.zero_grad()
        (loss * scale).backward()
        for master, p in zip(masters, model.parameters()):
            master.grad = p.grad.float() / scale
        optimizer.step()
        for master, p in zip(masters, model.parameters()):
            p.data.copy_(master.data)
    """,
)
silent(
    "an optimizer with masters of its own",
    """
    import torch
    from lamb import FusedLAMBAMP
    from torch import nn

    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).cuda()
    model.half()
    optimizer = FusedLAMBAMP([{"params": list(model.parameters()), "weight_decay": 0.01}])
    scaler = torch.amp.GradScaler("cuda", enabled=True)
    for x, y in loader:
        loss = nn.functional.cross_entropy(model(x.cuda().half()), y.cuda())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    """,
)
silent(
    "a hand-written scaler that copies gradients to masters before it divides",
    """
    import math
    import torch
    from torch.nn.utils import clip_grad_norm_


    class HalfOptimizer:
        def __init__(self, model, clip, loss_scale=8192):
            self.model = model
            self.masters = [p.detach().clone().float().requires_grad_(True) for p in model.parameters()]
            self.clip = clip
            self.loss_scale = loss_scale

        def copy_gradients(self):
            for master, p in zip(self.masters, self.model.parameters()):
                master.grad = p.grad.detach().float()

        def step(self, loss, optimizer, update=True):
            loss *= self.loss_scale
            loss.backward()
            if update:
                self.copy_gradients()
                for master in self.masters:
                    master.grad.data /= self.loss_scale
                norm = clip_grad_norm_(self.masters, self.clip)
                if math.isfinite(norm):
                    optimizer.step()
                self.model.zero_grad()
    """,
)
silent(
    "DeepSpeed owns the scale",
    """
    import deepspeed
    import torch.nn.functional as F

    engine, optimizer, loader, _ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), config={"fp16": {"enabled": True}}
    )
    for x, y in loader:
        loss = F.cross_entropy(engine(x.half().cuda()), y.cuda())
        engine.backward(loss)
        engine.step()
    """,
)
silent(
    "apex's optimizer owns masters and scale",
    """
    import torch
    import torch.nn.functional as F
    from apex.fp16_utils import FP16_Optimizer
    from torch import nn

    model = nn.Linear(8, 2).cuda().half()
    optimizer = FP16_Optimizer(torch.optim.SGD(model.parameters(), lr=0.1), dynamic_loss_scale=True)
    for x, y in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x.cuda().half()).float(), y.cuda())
        optimizer.backward(loss)
        optimizer.clip_master_grads(1.0)
        optimizer.step()
    """,
)
silent(
    "apex where it is installed, else torch.amp",
    """
    import torch
    import torch.nn.functional as F
    from contextlib import nullcontext

    try:
        from apex import amp

        has_apex = True
    except ImportError:
        has_apex = False


    def train(model, optimizer, loader, args):
        scaler, region = None, nullcontext
        if args.amp and has_apex:
            model, optimizer = amp.initialize(model, optimizer, opt_level="O1")
        elif args.amp:
            scaler, region = torch.amp.GradScaler("cuda"), lambda: torch.autocast("cuda", dtype=torch.float16)
        for x, y in loader:
            optimizer.zero_grad()
            with region():
                loss = F.cross_entropy(model(x), y)
            if scaler is not None:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            elif args.amp and has_apex:
                with amp.scale_loss(loss, optimizer) as scaled:
                    scaled.backward()
                optimizer.step()
            else:
                loss.backward()
                optimizer.step()
    """,
)
silent(
    "Lightning owns the scaler",
    """
    import lightning as L
    import torch
    import torch.nn.functional as F
    from torch import nn


    class Classifier(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(8, 2)

        def training_step(self, batch, number):
            x, y = batch
            return F.cross_entropy(self.net(x), y)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())


    L.Trainer(precision="16-mixed", gradient_clip_val=1.0).fit(Classifier(), loader)
    """,
)

# -- 12: constants -----------------------------------------------------------------------------------------------------

silent(
    "large constants on float32 boxes, infinities in masks",
    """
    import torch
    from torch import nn


    class Attention(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.qkv = nn.Linear(width, 3 * width)

        def forward(self, x, mask):
            q, k, v = self.qkv(x).chunk(3, -1)
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            scores = scores.masked_fill(mask, float("-inf"))
            scores = scores.masked_fill(mask, torch.finfo(scores.dtype).min)
            return scores.softmax(-1) @ v


    def assign(boxes, points):
        area = (boxes[:, 2:].float() - boxes[:, :2].float()).prod(1)
        inside = points[:, None] >= boxes[None, :, :2]
        area = area[None].repeat(len(points), 1)
        area[~inside.all(-1)] = 1e8
        return area.float().masked_fill(area == 0, 1e9).min(1)


    def train(model, optimizer, scaler, loader):
        for x, mask in loader:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = model(x, mask).float().pow(2).mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    """,
)
silent(
    "eps where it is float32",
    """
    import torch
    import torch.nn.functional as F
    from torch import nn


    class Loss(nn.Module):
        def forward(self, logits, target):
            p = logits.float().softmax(-1)
            entropy = -(p * torch.log(p + 1e-12)).sum(-1)
            weight = target.sum() / (logits.float().sigmoid().sum() + 1e-10)
            return F.cross_entropy(logits, target.argmax(-1)) + entropy.mean() * weight.clamp(min=1e-9)


    model, criterion = nn.Linear(8, 4).cuda(), Loss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = criterion(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    """,
)

# -- 13: imports and calls for older versions --------------------------------------------------------------------------

silent(
    "an import that falls back",
    """
    try:
        from torch.amp import GradScaler, autocast
    except ImportError:
        from torch.cuda.amp import GradScaler, autocast
    import torch.nn.functional as F


    def train(model, optimizer, loader):
        scaler = GradScaler()
        for x, y in loader:
            optimizer.zero_grad()
            with autocast(device_type="cuda"):
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    """,
)
silent(
    "a call that falls back",
    """
    import torch


    class Scaler:
        def __init__(self, device="cuda"):
            try:
                self.inner = torch.amp.GradScaler(device=device)
            except (AttributeError, TypeError):
                self.inner = torch.cuda.amp.GradScaler()


    def contexts(device):
        try:
            return torch.amp.autocast(device)
        except Exception:
            return torch.cuda.amp.autocast()
    """,
)
silent(
    "a branch on the version",
    """
    import torch
    from packaging import version

    NEW = hasattr(torch.amp, "GradScaler")
    if version.parse(torch.__version__) < version.parse("2.4.0"):
        make = torch.cuda.amp.GradScaler
    else:
        make = torch.amp.GradScaler


    def region(enabled):
        return torch.amp.autocast("cuda", enabled=enabled) if NEW else torch.cuda.amp.autocast(enabled=enabled)


    def scaler(enabled):
        if NEW:
            return torch.amp.GradScaler("cuda", enabled=enabled)
        return torch.amp.GradScaler(enabled=enabled)


    if version.parse(torch.__version__) < version.parse("2.4.0"):
        HOOKS = {torch.cuda.amp.grad_scaler.GradScaler: torch.load}
    """,
)

# -- 14: float64 -------------------------------------------------------------------------------------------------------

silent(
    "float64 code",
    """
    import torch
    from torch import nn

    torch.set_default_dtype(torch.float64)
    model = nn.Linear(8, 2).double()
    optimizer = torch.optim.LBFGS(model.parameters())


    def closure():
        optimizer.zero_grad()
        p = model(x.double()).softmax(-1)
        loss = -(torch.log(p + 1e-300) * y).sum() + torch.where(p > 1, 1e200, 0.0).sum()
        loss.backward()
        return loss


    for _ in range(20):
        optimizer.step(closure)
    """,
)

# -- accumulation ------------------------------------------------------------------------------------------------------

silent(
    "gradients are set to zero where an accumulation window begins",
    """
    import torch
    import torch.nn.functional as F


    def train(model, optimizer, scaler, loader, args):
        done, total = 0, 0
        for x, y in loader:
            if done == 0:
                total += 1
                set_learning_rate(optimizer, total)
                model.zero_grad(set_to_none=True)
            with torch.autocast("cuda", dtype=torch.float16, enabled=args.amp):
                loss = F.cross_entropy(model(x), y) / args.accumulate
            scaler.scale(loss).backward()
            done += 1
            if done % args.accumulate == 0:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
                scaler.step(optimizer)
                scaler.update()
                done = 0
    """,
)
silent(
    "an epoch begins with gradients of zero",
    """
    import torch
    import torch.nn.functional as F


    def train(model, optimizer, scaler, loader, accumulate=1):
        for epoch in range(100):
            model.train()
            optimizer.zero_grad()
            for number, (x, y) in enumerate(loader):
                count = number + len(loader) * epoch
                with torch.autocast("cuda", dtype=torch.float16):
                    loss = F.cross_entropy(model(x), y)
                scaler.scale(loss).backward()
                if count % accumulate == 0:
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad()
    """,
)
silent(
    "gradients are set to zero by a method, under the step's condition",
    """
    import torch


    class Brain:
        def __init__(self, modules, opt_class, accumulate):
            self.modules, self.opt_class, self.accumulate, self.seen = modules, opt_class, accumulate, 0
            self.scaler = torch.amp.GradScaler("cuda")

        def init_optimizers(self):
            if self.opt_class is not None:
                self.optimizer = self.opt_class(self.modules.parameters())

        def zero_grad(self, set_to_none=False):
            if hasattr(self, "optimizer"):
                self.optimizer.zero_grad(set_to_none)

        def healthy(self, loss):
            torch.nn.utils.clip_grad_norm_(self.modules.parameters(), 5.0)
            return bool(torch.isfinite(loss))

        def fit_batch(self, batch):
            self.seen += 1
            should_step = self.seen % self.accumulate == 0
            with torch.autocast("cuda", dtype=torch.float16):
                loss = self.modules(batch).mean()
            self.scaler.scale(loss / self.accumulate).backward()
            if should_step:
                self.scaler.unscale_(self.optimizer)
                if self.healthy(loss):
                    self.scaler.step(self.optimizer)
                self.scaler.update()
                self.zero_grad()
    """,
)
silent(
    "windows counted by a cycle",
    """
    from itertools import cycle, islice
    import torch
    import torch.nn.functional as F


    def train(model, optim, scaler, loader, args):
        step = 0
        while step < args.steps:
            optim.zero_grad()
            for (x, y), part in zip(islice(loader, args.epoch), cycle(range(args.freq))):
                if part == 0:
                    step += 1
                with torch.autocast("cuda", dtype=torch.float16):
                    loss = F.cross_entropy(model(x), y)
                scaler.scale(loss).backward()
                if (part + 1) % args.freq == 0:
                    try:
                        scaler.step(optim)
                        scaler.update()
                    except OverflowError as error:
                        print(f"ignoring {error}")
                    optim.zero_grad()
    """,
)

# -- the scaler's life -------------------------------------------------------------------------------------------------

silent(
    "every run of a search makes its own scaler",
    """
    import torch
    import torch.nn.functional as F
    from helpers import make_optimizer


    def train(settings, loader):
        model = build(settings).cuda()
        optimizer = make_optimizer(model, settings["name"], settings["lr"])
        scaler = torch.amp.GradScaler("cuda", enabled=settings["amp"])
        for epoch in range(settings["epochs"]):
            for x, y in loader:
                optimizer.zero_grad()
                with torch.autocast("cuda", dtype=torch.float16, enabled=settings["amp"]):
                    loss = F.cross_entropy(model(x), y)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
        return loss.item()


    def main(space, loader):
        for trial in range(50):
            print(train(space.sample(trial), loader))


    main(space, loader)
    """,
)
silent(
    "whoever makes the scaler registers it",
    """
    import brain
    import torch


    class Recogniser(brain.Brain):
        def fit_batch(self, batch):
            with torch.autocast("cuda", dtype=torch.float16):
                loss = self.objective(self.forward(batch), batch)
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.encoder_optimizer)
            self.scaler.unscale_(self.model_optimizer)
            if self.check_gradients(loss):
                self.scaler.step(self.encoder_optimizer)
                self.scaler.step(self.model_optimizer)
            self.scaler.update()
            self.encoder_optimizer.zero_grad()
            self.model_optimizer.zero_grad()

        def init_optimizers(self):
            self.encoder_optimizer = self.hparams.encoder_opt(self.modules.encoder.parameters())
            self.model_optimizer = self.hparams.model_opt(self.hparams.model.parameters())
            if self.checkpointer is not None:
                self.checkpointer.add_recoverable("encoder_opt", self.encoder_optimizer)
                self.checkpointer.add_recoverable("model_opt", self.model_optimizer)
    """,
)

# -- names that look like autocast -------------------------------------------------------------------------------------

silent(
    "settings that are called like autocast",
    """
    import torch

    torch._C._jit_set_autocast_mode(True)
    torch.set_autocast_enabled("cuda", False)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.clear_autocast_cache()
    """,
)

# -- many optimizers, made at one place --------------------------------------------------------------------------------

silent(
    "a list and a dict of optimizers, stepped one after the other",
    """
    import torch
    import torch.nn.functional as F


    def train(models, loader):
        optimizers = [torch.optim.Adam(model.parameters(), lr=1e-3) for model in models]
        schedulers = {}
        by_name = {}
        for name, model in enumerate(models):
            by_name[name] = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cuda")
        for x, y in loader:
            for optimizer in optimizers:
                optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = sum(F.cross_entropy(model(x.cuda()), y.cuda()) for model in models)
            scaler.scale(loss).backward()
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
                scaler.step(optimizer)
            scaler.update()
        for x, y in loader:
            with torch.autocast("cuda", dtype=torch.float16):
                loss = sum(F.cross_entropy(model(x.cuda()), y.cuda()) for model in models)
            scaler.scale(loss).backward()
            for name, optimizer in by_name.items():
                scaler.unscale_(optimizer)
                scaler.step(optimizer)
            scaler.update()
            for optimizer in by_name.values():
                optimizer.zero_grad()
    """,
)
silent(
    "a step of many optimizers whose caller updates",
    """
    import torch


    def step(scaler, models):
        optimizers = [torch.optim.Adam(model.parameters()) for model in models]
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
    """,
)


@pytest.mark.parametrize("name", SILENT)
def test_good_code_is_silent(name: str) -> None:
    module = Module.read("train.py", SILENT[name].encode())
    found = checks.check_module(module, Settings(codes=frozenset(rules()))).findings
    loud = [f for f in found if f.severity is not Severity.NOTE and f.code != "AMP001"]
    assert [(f.range.start.row, f.code, f.message) for f in loud] == []
