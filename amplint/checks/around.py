"""What a project says as a whole: whether anything in it runs in half precision, whether anything resumes."""

from __future__ import annotations

import re

from amplint.checks.registry import Script
from amplint.rewrite.said import says

_HALF = re.compile(  # also what frameworks are told where they are run
    rb"autocast|\bhalf\(|float16|fp16|bf16|GradScaler|\bamp\b|mixed.?precision|\bprecision\b *=|\bapex\b|deepspeed"
    rb"|Accelerator\b|lightning|fastai|TrainingArguments|\bignite\b|composer",
    re.IGNORECASE,
)
_RESUMES = re.compile(
    rb"opt\w*(\[[^]\n]*\]|\.\w+)*\.load_state_dict|load_state_dict\([^\n]*opt|resum|load_checkpoint", re.IGNORECASE
)


def runs_in_half(script: Script) -> bool:
    """Whether a file of the project says a word of half precision, or of what chooses one."""
    return _says(script, _HALF)


def resumes(script: Script) -> bool:
    """Whether a file of the project loads what an optimizer's state was saved to; of a notebook, which is a program by
    itself, whether it does."""
    if script.module.path.endswith(".ipynb"):
        return _RESUMES.search(script.module.text.encode(errors="replace")) is not None
    return _says(script, _RESUMES)


def _says(script: Script, words: re.Pattern[bytes]) -> bool:
    said, looked_at = says(script.module, words)
    script.looked_at.update(looked_at)
    return said
