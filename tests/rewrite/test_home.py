"""Where the scaler lives: shapes in which the optimizer's home can be found, and those in which it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from amplint.cli import cli

HEAD = """\
import torch
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model = torch.nn.Linear(4, 4).to(device)
"""
STEP = """\
for x, y in loader:
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(x.to(device)), y.to(device))
    loss.backward()
    optimizer.step()
"""
SGD = "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
FUNCTION = "def train():\n" + "".join(f"    {line}\n" for line in STEP.splitlines())
MADE = 'scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")\n'


def fix(**files: str) -> Result:
    for name, text in files.items():
        Path(f"{name}.py").write_text(text, encoding="utf-8")
    return CliRunner().invoke(cli, ["fix", *sorted(f"{name}.py" for name in files)], catch_exceptions=False)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# A script, and what the new line for the scaler stands behind.
FOUND = {
    "a field of an object that was given it": (
        HEAD
        + "class Learner:\n    def __init__(self, optimizer):\n        self.optimizer = optimizer\n"
        + f"{SGD}learner = Learner(optimizer)\n"
        + STEP.replace("optimizer", "learner.optimizer"),
        "learner = Learner(optimizer)\n",
    ),
    "a field of a plain object": (
        HEAD + "import types\nstate = types.SimpleNamespace()\n" + f"state.{SGD}" + STEP.replace("opt", "state.opt"),
        f"state.{SGD}",
    ),
    "a field of what a function is given": (
        HEAD
        + "import types\n"
        + FUNCTION.replace("train()", "train(run)").replace("opt", "run.opt")
        + f"state = types.SimpleNamespace()\nstate.{SGD}train(state)\n",
        f"state.{SGD}",
    ),
    "default, then another": (
        HEAD + SGD + "if adam:\n    optimizer = torch.optim.Adam(model.parameters())\n" + STEP,
        "    optimizer = torch.optim.Adam(model.parameters())\n",
    ),
    "the only choice": (
        HEAD + f"if kind == 'a':\n    {SGD}else:\n    raise ValueError(kind)\n" + STEP,
        "    raise ValueError(kind)\n",
    ),
    "the only choices": (
        HEAD
        + f"if kind == 'a':\n    if slow:\n        {SGD}    else:\n        sys.exit('too fast')\n"
        + "elif kind == 'b':\n    raise NotImplementedError\nelse:\n    raise ValueError(kind)\n"
        + STEP,
        "    raise ValueError(kind)\n",
    ),
    "if, and if": (
        HEAD + f"if kind == 'a':\n    {SGD}if kind == 'b':\n    {SGD.replace('0.1', '0.2')}" + STEP,
        f"    {SGD.replace('0.1', '0.2')}",
    ),
    "used between": (
        HEAD + SGD + STEP + SGD.replace("0.1", "0.01") + STEP.replace("loader", "other"),
        SGD,
    ),
    "under the same condition": (
        HEAD + f"if tune:\n    {SGD}" + "if tune:\n" + "".join(f"    {line}\n" for line in STEP.splitlines()),
        f"    {SGD}    ",
    ),
    "in the main block": (
        HEAD + FUNCTION + f"if __name__ == '__main__':\n    {SGD}    train()\n",
        f"    {SGD}    ",
    ),
    "a meter in float64": (
        HEAD + SGD + STEP + "def share(count):\n    return torch.tensor([count], dtype=torch.float64, device=device)\n",
        SGD,
    ),
    "a list of types": (
        HEAD + SGD + "assert model.weight.dtype in (torch.float32, torch.float64)\n" + STEP,
        SGD,
    ),
}
REFUSED = {
    "wrapped": (
        HEAD + SGD + "optimizer = hvd.DistributedOptimizer(optimizer)\n" + STEP,
        "the optimizer is wrapped; wrap it where it is made, or convert it by hand",
    ),
    "only sometimes": (
        HEAD + f"if tune:\n    {SGD}" + STEP,
        "the optimizer exists only under some conditions; convert",
    ),
    "only sometimes, or a warning": (
        HEAD + f"if tune:\n    {SGD}else:\n    print('frozen')\n" + STEP,
        "the optimizer exists only under some conditions; convert",
    ),
    "under another condition": (
        HEAD + f"if tune:\n    {SGD}" + "if warm:\n" + "".join(f"    {line}\n" for line in STEP.splitlines()),
        "the optimizer exists only under some conditions; convert",
    ),
    "made in a loop's arm": (
        HEAD + f"for part in parts:\n    if part:\n        {SGD}    else:\n        {SGD}" + STEP,
        "the optimizer exists only under some conditions; convert",
    ),
    "a device that may be None, of a model that is moved later": (
        "import argparse\nimport torch\nparser = argparse.ArgumentParser()\nparser.add_argument('--device')\n"
        + "args = parser.parse_args()\n"
        + FUNCTION.replace("train():", "train(model):\n    model = model.to(args.device)").replace(
            "(device", "(args.device"
        )
        + "model = torch.nn.Linear(4, 4)\n"
        + SGD
        + "train(model)\n",
        "the device is not known where the optimizer is made; ",
    ),
    "a global of several functions": (
        HEAD
        + FUNCTION
        + f"def make():\n    global optimizer\n    {SGD}def slow():\n    global optimizer\n    {SGD}make()\ntrain()\n",
        "several functions bind the optimizer's name as a global; convert it by hand",
    ),
    "a field of an object that moves when it is there": (
        "import torch\nfrom places import best\n"
        + "class Part(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(4, 4)\n"
        + f"        self.{SGD.replace('model', 'self')}"
        + "model = Part()\nmodel.to(best())\n"
        + STEP.replace("optimizer", "model.optimizer").replace(".to(device)", ".to(best())"),
        "the device is not known where the optimizer is made; make the optimizer after the device",
    ),
    "objects that share a backward": (
        HEAD
        + f"class Part:\n    def __init__(self, model):\n        self.{SGD}one, two = Part(model), Part(model)\n"
        + STEP.replace("optimizer.step()", "one.optimizer.step()\n    two.optimizer.step()").replace(
            "    optimizer", "    one.optimizer"
        ),
        "optimizers of several objects share a backward; convert it by hand",
    ),
    "trains in float64": (HEAD + "torch.set_default_dtype(torch.float64)\n" + SGD + STEP, "it computes in float64; "),
}


@pytest.mark.parametrize("name", FOUND)
def test_found(name: str) -> None:
    script, behind = FOUND[name]
    result = fix(train=script)
    assert result.exit_code == 0, result.stdout
    text = Path("train.py").read_text(encoding="utf-8")
    assert text.count("GradScaler(") == 1
    assert behind + MADE in text


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    script, reason = REFUSED[name]
    result = fix(train=script)
    assert (result.exit_code, Path("train.py").read_text(encoding="utf-8")) == (1, script)
    assert f"refused: {reason}" in result.stdout


def test_a_script_that_is_imported_does_not_run() -> None:
    """What imports a function of a training script trains nothing."""
    train = HEAD + FUNCTION.replace("train()", "train(optimizer)") + "def build():\n    return model\n"
    train += f"if __name__ == '__main__':\n    {SGD}    train(optimizer)\n"
    Path("train.py").write_text(train, encoding="utf-8")
    result = fix(show="from train import build\nprint(build())\n")
    assert (result.exit_code, result.stdout) == (0, "")


def test_arguments_by_name_stay_in_order() -> None:
    script = HEAD + FUNCTION.replace("train()", "train(optimizer, log)") + SGD + "train(optimizer, log=True)\n"
    assert fix(train=script).exit_code == 0
    text = Path("train.py").read_text(encoding="utf-8")
    assert "def train(optimizer, log, scaler):" in text
    assert "train(optimizer, log=True, scaler=scaler)" in text


def test_classes_of_one_file_save_scalers_of_their_own() -> None:
    methods = "    def save(self):\n        return {'optimizer': self.optimizer.state_dict()}\n" + "".join(
        f"    {line}\n"
        for line in FUNCTION.replace("train()", "train(self)").replace("optimizer", "self.optimizer").splitlines()
    )
    made = f"    def __init__(self):\n        self.{SGD}"
    assert fix(train=HEAD + f"class First:\n{made}{methods}class Second:\n{made}{methods}").exit_code == 0
    text = Path("train.py").read_text(encoding="utf-8")
    assert text.count(f"self.{MADE}") == text.count("'scaler': self.scaler.state_dict()") == 2
