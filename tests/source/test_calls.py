"""Events across calls: functions, methods, fields, closures, factories, partials, decorators, launchers."""

from __future__ import annotations

import pytest
from told import told

from amplint.source.interpret.calls import says_it_clips

MODEL = """
model = nn.Linear(8, 1).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
"""
CASES = {
    "arguments reach a function by position and by name": (
        MODEL
        + """
def train_one(net, data, *, opt, criterion):
    for x, y in data:
        loss = criterion(net(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()

train_one(model, loader, criterion=nn.MSELoss(), opt=optimizer)
""",
        "forward net · loss mse · zero gradients of opt · backward of loss · step opt",
    ),
    "a function that computes the loss, a function that steps": (
        MODEL
        + """
def compute(net, x, y):
    with autocast("cuda", dtype=torch.float16):
        out = net(x)
        return F.mse_loss(out, y)

def apply(loss, opt, scaler):
    scaler.scale(loss).backward()
    scaler.step(opt)
    scaler.update()

scaler = GradScaler()
for x, y in loader:
    loss = compute(model, x, y)
    apply(loss, optimizer, scaler)
""",
        "compute(…): [forward net under autocast(cuda, float16) · loss mse under autocast(cuda, float16)] · "
        "apply(…): [backward of loss, scaled by scaler · step opt through scaler · update scaler]",
    ),
    "a long helper whose only part in training is the forward": (
        MODEL
        + """
def compute(batch):
    x, y = batch
    x = x.cuda()
    y = y.cuda()
    out = model(x)
    loss = criterion(out, y)
    return loss

criterion = nn.MSELoss()
for batch in loader:
    optimizer.zero_grad()
    loss = compute(batch)
    loss.backward()
    optimizer.step()
""",
        "zero gradients of optimizer · compute(…): [forward model · loss mse] · backward of loss · step optimizer",
    ),
    "fields set in __init__": (
        """
class Trainer:
    def __init__(self, model):
        self.model = model
        self.opt = torch.optim.Adam(model.parameters())
        self.scaler = GradScaler()

    def fit(self, loader):
        for batch in loader:
            self.training_step(batch)

    def training_step(self, batch):
        with autocast("cuda", dtype=torch.float16):
            loss = self.model(batch).mean()
        self.opt.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.opt)
        self.scaler.update()

Trainer(nn.Linear(8, 1)).fit(loader)
""",
        "self.training_step(…): [forward self.model under autocast(cuda, float16) · zero gradients of self.opt · "
        "backward of loss, scaled by self.scaler · step self.opt through self.scaler · update self.scaler]",
    ),
    "fields set in another method, of a class that nothing makes": (
        """
class Trainer:
    def setup(self):
        self.opt = torch.optim.Adam(self.model.parameters())
        self.scaler = GradScaler()

    def train(self, loader):
        for batch in loader:
            with autocast("cuda", dtype=torch.float16):
                loss = self.model(batch).mean()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.opt)
            self.scaler.update()
            self.opt.zero_grad()
""",
        "forward self.model under autocast(cuda, float16) · backward of loss, scaled by self.scaler · "
        "step self.opt through self.scaler · update self.scaler · zero gradients of self.opt",
    ),
    "fields and methods that are inherited, super() included": (
        """
class Base:
    def __init__(self, model):
        self.model = model
        self.opt = torch.optim.Adam(model.parameters())

    def optimize(self, loss):
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()

class Trainer(Base):
    def __init__(self, model):
        super().__init__(model)
        self.loss = nn.MSELoss()

    def optimize(self, loss):
        super().optimize(loss)

    def run(self, loader):
        for x, y in loader:
            self.optimize(self.loss(self.model(x), y))

Trainer(nn.Linear(8, 1)).run(loader)
""",
        "forward self.model · loss mse · self.optimize(…): [super().optimize(…): "
        "[zero gradients of self.opt · backward of loss · step self.opt]]",
    ),
    "a trainer that is split over two mixins": (
        """
class Amp:
    def setup_amp(self):
        self.scaler = GradScaler()

    def optimize(self, loss):
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

class Loop:
    def run(self, loader):
        for x in loader:
            self.optimizer.zero_grad()
            with autocast("cuda", dtype=torch.float16):
                loss = self.model(x).mean()
            self.optimize(loss)

class Trainer(Amp, Loop):
    def __init__(self, model):
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), 0.1)
        self.setup_amp()

Trainer(nn.Linear(8, 1)).run(loader)
""",
        "zero gradients of self.optimizer · forward self.model under autocast(cuda, float16) · self.optimize(…): "
        "[backward of loss, scaled by self.scaler · step self.optimizer through self.scaler · update self.scaler]",
    ),
    "a closure over the surrounding function's variables": (
        """
def main():
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = GradScaler()

    def step(x):
        with autocast("cuda", dtype=torch.float16):
            loss = model(x).mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    for x in loader:
        optimizer.zero_grad()
        step(x)

main()
""",
        "zero gradients of optimizer · step(…): [forward model under autocast(cuda, float16) · "
        "backward of loss, scaled by scaler · step optimizer through scaler · update scaler]",
    ),
    "a factory that returns a step function": (
        MODEL
        + """
def make_step(model, optimizer, loss_fn):
    def step(x, y):
        loss = loss_fn(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()
    return step

train_step = make_step(model, optimizer, nn.MSELoss())
for x, y in loader:
    train_step(x, y)
""",
        "train_step(…): [forward model · loss mse · zero gradients of optimizer · backward of loss · step optimizer]",
    ),
    "factories of model, optimizer and scaler": (
        """
def build(name):
    net = nn.Linear(8, 1)
    return net, torch.optim.SGD(net.parameters(), 0.1), GradScaler()

model, optimizer, scaler = build("mlp")
for x, y in loader:
    optimizer.zero_grad()
    with autocast("cuda", dtype=torch.float16):
        loss = F.mse_loss(model(x), y)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) · "
        "loss mse under autocast(cuda, float16) · backward of loss, scaled by scaler · "
        "step optimizer through scaler · update scaler",
    ),
    "functools.partial, lambdas, and a bound method": (
        MODEL
        + """
def run(x, y, net, opt, backward):
    loss = criterion(net(x), y)
    opt.zero_grad()
    backward(loss)
    opt.step()

criterion = lambda out, target: F.mse_loss(out, target)
step = partial(run, net=model, opt=optimizer, backward=lambda loss: loss.backward())
for x, y in loader:
    step(x, y)
""",
        "step(…): [forward net · criterion(…): [loss mse] · zero gradients of opt · "
        "backward(…): [backward of loss] · step opt]",
    ),
    "a step method that was taken": (
        MODEL
        + """
step = optimizer.step
for x in loader:
    optimizer.zero_grad()
    model(x).mean().backward()
    step()
""",
        "zero gradients of optimizer · forward model · backward · step optimizer",
    ),
    "a dictionary of functions": (
        MODEL
        + """
def mse(out, y): return F.mse_loss(out, y)
def l1(out, y): return F.l1_loss(out, y)

LOSSES = {"mse": mse, "l1": l1}
for x, y in loader:
    optimizer.zero_grad()
    loss = LOSSES["l1"](model(x), y)
    loss.backward()
    optimizer.step()
""",
        'zero gradients of optimizer · forward model · LOSSES["l1"](…): [loss l1] · backward of loss · step optimizer',
    ),
    "getattr with a known and a built name": (
        """
class Trainer:
    def __init__(self):
        self.net_a = nn.Linear(8, 1)
        for name in ["a"]:
            setattr(self, f"opt_{name}", torch.optim.SGD(getattr(self, f"net_{name}").parameters(), 0.1))

    def run(self, loader):
        for x in loader:
            loss = self.net_a(x).mean()
            getattr(self, "opt_a").zero_grad()
            loss.backward()
            self.opt_a.step()

Trainer().run(loader)
""",
        "forward self.net_a · zero gradients of self.opt_a · backward of loss · step self.opt_a",
    ),
    "a registry of classes": (
        """
REGISTRY = {}

def register(name):
    def wrap(cls):
        REGISTRY[name] = cls
        return cls
    return wrap

@register("sgd")
class Trainer:
    def __init__(self, model):
        self.model, self.opt = model, torch.optim.SGD(model.parameters(), 0.1)

    def step(self, x):
        self.opt.zero_grad()
        self.model(x).mean().backward()
        self.opt.step()

trainer = Trainer(nn.Linear(8, 1))
for x in loader:
    trainer.step(x)
""",
        "trainer.step(…): [zero gradients of self.opt · forward self.model · backward · step self.opt]",
    ),
    "a decorated step": (
        MODEL
        + """
import functools, time

def timed(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        start = time.time()
        result = function(*args, **kwargs)
        print(time.time() - start)
        return result
    return wrapper

@timed
def train_step(x, y):
    loss = F.mse_loss(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

for x, y in loader:
    train_step(x, y)
""",
        "train_step(…): [forward model · loss mse · zero gradients of optimizer · backward of loss · step optimizer]",
    ),
    "autocast as a decorator": (
        MODEL
        + """
@torch.autocast("cuda", dtype=torch.bfloat16)
def compute(x, y):
    return F.mse_loss(model(x), y)

for x, y in loader:
    loss = compute(x, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
        "compute(…): [forward model under autocast(cuda, bfloat16) · loss mse under autocast(cuda, bfloat16)] · "
        "zero gradients of optimizer · backward of loss · step optimizer",
    ),
    "callbacks": (
        MODEL
        + """
class Clip:
    def before_step(self, trainer):
        nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)

class Trainer:
    def __init__(self, model, opt, callbacks):
        self.model, self.opt, self.callbacks = model, opt, callbacks

    def run(self, loader):
        for x in loader:
            self.opt.zero_grad()
            self.model(x).mean().backward()
            for callback in self.callbacks:
                callback.before_step(self)
            self.opt.step()

Trainer(model, optimizer, [Clip()]).run(loader)
""",
        "zero gradients of self.opt · forward self.model · backward · for callback in self.callbacks: "
        "[callback.before_step(…): [clip gradients of self.model (norm)]] · step self.opt",
    ),
    "mp.spawn, with the rank first": (
        """
import torch.multiprocessing as mp

def worker(rank, args):
    model = nn.parallel.DistributedDataParallel(nn.Linear(8, 1).cuda(rank), device_ids=[rank])
    optimizer = torch.optim.SGD(model.parameters(), args.lr)
    for x in loader:
        optimizer.zero_grad()
        model(x).mean().backward()
        optimizer.step()

if __name__ == "__main__":
    mp.spawn(worker, nprocs=2, args=(parse(),))
""",
        "zero gradients of optimizer · forward model · backward · step optimizer",
    ),
    "a thread and its arguments": (
        MODEL
        + """
import threading

def train(net, opt, loader):
    for x in loader:
        opt.zero_grad()
        net(x).mean().backward()
        opt.step()

with autocast("cuda", dtype=torch.float16):
    worker = threading.Thread(target=train, args=(model, optimizer, loader))
    worker.start()
""",
        "zero gradients of opt · forward net · backward · step opt",
    ),
    "click": (
        """
import click

@click.command()
@click.option("--amp", is_flag=True)
def main(amp):
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for x in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=amp):
            loss = model(x).mean()
        loss.backward()
        optimizer.step()

if __name__ == "__main__":
    main()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, bfloat16, if amp) · backward of loss · "
        "step optimizer",
    ),
    "fire": (
        """
import fire

def train(lr=0.1):
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for x in loader:
        optimizer.zero_grad()
        model(x).mean().backward()
        optimizer.step()

if __name__ == "__main__":
    fire.Fire(train)
""",
        "zero gradients of optimizer · forward model · backward · step optimizer",
    ),
    "hydra": (
        """
import hydra

@hydra.main(config_path="conf", config_name="train")
def main(cfg):
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), cfg.lr)
    for x in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=cfg.amp):
            loss = model(x).mean()
        loss.backward()
        optimizer.step()

if __name__ == "__main__":
    main()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, bfloat16, if cfg.amp) · "
        "backward of loss · step optimizer",
    ),
    "a function that nothing calls: roles by use": (
        """
def train_epoch(a, b, c, d, e):
    for x, y in a:
        with autocast("cuda", dtype=torch.float16):
            loss = e(b(x), y)
        c.zero_grad()
        d.scale(loss).backward()
        d.unscale_(c)
        nn.utils.clip_grad_norm_(b.parameters(), 1.0)
        d.step(c)
        d.update()
""",
        "forward b under autocast(cuda, float16) · zero gradients of c · backward of loss, scaled by d · "
        "unscale gradients of c by d · clip gradients of b (norm) · step c through d · update d",
    ),
    "helpers that stand above what calls them": (
        """
def backward(loss, scaler):
    scaler.scale(loss).backward()

def finish(optimizer, scaler):
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()

class Engine:
    def optimize(self, loss):
        backward(loss, self.scaler)
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        finish(self.optimizer, self.scaler)

    def run(self, loader):
        for x in loader:
            with autocast("cuda", dtype=torch.float16):
                loss = self.net(x).mean()
            self.optimize(loss)
""",
        "forward self.net under autocast(cuda, float16) · self.optimize(…): [backward(…): [backward of loss, scaled by "
        "scaler] · clip gradients of self.net (norm), from the second round on still scaled ✗ · finish(…): [step "
        "optimizer through scaler · update scaler · zero gradients of optimizer]]",
    ),
    "recursion ends": (
        MODEL
        + """
def halve(batch, depth):
    if depth == 0:
        loss = model(batch).mean()
        loss.backward()
        return
    for part in batch.chunk(2):
        halve(part, depth - 1)

for batch in loader:
    optimizer.zero_grad()
    halve(batch, n)
    optimizer.step()
""",
        "zero gradients of optimizer · halve(…): [if depth == 0: [forward model · backward of loss]] · "
        "step optimizer, with gradients in an unknown state if not (n == 0)",
    ),
    "a mutable default, a global, a nonlocal": (
        """
optimizer = None

def setup(model):
    global optimizer
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

def train(model, history=[]):
    for x in loader:
        optimizer.zero_grad()
        loss = model(x).mean()
        history.append(loss.item())
        loss.backward()
        optimizer.step()

net = nn.Linear(8, 1)
setup(net)
train(net)
""",
        "zero gradients of optimizer · forward model · backward of loss · step optimizer",
    ),
    "wrappers keep what they wrap": (
        """
model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
model = torch.compile(nn.DataParallel(model))
model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
for x in loader:
    optimizer.zero_grad()
    model(x).mean().backward()
    nn.utils.clip_grad_norm_(model.module.parameters(), 1.0)
    optimizer.step()
""",
        "zero gradients of optimizer · forward model · backward · clip gradients of model (norm) · step optimizer",
    ),
    "an unknown architecture, with its features wrapped": (
        """
import torchvision.models as models
model = models.__dict__[args.arch]()
if args.arch.startswith("vgg"):
    model.features = torch.nn.DataParallel(model.features)
    model.cuda()
else:
    model = torch.nn.DataParallel(model).cuda()
optimizer = torch.optim.SGD(model.parameters(), args.lr)
criterion = nn.CrossEntropyLoss().cuda()
for x, y in loader:
    loss = criterion(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
        "forward model · loss cross_entropy · zero gradients of optimizer · backward of loss · step optimizer",
    ),
    "a function that keeps its result runs once": (
        """
from functools import lru_cache
model = nn.Linear(8, 1)

@lru_cache(maxsize=None)
def opt():
    return torch.optim.SGD(model.parameters(), lr=0.1)

def train_one(x):
    model(x).mean().backward()
    opt().step()

for x in loader:
    opt().zero_grad()
    train_one(x)
""",
        "opt(…): [make SGD for model] · zero gradients of the SGD · "
        "train_one(…): [forward model · backward · step the SGD]",
    ),
    "a dataclass of what is trained": (
        """
from dataclasses import dataclass

@dataclass
class State:
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: GradScaler = None

net = nn.Linear(8, 1)
state = State(net, torch.optim.SGD(net.parameters(), 0.1), scaler=GradScaler())
for x in loader:
    state.optimizer.zero_grad()
    with autocast("cuda", dtype=torch.float16):
        loss = state.model(x).mean()
    state.scaler.scale(loss).backward()
    state.scaler.step(state.optimizer)
    state.scaler.update()
""",
        "zero gradients of state.optimizer · forward state.model under autocast(cuda, float16) · "
        "backward of loss, scaled by state.scaler · step state.optimizer through state.scaler · update state.scaler",
    ),
}


@pytest.mark.parametrize(("script", "expected"), CASES.values(), ids=CASES)
def test_calls(script: str, expected: str) -> None:
    assert told(script) == expected


@pytest.mark.parametrize(
    ("name", "clips"), [("clip_grad", True), ("grad_clipping", True), ("_set_grad_clip_per_optimizer", False)]
)
def test_a_name_says_whether_a_function_clips(name: str, clips: bool) -> None:
    assert says_it_clips(name) is clips
