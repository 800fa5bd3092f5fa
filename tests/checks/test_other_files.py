"""Places of other files: what a script does in them is found in the script, and read in its own text."""

from __future__ import annotations

from pathlib import Path

from amplint import checks
from amplint.config import Settings
from amplint.source.interpret.project import Project
from amplint.source.module import Module

HELPERS = (
    "\n" * 40
    + """import torch


def forward(model, x):
    with torch.autocast("cuda", dtype=torch.float16):
        return model(x)
"""
)
SCRIPT = """import torch
import torch.nn.functional as F
from helpers import forward

model = torch.nn.Linear(784, 10).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in loader:
    loss = F.cross_entropy(forward(model, x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def test_a_region_in_another_file(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    (tmp_path / "helpers.py").write_text(HELPERS)
    script = Module.read(str(path), SCRIPT.encode())
    found = checks.check_module(script, Settings(codes=frozenset(("AMP212",)))).findings
    assert [finding.range.start.row for finding in found] == [8]
    assert [Path(place.path).name for place in found[0].related] == ["helpers.py", "train.py"]


BASE = """\
import torch


class Agent:
    def __init__(self, actor, critic):
        self.actor, self.critic = actor, critic
        self.actor_optimizer = torch.optim.Adam(actor.parameters())
        self.critic_optimizer = torch.optim.Adam(critic.parameters())
        self.scaler = torch.amp.GradScaler("cuda")

    def learn(self, batches):
        for batch in batches:
            self.optimize_critic(batch)
            self.optimize_actor(batch)
            self.scaler.update()
"""
AGENT = """\
from agent import Agent


class Careful(Agent):
    def optimize_actor(self, loss):
        self.actor_optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.actor_optimizer)
        self.scaler.step(self.actor_optimizer)
"""


def test_a_base_of_another_file_updates_the_scaler(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for base, expected in ((BASE, []), (BASE.replace("            self.scaler.update()\n", ""), ["AMP110"])):
        (tmp_path / "agent.py").write_text(base)
        (tmp_path / "careful.py").write_text(AGENT)
        settings = Settings(codes=frozenset({"AMP110"}), roots=(str(tmp_path),))
        found = checks.check_module(Module.read("careful.py", AGENT.encode()), settings).findings
        assert [one.code for one in found] == expected


def test_a_loop_behind_many_imports(tmp_path: Path) -> None:
    """Each import is looked for in several places; what is not there takes no room from what is."""
    (tmp_path / ".git").mkdir()
    package = tmp_path / "package"
    package.mkdir()
    for i in range(30):
        (package / f"part{i}.py").write_text(f"def make{i}():\n    return library.make({i})\n")
    (package / "loop.py").write_text("def step(scaler, loss):\n    scaler.scale(loss).backward()\n")
    main = package / "train.py"
    main.write_text("from package.loop import step\n\nstep(scaler, loss)\n")
    module = Module.read(str(main), main.read_bytes())
    project = Project.around(module)
    for i in range(30):
        assert project.find(f"package.part{i}", 0, module) is None  # it says nothing of training
    assert project.find("package.loop", 0, module) is not None


def test_a_checkpoint_that_a_helper_saves(tmp_path: Path) -> None:
    """The dict is told of where it is written, once, whoever saves it."""
    helper = "import torch.optim\n\n\ndef save_checkpoint(state, path):\n    torch.save(state, path)\n"
    script = """import torch
from helpers import save_checkpoint


def save(model, optimizer, best):
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    save_checkpoint(state, "last.pt")
    if best:
        save_checkpoint(state, "best.pt")


model = torch.nn.Linear(784, 10).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cuda")
if resume:
    optimizer.load_state_dict(torch.load(resume)["optimizer"])
for x, y in loader:
    with torch.autocast("cuda", dtype=torch.float16):
        loss = model(x).mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
save(model, optimizer, best)
"""
    path = tmp_path / "train.py"
    path.write_text(script)
    (tmp_path / "helpers.py").write_text(helper)
    module = Module.read(str(path), script.encode())
    found = checks.check_module(module, Settings(codes=frozenset(("AMP116",)))).findings
    assert [finding.range.start.row for finding in found] == [8]
