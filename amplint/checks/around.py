"""What a project says as a whole: whether anything in it runs in half precision, whether anything resumes."""

from __future__ import annotations

import ast
import re

from amplint.checks.registry import Script
from amplint.checks.users import used_in_half
from amplint.rewrite.said import says, words

_HALF = re.compile(  # also what frameworks are told where they are run
    rb"autocast|\bhalf\(|float16|fp16|bf16|GradScaler|\bamp\b|mixed.?precision|\bprecision\b *=|\bapex\b|deepspeed"
    rb"|Accelerator\b|lightning|fastai|TrainingArguments|\bignite\b|composer",
    re.IGNORECASE,
)
# What may mean float16: not a scaler alone, not a region that is told bfloat16, not where a name is imported.
_FLOAT16 = re.compile(
    rb"^(?!\s*(?:from|import)\b)[^\n]*(?:autocast\b(?!\((?:[^()]|\([^()]*\))*bfloat16)"
    rb"|\bamp\b(?!\.(?:GradScaler|autocast)))|\bhalf\(|torch\.half\b|(?<!b)(?<!np\.)(?<!numpy\.)float16|(?<!b)fp16"
    rb"|mixed.?precision|\bprecision\b *=|\bapex\b|deepspeed|Accelerator\b|lightning|fastai|TrainingArguments"
    rb"|\bignite\b|composer",
    re.IGNORECASE | re.MULTILINE,
)
_SURELY = re.compile(
    rb"autocast|\bhalf\(|float16|fp16|bf16|GradScaler|\bamp\b|mixed.?precision|\bprecision\b *=", re.IGNORECASE
)
_AUTOCAST = re.compile(rb"autocast\(|GradScaler|\bprecision *= *(16|.16)|mixed_precision *=|\bfp16 *= *True")
_COMMENT = re.compile(rb"#[^\n]*")
_LOW = re.compile(
    rb"autocast|\.half\b|[\"']half[\"']|(?<!np\.)(?<!numpy\.)\bb?float16|fp16|bf16|\bapex\.amp\b|\bamp\.initialize"
    rb"|precision *=|mixed_precision|deepspeed|\bAccelerator\b|\bFabric\b|lightning|fastai|TrainingArguments"
    rb"|\bignite\b|composer|torch_xla",
    re.IGNORECASE,
)
_RESUMES = re.compile(  # a file that speaks of resuming and loads something, too: a logger may resume its own file
    rb"opt\w*(\[[^]\n]*\]|\.\w+)*\.load_state_dict|load_state_dict\([^\n]*opt|load_checkpoint"
    rb"|\A(?=[\s\S]*?resum(?!\w*\s*=\s*[\"']|e_download))(?=[\s\S]*?(torch\.load|load_state|restor|\.load\())",
    re.IGNORECASE,
)


def runs_in_half(script: Script, node: ast.AST) -> bool:
    """Whether a file of the project says a word of half precision, or of what chooses one, and one of those that use
    what a node is in."""
    return _says(script, _HALF) and used_in_half(script, node, _HALF)


def may_run_in_float16(script: Script) -> bool:
    """Whether a file of the project says a word that may mean float16: bfloat16 has float32's range."""
    return _says(script, _FLOAT16)


def surely_runs_in_half(script: Script) -> bool:
    """Whether a file of the project is seen to say so. Of a file by itself, and of a project too large to look through,
    nothing is known, and that is no yes here: what hangs on it is advice."""
    said, looked_at = says(script.module, _SURELY)
    script.looked_at.update(looked_at)
    return said and bool(looked_at)


def enters_autocast_somewhere(script: Script) -> bool:
    """The same of autocast: whether a file of the project is seen to enter it, or to ask somebody who does."""
    said, looked_at = says(script.module, _AUTOCAST)
    script.looked_at.update(looked_at)
    return said and bool(looked_at)


def never_low(script: Script) -> bool:
    """Whether no file of the project says a word that would have anything run in half precision, in its code: a scaler
    alone does not. Where there is no project to look through, something may."""
    if _LOW.search(_COMMENT.sub(b"", script.module.text.encode(errors="replace"))):
        return False  # as it is now: `fix` asks before it writes
    said, looked_at = says(script.module, _LOW)
    script.looked_at.update(looked_at)
    if not said:
        return bool(looked_at)
    files = words(script.module) or ()
    script.looked_at.update(one.path for one in files)
    return len(files) > 1 and not any(_LOW.search(one.text) for one in files)


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
