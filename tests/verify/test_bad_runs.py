"""Scripts that cannot be verified: a clear line, exit code 2, nothing left; and those that only look like that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import pytest

HEAD = """
import os, signal, subprocess, sys, time
import torch
from torch import nn
torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
"""
LOOP = """
for step in range(STEPS):
    x, y = torch.randn(8, 16).to(device), torch.randint(4, (8,)).to(device)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
"""
AMP = """
scaler = torch.amp.GradScaler("cuda", enabled=USE)
for step in range(20):
    x, y = torch.randn(8, 16).to(device), torch.randint(4, (8,)).to(device)
    optimizer.zero_grad()
    with torch.autocast("cuda", dtype=torch.float16, enabled=USE):
        loss = nn.functional.cross_entropy(model(x), y)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
"""


def train(before: str = "", inside: str = "", steps: int = 20) -> str:
    return HEAD + before + LOOP.replace("STEPS", str(steps)).rstrip() + f"\n    {inside}\n"


def verify(folder: Path, script: str, *arguments: str, **rest: Any) -> subprocess.CompletedProcess[str]:
    (folder / "train.py").write_text(script)
    command = [sys.executable, "-m", "amplint", "verify", "train.py", *arguments]
    with tempfile.TemporaryDirectory() as temp:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": temp},
            stdin=subprocess.PIPE,
            **rest,
        )
        assert [name for name in os.listdir(temp) if not name.startswith("torchinductor")] == []  # torch's own
    assert "Traceback" not in done.stderr, done.stderr
    return done


BAD = [
    (train("if sys.argv: raise SystemExit('no data')"), "in FP32 already, train.py ended with exit code 1: no data"),
    (
        train("if sys.argv: raise ValueError('no data\\nat all')"),
        "in FP32 already, train.py crashed before its first training step: ValueError",
    ),
    (
        train(inside="if step == 12: raise ValueError('no data')"),
        "in FP32 already, train.py crashed after 13 optimizer steps: ValueError: no data (train.py:16)",
    ),
    ("import torch\nx = 1 +\n", "train.py: "),
    ("import torch\nprint('no model here')", "amplint fix finds no training step"),
    (train("input('which data set? ')"), "reads standard input, which is empty here"),
    (
        train(inside="if step == 3: os.kill(os.getpid(), signal.SIGKILL)"),
        "(signal 9), most likely for lack of memory: after",
    ),
    (train(inside="if step == 3: torch.zeros(1 << 45)"), "out of memory"),
    (train(inside="if step == 3: os._exit(7)"), "ended with exit code 7: after"),
    (train(steps=0), "without an optimizer step"),
    (train("torch.seed()\nfor p in model.parameters():\n    nn.init.normal_(p, 0, 3)\n"), "differs from run to run"),
    (
        train().replace("lr=0.1", "lr=1e30"),
        "in FP32 already, train.py diverges: its weights are not finite after 20 steps",
    ),
    (HEAD + AMP.replace("USE", "False"), "AMP never ran: no matmul or convolution of train.py ran in float16"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "said"), BAD)
def test_a_script_that_cannot_be_verified(tmp_path, script, said):
    done = verify(tmp_path, script, "--steps", "20")
    assert done.returncode == 2 and done.stdout == "", done
    assert said in done.stderr.splitlines()[-1] and done.stderr.count("\n") == 1, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".amplint_cache") == ["train.py"]


@pytest.mark.slow
def test_a_script_that_ends_early_gave_not_enough_steps(tmp_path):
    done = verify(tmp_path, train(steps=3), "--output-format", "json")
    assert done.returncode == 2, done
    verdict = json.loads(done.stdout)["verdict"]
    assert (verdict["word"], verdict["reasons"]) == ("not enough steps", ["3 steps to compare; 8 at least are a curve"])
    assert verify(tmp_path, train(steps=3), "--fail-on", "not-enough").returncode == 1


@pytest.mark.slow
def test_a_script_that_takes_too_long_is_stopped(tmp_path):
    began = time.monotonic()
    done = verify(tmp_path, train("time.sleep(600)"), "--timeout", "8")
    assert done.returncode == 2 and "in FP32 already, train.py was stopped after 8 s: " in done.stderr
    assert time.monotonic() - began < 60


WORKERS = """
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "MARK"], start_new_session=True)
class Data(torch.utils.data.Dataset):
    def __len__(self): return 64
    def __getitem__(self, index): return torch.ones(16) * index
loader = torch.utils.data.DataLoader(Data(), 8, num_workers=2, persistent_workers=True)
waiting = iter(loader); next(waiting)
"""


@pytest.mark.slow
def test_no_process_is_left(tmp_path):
    mark = f"left-by-{tmp_path.name}-{os.getpid()}"
    done = verify(tmp_path, train(WORKERS.replace("MARK", mark)), "--steps", "20")
    assert done.returncode == 0, done
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert mark not in line.read_text()
        except OSError:
            continue


CHECKPOINT = """
if os.path.exists("last.pt"):
    raise SystemExit("goes on from a checkpoint")
torch.save(model.state_dict(), "last.pt")
os.makedirs("runs", exist_ok=True)
open("runs/log.txt", "a").write("one more run")
open("data.bin", "r+b").write(b"x")
"""


@pytest.mark.slow
def test_each_run_has_a_folder_of_its_own_and_writes_through_links_are_told(tmp_path):
    (tmp_path / "data.bin").write_bytes(bytes(2 << 20))
    done = verify(tmp_path, train(CHECKPOINT), "--output-format", "json", "--steps", "20")
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["links_written"] == [str(tmp_path / "data.bin")]
    assert not (tmp_path / "last.pt").exists() and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_working_folders_can_be_kept(tmp_path):
    done = verify(tmp_path, train("open('made.txt', 'w').close(); print('hello')"), "--keep", "kept", "--steps", "10")
    assert done.returncode == 0, done
    assert (tmp_path / "kept/amp-seed-0.run/output.txt").read_text() == "hello\n"
    assert list((tmp_path / "kept/fp32-seed-2").rglob("made.txt"))
    assert "scaler.step(optimizer)" in next((tmp_path / "kept/amp-seed-0").rglob("train.py")).read_text()
    assert "scaler" not in (tmp_path / "train.py").read_text()
    again = verify(tmp_path, train(), "--keep", "kept")
    assert again.returncode == 2 and "kept is there already" in again.stderr


@pytest.mark.slow
def test_an_interpreter_without_torch(tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    done = verify(tmp_path, train(), "--python", "bare/bin/python")
    assert done.returncode == 2 and "has no torch" in done.stderr and done.stderr.count("\n") == 1, done


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("gone.py", "gone.py: no such file"),
        (".", ".: is a folder"),
        ("train.py --against gone.py", "gone.py: no such file"),
        ("train.py --against broken.py", "broken.py: syntax error"),
        ("train.py --html gone/page.html", "--html gone/page.html: no such folder"),
        ("train.py --launcher no-such-launcher", "--launcher: no-such-launcher: no such command"),
        ("train.py --python /no/such/python", "/no/such/python cannot be run: No such file"),
        ("train.py --fail-on slow", '--fail-on: unknown "slow"'),
        ("train.py --keep train.py", "--keep: train.py is there already"),
        ("other.py", "other.py:"),
    ],
)
def test_what_is_wrong_with_the_command_is_said(tmp_path, monkeypatch, arguments, said):
    from click.testing import CliRunner

    from amplint.cli import cli

    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(train())
    (tmp_path / "broken.py").write_text("x = 1 +")
    (tmp_path / "other.py").write_text(
        "def train(model, optimizer, make):\n    make(model).backward()\n    optimizer.step()\n"
    )
    done = CliRunner().invoke(cli, ["verify", *arguments.split()])
    assert done.exit_code == 2 and said in done.stderr and done.stdout == "", done.output
