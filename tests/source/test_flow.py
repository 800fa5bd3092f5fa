"""Events along the ways through a script: exceptions, early ends, generators, comprehensions, evaluation loops."""

from __future__ import annotations

import pytest
from told import told

MODEL = """
model = nn.Linear(8, 1).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = GradScaler()
"""

CASES = {
    "try, except and finally": (
        MODEL
        + """
for x in loader:
    optimizer.zero_grad()
    try:
        with autocast("cuda", dtype=torch.float16):
            loss = model(x).mean()
        scaler.scale(loss).backward()
    except RuntimeError:
        torch.cuda.empty_cache()
        continue
    finally:
        count += 1
    scaler.step(optimizer)
    scaler.update()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) · backward of loss, scaled by "
        "scaler · step optimizer through scaler · update scaler",
    ),
    "a handler that steps": (
        MODEL
        + """
for x in loader:
    optimizer.zero_grad()
    try:
        loss = model(x).mean()
        loss.backward()
        optimizer.step()
    except RuntimeError as error:
        optimizer.zero_grad()
        raise error
    else:
        print(loss)
""",
        "zero gradients of optimizer · forward model · backward of loss · step optimizer · "
        "except RuntimeError: [zero gradients of optimizer]",
    ),
    "skipping a bad loss": (
        MODEL
        + """
for x in loader:
    with autocast("cuda", dtype=torch.float16):
        loss = model(x).mean()
    if not torch.isfinite(loss):
        optimizer.zero_grad()
        continue
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
""",
        "forward model under autocast(cuda, float16) · if not torch.isfinite(loss): [zero gradients of optimizer] · "
        "backward of loss, scaled by scaler · step optimizer through scaler · update scaler · zero gradients of "
        "optimizer",
    ),
    "a loss of None": (
        MODEL
        + """
def compute(x):
    if x.shape[0] == 0:
        return None
    return model(x).mean()

for x in loader:
    loss = compute(x)
    if loss is None:
        continue
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
        "compute(…): [forward model] · zero gradients of optimizer · backward of loss · step optimizer",
    ),
    "evaluation inside and outside the loop": (
        MODEL
        + """
@torch.no_grad()
def evaluate(net):
    net.eval()
    for x in val:
        net(x)

for epoch in range(10):
    for x in loader:
        optimizer.zero_grad()
        loss = model(x).mean()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            with torch.no_grad():
                model(y)
    evaluate(model)
""",
        "zero gradients of optimizer · forward model · backward of loss · step optimizer · "
        "if step % 100 == 0: [forward model, without gradients]",
    ),
    "a comprehension of losses": (
        MODEL
        + """
heads = [nn.Linear(1, 1), nn.Linear(1, 1)]
for x in loader:
    optimizer.zero_grad()
    losses = [head(model(x)).mean() for head in heads]
    weights = {"a": 1.0, "b": 2.0}
    loss = sum(losses) + sum(w * l for w, l in zip(weights.values(), losses))
    loss.backward()
    optimizer.step()
""",
        "zero gradients of optimizer · forward model · forward head · backward of loss · step optimizer",
    ),
    "a dict of losses": (
        MODEL
        + """
def losses(out, y):
    return {"mse": F.mse_loss(out, y), "l1": F.l1_loss(out, y)}

for x, y in loader:
    optimizer.zero_grad()
    with autocast("cuda", dtype=torch.float16):
        terms = losses(model(x), y)
        loss = sum(terms.values())
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) · losses(…): [loss mse under "
        "autocast(cuda, float16) · loss l1 under autocast(cuda, float16)] · backward of loss, scaled by scaler · step "
        "optimizer through scaler · update scaler",
    ),
    "batches from a generator of the script": (
        MODEL
        + """
def batches():
    while True:
        yield from loader

for x, y in batches():
    optimizer.zero_grad()
    F.mse_loss(model(x), y).backward()
    optimizer.step()
""",
        "zero gradients of optimizer · forward model · loss mse · backward · step optimizer",
    ),
    "a coroutine": (
        MODEL
        + """
import asyncio

async def train():
    async for x in loader:
        optimizer.zero_grad()
        loss = model(x).mean()
        loss.backward()
        optimizer.step()
        await save()

asyncio.run(train())
""",
        "zero gradients of optimizer · forward model · backward of loss · step optimizer",
    ),
    "iter and next, with StopIteration": (
        MODEL
        + """
batches = iter(loader)
while step < total:
    try:
        x = next(batches)
    except StopIteration:
        batches = iter(loader)
        x = next(batches)
    optimizer.zero_grad()
    loss = model(x).mean()
    loss.backward()
    optimizer.step()
    step += 1
""",
        "zero gradients of optimizer · forward model · backward of loss · step optimizer",
    ),
    "a script that ends with sys.exit": (
        MODEL
        + """
import sys

def main():
    for x in loader:
        optimizer.zero_grad()
        loss = model(x).mean()
        loss.backward()
        optimizer.step()
    return 0

if __name__ == "__main__":
    sys.exit(main())
""",
        "zero gradients of optimizer · forward model · backward of loss · step optimizer",
    ),
    "a step in a loop of its own, a step in a function": (
        MODEL
        + """
def pretrain():
    for x in loader:
        optimizer.zero_grad()
        model(x).mean().backward()
        optimizer.step()

def finetune():
    for x in loader:
        optimizer.zero_grad()
        with autocast("cuda", dtype=torch.bfloat16):
            loss = model(x).mean()
        loss.backward()
        optimizer.step()

pretrain()
finetune()
""",
        "zero gradients of optimizer · forward model · backward · step optimizer || "
        "zero gradients of optimizer · forward model under autocast(cuda, bfloat16) · backward of loss · "
        "step optimizer",
    ),
    "one step, without a loop": (
        MODEL
        + """
loss = model(x).mean()
loss.backward()
optimizer.step()
""",
        "make optimizer (SGD) for model · make scaler (gradient scaler) · forward model · backward of loss · "
        "step optimizer",
    ),
    "a method of a LightningModule": (
        """
import lightning as L

class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 1)
        self.automatic_optimization = False

    def training_step(self, batch, index):
        opt = self.optimizers()
        opt.zero_grad()
        loss = self.layer(batch).mean()
        self.manual_backward(loss)
        opt.step()
""",
        "zero gradients of opt · forward self.layer · backward of loss, its scaling left to the library · step opt",
    ),
    "a library's functions are no modules, whatever package they come from": (
        """
from speechbrain.nnet.losses import get_si_snr_with_pitwrapper

class Brain:
    def fit_batch(self, batch):
        loss = get_si_snr_with_pitwrapper(batch.target, self.compute(batch))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
""",
        "backward of loss · step self.optimizer · zero gradients of self.optimizer",
    ),
    "frozen parts, and a model that is trained in part": (
        """
backbone, head = nn.Linear(8, 8), nn.Linear(8, 1)
for p in backbone.parameters():
    p.requires_grad = False
optimizer = torch.optim.SGD([p for p in head.parameters() if p.requires_grad], lr=0.1)
for x in loader:
    with torch.no_grad():
        features = backbone(x)
    optimizer.zero_grad()
    loss = head(features).mean()
    loss.backward()
    optimizer.step()
""",
        "forward backbone, without gradients · zero gradients of optimizer · forward head · backward of loss · "
        "step optimizer",
    ),
    "del, with statements on files, nested functions that only log": (
        MODEL
        + """
def log(value):
    with open("log.txt", "a") as file:
        file.write(str(value))

for x in loader:
    optimizer.zero_grad()
    out = model(x)
    loss = out.mean()
    del out
    loss.backward()
    log(loss.item())
    optimizer.step()
""",
        "zero gradients of optimizer · forward model · backward of loss · step optimizer",
    ),
}


@pytest.mark.parametrize(("script", "expected"), CASES.values(), ids=CASES)
def test_flow(script: str, expected: str) -> None:
    assert told(script) == expected
