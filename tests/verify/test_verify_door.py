"""Whole runs of the child of `amplint verify`: what it leaves for scripts of many kinds. Each takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import amplint

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

START = Path(amplint.__file__).parent / "graph" / "child" / "start.py"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
STEP = """
import torch, sys
from torch import nn
def steps(net, batches, place="cuda"):
    net, half = net.to(place), dict(device_type="cuda", dtype=torch.float16)
    opt, scaler = torch.optim.SGD(net.parameters(), 0.1), torch.amp.GradScaler("cuda")
    for x in batches:
        opt.zero_grad()
        with torch.autocast(**half):
            loss = net(x.to(place)).square().mean()
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
        print(loss.item(), file=sys.stderr)
"""


def child(
    folder: Path, script: str = "", *arguments: str, launcher: tuple[str, ...] = (sys.executable,), **job: Any
) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    """Run the child: its answer, the steps of rank 0, and what the script printed."""
    (folder / "train.py").write_text(STEP + textwrap.dedent(script))
    box = folder / "box"
    box.mkdir()
    base = {"door": "verify", "target": str(folder / "train.py"), "arguments": arguments, "steps": 4, "seed": 0}
    base |= {"kind": "amp", "count": True, "dtype": "float16", "device": "cpu", "warmup": 1}
    (box / "job.json").write_text(json.dumps(base | job))
    done = subprocess.run(
        [*launcher, str(START), str(box)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    steps = box / "steps.0.jsonl"
    told = [json.loads(line) for line in steps.read_text().splitlines()] if steps.exists() else []
    return json.loads((box / "answer.json").read_text()), told, done.stderr + done.stdout


def losses(steps: list[dict[str, Any]]) -> list[float]:
    return [value for step in steps for _, value in step["losses"]]


def test_a_run_ends_after_its_steps_and_says_what_the_script_saw(tmp_path):
    script = """
        torch.manual_seed(5)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
        steps(net, torch.randn(9, 2, 3, 8, 8))
        raise SystemExit("never reached")
    """
    answer, told, said = child(tmp_path, script)
    printed = [float(line) for line in said.splitlines()]
    assert losses(told) == pytest.approx(printed + losses(told)[3:], rel=1e-6) and len(printed) == 3
    assert (
        answer["ended"] == "steps" and answer["steps"] == len(told) == 4 and answer["faults"] == answer["notes"] == []
    )
    assert {layer["class"]: layer["dtypes"] for layer in answer["layers"]}["Conv2d"] == {"float16": 4}
    assert answer["half_matmuls"] == 4 * 5  # conv, linear; their gradients, but one of the input
    assert all(step["samples"] == 2 for step in told) and told[0]["scale"] == 65536
    (tmp_path / "full").mkdir()
    full, plain, _ = child(tmp_path / "full", script, kind="fp32", count=False, full_precision=True)
    assert full["half_ops"] == 0 and plain[0]["scale"] is None
    assert losses(plain)[0] == pytest.approx(losses(told)[0], rel=2e-2) and losses(plain) != losses(told)
    (tmp_path / "other").mkdir()
    _, other, _ = child(tmp_path / "other", script, kind="fp32", count=False, full_precision=True, seed=1)
    assert losses(other) != losses(plain)  # although the script fixes its seed


@pytest.mark.parametrize(
    ("script", "arguments", "launcher"),
    [
        (
            """
            import torch.distributed as dist
            from torch.nn.parallel import DistributedDataParallel
            import os
            dist.init_process_group("nccl")
            place = int(os.environ["LOCAL_RANK"])
            torch.cuda.set_device(place)
            steps(DistributedDataParallel(nn.Linear(4, 2).to(place), device_ids=[place]), torch.ones(9, 3, 4), place)
            """,
            (),
            TORCHRUN,
        ),
        (
            """
            import torch.distributed as dist, torch.multiprocessing as mp
            from torch.nn.parallel import DistributedDataParallel
            def main(rank, store):
                dist.init_process_group("nccl", rank=rank, world_size=2, init_method="file://" + store)
                steps(DistributedDataParallel(nn.Linear(4, 2).cuda(rank), device_ids=[rank]), torch.ones(9, 3, 4), rank)
            if __name__ == "__main__":
                mp.spawn(main, args=(sys.argv[1],), nprocs=2)
            """,
            ("store",),
            (sys.executable,),
        ),
    ],
)
def test_each_rank_leaves_its_records(tmp_path, script, arguments, launcher):
    answer, told, said = child(tmp_path, script, *(str(tmp_path / one) for one in arguments), launcher=launcher)
    assert answer["ended"] == "steps" and answer["launched"] == {"rank": 0, "world": 2}, said
    assert len(told) == 4 and answer["half_matmuls"] == 4 * 2
    second = json.loads((tmp_path / "box" / "answer.1.json").read_text())
    assert second["ended"] == "steps" and second["launched"] == {"rank": 1, "world": 2}
    assert len((tmp_path / "box" / "steps.1.jsonl").read_text().splitlines()) == 4


def test_a_forked_process_that_trains_a_compiled_model_on_data_of_workers(tmp_path):
    script = """
        import multiprocessing
        from torch.utils.data import DataLoader, TensorDataset
        def train():
            data = DataLoader(TensorDataset(torch.ones(12, 4)), batch_size=4, num_workers=2)
            steps(torch.compile(nn.Linear(4, 2)), [x for x, in data])
        process = multiprocessing.get_context("fork").Process(target=train)
        process.start()
        process.join()
        sys.exit(process.exitcode)
    """
    answer, told, said = child(tmp_path, script)
    assert answer["ended"] == "script" and answer["steps"] == len(told) == 3, said
    assert answer["half_matmuls"] == 3 * 2 and answer["notes"] == []


def test_a_crash_is_the_scripts(tmp_path):
    script = """
        def batches():
            yield torch.ones(3, 4)
            yield torch.ones(3, 4)
            raise ValueError("bad batch\\nmore of it")
        steps(nn.Linear(4, 2), batches())
    """
    answer, told, said = child(tmp_path, script)
    assert answer["ended"] == "error" and answer["error"] == "crashed after 2 optimizer steps: ValueError: bad batch"
    lines = (tmp_path / "train.py").read_text().splitlines()
    row = next(row for row, line in enumerate(lines, 1) if "raise ValueError" in line)
    assert answer["place"] == f"{tmp_path / 'train.py'}:{row}"
    assert len(told) == 2 and "in batches" in said and "amplint" + os.sep not in said


def test_a_missing_update_is_named_with_the_crash(tmp_path):
    script = """
        net = nn.Linear(4, 2)
        opt, scaler = torch.optim.SGD(net.parameters(), 0.1), torch.amp.GradScaler("cuda")
        for i in range(3):
            scaler.scale(net(torch.ones(3, 4)).sum()).backward()
            scaler.step(opt)
    """
    answer, told, _ = child(tmp_path, script)
    (fault,) = answer["faults"]
    assert answer["ended"] == "error" and len(told) == 1 and fault["code"] == "AMP110"
    assert fault["place"] == f"{tmp_path}/train.py:{len((STEP + textwrap.dedent(script)).splitlines())}"


def test_parameters_that_were_sent_to_the_gpu_say_so_to_the_script_alone(tmp_path):
    script = """
        net = nn.Linear(4, 2)
        said = [next(net.parameters()).is_cuda]
        for send in (lambda: net.to("cuda:0"), net.cpu, net.cuda, lambda: net.to("cpu"), lambda: net.to(device=0)):
            send()
            said.append(next(net.parameters()).is_cuda)
        assert said == [False, True, False, True, False, True], said
        steps(net, torch.ones(2, 3, 4))
    """
    answer, told, said = child(tmp_path, script)
    assert answer["ended"] == "script" and len(told) == 2, said


def test_training_steps_of_many_kinds_do_what_they_do_without_the_probe(tmp_path):
    """In FP32 to the last digit; in AMP they run, and nothing is found that is not there."""
    kinds = Path(__file__).with_name("kinds.py")
    command = [sys.executable, str(kinds), "cpu"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    plain = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200, env=env).stdout
    base: dict[str, Any] = {"target": str(kinds), "arguments": ["cuda"], "steps": 1000}
    for kind in ("fp32", "amp"):
        folder = tmp_path / kind
        folder.mkdir()
        answer, told, said = child(folder, **base, kind=kind, count=kind == "amp", full_precision=kind == "fp32")
        assert answer["ended"] == "script" and answer["faults"] == answer["notes"] == [], said
        assert len(told) == 3 * len(plain.splitlines())
        if kind == "fp32":
            assert said.splitlines() == plain.splitlines()
