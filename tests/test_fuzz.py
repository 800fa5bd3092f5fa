"""Mutants of the suite's own sources: whatever Python parses is checked, told and fixed without an internal error.

`python tests/test_fuzz.py 5000 7` runs so many mutants from that seed and prints what went wrong.
"""

from __future__ import annotations

import ast
import io
import random
import re
import sys
import tokenize
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from amplint import engine
from amplint.config import load
from amplint.engine import Job, check_data
from amplint.findings import Applicability
from amplint.knowledge import ops, rules
from amplint.limit import deep_recursion
from amplint.report.story import tell
from amplint.rewrite import instrument
from amplint.source.module import Module, Unreadable

HERE = Path(__file__).parent
SETTINGS = load(["."], {"select": ["ALL"]}, isolated=True)
JOB = Job(SETTINGS, fix=frozenset((Applicability.SAFE, Applicability.UNSAFE)))
OPTIONS = {"dtype": "float16", "select": None}
NAMES = "model optimizer scaler loss x self torch autocast args _ step device".split()
VALUES = ["0", "-1", "1e-8", "None", "True", '"cuda"', "torch.float16", "()", "[]", "...", "2.0", "lambda: 0", "{}"]
STATEMENTS = [
    "del scaler",
    "global model",
    "pass",
    "return",
    "yield",
    "break",
    "continue",
    "await step()",
    "scaler = scaler, scaler",
    "model = None",
    "loss: int",
    "if (loss := model(x)) is not None: pass",
    "match loss:\n    case [a, *b] if a: scaler.step(a)\n    case {'loss': c, **d}: c.backward()\n    case _: pass",
    "for (x, *y), z in loader: ...",
    "def f(a, /, b, *c, d=scaler, **e): return lambda *a, **k: f(*a, **k)",
    "async def g():\n    async with a as b, c: [x async for x in b]",
    "class C(C, metaclass=M, **k): step = lambda self: self.step()",
    "with torch.autocast(*a, **k), b as (c, d): ...",
    "scaler.scale(*losses).backward(**k)",
    "f'{f\"{loss!r:>{width}}\"}'",
    "try: ...\nexcept* ValueError: ...",
    "type T[X: int, *Y, **Z] = X",
    "def h[T](x: T) -> T: return x",
    "class P[T]: pass",
    "scaler.step(optimizer); scaler.update(); scaler.step(optimizer)",
    "import torch as torch, torch.amp as amp",
    "from torch.cuda.amp import *",
    "(loss / 2).backward() if loss else scaler.scale(loss).backward()",
    "[scaler.step(o) for o in (optimizer, *optimizers)]",
    "scaler[0].step(optimizers[:, ...][-1])",
    "model, (optimizer, *loader) = accelerator.prepare(*everything)",
    "model.half().to(*d).cuda",
]


def sources() -> list[str]:
    """The fixtures, the rules' examples, and what the cases of checks and fixes say."""
    made = [path.read_text(encoding="utf-8") for path in sorted((HERE.parent / "fixtures").glob("*.py"))]
    for folder in ("checks/found", "checks/silent", "checks/quiet", "rewrite/cases"):
        made += [
            path.read_text(encoding="utf-8").partition("# output\n")[0]
            for path in sorted((HERE / folder).glob("*.case"))
        ]
    made += [text for rule in rules().values() for _, text in rule.examples()]
    return [text for text in made if parses(text) and len(text) < 8000]


def parses(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(text, "mutant", "exec", ast.PyCF_ONLY_AST)
    except (SyntaxError, ValueError):
        return False
    return True


def mutate(text: str, chance: random.Random) -> str:
    """One change: of lines, or of tokens."""
    change = chance.choice((_drop, _double, _swap, _insert, _dedent, _token, _token, _token, _argument, _join))
    return change(text, chance)


def _drop(text: str, chance: random.Random) -> str:
    lines = text.splitlines()
    at = chance.randrange(len(lines))
    return "\n".join(lines[:at] + lines[at + chance.randint(1, 3) :]) + "\n"


def _double(text: str, chance: random.Random) -> str:
    lines = text.splitlines()
    at, to = chance.randrange(len(lines)), chance.randrange(len(lines))
    margin = re.match(r"\s*", lines[to])[0]  # type: ignore[index]
    return "\n".join([*lines[:to], margin + lines[at].strip(), *lines[to:]]) + "\n"


def _swap(text: str, chance: random.Random) -> str:
    lines = text.splitlines()
    one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return "\n".join(lines) + "\n"


def _insert(text: str, chance: random.Random) -> str:
    lines = text.splitlines()
    at = chance.randrange(len(lines))
    margin = re.match(r"\s*", lines[at])[0]  # type: ignore[index]
    new = [margin + line for line in chance.choice(STATEMENTS).splitlines()]
    return "\n".join([*lines[:at], *new, *lines[at:]]) + "\n"


def _dedent(text: str, chance: random.Random) -> str:
    """Drop a header, and take out what stood below it."""
    lines = text.splitlines()
    headers = [at for at, line in enumerate(lines) if line.rstrip().endswith(":")]
    if not headers:
        return text
    at = chance.choice(headers)
    margin = len(lines[at]) - len(lines[at].lstrip())
    end = at + 1
    while end < len(lines) and (not lines[end].strip() or lines[end].startswith(" " * (margin + 1))):
        end += 1
    if chance.random() < 0.3:
        return "\n".join([*lines[:at], lines[at] + " ...", *lines[end:]]) + "\n"
    return "\n".join(lines[:at] + [line[4:] for line in lines[at + 1 : end]] + lines[end:]) + "\n"


def _join(text: str, chance: random.Random) -> str:
    lines = text.splitlines()
    at = chance.randrange(len(lines))
    if at + 1 < len(lines):
        lines[at : at + 2] = [f"{lines[at]}; {lines[at + 1].strip()}"]
    return "\n".join(lines) + "\n"


def _token(text: str, chance: random.Random) -> str:
    tokens = [one for one in tokenize.generate_tokens(io.StringIO(text).readline) if one.string.strip()]
    one = chance.choice(tokens)
    match one.type:
        case tokenize.NAME:
            new = chance.choice(
                [*NAMES, *VALUES, chance.choice(tokens).string, f"*{one.string}", f"(y := {one.string})", ""]
            )
        case tokenize.NUMBER | tokenize.STRING:
            new = chance.choice(VALUES)
        case _:
            new = chance.choice(["", one.string * 2, chance.choice(tokens).string])
    return _put(text, one.start, one.end, new)


def _argument(text: str, chance: random.Random) -> str:
    """An argument of a call becomes starred, another, or none."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and (node.args or node.keywords)]
    if not calls:
        return text
    call = chance.choice(calls)
    one = chance.choice([*call.args, *call.keywords])
    old = ast.unparse(one)
    new = chance.choice([f"*{old}", "*args", "**kwargs", "**{'enabled': 0}", "lambda: model", *VALUES])
    lines = text.splitlines()
    start, end = (
        (len(lines[row - 1].encode()[:at].decode()))
        for row, at in ((one.lineno, one.col_offset), (one.end_lineno, one.end_col_offset))
    )
    return _put(text, (one.lineno, start), (one.end_lineno or one.lineno, end), new)


def _put(text: str, start: tuple[int, int], end: tuple[int, int], new: str) -> str:
    lines = text.splitlines(keepends=True)
    head = "".join(lines[: start[0] - 1]) + lines[start[0] - 1][: start[1]]
    return head + new + lines[end[0] - 1][end[1] :] + "".join(lines[end[0] :])


def mutants(number: int, seed: int) -> Iterator[str]:
    """So many sources that parse, each with one to four changes."""
    chance = random.Random(seed)
    bases = sources()
    made = 0
    while made < number:
        text = chance.choice(bases)
        for _ in range(chance.randint(1, 4)):
            try:
                new = mutate(text, chance)
            except (tokenize.TokenError, IndentationError, UnicodeDecodeError):
                continue
            text = new if new.strip() and parses(new) else text
        if text not in bases:
            made += 1
            yield text


def complaint(text: str) -> str:
    """What goes wrong with a source; nothing if all is well."""
    try:
        outcome = check_data("train.py", text.encode(), JOB)
        if outcome.failed:
            return outcome.trace or next(one.message for one in outcome.findings if one.code == "AMP902")
        if outcome.after != outcome.before:
            if not parses(outcome.after):
                return "a fix that does not parse"
            again = check_data("train.py", outcome.after.encode(), JOB)
            if again.failed or again.after != again.before:
                return again.trace or "a fix that is not a fixed point"
        try:
            module = Module.read("train.py", text.encode())
        except Unreadable as error:
            return f"unreadable: {error.reason}"
        with deep_recursion():
            tell(module, SETTINGS)
            converted = instrument.fix(module, SETTINGS, OPTIONS)
            if converted.text != module.text:
                if not parses(converted.text):
                    return "a conversion that does not parse"
                again = instrument.fix(Module.read("train.py", converted.text.encode()), SETTINGS, OPTIONS)
                if again.text != converted.text:
                    return "a conversion that is not a fixed point"
    except Exception:
        return traceback.format_exc()
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_mutants(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SECONDS", 10)
    for text in mutants(60, seed):
        assert not complaint(text), text


ODDLY = [
    "()",
    "(*a)",
    "(**k)",
    "(input=h, other=p)",
    "(h)",
    "(p, h, h)",
    "(h, -1e9)",
    "(mask=h > 0, value=-1e9)",
    "(dim=1)",
]


@pytest.mark.parametrize("arguments", ODDLY)
def test_operations_that_are_called_oddly(arguments: str) -> None:
    names = [name.replace("torch.Tensor.", "h.") for name in ops()["aliases"]]
    calls = "\n".join(f"            y = {name}{arguments}" for name in sorted(names))
    source = f"""
import torch
from torch import nn

class M(nn.Module):
    def forward(self, x, *a, **k):
        with torch.autocast("cuda", dtype=torch.float16):
            h, p = nn.functional.linear(x, self.w), torch.arange(x.shape[1])
{calls}
        return y

loss = M().cuda()(x)
"""
    outcome = check_data("train.py", source.encode(), replace(JOB, fix=frozenset()))
    assert not outcome.failed, outcome.trace


def main(number: int, seed: int) -> None:
    seen: Counter[str] = Counter()
    for count, text in enumerate(mutants(number, seed), 1):
        if said := complaint(text):
            key = "\n".join(said.strip().splitlines()[-3:])
            seen[key] += 1
            if seen[key] <= 2:
                print(f"{'=' * 20} mutant {count}\n{said}\n{'-' * 20}\n{text}", flush=True)
        if count % 100 == 0:
            print("mutants", count, "complaints", seen.total(), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
