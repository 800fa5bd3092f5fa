"""The two doors of `amplint trace`: whole runs, processes, and what is said where there is nothing to take."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

FIXTURES = Path(__file__).parents[2] / "fixtures"


# -- bad input --------------------------------------------------------------------------------------------------------

STEP = "import torch\nnet = torch.nn.Linear(4, 2)\nnet(torch.randn(3, 4)).sum().backward()\n"
FACTORY = """
import os, torch
from torch import nn
def conv(): return nn.Conv2d(3, 8, 3)
def nothing(): return None
def broken(): raise ValueError("no weights")
def huge(): return torch.zeros(1 << 45)
model = nn.Embedding(7, 2)
"""


def trace(folder: Path, *arguments: str, **rest: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "amplint", "trace", *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=120, env=env, **rest
    )


def write(folder: Path, script: str) -> str:
    (folder / "train.py").write_text(textwrap.dedent(script))
    return "train.py"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("gone.py", "gone.py: no such file"),
        (".", ".: is a folder"),
        ("train.py --input 2,3", "--input, --inputs, --meta and --eval go with a factory"),
        ("models:conv", "name the model's inputs: --input"),
        ("models:conv --input 2,3:float33", 'unknown dtype "float33"'),
        ("models:conv --input 2,x", '"2,x" is not a shape'),
        ("models:conv --input 2:int64:7-7", "is not a range"),
        ("models:conv --input 2 --inputs models:other", "name one"),
        ("models:conv --input 2 -- --lr 1", "takes no arguments: --lr 1"),
        ("train.py --python /no/such/python", "/no/such/python cannot be run: No such file"),
    ],
)
def test_what_is_wrong_with_the_command_is_said_before_anything_runs(tmp_path, arguments, said):
    from click.testing import CliRunner

    from amplint.cli import cli

    write(tmp_path, "raise SystemExit('ran')")
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        done = CliRunner().invoke(cli, ["trace", *arguments.split()])
    finally:
        os.chdir(before)
    assert done.exit_code == 2 and said in done.stderr and done.stdout == "", done.output


def entry(code: str = "AMP401", row: int = 1, severity: str = "error", path: str = "net.py") -> dict[str, Any]:
    """A finding as the child gives it."""
    place = {"path": os.path.abspath(path), "start": [row, 1], "end": [row, 4]}
    return {"code": code, "message": "far", "severity": severity, "help": "", "verdict": "likely", **place}


@pytest.mark.parametrize(
    ("flags", "rows"),
    [
        ("", [1, 2]),
        ("--ignore AMP401", []),
        ("--select AMP4", [1, 2, 4]),  # a note that was asked for
    ],
)
def test_marks_are_selected_and_hidden_as_findings_are(tmp_path, monkeypatch, flags, rows):
    """The third line hides its own; the report that is printed holds the marks that are left, nothing else."""
    from click.testing import CliRunner

    from amplint import tracing
    from amplint.cli import cli

    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("one\ntwo\nthree  # amplint: ignore[AMP401] known\nfour\n")
    Path("train.py").touch()
    findings = [entry(row=1), entry(row=2), entry(row=3), entry(row=4, severity="note")]
    marks = [{"code": "AMP401", "at": one["start"][0]} for one in findings]
    nodes = [{"mark": index} for index in (3, 1, None, 0, 2)]
    said = {"findings": findings, "report": {"marks": marks, "nodes": nodes, "target": {"notes": ["of note"]}}}
    monkeypatch.setattr(tracing, "_answer", lambda job, options: said)
    done = CliRunner().invoke(cli, ["trace", "train.py", "--output-format", "json", *flags.split()])
    assert done.exit_code == int(bool(rows)), done.output
    assert done.stderr == "note: of note\n"
    found = json.loads(done.stdout)
    assert [one["location"]["row"] for one in found] == rows
    assert all(one["filename"] == str(tmp_path / "net.py") and one["verdict"] == "likely" for one in found)
    assert [one["at"] for one in said["report"]["marks"]] == rows
    linked = [node["mark"] for node in said["report"]["nodes"]]
    assert linked == [rows.index(row) if row in rows else None for row in (4, 2, None, 1, 3)]


SLOW_BAD = [
    ("print('no model here')", "train.py ended and never called a model"),
    (
        "import torch\nnet = torch.nn.Linear(1, 1)\nnet(torch.ones(1))",
        "it called Linear, but no output of that reached",
    ),
    (
        "def f():\n    raise ValueError('no data\\nat all')\nf()",
        "crashed before its first training step: ValueError: no data",
    ),
    ("x = 1 +", "crashed before its first training step: SyntaxError"),
    ("import sys\nsys.exit(3)", "ended with exit code 3 and never called a model"),
    ("import sys\nsys.exit('need --data')", "ended with exit code 1 and never called a model"),
    ("input('which data set? ')", "reads standard input, which is empty here"),
    (
        "import torch\ntorch.zeros(1 << 45)",
        "crashed before its first training step: out of memory: you tried to allocate",
    ),
    (
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        "was killed (signal 9), most likely for lack of memory",
    ),
    ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "killed by signal 11 (SIGSEGV)"),
    ("import os\nos._exit(4)", "ended with exit code 4: it had not come to its first training step"),
    ("import os\nos.environ['RANK']", "KeyError: 'RANK'; set what torchrun sets: RANK=0"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "said"), SLOW_BAD)
def test_a_script_without_a_training_step(tmp_path, script, said):
    done = trace(tmp_path, write(tmp_path, script))
    assert done.returncode == 2 and done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("amplint: ") and said in last, done.stderr
    assert f"amplint{os.sep}graph" not in done.stderr  # no line of amplint's own in a traceback


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("models:conf --input 2", 'models has no conf; did you mean "conv"?'),
        ("nowhere.models:conv --input 2", "there is no module nowhere in"),
        ("models:nothing --input 2", "models:nothing gives None, not a torch.nn.Module"),
        ("models:broken --input 2", "models:broken() failed: ValueError: no weights"),
        (
            "models:conv --input 2,4,8,8",
            "Conv2d does not take these inputs (2x4x8x8 float32): RuntimeError: Given groups=1",
        ),
        ("models:conv --inputs models:huge", "out of memory"),
        ("models:model --input 2,3:int64:0-9", "Embedding does not take these inputs (2x3 int64): IndexError"),
        ("models:os --input 2", "models:os is a module: it is neither"),
    ],
)
def test_a_factory_that_gives_nothing_to_trace(tmp_path, arguments, said):
    (tmp_path / "models.py").write_text(FACTORY)
    done = trace(tmp_path, *arguments.split())
    assert done.returncode == 2 and done.stdout == ""
    assert said in done.stderr.splitlines()[-1], done.stderr


@pytest.mark.slow
def test_a_model_that_cannot_be_captured(tmp_path):
    script = """
        import torch
        class Once(torch.nn.Linear):
            ran = False
            def forward(self, x):
                if self.ran:
                    raise RuntimeError("it runs once")
                self.ran = True
                return super().forward(x)
        Once(4, 2)(torch.randn(3, 4)).sum().backward()
    """
    done = trace(tmp_path, write(tmp_path, script))
    assert done.returncode == 2 and done.stdout == ""
    assert "amplint: Once could not be captured: export: RuntimeError: it runs once" in done.stderr


@pytest.mark.slow
def test_an_interpreter_without_torch_is_named(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "amplint", "trace", write(tmp_path, STEP)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60, env=env)
    assert done.returncode == 2 and "has no torch, which trace needs: pip install amplint[torch]" in done.stderr


# -- processes --------------------------------------------------------------------------------------------------------


def alive(folder: Path) -> list[int]:
    """The processes that wrote their ids into the folder and still run."""
    found = []
    for file in folder.glob("pid.*"):
        status = Path("/proc", file.name[4:], "status")
        if status.exists() and "State:\tZ" not in status.read_text():
            found.append(int(file.name[4:]))
    return found


BREED = """
import os, subprocess, sys, time
def mark():
    open(f"pid.{os.getpid()}", "w").close()
mark()
if os.fork() == 0:  # a process of the group
    mark(); time.sleep(600)
if os.fork() == 0:  # one that leaves it, and its parent
    os.setsid()
    if os.fork() == 0:
        mark(); time.sleep(600)
    os._exit(0)
while len([name for name in os.listdir(".") if name.startswith("pid.")]) < 3:
    time.sleep(0.05)
open("ready", "w").close()
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("end", ["timeout", "step", "SIGINT", "SIGTERM", "SIGKILL"])
def test_no_process_is_left(tmp_path, end):
    """Whichever way a trace ends: the script's own children, and those that left its process group."""
    script = write(tmp_path, BREED + (STEP if end == "step" else "time.sleep(600)\n"))
    limit = ["--timeout", "8"] if end == "timeout" else []
    command = [sys.executable, "-m", "amplint", "trace", *limit, script]
    run = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # also where tests run in the background
    )
    if end.startswith("SIG"):
        until = time.monotonic() + 60
        while not (tmp_path / "ready").exists() and time.monotonic() < until:
            time.sleep(0.1)
        run.send_signal(getattr(signal, end))
    said = run.communicate(timeout=60)[1] if end != "SIGKILL" else ""
    run.wait(60)
    expected = {"timeout": 2, "step": 0, "SIGINT": 130, "SIGTERM": 143, "SIGKILL": -9}
    assert run.returncode == expected[end], said
    if end == "timeout":
        assert "train.py was stopped after 8 s: it had not come to its first training step" in said
    if end == "SIGKILL":  # the system ends the script, not what that started
        time.sleep(1)
        left = alive(tmp_path)
        for process in left:
            os.kill(process, signal.SIGKILL)
        assert len(left) == 2
    else:
        assert alive(tmp_path) == []


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert_mlm", "resnet50", "unet", "train_fp32", "train_amp"])
def test_the_fixtures_go_through_the_door(tmp_path, name):
    done = trace(tmp_path, str(FIXTURES / f"{name}.py"))
    assert done.returncode in (0, 1), done.stderr
    assert "autocast in float16" in done.stdout
    assert list(tmp_path.iterdir()) == []  # nothing written


@pytest.mark.slow
def test_a_script_goes_through_the_door_as_python_would_run_it(tmp_path):
    """Its arguments, its folder, its name; what it prints goes to standard error; nothing after its first backward."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "helper.py").write_text("SIZE = 4\n")
    (tmp_path / "src" / "train.py").write_text(
        textwrap.dedent("""
        import atexit, os, sys, torch, helper
        atexit.register(lambda: open("at_exit", "w"))
        print("arguments", sys.argv, __name__, os.path.basename(__file__), os.getcwd())
        assert torch.cuda.is_available()
        net = torch.compile(torch.nn.Linear(helper.SIZE, 2).cuda())
        try:
            with torch.autocast("cuda", dtype=torch.float16):
                loss = net(torch.randn(3, helper.SIZE, device="cuda")).sum()
            loss.backward()
            open("after", "w")
        finally:
            open("finally", "w")
        """)
    )
    done = trace(tmp_path, "--output-format", "json", "src/train.py", "--", "--lr", "0.1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
    assert f"arguments ['src/train.py', '--lr', '0.1'] __main__ train.py {tmp_path}" in done.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["src"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["spawn", "fork"])
def test_processes_that_a_script_starts_are_watched(tmp_path, how):
    script = f"""
        import torch, torch.multiprocessing as mp
        def train(rank, size):
            net = torch.nn.Linear(size, 2)
            net(torch.randn(3, size)).sum().backward()
            open("after", "w")
        if __name__ == "__main__":
            workers = [mp.get_context("{how}").Process(target=train, args=(rank, 4)) for rank in range(2)]
            [worker.start() for worker in workers]
            [worker.join() for worker in workers]
            raise SystemExit(1)
    """
    done = trace(tmp_path, write(tmp_path, script))
    assert done.returncode == 0 and done.stdout.startswith("Linear: 10 parameters"), done.stderr
    assert not (tmp_path / "after").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        "models:conv --input 2,3,8,8",
        "models.py:conv --input input=2,3,8,8:float32:0-255 --eval",
        "models:model --input 2,3:int64",
        "models:conv --input 2,3,8,8 --meta",
        "models:conv --input 2,3,8,8 --precision half --dtype bfloat16 --frontend recorder",
    ],
)
def test_factories_go_through_the_other_door(tmp_path, arguments):
    (tmp_path / "models.py").write_text(FACTORY)
    done = trace(tmp_path, *arguments.split())
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout.startswith(("Conv2d: 224 parameters", "Embedding: 14 parameters"))


@pytest.mark.slow
def test_what_is_marked_is_found_as_by_check(tmp_path):
    """In text, as JSON and on a page: the same marks, at the lines of the model; a comment hides one."""
    script = """
        import torch
        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.query, self.head = torch.nn.Linear(64, 64), torch.nn.Linear(64, 4)
            def forward(self, x):
                query = self.query(x) * 400
                scores = query @ query.transpose(-1, -2)
                scores = scores.masked_fill(scores < 0, -1e9)  # amplint: ignore[AMP451] as it is
                return self.head(torch.softmax(scores, -1) @ x)
        net = Net()
        torch.optim.SGD(net.parameters(), lr=0.1)
        net(torch.randn(2, 8, 64)).square().mean().backward()
    """
    write(tmp_path, script)
    done = trace(tmp_path, "train.py", "--select", "AMP451", "--html", "page.html")
    assert done.returncode == 1, done.stderr
    assert "train.py:9" in done.stdout and "train.py:10" not in done.stdout
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    done = trace(tmp_path, "train.py", "--select", "AMP451", "--output-format", "json")
    found = json.loads(done.stdout)
    assert done.returncode == 1 and 9 in {one["location"]["row"] for one in found}
    assert {one["code"] for one in found} == {"AMP451"}
    assert {one["filename"] for one in found} == {str(tmp_path / "train.py")}
    [fix] = [one["fix"] for one in found if one["location"]["row"] == 9]
    assert fix["applicability"] == "unsafe" and "enabled=False" in "".join(one["content"] for one in fix["edits"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("region", "backward", "codes"),
    [
        ('torch.autocast("cuda")', "loss.backward()", {"AMP454"}),
        ("torch.cuda.amp.autocast()", "torch.amp.GradScaler(enabled=False).scale(loss).backward()", {"AMP454"}),
        ('torch.autocast("cuda")', "torch.amp.GradScaler().scale(loss).backward()", set()),
        ('torch.autocast("cuda", dtype=torch.bfloat16)', "loss.backward()", set()),
        ("torch.enable_grad()", "loss.backward()", set()),  # FP32: what a scaler would do is not known
    ],
)
def test_small_gradients_are_told_where_the_script_runs_in_float16_and_scales_nothing(
    tmp_path, region, backward, codes
):
    script = f"""
        import torch
        net = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4)).cuda()
        with {region}:
            loss = net(torch.randn(64, 16, device="cuda")).square().mean() * 1e-6
        {backward}
    """
    done = trace(tmp_path, write(tmp_path, script), "--output-format", "json")
    assert {one["code"] for one in json.loads(done.stdout)} == codes, done.stderr
