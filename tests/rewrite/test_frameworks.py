"""Scripts whose training step a framework runs: the file stays as it is, and one line says where precision is set."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from amplint.cli import cli

TASK = """\
class Task(Base):
    def training_step(self, batch, i):
        return self.net(batch).mean()
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())
"""
LOOP = """\
for x in loader:
    loss = engine(x).mean()
    engine.backward(loss)
    engine.step()
"""
# What is said, and scripts of which it is said.
REFUSED = {
    "torchnet's Engine runs the training step; write its loop out instead": [
        "from torchnet.engine import Engine\nengine = Engine()\nengine.train(loss, loader, 3, optimizer)\n",
    ],
    'Lightning runs the training step; pass precision="16-mixed" to Trainer (precision=16 before 2.0) instead': [
        "import lightning as L\nL.Trainer(max_epochs=3).fit(task, loader)\n",
        "from lightning.pytorch import Trainer\nTrainer(max_epochs=3, precision=32).fit(task, loader)\n",
        "import torch\nimport pytorch_lightning as pl\nBase = pl.LightningModule\n"
        + TASK
        + "pl.Trainer().fit(Task())\n",
    ],
    'Lightning runs the training step; pass precision="16-mixed" to its Trainer (precision=16 before 2.0) instead': [
        "import torch\nfrom pytorch_lightning import LightningModule\n" + TASK.replace("Base", "LightningModule"),
        "import torch\nimport lightning as L\n"
        + TASK.replace("Base", "L.LightningModule").replace(
            "        return self.net(batch).mean()\n",
            "        opt = self.optimizers()\n        opt.zero_grad()\n        loss = self.net(batch).mean()\n"
            "        self.manual_backward(loss)\n        opt.step()\n",
        ),
    ],
    "Lightning runs the training step; run with --trainer.precision 16-mixed (16 before 2.0) instead": [
        "from lightning.pytorch.cli import LightningCLI\nLightningCLI(Task)\n",
    ],
    'Accelerate runs the training step; pass mixed_precision="fp16" to Accelerator instead': [
        "import torch\nfrom accelerate import Accelerator\nengine = Accelerator(mixed_precision='no')\n"
        "model, optimizer = engine.prepare(model, torch.optim.Adam(model.parameters()))\n"
        "for x in loader:\n    optimizer.zero_grad()\n    engine.backward(model(x).mean())\n    optimizer.step()\n",
    ],
    'Fabric runs the training step; pass precision="16-mixed" to Fabric instead': [
        "from lightning.fabric import Fabric\nfabric = Fabric()\nmodel, optimizer = fabric.setup(model, optimizer)\n"
        "for x in loader:\n    optimizer.zero_grad()\n    fabric.backward(model(x).mean())\n    optimizer.step()\n",
    ],
    "the Trainer of transformers runs the training step; pass fp16=True to its arguments instead": [
        "from transformers import TrainingArguments\n"
        'ours(model=model, args=TrainingArguments("out", fp16=False), train_dataset=data).train()\n',
    ],
    "the Trainer of transformers runs the training step; pass fp16=True in its TrainingArguments (--fp16) instead": [
        "import transformers\ntransformers.Trainer(model=model, args=parsed, train_dataset=data).train()\n",
        "from transformers import Trainer\nclass Ours(Trainer):\n"
        "    def compute_loss(self, model, inputs):\n        return model(**inputs).loss\n",
    ],
    'DeepSpeed runs the training step; set "fp16": {"enabled": true} in its config instead': [
        "import deepspeed\nengine, _, loader, _ = deepspeed.initialize(model=net, config='ds.json')\n" + LOOP,
    ],
    'Ignite runs the training step; pass amp_mode="amp", scaler=True to create_supervised_trainer instead': [
        "from ignite.engine import create_supervised_trainer\n"
        "create_supervised_trainer(model, optimizer, criterion).run(loader)\n",
    ],
    "fastai runs the training step; call .to_fp16() on the learner instead": [
        "from fastai.vision.all import *\nvision_learner(data, resnet34).fine_tune(1)\n",
    ],
    "Catalyst runs the training step; pass fp16=True to train() instead": [
        "from catalyst import dl\ndl.SupervisedRunner().train(model=model, loaders=loaders)\n",
    ],
    "SpeechBrain runs the training step; run the recipe with --precision fp16 (--auto_mix_prec before 1.0) instead": [
        "import speechbrain as sb\nclass ASR(sb.Brain):\n    def compute_forward(self, batch, stage):\n"
        "        return self.modules.net(batch.sig)\n",
    ],
    "fairseq runs the training step; run with --fp16 instead": [
        "from fairseq.tasks import LegacyFairseqTask\nclass Task(LegacyFairseqTask):\n"
        "    def train_step(self, sample, model, criterion, optimizer, update_num):\n"
        "        loss, size, log = criterion(model, sample)\n        optimizer.backward(loss)\n"
        "        return loss, size, log\n",
    ],
    "engine.backward() runs the backward, in the precision that is set where engine is made; "
    'set it there (fairseq: --fp16; DeepSpeed: "fp16" in its config)': [
        "def compute(engine, criterion, model, batch):\n    engine.backward(criterion(model, batch))\n"
        "def advance(engine):\n    engine.step()\n",
    ],
    "its fit_batch() replaces that of SpeechBrain's Brain, and with it the mixed precision there; "
    "use its self.scaler, and autocast where self.auto_mix_prec is set (self.training_ctx since 1.0)": [
        "import speechbrain as sb\nclass ASR(sb.core.Brain):\n    def fit_batch(self, batch):\n"
        "        loss = self.compute_objectives(self.compute_forward(batch, 1), batch, 1)\n        loss.backward()\n"
        "        self.optimizer.step()\n        self.optimizer.zero_grad()\n        return loss.detach()\n",
    ],
}
DONE = [
    "import lightning as L\nL.Trainer(precision='16-mixed').fit(task, loader)\n",
    "import lightning as L\nL.Trainer(precision=args.precision).fit(task, loader)\n",
    "import pytorch_lightning as pl\nclass Task(pl.LightningModule):\n    pass\npl.Trainer(precision=16).fit(Task())\n",
    "from transformers import TrainingArguments\nrun(TrainingArguments('out', bf16=True))\n",
    "import transformers\narguments = transformers.TrainingArguments('out', fp16=True)\n"
    "transformers.Trainer(model, arguments).train()\n",
    "from fastai.vision.all import *\nvision_learner(data, resnet34).to_fp16().fine_tune(1)\n",
    "from catalyst import dl\ndl.SupervisedRunner().train(model=model, fp16=True)\n",
    "import deepspeed\nconfig = {'train_batch_size': 8, 'fp16': {'enabled': True}}\n"
    "engine, _, loader, _ = deepspeed.initialize(model=net, config=config)\n" + LOOP,
]
NOT_THEIRS = [
    "class Trainer:\n    pass\nTrainer().fit(task)\n",
    "from trainer import Trainer\nTrainer(model).train()\n",
    "from optim import initialize\ninitialize(model)\n",
]


def fix(script: str) -> Result:
    Path("train.py").write_text(script, encoding="utf-8")
    result = CliRunner().invoke(cli, ["fix", "train.py"], catch_exceptions=False)
    assert Path("train.py").read_text(encoding="utf-8") == script
    return result


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("reason", "script"), [(reason, one) for reason, some in REFUSED.items() for one in some])
def test_refused(reason: str, script: str) -> None:
    result = fix(script)
    assert result.exit_code == 1
    assert [line.partition(": refused: ")[2] for line in result.stdout.splitlines()] == [reason]


@pytest.mark.parametrize("script", DONE)
def test_with_their_switch_on_they_are_done(script: str) -> None:
    result = fix(script)
    assert result.exit_code == 0
    assert result.stdout.endswith(": already AMP\n")


@pytest.mark.parametrize("script", NOT_THEIRS)
def test_the_same_names_from_elsewhere_mean_nothing(script: str) -> None:
    assert (fix(script).exit_code, fix(script).stdout) == (0, "")


def test_the_trainer_in_another_file_counts() -> None:
    Path("run.py").write_text(DONE[0], encoding="utf-8")
    Path("task.py").write_text(
        "import torch\nimport run\nimport lightning as L\nclass Task(L.LightningModule):\n    pass\n", encoding="utf-8"
    )
    result = CliRunner().invoke(cli, ["fix", "run.py", "task.py"], catch_exceptions=False)
    assert (result.exit_code, result.stdout) == (0, "run.py:2: already AMP\ntask.py:4: already AMP\n")
