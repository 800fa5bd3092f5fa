"""Scalers are what is used as scalers, whatever they are called, wrapped or derived from."""

from __future__ import annotations

import pytest
from told import told

MODEL = """
model = nn.Linear(8, 1).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
"""

CASES = {
    "by behaviour, not by name": (
        """
class Trainer:
    def step(self, batch):
        with torch.autocast("cuda", dtype=torch.float16):
            loss = self.net(batch)
        self.amp.scale(loss).backward()
        self.amp.unscale_(self.sgd)
        self.amp.step(self.sgd)
        self.amp.update()
        self.sgd.zero_grad()
""",
        "backward of loss, scaled by self.amp · "
        "unscale gradients of self.sgd by self.amp · step self.sgd through self.amp · update self.amp · "
        "zero gradients of self.sgd",
    ),
    "a StandardScaler called scaler is none": (
        MODEL
        + """
from sklearn.preprocessing import StandardScaler
scaler = StandardScaler()
scaler.fit(data)
for x in loader:
    optimizer.zero_grad()
    loss = model(scaler.transform(x)).mean()
    loss.backward()
    optimizer.step()
scaler.update(data)
""",
        "zero gradients of optimizer · forward model · backward of loss · step optimizer",
    ),
    "an alias of the constructor": (
        MODEL
        + """
import torch.cuda.amp as mixed
make = mixed.GradScaler
s = make(init_scale=2.0**10)
for x in loader:
    optimizer.zero_grad()
    with mixed.autocast():
        loss = model(x).mean()
    s.scale(loss).backward()
    s.step(optimizer)
    s.update()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) · backward of loss, scaled by s · "
        "step optimizer through s · update s",
    ),
    "a subclass that adds to it": (
        MODEL
        + """
class Scaler(torch.cuda.amp.GradScaler):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.skipped = 0

scaler = Scaler(init_scale=128.0)
for x in loader:
    optimizer.zero_grad()
    with autocast("cuda", dtype=torch.float16):
        loss = model(x).mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) · backward of loss, scaled by "
        "scaler · step optimizer through scaler · update scaler",
    ),
    "a callable scaler of the project": (
        MODEL
        + """
class NativeScaler:
    def __init__(self):
        self._scaler = torch.cuda.amp.GradScaler()

    def __call__(self, loss, optimizer, clip_grad=None, parameters=None):
        self._scaler.scale(loss).backward()
        if clip_grad is not None:
            self._scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, clip_grad)
        self._scaler.step(optimizer)
        self._scaler.update()

    def state_dict(self):
        return self._scaler.state_dict()

loss_scaler = NativeScaler()
for x in loader:
    optimizer.zero_grad()
    with autocast("cuda", dtype=torch.float16):
        loss = model(x).mean()
    loss_scaler(loss, optimizer, clip_grad=args.clip, parameters=model.parameters())
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) · loss_scaler(…): [backward of "
        "loss, scaled by self._scaler · if clip_grad is not None: [unscale gradients of optimizer by self._scaler · "
        "clip gradients of model (norm)] · step optimizer through self._scaler · update self._scaler]",
    ),
    "timm's callable scaler": (
        MODEL
        + """
from timm.utils import NativeScaler
loss_scaler = NativeScaler()
for x in loader:
    optimizer.zero_grad()
    with autocast("cuda", dtype=torch.float16):
        loss = model(x).mean()
    loss_scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters())
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) · backward of loss, scaled by "
        "loss_scaler · step optimizer through loss_scaler · update loss_scaler",
    ),
    "timm's, with accumulation": (
        MODEL
        + """
from timm.utils import NativeScaler
loss_scaler = NativeScaler()
for i, x in enumerate(loader):
    with autocast("cuda", dtype=torch.float16):
        loss = model(x).mean()
    loss_scaler(loss, optimizer, need_update=(i + 1) % 4 == 0)
    if (i + 1) % 4 == 0:
        optimizer.zero_grad()
""",
        "forward model under autocast(cuda, float16) · backward of loss, scaled by loss_scaler, from the second round "
        "on perhaps adding to the gradients · step optimizer through loss_scaler · update loss_scaler · "
        "if (i + 1) % 4 == 0: [zero gradients of optimizer]",
    ),
    "a wrapper with the scaler's own methods": (
        MODEL
        + """
class Amp:
    def __init__(self, enabled):
        self.scaler = GradScaler(enabled=enabled)

    def backward(self, loss):
        self.scaler.scale(loss).backward()

    def clip(self, optimizer, parameters):
        self.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters, 1.0)

    def step(self, optimizer):
        self.scaler.step(optimizer)
        self.scaler.update()

amp = Amp(enabled=True)
for x in loader:
    optimizer.zero_grad()
    with autocast("cuda", dtype=torch.float16):
        loss = model(x).mean()
    amp.backward(loss)
    amp.clip(optimizer, model.parameters())
    amp.step(optimizer)
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) · amp.backward(…): [backward of "
        "loss, scaled by self.scaler] · amp.clip(…): [unscale gradients of optimizer by self.scaler · clip gradients "
        "of model (norm)] · amp.step(…): [step optimizer through self.scaler · update self.scaler]",
    ),
    "apex": (
        MODEL
        + """
from apex import amp
model, optimizer = amp.initialize(model, optimizer, opt_level="O1")
for x in loader:
    optimizer.zero_grad()
    loss = model(x).mean()
    with amp.scale_loss(loss, optimizer) as scaled_loss:
        scaled_loss.backward()
    nn.utils.clip_grad_norm_(amp.master_params(optimizer), 1.0)
    optimizer.step()
""",
        "zero gradients of optimizer · forward model · backward of scaled_loss, its scaling left to the library · "
        "clip gradients of optimizer (norm) · step optimizer",
    ),
    "accelerate": (
        MODEL
        + """
from accelerate import Accelerator
accelerator = Accelerator(mixed_precision="fp16")
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
for x in loader:
    with accelerator.accumulate(model):
        loss = model(x).mean()
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
""",
        "forward model · backward of loss, its scaling left to the library · if accelerator.sync_gradients: "
        "[clip gradients of model (norm)] · step optimizer · zero gradients of optimizer",
    ),
    "a DeepSpeed engine": (
        """
import deepspeed
engine, optimizer, _, _ = deepspeed.initialize(model=net, config=config)
for x in loader:
    loss = engine(x)
    engine.backward(loss)
    engine.step()
""",
        "backward of loss, its scaling left to the library · step engine",
    ),
    "a scaler that is handed to something unknown": (
        MODEL
        + """
from somewhere import optimize
scaler = GradScaler()
for x in loader:
    optimizer.zero_grad()
    with autocast("cuda", dtype=torch.float16):
        loss = model(x).mean()
    scaler.scale(loss).backward()
    optimize(scaler, optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) · backward of loss, scaled by "
        "scaler · clip gradients of model (norm) · step optimizer, with gradients in an unknown state",
    ),
    "a scaled loss that nothing uses; an autocast that nothing enters": (
        MODEL
        + """
scaler = GradScaler()
for x in loader:
    optimizer.zero_grad()
    autocast("cuda", dtype=torch.float16)
    loss = model(x).mean()
    scaler.scale(loss)
    loss.backward()
    scaler.step(optimizer)
    scaler.update()
""",
        "zero gradients of optimizer · make autocast(cuda, float16), and never enter it ✗ · forward model · "
        "scale a loss, and drop the result ✗ · backward of loss · step optimizer through scaler · update scaler",
    ),
    "a new scaler each round": (
        MODEL
        + """
for x in loader:
    scaler = GradScaler()
    optimizer.zero_grad()
    with autocast("cuda", dtype=torch.float16):
        loss = model(x).mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
""",
        "make scaler (gradient scaler) · zero gradients of optimizer · forward model under autocast(cuda, float16) · "
        "backward of loss, scaled by scaler · step optimizer through scaler · update scaler",
    ),
    "a loss that is divided, summed and scaled": (
        MODEL
        + """
scaler = GradScaler()
for x, y in loader:
    optimizer.zero_grad()
    total = 0
    with autocast("cuda", dtype=torch.float16):
        out = model(x)
        total += F.mse_loss(out, y)
        total = total + 0.1 * out.abs().mean()
    scaler.scale(total / 4).backward()
    scaler.step(optimizer)
    scaler.update()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) · loss mse under autocast(cuda, "
        "float16) · backward, scaled by scaler · step optimizer through scaler · update scaler",
    ),
    "gradients that are read and changed by hand": (
        MODEL
        + """
scaler = GradScaler()
for x in loader:
    optimizer.zero_grad()
    with autocast("cuda", dtype=torch.float16):
        loss = model(x).mean()
    scaler.scale(loss).backward()
    norm = sum(p.grad.norm() ** 2 for p in model.parameters()) ** 0.5
    for p in model.parameters():
        p.grad.data.clamp_(-1, 1)
    scaler.step(optimizer)
    scaler.update()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) · backward of loss, scaled by "
        "scaler · read gradients of model (norm), still scaled ✗ · for p in model.parameters(): [clip gradients of "
        "model (hand), still scaled ✗] · step optimizer through scaler · update scaler",
    ),
}


@pytest.mark.parametrize(("script", "expected"), CASES.values(), ids=CASES)
def test_scalers(script: str, expected: str) -> None:
    assert told(script) == expected
