"""Faults planted in a right AMP script, and what `amplint verify` says of each: `python benchmarks/faults.py sgd`,
`adamw` or `noisy`, and the names of faults for some only. A fault takes half a minute to two on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPT = """
import torch
from torch import nn

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 64)
        self.norm = nn.BatchNorm1d(64)
        self.query, self.key = nn.Linear(64, 64), nn.Linear(64, 64)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(64, 4)

    def forward(self, x):
        h = torch.relu(self.norm(self.inner(x).transpose(1, 2)).transpose(1, 2))
        q, k = self.query(h), self.key(h)
        scores = q @ k.transpose(1, 2) / 8
        return self.head(self.drop((scores.softmax(dim=-1) @ h).mean(dim=1)))


def batches(count):
    centres = torch.randn(4, 16)
    for _ in range(count):
        y = torch.randint(4, (BATCH,))
        yield (centres[y][:, None] + NOISE * torch.randn(BATCH, 6, 16)).to(device), y.to(device)


def main():
    torch.manual_seed(0)
    model = Attention().to(device)
    optimizer = OPTIMIZER
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.2, total_iters=60)
    scaler = torch.amp.GradScaler(device.type)
    for step, (x, y) in enumerate(batches(60)):
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.float16):
            loss = nn.functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()


main()
"""
SGD = "torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=0.01)"
ADAMW = "torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)"
KINDS = {
    "sgd": {"BATCH": "32", "NOISE": "0.5", "OPTIMIZER": SGD, "RATE": "0.05"},
    "adamw": {"BATCH": "32", "NOISE": "1.0", "OPTIMIZER": ADAMW, "RATE": "0.003"},
    "noisy": {"BATCH": "8", "NOISE": "3.0", "OPTIMIZER": SGD, "RATE": "0.2"},
}
UNSCALE = "        scaler.unscale_(optimizer)\n"
CLIP = "        nn.utils.clip_grad_norm_(model.parameters(), 0.5)\n"
MADE = ".to(device)\n    opt"
REGION = "        with torch.autocast(device.type, dtype=torch.float16):\n            loss"
LOOP = "    for step, (x, y) in"
TWICE = "        for one in model.head.parameters():\n            one.grad.mul_(scaler.get_scale())\n"
PROJECTIONS = "self.query(h), self.key(h)"
LOSS = "cross_entropy(model(x), y)"
SCALER = "GradScaler(device.type)"
FAULTS = {
    "none": [],
    "clip before unscale": [(UNSCALE, "")],
    "step past the scaler": [(UNSCALE, ""), ("scaler.step(optimizer)", "optimizer.step()")],
    "missing update": [("        scaler.update()\n", "")],
    "half BatchNorm": [(MADE, MADE.replace("opt", "model.norm.half()\n    opt"))],
    "training inside one autocast region": [
        (LOOP, "    with torch.autocast(device.type, dtype=torch.float16):\n " + LOOP),
        (REGION, "        loss"),
    ],
    "unscaled attention": [(" / 8", ""), (PROJECTIONS, "40 * self.query(h), 40 * self.key(h)")],
    "loss scale twice on one group": [(UNSCALE, UNSCALE + TWICE)],
    "scheduler every second step only": [
        ("        scheduler.step()", "        if step % 2:\n            scheduler.step()"),
    ],
    "rate 10 % off": [("lr=RATE", "lr=1.1 * RATE")],
    "clip dropped": [(CLIP, "")],
    "clip at twice the norm": [(CLIP, CLIP.replace("0.5", "1.0"))],
    "one layer detached": [(PROJECTIONS, "self.query(h), self.key(h).detach()")],
    "attention's input detached": [(PROJECTIONS, "self.query(h.detach()), self.key(h.detach())")],
    "a half layer in the optimizer (eps 1e-8)": [(MADE, MADE.replace("opt", "model.query.half()\n    opt"))],
    "momentum or beta 0.8 for 0.9": [
        ("momentum=0.9", "momentum=0.8"),
        ("weight_decay=0.05", "weight_decay=0.05, betas=(0.8, 0.999)"),
    ],
    "weight decay dropped": [("weight_decay=0.01", "weight_decay=0"), ("weight_decay=0.05", "weight_decay=0")],
    "a layer not trained": [
        ("model.parameters(), lr", "[one for name, one in model.named_parameters() if 'key' not in name], lr"),
    ],
    "loss halved": [(LOSS, LOSS + " / 2")],
    "every 10th step left out": [
        ("        scaler.step(optimizer)", "        if step % 10 != 9:\n            scaler.step(optimizer)"),
    ],
    "dropout off": [("nn.Dropout(0.1)", "nn.Dropout(0.0)")],
    "loss scale fixed at 2^-10": [(SCALER, SCALER[:-1] + ", init_scale=2.0**-10, growth_interval=10**6)")],
    "label smoothing of 0.02": [(LOSS, LOSS[:-1] + ", label_smoothing=0.02)")],
    "BatchNorm's eps 1e-2 for 1e-5": [("nn.BatchNorm1d(64)", "nn.BatchNorm1d(64, eps=1e-2)")],
}


def script(kind: str, fault: str) -> str:
    """The AMP script with this fault. An edit may be for the other optimizer; one at least is for this one."""
    text = SCRIPT
    for name in ("BATCH", "NOISE", "OPTIMIZER"):
        text = text.replace(name, KINDS[kind][name])
    if not any(old in text for old, _ in FAULTS[fault]) and fault != "none":
        raise ValueError(f"{fault} changes nothing in the script for {kind}")
    for old, new in FAULTS[fault]:
        text = text.replace(old, new)
    return text.replace("RATE", KINDS[kind]["RATE"])


def main() -> None:
    kind, *chosen = sys.argv[1:]
    for fault in chosen or FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "train.py").write_text(script(kind, "none"))
            Path(folder, "amp.py").write_text(script(kind, fault))
            command = [sys.executable, "-m", "amplint", "verify", "train.py", "--against", "amp.py"]
            command += ["--device", "cpu", "--output-format", "json"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if not done.stdout:
            print(f"{fault:42} {done.stderr.strip()}", flush=True)
            continue
        report = json.loads(done.stdout)
        faults = ", ".join(sorted({one["code"] for one in report["faults"]}))
        print(f"{fault:42} {report['verdict']['word']:13} {faults:15} {report['verdict']['reasons'][0]}", flush=True)


if __name__ == "__main__":
    main()
