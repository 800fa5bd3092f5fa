"""What people get wrong, in the shapes in which they write it: the rules that matter most find and mend it."""

from __future__ import annotations

import difflib
import textwrap
from typing import Any

import pytest

from amplint import checks
from amplint.config import Settings
from amplint.findings import Applicability, Finding, Severity
from amplint.knowledge import rules
from amplint.repair import repair
from amplint.source.module import Module

APPLIED = (Applicability.SAFE, Applicability.UNSAFE)
FOUND: list[Any] = []


def found(code: str, name: str, script: str, fixed: str = "") -> None:
    """A script with its marks, and what a fix changes in it: the lines of the diff ("" if there is no fix)."""
    lines = textwrap.dedent(script).lstrip("\n")
    FOUND.append(pytest.param(code, lines, textwrap.dedent(fixed).strip("\n"), id=f"{code}: {name}"))


SCRIPT = """
    import torch
    import torch.nn.functional as F
    from torch import nn

    model = nn.Linear(8, 2).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda")
"""
TRAINER = """
    import torch
    import torch.nn.functional as F
    from torch import nn


    class Trainer:
        def __init__(self, model, lr):
            self.model = model.cuda()
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr)
            self.scaler = torch.amp.GradScaler("cuda")

        def loss(self, x, y):
            with torch.autocast("cuda", dtype=torch.float16):
                return F.cross_entropy(self.model(x), y)
"""

# -- 101 ---------------------------------------------------------------------------------------------------------------

found(
    "AMP101",
    "a function",
    """
    import torch
    import torch.nn.functional as F


    def train(model, optimizer, loader):
        for x, y in loader:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = F.cross_entropy(model(x), y)
            loss.backward()  # !
            optimizer.step()
    """,
)
found(
    "AMP101",
    "the default dtype of cuda",
    """
    from torch.amp import autocast
    import torch
    import torch.nn.functional as F

    model = torch.nn.Linear(8, 2).cuda()
    optimizer = torch.optim.Adam(model.parameters())
    for x, y in loader:
        with autocast("cuda"):
            loss = F.cross_entropy(model(x.cuda()), y.cuda())
        optimizer.zero_grad()
        loss.backward()  # !
        optimizer.step()
    """,
    """
    + scaler = torch.amp.GradScaler("cuda")
    -     loss.backward()
    -     optimizer.step()
    +     scaler.scale(loss).backward()
    +     scaler.step(optimizer)
    +     scaler.update()
    """,
)
found(
    "AMP101",
    "a trainer",
    """
    import torch
    import torch.nn.functional as F


    class Trainer:
        def __init__(self, model):
            self.model = model
            self.optimizer = torch.optim.Adam(model.parameters())
            self.half = torch.autocast("cuda", dtype=torch.float16)

        def compute(self, x, y):
            with self.half:
                return F.cross_entropy(self.model(x), y)

        def step(self, x, y):
            loss = self.compute(x, y)
            loss.backward()  # !
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
    """,
)
found(
    "AMP101",
    "accumulation under a switch",
    """
    import torch
    import torch.nn.functional as F


    def main(args):
        model = build(args).cuda()
        optimizer = torch.optim.Adam(model.parameters())
        for number, (x, y) in enumerate(args.loader):
            with torch.autocast("cuda", dtype=torch.float16, enabled=args.amp):
                loss = F.cross_entropy(model(x), y) / args.accumulate
            loss.backward()  # !
            if (number + 1) % args.accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
    """,
    """
    +     scaler = torch.amp.GradScaler("cuda", enabled=args.amp)
    -         loss.backward()
    +         scaler.scale(loss).backward()
    -             optimizer.step()
    +             scaler.step(optimizer)
    +             scaler.update()
    """,
)

# -- 102 ---------------------------------------------------------------------------------------------------------------

found(
    "AMP102",
    "a step past the scaler",
    SCRIPT
    + """
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        optimizer.step()  # !
        scaler.update()
    """,
    """
    -     optimizer.step()
    +     scaler.step(optimizer)
    """,
)
found(
    "AMP102",
    "both steps",
    TRAINER
    + """
        def step(self, x, y):
            self.optimizer.zero_grad()
            self.scaler.scale(self.loss(x, y)).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.step()  # !
    """,
    """
    -         self.optimizer.step()
    """,
)
found(
    "AMP102",
    "one of two optimizers",
    """
    import torch
    import torch.nn.functional as F


    def train(encoder, decoder, loader):
        first = torch.optim.Adam(encoder.parameters())
        second = torch.optim.Adam(decoder.parameters())
        scaler = torch.amp.GradScaler("cuda")
        for x in loader:
            first.zero_grad()
            second.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = F.mse_loss(decoder(encoder(x)), x)
            scaler.scale(loss).backward()
            scaler.step(first)
            second.step()  # !
            scaler.update()
    """,
    """
    -         second.step()
    +         scaler.step(second)
    """,
)
found(
    "AMP102",
    "unscaled, then stepped past the scaler",
    SCRIPT
    + """
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()  # !
        scaler.update()
    """,
    """
    -     optimizer.step()
    +     scaler.step(optimizer)
    """,
)

# -- 103 ---------------------------------------------------------------------------------------------------------------

found(
    "AMP103",
    "the loss is not scaled",
    TRAINER
    + """
        def step(self, x, y):
            self.optimizer.zero_grad()
            loss = self.loss(x, y)
            loss.backward()  # !
            self.scaler.step(self.optimizer)
            self.scaler.update()
    """,
    """
    -         loss.backward()
    +         self.scaler.scale(loss).backward()
    """,
)
found(
    "AMP103",
    "the scaled loss is dropped",
    SCRIPT
    + """
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss)  # !
        loss.backward()  # !
        scaler.step(optimizer)
        scaler.update()
    """,
    """
    -     scaler.scale(loss)
    +     scaler.scale(loss).backward()
    -     loss.backward()
    """,
)
found(
    "AMP103",
    "the scaled loss has a name that is not used",
    SCRIPT
    + """
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = F.cross_entropy(model(x), y)
        scaled = scaler.scale(loss)
        loss.backward()  # !
        scaler.step(optimizer)
        scaler.update()
    """,
    """
    -     loss.backward()
    +     scaler.scale(loss).backward()
    """,
)
found(
    "AMP103",
    "a helper runs backward",
    """
    import torch
    import torch.nn.functional as F


    def backward(loss, retain=False):
        loss.backward(retain_graph=retain)  # !


    def train(model, optimizer, loader):
        scaler = torch.amp.GradScaler("cuda")
        for x, y in loader:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = F.cross_entropy(model(x), y)
            backward(loss)
            scaler.step(optimizer)
            scaler.update()
    """,
)

# -- 105 ---------------------------------------------------------------------------------------------------------------

found(
    "AMP105",
    "a trainer with a limit that may be none",
    TRAINER
    + """
        def step(self, x, y, limit=None):
            self.optimizer.zero_grad()
            self.scaler.scale(self.loss(x, y)).backward()
            if limit is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), limit)  # !
            self.scaler.step(self.optimizer)
            self.scaler.update()
    """,
    """
    +             self.scaler.unscale_(self.optimizer)
    """,
)
found(
    "AMP105",
    "clipping by value under an alias",
    """
    import torch
    import torch.nn.functional as F
    from torch.nn.utils import clip_grad_value_ as clip


    def train(net, opt, loader):
        grad_scaler = torch.amp.GradScaler("cuda")
        for x, y in loader:
            opt.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = F.cross_entropy(net(x), y)
            grad_scaler.scale(loss).backward()
            clip(net.parameters(), 0.5)  # !
            grad_scaler.step(opt)
            grad_scaler.update()
    """,
    """
    +         grad_scaler.unscale_(opt)
    """,
)
found(
    "AMP105",
    "unscale_ comes after the clip",
    SCRIPT
    + """
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # !
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    """,
    """
    +     scaler.unscale_(optimizer)
    """,
)
found(
    "AMP105",
    "an accumulation window",
    """
    import torch
    import torch.nn.functional as F


    def train(model, optimizer, scaler, loader, k):
        for number, (x, y) in enumerate(loader):
            with torch.autocast("cuda", dtype=torch.float16):
                loss = F.cross_entropy(model(x), y) / k
            scaler.scale(loss).backward()
            if (number + 1) % k == 0:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # !
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
    """,
    """
    +             scaler.unscale_(optimizer)
    """,
)
found(
    "AMP105",
    "a helper clips",
    """
    import torch
    import torch.nn.functional as F


    def limit(module, most):
        return torch.nn.utils.clip_grad_norm_(module.parameters(), most)


    def train(model, optimizer, scaler, loader):
        for x, y in loader:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            norm = limit(model, 1.0)  # !
            scaler.step(optimizer)
            scaler.update()
    """,
    """
    +         scaler.unscale_(optimizer)
    """,
)
found(
    "AMP105",
    "a callable scaler",
    """
    import torch


    class NativeScaler:
        def __init__(self):
            self._scaler = torch.amp.GradScaler("cuda")

        def __call__(self, loss, optimizer, parameters, clip_grad=None):
            self._scaler.scale(loss).backward()
            if clip_grad is not None:
                torch.nn.utils.clip_grad_norm_(parameters, clip_grad)  # !
            self._scaler.step(optimizer)
            self._scaler.update()
    """,
    """
    +             self._scaler.unscale_(optimizer)
    """,
)

# -- 108 ---------------------------------------------------------------------------------------------------------------

found(
    "AMP108",
    "unscale_ after every backward of a window",
    """
    import torch
    import torch.nn.functional as F


    def train(model, optimizer, loader, args):
        scaler = torch.amp.GradScaler("cuda")
        for number, (x, y) in enumerate(loader):
            with torch.autocast("cuda", dtype=torch.float16):
                loss = F.cross_entropy(model(x), y) / args.accumulate
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)  # !
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if (number + 1) % args.accumulate == 0:
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
    """,
    """
    -         scaler.unscale_(optimizer)
    -         torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    +             scaler.unscale_(optimizer)
    +             torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    """,
)
found(
    "AMP108",
    "an inner loop of micro-batches",
    SCRIPT
    + """
    for batch in loader:
        optimizer.zero_grad()
        for x, y in batch.split(4):
            with torch.autocast("cuda", dtype=torch.float16):
                loss = F.cross_entropy(model(x), y) / 4
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)  # !
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    """,
)
found(
    "AMP108",
    "two backward passes",
    TRAINER
    + """
        def step(self, first, second):
            self.optimizer.zero_grad()
            self.scaler.scale(self.loss(*first)).backward()
            self.scaler.unscale_(self.optimizer)  # !
            self.scaler.scale(self.loss(*second)).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.scaler.step(self.optimizer)
            self.scaler.update()
    """,
)

# -- 110 ---------------------------------------------------------------------------------------------------------------

found(
    "AMP110",
    "no update",
    SCRIPT
    + """
    for epoch in range(10):
        for x, y in loader:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)  # !
    """,
    """
    +         scaler.update()
    """,
)
found(
    "AMP110",
    "a trainer whose step is called in a loop",
    TRAINER
    + """
        def step(self, x, y):
            self.optimizer.zero_grad()
            self.scaler.scale(self.loss(x, y)).backward()
            self.scaler.step(self.optimizer)  # !

        def fit(self, loader):
            for x, y in loader:
                self.step(x, y)
    """,
    """
    +         self.scaler.update()
    """,
)
found(
    "AMP110",
    "update once an epoch",
    SCRIPT
    + """
    for epoch in range(10):
        for x, y in loader:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)  # !
        scaler.update()
    """,
)
found(
    "AMP110",
    "two optimizers and no update",
    """
    import torch
    import torch.nn.functional as F


    def train(encoder, decoder, loader):
        first = torch.optim.Adam(encoder.parameters())
        second = torch.optim.Adam(decoder.parameters())
        scaler = torch.amp.GradScaler("cuda")
        for x in loader:
            first.zero_grad()
            second.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = F.mse_loss(decoder(encoder(x)), x)
            scaler.scale(loss).backward()
            scaler.step(first)  # !
            scaler.step(second)  # !
    """,
    """
    +         scaler.update()
    """,
)

# -- 115 ---------------------------------------------------------------------------------------------------------------

found(
    "AMP115",
    "a scaler in every iteration",
    """
    import torch
    import torch.nn.functional as F


    def train(model, optimizer, loader):
        for x, y in loader:
            scaler = torch.amp.GradScaler("cuda")  # !
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    """,
    """
    +     scaler = torch.amp.GradScaler("cuda")
    -         scaler = torch.amp.GradScaler("cuda")
    """,
)
found(
    "AMP115",
    "a scaler in every epoch",
    """
    from torch.amp import GradScaler as Scaler
    import torch
    import torch.nn.functional as F
    from torch import nn

    model = nn.Linear(8, 2).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(10):
        scaler = Scaler("cuda")  # !
        for x, y in loader:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    """,
    """
    + scaler = Scaler("cuda")
    -     scaler = Scaler("cuda")
    """,
)
found(
    "AMP115",
    "the function of an epoch makes it",
    """
    import torch
    import torch.nn.functional as F


    def train_epoch(model, optimizer, loader, amp=True):
        scaler = torch.amp.GradScaler("cuda", enabled=amp)  # !
        for x, y in loader:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16, enabled=amp):
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()


    def main(args):
        model = build(args).cuda()
        optimizer = torch.optim.Adam(model.parameters())
        for epoch in range(args.epochs):
            train_epoch(model, optimizer, args.loader)


    main(parse())
    """,
)

# -- 116 ---------------------------------------------------------------------------------------------------------------

found(
    "AMP116",
    "a helper saves",
    """
    import torch
    import torch.nn.functional as F


    def save(model, optimizer, epoch, path):
        state = {
            "epoch": epoch,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),  # !
        }
        torch.save(state, path)


    def main(args):
        model = build(args).cuda()
        optimizer = torch.optim.Adam(model.parameters())
        scaler = torch.amp.GradScaler("cuda")
        for epoch in range(args.epochs):
            for x, y in args.loader:
                optimizer.zero_grad()
                with torch.autocast("cuda", dtype=torch.float16):
                    loss = F.cross_entropy(model(x), y)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            save(model, optimizer, epoch, args.path)


    main(parse())
    """,
)
found(
    "AMP116",
    "a trainer",
    TRAINER
    + """
        def step(self, x, y):
            self.optimizer.zero_grad()
            self.scaler.scale(self.loss(x, y)).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()

        def save(self, path):
            state = dict(epoch=1, net=self.model.state_dict())
            state["optimizer"] = self.optimizer.state_dict()
            torch.save(state, path)  # !
    """,
)
found(
    "AMP116",
    "the last checkpoint holds no optimizer",
    SCRIPT
    + """
    for epoch in range(10):
        for x, y in loader:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        checkpoint = {
            "model": model.state_dict(),
            "optimizer": None if epoch == 9 else optimizer.state_dict(),  # !
        }
        torch.save(checkpoint, "last.pt")
        if epoch % 5 == 0:
            torch.save(checkpoint, f"{epoch}.pt")
    """,
    """
    +         "scaler": scaler.state_dict(),
    """,
)

# -- 120 ---------------------------------------------------------------------------------------------------------------

found(
    "AMP120",
    "between backward and step",
    TRAINER
    + """
        def step(self, x, y):
            loss = self.loss(x, y)
            self.scaler.scale(loss).backward()
            self.optimizer.zero_grad()  # !
            self.scaler.step(self.optimizer)
            self.scaler.update()
    """,
    """
    -         self.optimizer.zero_grad()
    +         self.optimizer.zero_grad()
    """,
)
found(
    "AMP120",
    "the model's gradients",
    SCRIPT
    + """
    for x, y in loader:
        with torch.autocast("cuda", dtype=torch.float16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        model.zero_grad(set_to_none=True)  # !
        scaler.step(optimizer)
        scaler.update()
    """,
    """
    -     model.zero_grad(set_to_none=True)
    +     model.zero_grad(set_to_none=True)
    """,
)

# -- 201 ---------------------------------------------------------------------------------------------------------------

found(
    "AMP201",
    "one region around the epochs",
    SCRIPT
    + """
    with torch.autocast("cuda", dtype=torch.float16):
        for epoch in range(10):
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                scaler.scale(loss).backward()
                scaler.step(optimizer)  # !
                scaler.update()
    """,
)
found(
    "AMP201",
    "a decorated function",
    """
    import torch
    import torch.nn.functional as F


    @torch.autocast("cuda", dtype=torch.bfloat16)
    def train(model, optimizer, loader):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()  # !
    """,
)
found(
    "AMP201",
    "inner steps of a meta learner",
    """
    import torch
    import torch.nn.functional as F


    def adapt(model, task, inner):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            for _ in range(inner):
                optimizer.zero_grad()
                loss = F.mse_loss(model(task.x), task.y)
                loss.backward()
                optimizer.step()  # !
            return F.mse_loss(model(task.x2), task.y2)
    """,
)

# -- 202 ---------------------------------------------------------------------------------------------------------------

found(
    "AMP202",
    "a trainer",
    """
    import torch
    import torch.nn.functional as F


    class Trainer:
        def __init__(self, model, amp):
            self.model, self.amp = model, amp
            self.optimizer = torch.optim.Adam(model.parameters())
            self.scaler = torch.amp.GradScaler("cuda", enabled=amp)

        def step(self, x, y):
            with torch.autocast("cuda", dtype=torch.float16, enabled=self.amp):
                loss = F.cross_entropy(self.model(x), y)
                self.optimizer.zero_grad()
                self.scaler.scale(loss).backward()  # !
            self.scaler.step(self.optimizer)
            self.scaler.update()
    """,
    """
    -             self.scaler.scale(loss).backward()
    +         self.scaler.scale(loss).backward()
    """,
)
found(
    "AMP202",
    "a helper inside the region",
    """
    import torch
    import torch.nn.functional as F


    def backward(scaler, loss):
        scaler.scale(loss).backward()  # !


    def train(model, optimizer, scaler, loader):
        for x, y in loader:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = F.cross_entropy(model(x), y)
                backward(scaler, loss)
            scaler.step(optimizer)
            scaler.update()
    """,
)
found(
    "AMP202",
    "accumulation",
    SCRIPT
    + """
    for number, (x, y) in enumerate(loader):
        with torch.autocast(device_type="cuda", dtype=torch.float16):
            loss = F.cross_entropy(model(x), y) / 4
            scaler.scale(loss).backward()  # !
        if number % 4 == 3:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    """,
    """
    -         scaler.scale(loss).backward()
    +     scaler.scale(loss).backward()
    """,
)

# -- 207 ---------------------------------------------------------------------------------------------------------------

found(
    "AMP207",
    "made and dropped",
    SCRIPT
    + """
    for x, y in loader:
        optimizer.zero_grad()
        torch.autocast("cuda", dtype=torch.float16)  # !
        loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    """,
)
found(
    "AMP207",
    "one of two contexts",
    """
    import torch
    from torch import nn

    model = nn.Linear(8, 2).cuda().eval()
    for x in loader:
        with torch.no_grad() and torch.autocast("cuda", dtype=torch.float16):  # !
            print(model(x).argmax(-1))
    """,
    """
    -     with torch.no_grad() and torch.autocast("cuda", dtype=torch.float16):
    +     with torch.no_grad(), torch.autocast("cuda", dtype=torch.float16):
    """,
)
found(
    "AMP207",
    "a decorator without parentheses",
    """
    import torch
    from torch.amp import autocast
    from torch import nn


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 2)

        @autocast  # !
        def forward(self, x):
            return self.layer(x)
    """,
    """
    -     @autocast
    +     @autocast("cuda")
    """,
)
found(
    "AMP207",
    "the class itself",
    """
    import torch
    from torch.amp import autocast


    def predict(model, x):
        with torch.no_grad(), autocast:  # !
            return model(x)
    """,
)

# -- 211 ---------------------------------------------------------------------------------------------------------------

found(
    "AMP211",
    "a product in a region",
    """
    import torch
    import torch.nn.functional as F


    def train(model, optimizer, scaler, loader):
        for x, target in loader:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                a, b = model(x)
                scores = a.float() @ b.float().t()  # !
                loss = F.cross_entropy(scores, target)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    """,
    """
    +             with torch.autocast(device_type="cuda", enabled=False):
    -             scores = a.float() @ b.float().t()
    +                 scores = a.float() @ b.float().t()
    """,
)
found(
    "AMP211",
    "a head that casts",
    """
    import torch
    import torch.nn.functional as F
    from torch import nn


    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(10, 64))

        def forward(self, x):
            return F.linear(x.float(), self.weight.float())  # !


    model = Head().cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = F.cross_entropy(model(x.cuda()), y.cuda())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    """,
    """
    +         with torch.autocast(device_type="cuda", enabled=False):
    -         return F.linear(x.float(), self.weight.float())
    +             return F.linear(x.float(), self.weight.float())
    """,
)
found(
    "AMP211",
    "rotary angles",
    """
    import torch
    from torch import nn


    class Rotary(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.register_buffer("inv", 1.0 / 10000 ** (torch.arange(0, width, 2).float() / width))
            self.lift = nn.Linear(width, width)

        def forward(self, x, positions):
            angles = positions[:, :, None].float() @ self.inv[None, None, :].float()  # !
            return self.lift(x) * torch.cat((angles.cos(), angles.sin()), -1).to(x.dtype)


    def evaluate(model, x, positions):
        with torch.autocast("cuda", dtype=torch.float16):
            return Rotary(64)(x, positions)
    """,
    """
    +         with torch.autocast(device_type="cuda", enabled=False):
    -         angles = positions[:, :, None].float() @ self.inv[None, None, :].float()
    +             angles = positions[:, :, None].float() @ self.inv[None, None, :].float()
    """,
)

# -- 216 ---------------------------------------------------------------------------------------------------------------

found(
    "AMP216",
    "a criterion that is a module",
    """
    import torch
    from torch import nn

    model = nn.Sequential(nn.Linear(8, 1), nn.Sigmoid()).cuda()
    criterion = nn.BCELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = criterion(model(x.cuda()), y.cuda())  # !
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    """,
    """
    +         with torch.autocast(device_type="cuda", enabled=False):
    -         loss = criterion(model(x.cuda()), y.cuda())
    +             loss = criterion(model(x.cuda()).float(), y.cuda())
    """,
)
found(
    "AMP216",
    "the function, in a loss of one's own",
    """
    import torch
    import torch.nn.functional as F


    def objective(scores, target):
        p = torch.sigmoid(scores)
        return F.binary_cross_entropy(p, target) + (1 - p).mean()  # !


    def train(model, optimizer, scaler, loader):
        for x, y in loader:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = objective(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    """,
    """
    +     with torch.autocast(device_type="cuda", enabled=False):
    -     return F.binary_cross_entropy(p, target) + (1 - p).mean()
    +         return F.binary_cross_entropy(p.float(), target) + (1 - p).mean()
    """,
)
found(
    "AMP216",
    "a discriminator",
    """
    import torch
    import torch.nn as nn


    class GAN:
        def __init__(self, netD):
            self.netD = netD
            self.bce = nn.BCELoss()
            self.optD = torch.optim.Adam(netD.parameters())
            self.scaler = torch.amp.GradScaler("cuda")

        def step(self, real):
            self.optD.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                out = torch.sigmoid(self.netD(real))
                loss = self.bce(out, torch.ones_like(out))  # !
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optD)
            self.scaler.update()
    """,
    """
    +             with torch.autocast(device_type="cuda", enabled=False):
    -             loss = self.bce(out, torch.ones_like(out))
    +                 loss = self.bce(out.float(), torch.ones_like(out).float())
    """,
)

# -- 301, 302, 303 -----------------------------------------------------------------------------------------------------

found(
    "AMP301",
    "a function",
    """
    import torch
    import torch.nn.functional as F


    def train(model, loader):
        model = model.cuda().half()  # !
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for x, y in loader:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
    """,
    """
    -     model = model.cuda().half()
    +     model = model.cuda()
    """,
)
found(
    "AMP301",
    "a trainer and to(dtype)",
    """
    import torch
    import torch.nn.functional as F


    class Trainer:
        def __init__(self, model, device):
            self.model = model
            self.model.to(device, dtype=torch.float16)  # !
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

        def step(self, x, y):
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
    """,
)
found(
    "AMP302",
    "a residual network",
    """
    import torch
    import torch.nn.functional as F
    from torchvision.models import resnet50

    model = resnet50().cuda()
    model.half()  # !
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x.cuda().half()), y.cuda())
        loss.backward()
        optimizer.step()
    """,
    """
    + for module in model.modules():
    +     if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
    +         module.float()
    """,
)
found(
    "AMP302",
    "a module of one's own",
    """
    import torch
    import torch.nn.functional as F
    from torch import nn


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
            self.head = nn.Linear(8, 10)

        def forward(self, x):
            return self.head(self.stem(x).mean((2, 3)))


    def main(loader):
        net = Net().to("cuda", torch.half)  # !
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(net(x.half()), y).backward()
            optimizer.step()


    main(loader)
    """,
    """
    +     for module in net.modules():
    +         if isinstance(module, nn.modules.batchnorm._BatchNorm):
    +             module.float()
    """,
)
found(
    "AMP303",
    "a half model and a scaler",
    """
    import torch
    import torch.nn.functional as F


    def main(args):
        model = build(args)
        model = model.to("cuda").half()  # !
        optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
        scaler = torch.amp.GradScaler("cuda")
        for x, y in args.loader:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()


    main(parse())
    """,
    """
    +     for p in model.parameters():
    +         if p.requires_grad:
    +             p.data = p.data.float()
    """,
)
found(
    "AMP303",
    "a trainer",
    """
    import torch
    import torch.nn.functional as F


    class Trainer:
        def __init__(self, model):
            self.model = model.cuda()
            self.model.half()  # !
            self.optimizer = torch.optim.AdamW(self.model.parameters())
            self.scaler = torch.amp.GradScaler("cuda")

        def step(self, x, y):
            self.optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = F.cross_entropy(self.model(x.half()), y)
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.scaler.step(self.optimizer)
            self.scaler.update()
    """,
    """
    +         for p in self.model.parameters():
    +             if p.requires_grad:
    +                 p.data = p.data.float()
    """,
)

# -- 401, 403, 406 -----------------------------------------------------------------------------------------------------

ATTENTION = """
    import torch
    import torch.nn.functional as F
    from torch import nn


    class Attention(nn.Module):
        def __init__(self, width, heads):
            super().__init__()
            self.heads, self.scale = heads, (width // heads) ** -0.5
            self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)

        def forward(self, x, mask):
            q, k, v = self.q(x), self.k(x), self.v(x)
"""
TRAINED = """

    model = Attention(64, 4).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda")
    for x, mask in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(x, mask).float().pow(2).mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
"""
found(
    "AMP401",
    "a mask",
    ATTENTION
    + """
            scores = (q * self.scale) @ k.transpose(-2, -1)
            scores = scores.masked_fill(mask == 0, -1e9)  # !
            return scores.softmax(-1) @ v
"""
    + TRAINED,
    """
    -         scores = scores.masked_fill(mask == 0, -1e9)
    +         scores = scores.masked_fill(mask == 0, torch.finfo(scores.dtype).min)
    """,
)
found(
    "AMP401",
    "a constant with a name",
    ATTENTION.replace("class Attention", "NEGATIVE = -1e10\n\n\n    class Attention")
    + """
            scores = torch.matmul(q * self.scale, k.transpose(-2, -1))
            scores.masked_fill_(mask == 0, NEGATIVE)  # !
            return F.softmax(scores, dim=-1) @ v
"""
    + TRAINED,
)
found(
    "AMP403",
    "an eps in a normaliser",
    ATTENTION
    + """
            weights = (q * self.scale) @ k.transpose(-2, -1)
            weights = weights.relu() / (weights.relu() + 1e-8)  # !
            return weights @ v
"""
    + TRAINED,
    """
    -         weights = weights.relu() / (weights.relu() + 1e-8)
    +         weights = weights.relu() / (weights.relu().float() + 1e-8)
    """,
)
found(
    "AMP403",
    "a clamp",
    ATTENTION
    + """
            gate = (q @ k.transpose(-2, -1)).sigmoid()
            return (v.transpose(-2, -1) / gate.clamp(min=1e-10)).transpose(-2, -1)  # !
"""
    + TRAINED,
    """
    -         return (v.transpose(-2, -1) / gate.clamp(min=1e-10)).transpose(-2, -1)
    +         return (v.transpose(-2, -1) / gate.float().clamp(min=1e-10)).transpose(-2, -1)
    """,
)
found(
    "AMP406",
    "scaled after the product",
    ATTENTION
    + """
            scores = (q @ k.transpose(-2, -1)) * self.scale  # !
            scores = scores.masked_fill(mask == 0, float("-inf"))
            return scores.softmax(-1) @ v
"""
    + TRAINED,
    """
    -         scores = (q @ k.transpose(-2, -1)) * self.scale
    +         scores = (q * self.scale) @ k.transpose(-2, -1)
    """,
)
found(
    "AMP406",
    "divided by a root",
    ATTENTION
    + """
            scores = torch.matmul(q, k.transpose(-2, -1))
            scores = scores / (q.size(-1) ** 0.5)  # !
            return torch.matmul(F.softmax(scores, dim=-1), v)
"""
    + TRAINED,
)

# -- 601, 602 ----------------------------------------------------------------------------------------------------------

found(
    "AMP601",
    "a module under an alias",
    """
    import torch
    import torch.cuda.amp as amp
    import torch.nn.functional as F


    def train(model, optimizer, loader, on):
        scaler = amp.GradScaler(enabled=on)  # !
        for x, y in loader:
            optimizer.zero_grad()
            with amp.autocast(enabled=on):  # !
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    """,
    """
    - import torch.cuda.amp as amp
    -     scaler = amp.GradScaler(enabled=on)
    +     scaler = torch.amp.GradScaler("cuda", enabled=on)
    -         with amp.autocast(enabled=on):
    +         with torch.amp.autocast("cuda", enabled=on):
    """,
)
found(
    "AMP601",
    "a decorator and a partial",
    """
    from functools import partial
    import torch


    @torch.cuda.amp.autocast(enabled=False)  # !
    def distance(a, b):
        return (a.float()[:, None] - b.float()[None]).norm(dim=-1)


    region = partial(torch.cuda.amp.autocast, dtype=torch.bfloat16)  # !
    """,
)
found(
    "AMP601",
    "a handler that is not for old versions",
    """
    import torch


    def predict(model, x):
        try:
            return model(x)
        except RuntimeError:
            with torch.cuda.amp.autocast(enabled=False):  # !
                return model(x.float())
    """,
    """
    -         with torch.cuda.amp.autocast(enabled=False):
    +         with torch.amp.autocast("cuda", enabled=False):
    """,
)
found(
    "AMP602",
    "a switch in the place of the dtype",
    """
    import torch
    import torch.nn.functional as F


    def train(model, optimizer, loader):
        use_amp = torch.cuda.is_available()
        for x, y in loader:
            with torch.autocast("cuda", use_amp):  # !
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
    """,
    """
    -         with torch.autocast("cuda", use_amp):
    +         with torch.autocast("cuda", enabled=use_amp):
    """,
)
found(
    "AMP602",
    "True in the place of the dtype",
    """
    from torch.amp import autocast


    def predict(model, x):
        with autocast("cuda", True):  # !
            return model(x)
    """,
    """
    -     with autocast("cuda", True):
    +     with autocast("cuda", enabled=True):
    """,
)
found(
    "AMP602",
    "a scale in the place of the device",
    """
    import torch


    class Trainer:
        def __init__(self, model):
            self.scaler = torch.amp.GradScaler(2.0**12)  # !
            self.optimizer = torch.optim.Adam(model.parameters())
    """,
    """
    -         self.scaler = torch.amp.GradScaler(2.0**12)
    +         self.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**12)
    """,
)


def find(module: Module, code: str) -> tuple[Finding, ...]:
    settings = Settings(codes=frozenset((code,)))
    every = checks.check_module(module, settings).findings
    return tuple(finding for finding in every if finding.severity is not Severity.NOTE)


def rows(text: str) -> list[int]:
    return [row for row, line in enumerate(text.splitlines(), 1) if line.endswith("  # !")]


def read(text: str) -> Module:
    return Module.read("train.py", text.replace("  # !", "").encode())


def changes(before: str, after: str) -> str:
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return "\n".join(line.rstrip() for line in lines if line[0] in "-+")


@pytest.mark.parametrize(("code", "script", "fixed"), FOUND)
def test_the_mistake_is_found(code: str, script: str, fixed: str) -> None:
    assert sorted({finding.range.start.row for finding in find(read(script), code)}) == rows(script)


@pytest.mark.parametrize(("code", "script", "fixed"), FOUND)
def test_the_fix_mends_it(code: str, script: str, fixed: str) -> None:
    module = read(script)
    repaired = repair(module, find(module, code), lambda after: find(after, code), APPLIED)
    assert changes(module.text, repaired.module.text) == fixed
    assert not fixed or repaired.findings == ()


@pytest.mark.parametrize(("code", "script", "fixed"), FOUND)
def test_one_mistake_is_told_once(code: str, script: str, fixed: str) -> None:
    """No two rules of the scaler protocol report the same place."""
    every = checks.check_module(read(script), Settings(codes=frozenset(rules()))).findings
    places = [f.range for f in every if f.code.startswith("AMP1") and f.severity is not Severity.NOTE]
    assert len(places) == len(set(places))
