"""Events of steps with several rounds, several optimizers, accumulation, closures and gradient penalties."""

from __future__ import annotations

import pytest
from told import told

MODEL = """
model = nn.Linear(8, 1).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = GradScaler()
"""
GAN = """
netG, netD = Generator(), Discriminator()
optG = torch.optim.Adam(netG.parameters())
optD = torch.optim.Adam(netD.parameters())
criterion = nn.BCEWithLogitsLoss()
scaler = GradScaler()
"""
CLASSES = """
class Generator(nn.Module):
    def forward(self, z): return z.tanh()
class Discriminator(nn.Module):
    def forward(self, x): return x.mean()
"""

CASES = {
    "a missing update shows in the second round": (
        MODEL
        + """
for x in loader:
    optimizer.zero_grad()
    with autocast("cuda", dtype=torch.float16):
        loss = model(x).mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) · backward of loss, scaled by "
        "scaler · step optimizer through scaler, from the second round on for the second time without an update ✗",
    ),
    "accumulation with a modulo": (
        MODEL
        + """
for i, x in enumerate(loader):
    with autocast("cuda", dtype=torch.float16):
        loss = model(x).mean() / 4
    scaler.scale(loss).backward()
    if (i + 1) % 4 == 0:
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
""",
        "forward model under autocast(cuda, float16) · backward of loss, scaled by scaler, from the second round on "
        "perhaps adding to the gradients · if (i + 1) % 4 == 0: [step optimizer through scaler · update scaler · "
        "zero gradients of optimizer]",
    ),
    "accumulation with an update too many": (
        MODEL
        + """
for i, x in enumerate(loader):
    with autocast("cuda", dtype=torch.float16):
        loss = model(x).mean() / 4
    scaler.scale(loss).backward()
    if (i + 1) % 4 == 0:
        scaler.step(optimizer)
        optimizer.zero_grad()
    scaler.update()
""",
        "forward model under autocast(cuda, float16) · backward of loss, scaled by scaler, from the second round on "
        "perhaps adding to gradients that are scaled differently ✗ · if (i + 1) % 4 == 0: [step optimizer through "
        "scaler · zero gradients of optimizer] · update scaler",
    ),
    "an inner loop of micro batches": (
        MODEL
        + """
for step in range(1000):
    optimizer.zero_grad(set_to_none=True)
    for micro in range(accumulate):
        with autocast("cuda", dtype=torch.float16):
            loss = model(next(batches)).mean() / accumulate
        scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
""",
        "zero gradients of optimizer · for micro in range(accumulate): [forward model under autocast(cuda, float16) · "
        "backward of loss, scaled by scaler, from the second round on adding to the gradients] · unscale gradients of "
        "optimizer by scaler · clip gradients of model (norm) · step optimizer through scaler · update scaler",
    ),
    "a last partial window": (
        MODEL
        + """
for i, x in enumerate(loader):
    with autocast("cuda", dtype=torch.float16):
        loss = model(x).mean()
    scaler.scale(loss).backward()
    if (i + 1) % 4 == 0 or i + 1 == len(loader):
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
""",
        "forward model under autocast(cuda, float16) · backward of loss, scaled by scaler, from the second round on "
        "perhaps adding to the gradients · if (i + 1) % 4 == 0 or i + 1 == len(loader): [step optimizer through "
        "scaler · update scaler · zero gradients of optimizer]",
    ),
    "unscaled for each micro batch": (
        MODEL
        + """
for i, x in enumerate(loader):
    with autocast("cuda", dtype=torch.float16):
        loss = model(x).mean()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    if i % 4 == 3:
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
""",
        "forward model under autocast(cuda, float16) · backward of loss, scaled by scaler, from the second round on "
        "perhaps adding to gradients that are unscaled ✗ · unscale gradients of optimizer by scaler, from the second "
        "round on perhaps for the second time ✗ · if i % 4 == 3: [step optimizer through scaler · update scaler · zero "
        "gradients of optimizer]",
    ),
    "a while loop with a break": (
        MODEL
        + """
step = 0
while True:
    optimizer.zero_grad()
    with autocast("cuda", dtype=torch.float16):
        loss = model(next(batches)).mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    step += 1
    if step > 1000:
        break
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) · backward of loss, scaled by "
        "scaler · step optimizer through scaler · update scaler",
    ),
    "a GAN with separate backward passes and detach": (
        CLASSES
        + GAN
        + """
for real in loader:
    z = torch.randn(8, 8)
    with autocast("cuda", dtype=torch.float16):
        fake = netG(z)
        lossD = criterion(netD(fake.detach()), zeros) + criterion(netD(real), ones)
    optD.zero_grad()
    scaler.scale(lossD).backward()
    scaler.step(optD)
    with autocast("cuda", dtype=torch.float16):
        lossG = criterion(netD(fake), ones)
    optG.zero_grad()
    scaler.scale(lossG).backward()
    scaler.step(optG)
    scaler.update()
""",
        "forward netG under autocast(cuda, float16) · forward netD under autocast(cuda, float16) · "
        "loss binary_cross_entropy_with_logits under autocast(cuda, float16) · "
        "forward netD under autocast(cuda, float16) · loss binary_cross_entropy_with_logits under autocast(cuda, "
        "float16) · zero gradients of optD, from the second round on dropping what no step has used · backward of "
        "lossD, scaled by scaler, into the gradients of optD · step optD through scaler · "
        "forward netD under autocast(cuda, float16) · loss binary_cross_entropy_with_logits under autocast(cuda, "
        "float16) · zero gradients of optG · backward of lossG, scaled by scaler, into the gradients of optG and optD "
        "· step optG through scaler · update scaler",
    ),
    "two optimizers, one backward": (
        """
encoder, decoder = nn.Linear(8, 8), nn.Linear(8, 1)
opt_e = torch.optim.Adam(encoder.parameters())
opt_d = torch.optim.Adam(decoder.parameters())
scaler = GradScaler()
for x in loader:
    opt_e.zero_grad()
    opt_d.zero_grad()
    with autocast("cuda", dtype=torch.float16):
        loss = decoder(encoder(x)).mean()
    scaler.scale(loss).backward()
    scaler.unscale_(opt_e)
    nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
    nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
    scaler.step(opt_e)
    scaler.step(opt_d)
    scaler.update()
""",
        "zero gradients of opt_e · zero gradients of opt_d · forward encoder under autocast(cuda, float16) · "
        "forward decoder under autocast(cuda, float16) · backward of loss, scaled by scaler, into the gradients of "
        "opt_e and opt_d · unscale gradients of opt_e by scaler · clip gradients of encoder (norm) · clip gradients of "
        "decoder (norm), still scaled ✗ · step opt_e through scaler · step opt_d through scaler · update scaler",
    ),
    "a list of optimizers": (
        """
net_a, net_b = nn.Linear(8, 1), nn.Linear(8, 1)
optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in (net_a, net_b)]
for x in loader:
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss = net_a(x).mean() + net_b(x).mean()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
""",
        "for optimizer in optimizers: [zero gradients of optimizers[0] and optimizers[1]] · forward net_a · forward "
        "net_b · backward of loss, into the gradients of optimizers[0] and optimizers[1] · for optimizer in "
        "optimizers: [step optimizers[0] and optimizers[1]]",
    ),
    "zip(nets, optimizers)": (
        """
nets = [nn.Linear(8, 1), nn.Linear(8, 1)]
optimizers = [torch.optim.SGD(nets[0].parameters(), 0.1), torch.optim.SGD(nets[1].parameters(), 0.1)]
for x in loader:
    for net, optimizer in zip(nets, optimizers):
        optimizer.zero_grad()
        loss = net(x).mean()
        loss.backward()
        optimizer.step()
""",
        "for net, optimizer in zip(nets, optimizers): [zero gradients of optimizers[0] and optimizers[1] · forward "
        "net · backward of loss, into the gradients of optimizers[0] and optimizers[1] · "
        "step optimizers[0] and optimizers[1]]",
    ),
    "a dict of optimizers": (
        """
gen, dis = nn.Linear(8, 8), nn.Linear(8, 1)
opts = {"g": torch.optim.Adam(gen.parameters()), "d": torch.optim.Adam(dis.parameters())}
for x in loader:
    opts["d"].zero_grad()
    dis(gen(x).detach()).mean().backward()
    opts["d"].step()
    opts["g"].zero_grad()
    dis(gen(x)).mean().backward()
    opts["g"].step()
""",
        "zero gradients of opts['d'], from the second round on dropping what no step has used · forward gen · "
        "forward dis · backward, into the gradients of opts['d'] · step opts['d'] · zero gradients of opts['g'] · "
        "forward gen · forward dis · backward, into the gradients of opts['g'] and opts['d'] · step opts['g']",
    ),
    "one optimizer over the parameters of two models": (
        """
import itertools
enc, dec = nn.Linear(8, 8), nn.Linear(8, 1)
optimizer = torch.optim.Adam(itertools.chain(enc.parameters(), dec.parameters()))
for x in loader:
    optimizer.zero_grad()
    dec(enc(x)).mean().backward()
    nn.utils.clip_grad_norm_(list(enc.parameters()) + list(dec.parameters()), 1.0)
    optimizer.step()
""",
        "zero gradients of optimizer · forward enc · forward dec · backward · clip gradients of dec and enc (norm) · "
        "step optimizer",
    ),
    "a closure (LBFGS)": (
        """
model = nn.Linear(8, 1)
optimizer = torch.optim.LBFGS(model.parameters())
for x, y in loader:
    def closure():
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss
    optimizer.step(closure)
""",
        "optimizer.step(…): [zero gradients of optimizer · forward model · loss mse · backward of loss] · "
        "step optimizer with a closure",
    ),
    "a gradient penalty": (
        MODEL
        + """
for x in loader:
    optimizer.zero_grad()
    with autocast("cuda", dtype=torch.float16):
        loss = model(x).mean()
    scaled = torch.autograd.grad(scaler.scale(loss), model.parameters(), create_graph=True)
    inverse = 1.0 / scaler.get_scale()
    grads = [g * inverse for g in scaled]
    with autocast("cuda", dtype=torch.float16):
        penalty = sum(g.pow(2).sum() for g in grads) ** 0.5
        loss = loss + penalty
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) · backward of loss, scaled by "
        "scaler · step optimizer through scaler · update scaler",
    ),
    "a gradient penalty that is scaled in one of two worlds": (
        MODEL
        + """
for x in loader:
    optimizer.zero_grad()
    loss = model(x).mean()
    outputs = scaler.scale(loss) if args.amp else loss
    scaled = torch.autograd.grad(outputs, model.parameters(), create_graph=True)
    inverse = 1.0 / scaler.get_scale() if args.amp else 1.0
    loss = loss + (scaled[0] * inverse).pow(2).sum()
    if args.amp:
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    else:
        loss.backward()
        optimizer.step()
""",
        "zero gradients of optimizer · forward model · if args.amp: [backward of loss, scaled by scaler · step "
        "optimizer through scaler · update scaler] · else (not args.amp): [backward of loss · step optimizer]",
    ),
    "an optimizer that wraps another; a learning rate that is read": (
        """
class Trainer:
    def step(self, x):
        loss = self.net(x).mean()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer.inner)
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.scaler.step(self.optimizer.inner)
        self.scaler.update()
        self.optimizer.zero_grad()

    def log(self):
        print(self.settings.optimizer.param_groups[0]["lr"])
""",
        "forward self.net · backward of loss, scaled by self.scaler · unscale gradients of self.optimizer.inner by "
        "self.scaler · clip gradients of self.net (norm) · step self.optimizer.inner through self.scaler · update "
        "self.scaler · zero gradients of self.optimizer.inner",
    ),
    "gradients that are written by hand": (
        """
weight = nn.Parameter(torch.ones(4))
optimizer = torch.optim.SGD([weight], lr=0.1)
for x in loader:
    optimizer.zero_grad()
    weight.grad = torch.ones_like(weight)
    optimizer.step()
""",
        "zero gradients of optimizer · step optimizer, with gradients in an unknown state",
    ),
    "what steps is what was given the parameters, where a schedule steps, too": (
        """
class Trainer:
    def __init__(self, net, make, schedule):
        self.net = net
        self.opt = make(self.net.parameters(), lr=0.1)
        self.schedule = schedule(self.opt)
    def train(self, loader):
        for x in loader:
            self.net.zero_grad()
            self.net(x).mean().backward()
            self.opt.step()
            self.schedule.step()
""",
        "zero gradients of self.net · forward self.net · backward · step self.opt",
    ),
    "gradients set to None, parameter by parameter": (
        MODEL
        + """
for x in loader:
    for p in model.parameters():
        p.grad = None
    model(x).mean().backward()
    optimizer.step()
""",
        "for p in model.parameters(): [zero gradients of optimizer] · forward model · backward · step optimizer",
    ),
    "a weight average after the step, and weights that change in the region": (
        MODEL
        + """
import copy
average = copy.deepcopy(model)
for x in loader:
    optimizer.zero_grad()
    with autocast("cuda", dtype=torch.float16):
        loss = model(x).mean()
        model.load_state_dict(torch.load("x.pt"))
        model(x)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for a, p in zip(average.parameters(), model.parameters()):
            a.mul_(0.999).add_(p, alpha=0.001)
""",
        "zero gradients of optimizer · forward model under autocast(cuda, float16) · load model · change weights of "
        "model (load_state_dict), inside autocast(cuda, float16) · forward model under autocast(cuda, float16), with "
        "weights cast before line 16 changed them ✗ · backward of loss · step optimizer · for a, p in "
        "zip(average.parameters(), model.parameters()): [change weights of average (mul_) · change weights of average "
        "(add_)]",
    ),
}


@pytest.mark.parametrize(("script", "expected"), CASES.values(), ids=CASES)
def test_optimizers(script: str, expected: str) -> None:
    assert told(script) == expected
