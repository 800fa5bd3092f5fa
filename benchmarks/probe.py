"""What verify's probe costs a training step: `python benchmarks/probe.py`, processor time a step with it and without.

FP32 on a CPU, nothing counted, as the runs are that give the band. The least of several runs, in turn; on a GPU the
probe waits for the device once a step, too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

START = Path(__file__).parents[1] / "amplint" / "graph" / "child" / "start.py"
SCRIPT = """
import sys, time
import torch
from torch import nn
torch.manual_seed(0)
torch.set_num_threads(1)
width, batch, depth = map(int, sys.argv[1:4])
layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
model = nn.Sequential(*layers, nn.Linear(width, 8))
optimizer = torch.optim.AdamW(model.parameters())
x, y = torch.randn(batch, width), torch.randint(8, (batch,))
for step in range(220):
    if step == 20:
        began = time.process_time()
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
open(sys.argv[4], "w").write(str((time.process_time() - began) / 200))
"""
MODELS = {  # width, batch, hidden layers
    "2 layers of 16": (16, 32, 1),
    "9 layers of 128": (128, 64, 8),
    "9 layers of 512": (512, 128, 8),
    "33 layers of 256": (256, 128, 32),
}
TIMES = 5


def seconds(folder: Path, model: tuple[int, int, int], probed: bool) -> float:
    """Processor time of a step."""
    with tempfile.TemporaryDirectory() as made:
        said = os.path.join(made, "seconds")
        arguments = [*map(str, model), said]
        job = {
            "door": "verify",
            "target": "train.py",
            "arguments": arguments,
            "kind": "fp32",
            "seed": 0,
            "count": False,
        }
        job |= {"dtype": "float16", "device": "cpu", "full_precision": True, "steps": 10**6}
        Path(made, "job.json").write_text(json.dumps(job))
        command = [str(START), made] if probed else ["train.py", *arguments]
        subprocess.run([sys.executable, *command], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return float(Path(said).read_text())


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "train.py").write_text(SCRIPT)
        for name, model in MODELS.items():
            both = [(seconds(folder, model, False), seconds(folder, model, True)) for _ in range(TIMES)]
            alone, probed = map(min, zip(*both, strict=True))
            print(f"{name:16} {1000 * alone:7.2f} ms, {1000 * probed:7.2f} ms under the probe: {probed / alone:.2f}")


if __name__ == "__main__":
    main()
