"""The verdict on whole runs: right conversions are the same, and planted faults are not, or are named."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# A right AMP script, written by hand, and faults planted in it; FP32 is the same with autocast and scaler off.
planted = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "faults.py"))["script"]
RIGHT = planted("sgd", "none")
FAULTS = [
    "clip before unscale",
    "step past the scaler",
    "missing update",
    "half BatchNorm",
    "training inside one autocast region",
    "unscaled attention",
]


def verify(folder: Path, script: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    (folder / "train.py").write_text(script)
    command = [sys.executable, "-m", "amplint", "verify", "train.py", "--output-format", "json", *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=600, env=env)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_planted(fault):
    assert planted("sgd", fault) != RIGHT


@pytest.mark.slow
def test_amp_by_hand_is_the_same(tmp_path):
    code, report = verify(tmp_path, RIGHT)
    assert (code, report["verdict"]["word"], report["faults"]) == (0, "same", []), report["verdict"]
    assert any("AMP as it is" in note for note in report["notes"])


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_not_the_same_or_named(tmp_path, fault):
    """Against the right script, so that `fix` does not repair the copy."""
    (tmp_path / "faulty.py").write_text(planted("sgd", fault))
    code, report = verify(tmp_path, RIGHT, "--against", "faulty.py")
    assert code == 1 or report["faults"], report["verdict"]
    assert report["verdict"]["word"] == "not the same" or report["faults"]


PLAIN = """
import torch
from torch import nn
from parts import Net, train_one_epoch
torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
net = Net().to(device)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
data = [(torch.randn(16, 16), torch.randint(4, (16,))) for _ in range(40)]
train_one_epoch(net, data, optimizer, device, nn.CrossEntropyLoss())
"""
PARTS = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
def train_one_epoch(model, loader, optimizer, device, loss_fn):
    for x, y in loader:
        x, y = x.to(device), y.to(device)
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_script_of_several_files_is_converted_in_its_copy(tmp_path, dtype):
    (tmp_path / "parts.py").write_text(PARTS)
    code, report = verify(tmp_path, PLAIN, "--dtype", dtype, "--steps", "20")
    assert (code, report["verdict"]["word"]) == (0, "same"), report["verdict"]
    assert (tmp_path / "parts.py").read_text() == PARTS
    assert [series["site"] for series in report["series"]] == ["parts.py:11"]
    rows = {(line["path"], line["line"]) for line in report["lines"] if line["phase"] == "forward"}
    assert ("parts.py", 10) in rows, rows


DDP = """
import os
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
rank = int(os.environ["LOCAL_RANK"])
torch.manual_seed(0)
device = torch.device("cuda", rank)
data = TensorDataset(torch.randn(640, 16), torch.randint(4, (640,)))
loader = DataLoader(data, 8, sampler=DistributedSampler(data))
net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).to(device)
net = DistributedDataParallel(net, device_ids=[rank])
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for x, y in loader:
    x, y = x.to(device), y.to(device)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(net(x), y)
    loss.backward()
    optimizer.step()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_ddp_under_torchrun(tmp_path):
    launcher = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2"
    code, report = verify(tmp_path, DDP, "--launcher", launcher, "--steps", "20")
    assert (code, report["verdict"]["word"], report["verdict"]["steps"]) == (0, "same", 20), report["verdict"]
    assert report["target"]["ranks"] == 2
