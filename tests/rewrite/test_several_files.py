"""`amplint fix` over several files: what each becomes, and what is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rewrite import fixing
from tests.rewrite.fixing import amplint, contents, names, project

pytestmark = pytest.mark.usefixtures("own_folder")


def put(files: dict[str, str]) -> list[str]:
    for name, text in files.items():
        fixing.put(text, name)
    return sorted(files)


@pytest.mark.parametrize("name", names("projects"))
def test_project(name: str) -> None:
    before, after, said = project(name)
    written = put(before)
    result = amplint(".")
    assert contents(written) == after
    assert (result.stdout, result.exit_code) == (said, 0)
    again = amplint(".")
    assert contents(written) == after
    assert "converted" not in again.stdout


# -- when not all files are named --------------------------------------------------------------------------------------


def test_the_command_that_names_all_files() -> None:
    before, after, _ = project("two_scripts")
    names = put(before)
    loop = amplint("engine.py")
    assert loop.exit_code == 1
    assert loop.stdout == (
        "engine.py:12: refused: the optimizer comes from the caller of run_epoch(), in finetune.py, train.py; "
        "amplint fix engine.py finetune.py train.py changes them together\n"
    )
    script = amplint("train.py")
    assert script.stdout == (
        "train.py:13: refused: its training step is in engine.py:12; "
        "amplint fix engine.py train.py changes them together\n"
    )
    two = amplint("engine.py", "train.py")
    assert two.stdout == (
        "engine.py:12: refused: run_epoch() is called in finetune.py, too; "
        "amplint fix engine.py finetune.py train.py changes them together\n"
    )
    assert contents(names) == before
    assert amplint("engine.py", "finetune.py", "train.py").exit_code == 0
    assert contents(names) == after


def test_the_command_that_names_files_with_spaces() -> None:
    files, _, _ = project("sigmoid_in_another_file")
    put({f"my nets/{name}": text for name, text in files.items()})
    asked = amplint("my nets/train.py")
    assert "amplint fix 'my nets/nets.py' 'my nets/train.py' changes them together" in asked.stdout


@pytest.mark.parametrize("given", ["True", "reverse=wanted", "wanted", "refit=True"])
def test_a_flag_that_is_given_runs_what_is_under_it(given: str) -> None:
    files, _, _ = project("code_under_a_flag_that_is_off")
    put(files)
    assert amplint("train.py", "--check").stdout.count("converted") == 1
    fixing.put(files["train.py"].replace("(x.to(device))", f"(x.to(device), {given})"), "train.py")
    assert "no half-precision kernel" in amplint("train.py", "--check").stdout


def test_the_files_whose_sigmoids_must_be_float32_are_named() -> None:
    files, after, said = project("sigmoid_in_another_file")
    put(files)
    asked = amplint("train.py")
    assert "amplint fix nets.py train.py changes them together" in asked.stdout
    assert amplint("nets.py", "train.py").stdout == said
    assert contents(sorted(files)) == after


def test_the_base_class_must_be_named() -> None:
    before, _, _ = project("base_class")
    names = put(before)
    result = amplint("trainers/net.py")
    assert result.stdout == (
        "trainers/net.py:19: refused: trainers/base.py must change with it; "
        "amplint fix trainers/base.py trainers/net.py changes them together\n"
    )
    assert contents(names) == before


def test_one_script_that_cannot_be_converted_keeps_all_as_they_are() -> None:
    before, _, _ = project("two_scripts")
    before["finetune.py"] = before["finetune.py"].replace("optimizer = ", "if tune:\n    optimizer = ")
    names = put(before)
    result = amplint(".")
    assert result.exit_code == 1
    assert contents(names) == before


def test_what_cannot_be_written_leaves_all_files_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from amplint import files

    before, _, _ = project("two_scripts")
    names = put(before)
    write = files.write

    def fail_on_the_loop(path: str, data: bytes, expected: bytes) -> None:
        if path == "finetune.py":
            raise files.Unreadable("disk full")
        write(path, data, expected)

    monkeypatch.setattr(files, "write", fail_on_the_loop)
    result = amplint(".")
    assert result.exit_code == 2
    assert "finetune.py:1:1: AMP902 disk full" in result.stderr
    assert contents(names) == before


def test_what_was_written_and_cannot_be_put_back_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from amplint import files

    before, after, _ = project("two_scripts")
    names = put(before)
    write, written = files.write, []

    def fail_after_the_first(path: str, data: bytes, expected: bytes) -> None:
        if written:
            raise files.Unreadable("disk full")
        written.append(path)
        write(path, data, expected)

    monkeypatch.setattr(files, "write", fail_after_the_first)
    result = amplint(".")
    assert result.exit_code == 2
    assert "engine.py:1:1: AMP902 written, and cannot be put back: disk full" in result.stderr
    assert contents(names) == {**before, "engine.py": after["engine.py"]}


# -- an entry that says little -----------------------------------------------------------------------------------------

ROUNDS = """\
from torch.nn.functional import mse_loss
class Trainer:
    def __init__(self, left, right, first, second):
        self.left, self.right = left.cuda(), right.cuda()
        self.first = first
        self.second = second
    def one_round(self, x):
        self.first.zero_grad()
        self.second.zero_grad()
        loss = mse_loss(self.drawn(x), x.cuda())
        loss.backward()
        self.first.step()
        self.second.step()
    def drawn(self, x):
        return self.right(self.left(x.cuda()))
"""


def test_a_script_without_a_word_of_training() -> None:
    put({"trainer.py": ROUNDS + "def made(options):\n    return Trainer(*options.parts)\n"})
    fixing.put("from trainer import made\nfrom options import options\n\ndef main():\n    trainer = made(options)\n"
        + "    for x in options.data:\n        trainer.one_round(x)\n\nmain()\n")  # fmt: skip
    assert "train.py:7: refused: its training step is in trainer.py:12; amplint fix" in amplint("train.py").stdout


def test_fields_that_no_word_tells_of() -> None:
    """What the methods of a trainer find in its fields, and what they run, whatever these are called."""
    put({"trainer.py": ROUNDS})
    script = "import torch\nfrom trainer import Trainer\nleft, right = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)\n"
    script += "first = torch.optim.Adam(left.parameters())\nsecond = torch.optim.Adam(right.parameters())\n"
    script += "trainer = Trainer(left, right, first, second)\n"
    fixing.put(script + "for x in torch.load('x.pt'):\n    trainer.one_round(x)\n")
    assert amplint("train.py", "trainer.py").exit_code == 0
    text = Path("trainer.py").read_text(encoding="utf-8")
    assert '    with torch.autocast("cuda", dtype=torch.float16):\n            loss = mse_loss(self.drawn(x)' in text


def test_what_nothing_shows_the_caller_of_is_told() -> None:
    put({"trainers/base.py": ROUNDS, "trainers/__init__.py": "from .base import Trainer\nTABLE = {'plain': Trainer}\n"})
    fixing.put("from trainers import TABLE\nfrom options import name, parts\nTABLE[name](*parts).fit()\n")
    result = amplint("train.py")
    assert result.exit_code == 0
    assert result.stderr == (
        "no training step found in 1 file; what it imports may train: amplint fix train.py trainers/base.py\n"
    )
    assert amplint("trainers/__init__.py").stderr.endswith("amplint fix trainers/__init__.py trainers/base.py\n")
    put({"trainers/base.py": "class Trainer: pass\n"})
    assert amplint("train.py").stderr == "no training step found in 1 file\n"


def test_what_is_loaded_by_its_name_is_told() -> None:
    put({"models/one.py": ROUNDS, "models/tools.py": "def draw(loss):\n    loss.backward()\n"})
    fixing.put("import importlib, sys\nimportlib.import_module(f'models.{sys.argv[1]}').Trainer().fit()\n")
    said = "no training step found in 1 file; what it loads by name may train: "
    assert amplint("train.py").stderr == f"{said}amplint fix models/one.py train.py\n"
    put({f"models/more{number}.py": ROUNDS for number in range(5)})
    assert amplint("train.py").stderr.startswith(f"{said}name it, too (models/more0.py, models/more1.py, ")
    fixing.put("import sys\nprint(sys.argv)\n")
    assert amplint("train.py").stderr == "no training step found in 1 file\n"


def test_a_folder_of_libraries_beside_a_script_is_looked_into() -> None:
    put({"tools/paths.py": "import sys\nsys.path.insert(0, '../lib')\n", "pyproject.toml": ""})
    put({"part/lib/core/run.py": "def run(loss, optimizer):\n    loss.backward()\n    optimizer.step()\n"})
    put({"part/lib/core/__init__.py": ""})
    script = fixing.HEAD.replace("import torch\n", "import torch\nfrom core.run import run\n", 1)
    loss = "for x in [torch.ones(2, 4)]:\n    run(model(x.to(device)).mean(), optimizer)\n"
    put({"part/tools/train.py": script + loss})
    assert "its training step is in part/lib/core/run.py:3" in amplint("part/tools/train.py").stdout


def test_a_loss_that_is_chosen_by_its_name() -> None:
    losses = "import torch.nn.functional as F\nTABLE = {'mse': F.mse_loss, 'bce': F.binary_cross_entropy}\n"
    losses += "def chosen(name):\n    return TABLE[name]\n"
    put({"losses.py": losses})
    script = "from losses import chosen\nfrom options import name\ncriterion = chosen(name)\n" + fixing.HEAD
    fixing.put(script + fixing.STEP.replace("torch.nn.functional.mse_loss", "criterion"))
    said = "losses.py:2 may choose binary cross entropy on probabilities, which CUDA autocast refuses"
    assert said in amplint("train.py").stdout
    put({"losses.py": losses.replace("binary_cross_entropy", "l1_loss")})
    assert amplint("train.py", "--check").stdout.startswith("train.py:12: converted")


def test_one_of_two_functions_that_give_the_optimizer_back() -> None:
    loop = (
        "import torch\ndef {0}(model, optimizer, loader{1}):\n    for x, y in loader:\n        optimizer.zero_grad()\n"
    )
    loop += "        loss = torch.nn.functional.mse_loss(model(x.cuda()), y.cuda())\n        loss.backward()\n"
    loop += "        optimizer.step()\n    return loss.item(), optimizer\n"
    put({"loops.py": loop.format("sparse", "") + loop.format("dense", ", size").removeprefix("import torch\n")})
    script = fixing.HEAD + "from options import name, loader\nif name == 'dense':\n"
    script += "    from loops import dense as train\nelse:\n    from loops import sparse as train\n"
    script += "if name == 'dense':\n"
    script += "    loss, optimizer = train(model, optimizer, loader, 8)\nelse:\n"
    fixing.put(script + "    loss, optimizer = train(model, optimizer, loader)\n")
    assert amplint("train.py", "loops.py").exit_code == 0
    text = Path("train.py").read_text(encoding="utf-8")
    assert "train(model, optimizer, loader, 8, scaler=scaler)\n" in text
    assert "train(model, optimizer, loader, scaler=scaler)\n" in text
    loops = Path("loops.py").read_text(encoding="utf-8")
    assert "def sparse(model, optimizer, loader, scaler):" in loops
    assert "def dense(model, optimizer, loader, size, scaler):" in loops


def test_a_loss_that_another_file_hands_over() -> None:
    model = "import torch\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    model += "        self.layer = torch.nn.Linear(4, 4)\n        self.adam = torch.optim.Adam(self.parameters())\n"
    model += "    def forward(self, x):\n        return self.layer(x)\n"
    put({"net.py": model + "    def learn(self, loss):\n        loss.backward()\n        self.adam.step()\n"})
    script = "import torch\nfrom net import Net\nnet = Net().cuda()\nfor x in torch.load('x.pt'):\n"
    fixing.put(script + "    net.adam.zero_grad()\n    loss = net(x.cuda()).mean()\n    net.learn(loss)\n")
    said = "net.py:11: refused: the loss is given to learn() by train.py; convert it by hand"
    assert said in amplint("train.py", "net.py").stdout


def test_a_wrapper_whose_method_another_script_calls_on_what_it_is_handed() -> None:
    """The other script would step without a scaler, and fail."""
    put(project("wrapper_of_two_scripts")[0])
    said = amplint("one.py", "schedule.py").stdout
    assert said == (
        "one.py:10: refused: step() is called in two.py, too; "
        "amplint fix one.py schedule.py two.py changes them together\n"
    )


def test_a_base_class_that_says_nothing_of_training_is_read() -> None:
    before, after, said = project("base_class_of_no_training")
    put(before)
    assert amplint("train.py").stdout == said
    assert contents(list(before)) == after


def test_one_command_names_what_several_scripts_of_a_step_need() -> None:
    """The wrapper that steps, and the model that cannot run in half precision: neither would do without the other."""
    wrapper = (
        "class Warm:\n    def __init__(self, inner):\n        self.inner = inner\n"
        "    def zero_grad(self):\n        self.inner.zero_grad()\n"
        "    def step_and_warm(self):\n        self.inner.step()\n"
    )
    model = (
        "import torch\nclass Net(torch.nn.Linear):\n    def forward(self, x):\n"
        "        scores = torch.matmul(x, x.t())\n        scores = scores.masked_fill(scores > 3, -1e9)\n"
        "        return super().forward(scores.softmax(1))\n"
    )
    loop = (
        "from warm import Warm\nclass Loop:\n    def __init__(self, model, optimizer):\n"
        "        self.model, self.optimizer = model, optimizer\n"
        "    def run(self, loader):\n        for x in loader:\n            self.optimizer.zero_grad()\n"
        "            loss = self.model(x.cuda()).mean()\n            loss.backward()\n"
        "            if isinstance(self.optimizer, Warm):\n                self.optimizer.step_and_warm()\n"
        "            else:\n                self.optimizer.step()\n"
    )
    script = (
        "import torch\nfrom loop import Loop\nfrom net import Net\nfrom warm import Warm\n"
        "model = Net(4, 4).cuda()\noptimizer = torch.optim.Adam(model.parameters())\n"
        "if warming:\n    optimizer = Warm(optimizer)\nLoop(model, optimizer).run(loader)\n"
    )
    put({"warm.py": wrapper, "net.py": model, "loop.py": loop, "train.py": script})
    said = amplint("loop.py", "train.py").stdout.splitlines()
    commands = {line.rpartition("; ")[2] for line in said}
    assert commands == {"amplint fix loop.py net.py train.py warm.py changes them together"}, said


def test_a_function_that_saves_for_other_scripts_too() -> None:
    tools = (
        "import torch\ndef save(path, model, optimizer):\n"
        '    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)\n'
    )
    script = "from tools import save\n" + fixing.HEAD + fixing.STEP + "save('last.pt', model, optimizer)\n"
    put({"tools.py": tools, "train.py": script, "other.py": script})
    assert "save() in tools.py, which was not named, does not know its state" in amplint("train.py", "--check").stdout
    said = amplint("train.py", "tools.py", "--check").stdout
    assert "save() in tools.py, used in other.py, too, does not know its state" in said
    assert "scaler saved in the checkpoint" in amplint(".", "--check").stdout


def test_a_trainer_that_steps_a_wrapper_is_named() -> None:
    """A package's entry point is called by whoever installed it: what it imports trains, though it says no `.step(`."""
    put(
        {
            "entry.py": "from trainer import Trainer\n\n\ndef main():\n    Trainer().fit(3)\n",
            "trainer.py": "from schedule import Schedule\n\n\nclass Trainer:\n    def fit(self, rounds):\n"
            "        for _ in range(rounds):\n            self.loss().backward()\n"
            "            self.schedule.step_and_update()\n",
        }
    )
    assert "may train: amplint fix entry.py trainer.py\n" in amplint("entry.py").stderr


@pytest.mark.parametrize(("default", "code"), [("True", 1), ("False", 0)])
def test_gradients_of_gradients_that_a_default_asks_for(default: str, code: int) -> None:
    """In a model that eval() looks up by its name, as a parameter of a helper says that is True unless it is given."""
    helper = f"import torch\ndef slope(y, x, graph={default}):\n"
    helper += "    return torch.autograd.grad(y.sum(), x, create_graph=graph)[0].square().mean()\n"
    net = "import torch\nfrom helper import slope\nclass Net(torch.nn.Linear):\n    def forward(self, x):\n"
    net += "        y = super().forward(x)\n        return y + slope(y, x)\ndef get_net():\n    return Net(4, 4)\n"
    put({"helper.py": helper, "nets.py": net})
    script = "import sys\nimport nets\n" + fixing.HEAD.replace(
        "torch.nn.Linear(4, 4)", "eval(sys.argv[1] + '.get_net')()"
    )
    fixing.put(script + fixing.STEP)
    result = amplint("train.py")
    assert result.exit_code == code, result.stdout
    assert ("helper.py:3 takes gradients of gradients" in result.stdout) is bool(code)
