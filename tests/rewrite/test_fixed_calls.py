"""Every way to call autocast or GradScaler: after the fix the call still works, and means what it meant.

torch is the oracle: both calls are made, on this machine. What names a device where the API takes none (`True` and a
string mean other things there) has no meaning to keep, and is left out.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from amplint import checks
from amplint.config import Settings
from amplint.findings import Applicability, Finding
from amplint.repair import repair
from amplint.source.module import Module

torch = pytest.importorskip("torch")

CODES = frozenset(("AMP207", "AMP208", "AMP222", "AMP601", "AMP602", "AMP603", "AMP604"))
OLD = ["", "True", "False", "flag", "enabled=flag", "dtype=torch.bfloat16", "True, torch.bfloat16", "*values"]
OLD += ["flag, torch.float16, True", "enabled=flag, dtype=torch.bfloat16, cache_enabled=True", "**options"]
OLD += ["enabled=flag, **options", "device_type='cuda'", "device_type='cpu', dtype=torch.bfloat16", "device='cuda'"]
NEW = ["'cuda'", "'cpu'", "kind", "device", "device.type", "'cpu', torch.bfloat16, flag", "'cuda', enabled=flag", ""]
NEW += ["device_type='cpu', dtype=torch.bfloat16", "device_type=device", "device='cuda'", "'cuda', **options", "flag"]
SCALE = ["", "2.0**10", "enabled=flag", "init_scale=8.0", "1024.0, 2.0, 0.5, 2000, flag", "**options", "*values"]
SCALE += ["init_scale=8.0, enabled=flag", "device='cuda'", "device_type='cuda'"]
SCALE_NEW = [
    "",
    "'cuda'",
    "'cpu'",
    "device='cpu', init_scale=8.0",
    "'cuda', enabled=flag",
    "'cuda', 1024.0",
    "**options",
]
SCALE_NEW += ["device_type='cuda'", "enabled=flag", "init_scale=8.0"]
CALLS = {
    "torch.cuda.amp.autocast": OLD,
    "torch.cuda.amp.autocast_mode.autocast": OLD,
    "torch.cpu.amp.autocast": OLD,
    "torch.autocast": NEW,
    "torch.amp.autocast": NEW,
    "torch.cuda.amp.GradScaler": SCALE,
    "torch.cuda.amp.grad_scaler.GradScaler": SCALE,
    "torch.cpu.amp.GradScaler": SCALE,
    "torch.amp.GradScaler": SCALE_NEW,
}
AROUND = """\
import torch
import torch.nn.functional as F
from torch import nn

model = nn.Linear(3, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)


def run(loader, flag, kind, values, options):
    device = torch.device("cpu")
    scaler = {scaler}
    for x, y in loader:
        with {region}:
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
"""


def find(module: Module) -> tuple[Finding, ...]:
    return checks.check_module(module, Settings(codes=CODES)).findings


def fixed(call: str) -> str:
    """The call after the fix."""
    scales = "GradScaler" in call
    other = {"scaler": 'torch.amp.GradScaler("cuda")', "region": 'torch.autocast("cuda", dtype=torch.float16)'}
    text = AROUND.format(**(other | {"scaler" if scales else "region": call}))
    module = Module.read("train.py", text.encode())
    after = repair(module, find(module), find, (Applicability.SAFE,)).module.text.splitlines()
    if scales:
        return next(line for line in after if "scaler = " in line).partition("= ")[2]
    return next(line for line in after if line.lstrip().startswith("with ")).strip()[5:-1]


def meaning(call: str) -> tuple[Any, ...]:
    """What a call makes, or the error that it raises."""
    names = {"torch": torch, "flag": True, "kind": "cpu", "device": torch.device("cpu"), "values": (), "options": {}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = eval(call, names)  # a call out of the tables above, or what the fix makes of it
            if "GradScaler" in call:
                return made._device, made._enabled, getattr(made, "_init_scale", None)
            with made:
                return made.device, made.fast_dtype, made._enabled, made._cache_enabled
    except (TypeError, ValueError, RuntimeError) as error:
        return (type(error),)


@pytest.mark.parametrize("call", [f"{name}({given})" for name, every in CALLS.items() for given in every])
def test_the_fixed_call_means_what_it_meant(call: str) -> None:
    before, after = meaning(call), meaning(fixed(call))
    assert after == before or (len(before) == 1 and len(after) > 1)


def test_what_is_deprecated_or_raises_is_fixed() -> None:
    old = "torch.cuda.amp.autocast(flag, torch.float16)"
    assert fixed(old) == 'torch.amp.autocast("cuda", enabled=flag, dtype=torch.float16)'
    assert fixed("torch.autocast(device)") == "torch.autocast(device.type)"
