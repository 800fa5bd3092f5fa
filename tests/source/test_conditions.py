"""Events under conditions: contexts that may be there, flags that agree with each other, ways out of a round."""

from __future__ import annotations

import pytest
from told import around, told

MODEL = """
import argparse
args = argparse.ArgumentParser().parse_args()
model = nn.Linear(8, 1).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
"""

CASES = {
    "nullcontext or autocast": (
        MODEL
        + """
context = autocast("cuda", dtype=torch.float16) if args.amp else nullcontext()
for x in loader:
    optimizer.zero_grad()
    with context:
        loss = model(x).mean()
    loss.backward()
    optimizer.step()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) if args.amp · backward of loss · "
        "step optimizer",
    ),
    "the same flag early and late": (
        MODEL
        + """
scaler = None
if args.amp:
    scaler = GradScaler()
for x in loader:
    optimizer.zero_grad()
    with autocast("cuda", dtype=torch.float16, enabled=args.amp):
        loss = model(x).mean()
    if scaler is not None:
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    else:
        loss.backward()
        optimizer.step()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16, if args.amp) · "
        "if scaler is not None: [backward of loss, scaled by scaler · step optimizer through scaler · update scaler] · "
        "else (scaler is None): [backward of loss · step optimizer]",
    ),
    "a clip that forgets to unscale in one of two worlds": (
        MODEL
        + """
scaler = GradScaler() if args.amp else None
for x in loader:
    optimizer.zero_grad()
    if args.amp:
        with autocast("cuda", dtype=torch.float16):
            loss = model(x).mean()
        scaler.scale(loss).backward()
    else:
        loss = model(x).mean()
        loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if args.amp:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
""",
        "zero gradients of optimizer · if args.amp: [forward model under autocast(cuda, float16) · "
        "backward of loss, scaled by scaler] · else (not args.amp): [forward model · backward of loss] · "
        "clip gradients of model (norm), still scaled ✗ if args.amp · if args.amp: [step optimizer through scaler · "
        "update scaler] · else (not args.amp): [step optimizer]",
    ),
    "a step that asks another flag": (
        MODEL
        + """
scaler = GradScaler()
for x in loader:
    optimizer.zero_grad()
    with autocast("cuda", dtype=torch.float16):
        loss = model(x).mean()
    scaler.scale(loss).backward()
    if args.skip:
        optimizer.step()
    else:
        scaler.step(optimizer)
    scaler.update()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) · backward of loss, scaled by "
        "scaler · if args.skip: [step optimizer, with gradients that are still scaled ✗] · else (not args.skip): "
        "[step optimizer through scaler] · update scaler",
    ),
    "scaler.is_enabled()": (
        MODEL
        + """
scaler = GradScaler(enabled=args.amp)
for x in loader:
    optimizer.zero_grad()
    with autocast("cuda", dtype=torch.float16, enabled=scaler.is_enabled()):
        loss = model(x).mean()
    scaler.scale(loss).backward()
    if scaler.is_enabled():
        scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16, if scaler.is_enabled()) · "
        "backward of loss, scaled by scaler · if scaler.is_enabled(): [unscale gradients of optimizer by scaler] · "
        "clip gradients of model (norm) · step optimizer through scaler if args.amp · update scaler",
    ),
    "a disabled scaler does nothing": (
        MODEL
        + """
scaler = GradScaler(enabled=False)
for x in loader:
    optimizer.zero_grad()
    scaler.scale(model(x).mean()).backward()
    scaler.step(optimizer)
    scaler.update()
""",
        "zero gradients of optimizer · forward model · backward · step optimizer",
    ),
    "the device decides": (
        MODEL
        + """
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
use_amp = device.type == "cuda"
scaler = GradScaler(device.type, enabled=use_amp)
for x in loader:
    optimizer.zero_grad()
    with torch.autocast(device.type, dtype=torch.float16, enabled=use_amp):
        loss = model(x).mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
""",
        "zero gradients of optimizer · forward model under autocast(cuda or cpu, float16, if use_amp) · "
        "backward of loss, scaled by scaler · step optimizer through scaler · "
        "update scaler",
    ),
    "a factory of contexts": (
        MODEL
        + """
def amp_context(enabled, dtype="float16"):
    if not enabled:
        return nullcontext()
    return torch.autocast("cuda", dtype=getattr(torch, dtype))

for x in loader:
    optimizer.zero_grad()
    with amp_context(args.amp):
        loss = model(x).mean()
    loss.backward()
    optimizer.step()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) if args.amp · backward of loss · "
        "step optimizer",
    ),
    "partial(autocast), made once and called each round": (
        MODEL
        + """
amp_autocast = suppress
if args.amp:
    amp_autocast = partial(torch.autocast, device_type="cuda", dtype=torch.bfloat16)
for x in loader:
    optimizer.zero_grad()
    with amp_autocast():
        loss = model(x).mean()
    loss.backward()
    optimizer.step()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, bfloat16) if args.amp · backward of loss · "
        "step optimizer",
    ),
    "a context manager of the project's own": (
        MODEL
        + """
@contextmanager
def precision():
    with torch.autocast("cuda", dtype=torch.float16):
        yield

for x in loader:
    optimizer.zero_grad()
    with precision():
        loss = model(x).mean()
    loss.backward()
    optimizer.step()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) · backward of loss · step optimizer",
    ),
    "a class with __enter__ that enters autocast": (
        MODEL
        + """
class Precision:
    def __init__(self):
        self.inner = torch.autocast("cuda", dtype=torch.float16)

    def __enter__(self):
        return self.inner.__enter__()

    def __exit__(self, *args):
        return self.inner.__exit__(*args)

for x in loader:
    optimizer.zero_grad()
    with Precision():
        loss = model(x).mean()
    loss.backward()
    optimizer.step()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) · backward of loss · step optimizer",
    ),
    "ExitStack": (
        MODEL
        + """
for x in loader:
    optimizer.zero_grad()
    with ExitStack() as stack:
        if args.amp:
            stack.enter_context(torch.autocast("cuda", dtype=torch.float16))
        loss = model(x).mean()
    loss.backward()
    optimizer.step()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) if args.amp · backward of loss · "
        "step optimizer",
    ),
    "a choice in the with itself, and a table of contexts": (
        MODEL
        + """
CONTEXTS = {"fp16": autocast("cuda", dtype=torch.float16), "fp32": nullcontext()}
for x, y in loader:
    optimizer.zero_grad()
    with torch.no_grad() if args.frozen else nullcontext():
        features = model(x)
    with CONTEXTS[args.precision]:
        loss = F.mse_loss(features, y)
    loss.backward()
    optimizer.step()
""",
        "zero gradients of optimizer · forward model, without gradients if args.frozen · loss mse under autocast(cuda, "
        "float16) if args.precision == 'fp16' · backward of loss · step optimizer",
    ),
    "two contexts in one with; a nested autocast that is off": (
        MODEL
        + """
head = nn.Linear(1, 1)
for x in loader:
    optimizer.zero_grad()
    with torch.no_grad(), autocast("cuda", dtype=torch.float16):
        features = model(x)
    with autocast("cuda", dtype=torch.float16):
        with autocast("cuda", enabled=False):
            loss = head(features.float()).mean()
    loss.backward()
    optimizer.step()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16), without gradients · "
        "forward head under autocast(cuda, float16, off) · backward of loss · step optimizer",
    ),
    "backward and step inside the region": (
        MODEL
        + """
for x in loader:
    with autocast("cuda", dtype=torch.bfloat16):
        optimizer.zero_grad()
        loss = model(x).mean()
        loss.backward()
        optimizer.step()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, bfloat16) · "
        "backward of loss, inside autocast(cuda, bfloat16) · step optimizer, inside autocast(cuda, bfloat16)",
    ),
    "continue, and return from a helper": (
        MODEL
        + """
scaler = GradScaler()

def step(loss):
    if not torch.isfinite(loss):
        return
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()

for x in loader:
    if x is None:
        continue
    optimizer.zero_grad()
    with autocast("cuda", dtype=torch.float16):
        loss = model(x).mean()
    step(loss)
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) · step(…): "
        "[backward of loss, scaled by scaler · step optimizer through scaler · update scaler]",
    ),
    "bfloat16 needs no scaler": (
        MODEL
        + """
dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[args.dtype]
scaler = GradScaler(enabled=args.dtype == "fp16")
for x in loader:
    optimizer.zero_grad()
    with autocast("cuda", dtype=dtype):
        loss = model(x).mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16 or bfloat16) · "
        "backward of loss, scaled by scaler · "
        "step optimizer through scaler · update scaler",
    ),
    "match": (
        MODEL
        + """
match args.precision:
    case "fp16":
        context, scaler = autocast("cuda", dtype=torch.float16), GradScaler()
    case "bf16":
        context, scaler = autocast("cuda", dtype=torch.bfloat16), None
    case _:
        context, scaler = nullcontext(), None
for x in loader:
    optimizer.zero_grad()
    with context:
        loss = model(x).mean()
    if scaler:
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    else:
        loss.backward()
        optimizer.step()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) if args.precision == 'fp16' "
        "under autocast(cuda, bfloat16) if args.precision == 'bf16' · if scaler: [backward of loss, scaled by scaler · "
        "step optimizer through scaler · update scaler] · else (not scaler): [backward of loss · step optimizer]",
    ),
    "a table of losses, by an unknown key": (
        MODEL
        + """
def mse(out, y): return F.mse_loss(out, y)
def l1(out, y): return F.l1_loss(out, y)

LOSSES = {"mse": mse, "l1": l1}
for x, y in loader:
    optimizer.zero_grad()
    loss = LOSSES[args.loss](model(x), y)
    loss.backward()
    optimizer.step()
""",
        "zero gradients of optimizer · forward model · LOSSES[args.loss](…) of mse if args.loss == 'mse': [loss mse] · "
        "LOSSES[args.loss](…) of l1 if not (args.loss == 'mse'): [loss l1] · backward of loss · step optimizer",
    ),
    "a config that is a dict": (
        """
config = {"amp": True, "clip": None, "lr": 0.1}
model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), config["lr"])
for x in loader:
    optimizer.zero_grad()
    with autocast("cuda", dtype=torch.float16, enabled=config["amp"]):
        loss = model(x).mean()
    loss.backward()
    if config["clip"]:
        nn.utils.clip_grad_norm_(model.parameters(), config["clip"])
    optimizer.step()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) · backward of loss · step optimizer",
    ),
    "a config that is an object": (
        """
class Config:
    amp = True
    clip = 1.0

cfg = Config()
model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for x in loader:
    optimizer.zero_grad()
    with autocast("cuda", dtype=torch.float16, enabled=cfg.amp):
        loss = model(x).mean()
    loss.backward()
    if cfg.clip > 0:
        nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
    optimizer.step()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) · backward of loss · "
        "clip gradients of model (norm) · step optimizer",
    ),
    "an import that may fail": (
        MODEL
        + """
try:
    from torch.cuda.amp import autocast as cast
    HAS_AMP = True
except ImportError:
    HAS_AMP = False
for x in loader:
    optimizer.zero_grad()
    if HAS_AMP:
        with cast():
            loss = model(x).mean()
    else:
        loss = model(x).mean()
    loss.backward()
    optimizer.step()
""",
        "zero gradients of optimizer · if HAS_AMP: [forward model under autocast(cuda, float16)] · "
        "else (not HAS_AMP): [forward model] · backward of loss · step optimizer",
    ),
    "the walrus, and a chained comparison": (
        MODEL
        + """
for step, x in enumerate(loader):
    optimizer.zero_grad()
    if (loss := model(x).mean()) is not None:
        loss.backward()
    if 0 < step < 10:
        optimizer.step()
""",
        "zero gradients of optimizer, from the second round on perhaps dropping what no step has used · "
        "forward model · backward of loss · if 0 < step < 10: [step optimizer]",
    ),
}


@pytest.mark.parametrize(("script", "expected"), CASES.values(), ids=CASES)
def test_conditions(script: str, expected: str) -> None:
    assert told(script) == expected


def test_what_is_made_tells_its_gate() -> None:
    script = """
    model = nn.Linear(8, 1).half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradScaler(enabled=args.amp)
    off = GradScaler(enabled=False)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "last.pt")
    """
    assert around(script) == (
        "cast model to float16 · make optimizer (SGD) for model · make scaler (gradient scaler), enabled if args.amp · "
        "make off (gradient scaler), off · save model and optimizer"
    )
