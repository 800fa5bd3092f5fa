"""Who trains where no step is in sight: frameworks that run the training step, and where their precision is set."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import NamedTuple

from amplint.rewrite.refusals.refused import Refused
from amplint.source.module import Module

_FULL = {None, False, 32, "32", "32-true", "no", "fp32", "float32"}  # what a switch says where it is off


class _Known(NamedTuple):
    """A framework's class or function: the packages it comes from, the arguments that switch mixed precision on, and
    what a person writes. `base` where scripts derive from it rather than call it."""

    packages: tuple[str, ...]
    who: str
    advice: str
    switches: tuple[str, ...] = ()
    base: bool = False


_LIGHTNING = ("lightning", "pytorch_lightning")
_FP16 = ("fp16", "bf16")
_TRANSFORMERS = ("transformers", "trl", "sentence_transformers", "setfit")
_HF = "the Trainer of transformers"
_HF_ARGUMENTS = _Known(_TRANSFORMERS, _HF, "pass fp16=True to its arguments", _FP16)
_HF_TRAINER = _Known(_TRANSFORMERS, _HF, "pass fp16=True in its TrainingArguments (--fp16)")

_CATALYST = _Known(("catalyst",), "Catalyst", "pass fp16=True to train()", _FP16)
_FASTAI = _Known(("fastai",), "fastai", "call .to_fp16() on the learner")
_BEFORE_2 = "(precision=16 before 2.0)"

# Last part of the name → what it may be. Versions are named where the switch was called otherwise.
_KNOWN: dict[str, tuple[_Known, ...]] = {
    "Accelerator": (
        _Known(("accelerate",), "Accelerate", 'pass mixed_precision="fp16" to Accelerator', ("mixed_precision",)),
    ),
    "Trainer": (
        _Known(
            _LIGHTNING, "Lightning", f'pass precision="16-mixed" to Trainer {_BEFORE_2}', ("precision", "amp_level")
        ),
        _HF_TRAINER,
        _Known(("composer",), "Composer", 'pass precision="amp_fp16" to Trainer', ("precision",)),
    ),
    "from_argparse_args": (_Known(_LIGHTNING, "Lightning", "run with --precision 16", ("precision",)),),
    "LightningCLI": (_Known(_LIGHTNING, "Lightning", "run with --trainer.precision 16-mixed (16 before 2.0)"),),
    "Fabric": (
        _Known(("lightning", "lightning_fabric"), "Fabric", 'pass precision="16-mixed" to Fabric', ("precision",)),
    ),
    **dict.fromkeys(("TrainingArguments", "Seq2SeqTrainingArguments", "SFTConfig", "DPOConfig"), (_HF_ARGUMENTS,)),
    **dict.fromkeys(("Seq2SeqTrainer", "SFTTrainer", "DPOTrainer", "SentenceTransformerTrainer"), (_HF_TRAINER,)),
    "initialize": (_Known(("deepspeed",), "DeepSpeed", 'set "fp16": {"enabled": true} in its config'),),
    "create_supervised_trainer": (
        _Known(("ignite",), "Ignite", 'pass amp_mode="amp", scaler=True to create_supervised_trainer', ("amp_mode",)),
    ),
    "SupervisedTrainer": (_Known(("monai",), "MONAI", "pass amp=True to SupervisedTrainer", ("amp",)),),
    **dict.fromkeys(("SupervisedRunner", "ConfigRunner", "Runner"), (_CATALYST,)),
    **dict.fromkeys(("Learner", "cnn_learner", "vision_learner", "text_classifier_learner"), (_FASTAI,)),
    "DefaultTrainer": (_Known(("detectron2",), "detectron2", "set SOLVER.AMP.ENABLED to True in its config"),),
    "GradientDescentTrainer": (_Known(("allennlp",), "AllenNLP", "pass use_amp=True to the trainer", ("use_amp",)),),
    "Engine": (_Known(("torchnet",), "torchnet's Engine", "write its loop out"),),
    # derived from
    "LightningModule": (
        _Known(_LIGHTNING, "Lightning", f'pass precision="16-mixed" to its Trainer {_BEFORE_2}', base=True),
    ),
    "Brain": (
        _Known(
            ("speechbrain",),
            "SpeechBrain",
            "run the recipe with --precision fp16 (--auto_mix_prec before 1.0)",
            base=True,
        ),
    ),
    **dict.fromkeys(
        ("FairseqTask", "LegacyFairseqTask"), (_Known(("fairseq",), "fairseq", "run with --fp16", base=True),)
    ),
    "AutoUnit": (_Known(("torchtnt",), "TorchTNT", 'pass precision="fp16" to the unit', base=True),),
}


class Framework(NamedTuple):
    """Something else that runs the training steps: where it is made or derived from, and whether mixed precision is on
    already."""

    node: ast.Call | ast.ClassDef
    who: str
    done: bool
    refusal: Refused

    @property
    def entry(self) -> ast.AST | tuple[ast.AST, Refused]:
        return self.node if self.done else (self.node, self.refusal)

    def runs(self, module: Module, step: ast.AST) -> bool:
        """Whether a step is written inside a class that the framework drives."""
        return isinstance(self.node, ast.ClassDef) and self.node in module.ancestors(step)

    def refusal_of(self, module: Module, step: ast.AST) -> Refused:
        """What is said of a step inside such a class: one that replaces the framework's own goes without its switch."""
        function = getattr(module.function(step), "name", "")
        if self.who == "SpeechBrain" and function == "fit_batch":
            return Refused(
                "its fit_batch() replaces that of SpeechBrain's Brain, and with it the mixed precision there",
                "use its self.scaler, and autocast where self.auto_mix_prec is set (self.training_ctx since 1.0)",
            )
        return self.refusal


def framework(module: Module, together: Sequence[Module] = ()) -> Framework | None:
    """The framework that trains, where the file makes one, or derives a class from one's. What says that mixed
    precision is on is believed first, what says where to switch it on next; `together` are the files named with it."""
    found = _first(module)
    if found is None or not isinstance(found.node, ast.ClassDef):
        return found
    others = [other for one in together if one is not module and (other := _first(one)) is not None]
    return found._replace(done=found.done or any(one.done and one.who == found.who for one in others))


def runs_backward(module: Module) -> tuple[ast.AST, Refused] | None:
    """Where an object runs the backward and steps, too: `engine.backward(loss)`, `engine.step()`."""
    methods = [
        (node, node.func.attr, ast.unparse(node.func.value))
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    stepping = {owner for _, name, owner in methods if name == "step"} - {"self"}
    for call, name, owner in methods:
        if name == "backward" and call.args and owner in stepping:
            reason = f"{owner}.backward() runs the backward, in the precision that is set where {owner} is made"
            return call, Refused(reason, 'set it there (fairseq: --fp16; DeepSpeed: "fp16" in its config)')
    return None


def _first(module: Module) -> Framework | None:
    found = [one for node in ast.walk(module.tree) for one in _made_by(module, node)]
    return min(found, key=lambda one: (not one.done, isinstance(one.node, ast.ClassDef)), default=None)


def _made_by(module: Module, node: ast.AST) -> list[Framework]:
    if isinstance(node, ast.ClassDef):
        return [
            Framework(node, known.who, _switched_on(module, known), _refusal(known))
            for base in node.bases
            for known in _known(module, base)
            if known.base or known is _HF_TRAINER
        ]
    if not isinstance(node, ast.Call):
        return []
    found = []
    for known in _known(module, node.func):
        if not known.base:
            switches = [one for one in node.keywords if one.arg in known.switches]
            off = [one for one in switches if not _on(one.value)]
            done = (len(off) < len(switches)) if switches else _switched_on(module, known)
            found.append(Framework(node, known.who, done, _refusal(known)))
    return found


def _known(module: Module, name: ast.expr) -> list[_Known]:
    found: list[_Known] = []
    for dotted in module.dotted(name) or _starred(module, name):
        package, last = dotted.partition(".")[0], dotted.rpartition(".")[2]
        found += [one for one in _KNOWN.get(last, ()) if package in one.packages and one not in found]
    return found


def _starred(module: Module, name: ast.expr) -> set[str]:
    """What a name may stand for that only `from … import *` can have brought."""
    if not isinstance(name, ast.Name):
        return set()
    return {source.removesuffix("*") + name.id for source in module.imports.get("*", ())}


def _refusal(known: _Known) -> Refused:
    return Refused(f"{known.who} runs the training step", f"{known.advice} instead")


def _on(value: ast.expr) -> bool:
    """Whether a switch is on, for all that is seen: what is given at run time is the user's to set."""
    return not isinstance(value, ast.Constant) or value.value not in _FULL


def _switched_on(module: Module, known: _Known) -> bool:
    """What is switched on elsewhere than in the call: `.to_fp16()`, `train(fp16=True)`, a config in the file."""
    for node in ast.walk(module.tree):
        match node:
            case ast.Attribute(attr="to_fp16" | "to_bf16") if known.who == "fastai":
                return True
            case ast.keyword(arg="fp16", value=value) if known.who == "Catalyst" and _on(value):
                return True
            case ast.Dict() if known.who == "DeepSpeed" and _config_says(node):
                return True
    return False


def _config_says(config: ast.Dict) -> bool:
    """`"fp16": {"enabled": True, …}`."""
    for key, value in zip(config.keys, config.values, strict=True):
        if getattr(key, "value", None) in _FP16 and isinstance(value, ast.Dict):
            return any(
                getattr(inner, "value", None) == "enabled" and _on(on)
                for inner, on in zip(value.keys, value.values, strict=True)
            )
    return False
