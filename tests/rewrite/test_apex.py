"""apex.amp → torch.amp: what a script becomes, and what is left to a person, with the reason."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from amplint import checks
from amplint.config import Settings
from amplint.findings import Finding, Severity
from amplint.rewrite.instrument import Result, fix_all
from amplint.rewrite.syntax.apply import apply
from amplint.selection import default_codes
from amplint.source.module import Module
from tests.rewrite.fixing import case, check_case, contents, names, project, put
from tests.rewrite.test_fix_properties import no_new_names

pytestmark = pytest.mark.usefixtures("own_folder")

CODE = frozenset(("AMP605",))
SETTINGS = Settings(codes=CODE, notes=CODE)


def find(text: str, settings: Settings = SETTINGS, path: str = "train.py") -> list[Finding]:
    module = Module.read(path, text.encode())
    return [one for one in checks.check_module(module, settings).findings if one.code == "AMP605"]


def migrated(text: str, settings: Settings = SETTINGS) -> tuple[str, str]:
    """The text after the fix of the only finding, and what may apply it."""
    (finding,) = find(text, settings)
    assert finding.fix is not None, finding.help
    return apply(text, finding.fix.edits), str(finding.fix.applicability)


def script(text: str) -> str:
    return textwrap.dedent(text).lstrip("\n")


# A small script, and what it becomes; the tables below change lines of both.
HEAD = script(
    """
    import torch
    import torch.nn.functional as F
    from apex import amp

    model = torch.nn.Linear(8, 8).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    """
)
SETUP = "model, optimizer = amp.initialize(model, optimizer)\n"
LOOP = script(
    """
    for x, y in loader:
        loss = F.mse_loss(model(x.cuda()), y.cuda())
    """
)
SCALE = "    with amp.scale_loss(loss, optimizer) as scaled_loss:\n        scaled_loss.backward()\n"
STEP = "    optimizer.step()\n    optimizer.zero_grad()\n"
PLAIN = HEAD + SETUP + LOOP + SCALE + STEP

HEAD_AFTER = HEAD.replace("from apex import amp\n", "")
SETUP_AFTER = 'scaler = torch.amp.GradScaler("cuda")\n'
LOOP_AFTER = script(
    """
    for x, y in loader:
        with torch.autocast("cuda", dtype=torch.float16):
            loss = F.mse_loss(model(x.cuda()), y.cuda())
    """
)
SCALE_AFTER = "    scaler.scale(loss).backward()\n"
STEP_AFTER = "    scaler.step(optimizer)\n    scaler.update()\n    optimizer.zero_grad()\n"
AFTER = HEAD_AFTER + SETUP_AFTER + LOOP_AFTER + SCALE_AFTER + STEP_AFTER


def switched(text: str, switch: str) -> str:
    return text.replace('GradScaler("cuda")', f'GradScaler("cuda", enabled={switch})').replace(
        "torch.float16)", f"torch.float16, enabled={switch})"
    )


# -- imports and amp.initialize: what replaces them in PLAIN, and in AFTER ---------------------------------------------

SPELLINGS = {
    "names": [
        ("from apex import amp", "from apex.amp import initialize, scale_loss"),
        ("amp.initialize", "initialize"),
        ("amp.scale_loss", "scale_loss"),
    ],
    "the module": [("from apex import amp", "import apex.amp as half"), ("amp.i", "half.i"), ("amp.s", "half.s")],
    "the package": [("from apex import amp", "import apex"), ("amp.i", "apex.amp.i"), ("amp.s", "apex.amp.s")],
    "guarded": [("from apex import amp", "try:\n    from apex import amp\nexcept ImportError:\n    amp = None")],
    "explained": [
        (
            "from apex import amp",
            'try:\n    from apex import amp\nexcept ImportError:\n    raise ImportError("get apex")',
        )
    ],
    "asked for": [
        (SETUP, f"assert amp is not None\nif amp is None:\n    print('slow')\nif amp is not None:\n    {SETUP}")
    ],
    "a flag": [
        (
            "from apex import amp",
            "try:\n    from apex import amp\n\n    HAS_APEX = True\nexcept ImportError:\n    HAS_APEX = False",
        ),
        (SETUP, f"assert not use_amp or HAS_APEX\nif not HAS_APEX:\n    print('slow')\n{SETUP}"),
    ],
    "in place": [("model, optimizer = amp", "amp")],
    "keywords": [("(model, optimizer)", '(models=model, optimizers=optimizer, verbosity=0, loss_scale="dynamic")')],
    "one line": [("as scaled_loss:\n        ", "as scaled_loss: ")],
    "another name": [("scaled_loss", "s")],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_one_script(spelling: str) -> None:
    text = PLAIN
    for old, new in SPELLINGS[spelling]:
        assert old in text
        text = text.replace(old, new)
    assert migrated(text) == (AFTER.replace("import torch\n\n\n", "import torch\n\n"), "safe")


OPTIONS = {
    'opt_level="O1"': ("", "safe"),
    'opt_level="O0"': ("False", "safe"),
    'opt_level="O2", keep_batchnorm_fp32=True': ("", "unsafe"),
    'opt_level="O3"': ("", "unsafe"),
    'opt_level="O1" if half else "O2"': ("", "unsafe"),
    'opt_level=level or "O2"': ('(level or "O2") != "O0"', "unsafe"),
    "loss_scale=args.scale": ("", "unsafe"),
    "loss_scale=1.0": ("", "unsafe"),
    "opt_level=args.level": ('args.level != "O0"', "unsafe"),
    "enabled=args.fp16": ("args.fp16", "safe"),
    "enabled=a or b, opt_level=level": ('(a or b) and level != "O0"', "unsafe"),
    "num_losses=3": ("", "unsafe"),
    "max_loss_scale=2.0**24": ("", "unsafe"),
}


@pytest.mark.parametrize("options", OPTIONS)
def test_options(options: str) -> None:
    switch, applicability = OPTIONS[options]
    text = PLAIN.replace("(model, optimizer)", f"(model, optimizer, {options})")
    assert migrated(text) == (switched(AFTER, switch) if switch else AFTER, applicability)


def test_what_changes_is_said() -> None:
    (finding,) = find(PLAIN.replace("(model, optimizer)", '(model, optimizer, opt_level="O2", loss_scale=64)'))
    assert "weights, which O2 kept in float16, are float32 now" in finding.help
    assert "the loss scale, which was 64 throughout, starts there and adapts" in finding.help


def test_a_loss_scale_is_where_the_scaler_starts() -> None:
    text, applicability = migrated(PLAIN.replace("(model, optimizer)", "(model, optimizer, loss_scale=128)"))
    assert text == AFTER.replace('GradScaler("cuda")', 'GradScaler("cuda", init_scale=128.0)')
    assert applicability == "unsafe"


def test_old_torch() -> None:
    text, _ = migrated(PLAIN, Settings(codes=CODE, target_torch=(2, 1)))
    assert text == AFTER.replace('torch.amp.GradScaler("cuda")', "torch.cuda.amp.GradScaler()")


def test_a_taken_name() -> None:
    text = PLAIN.replace("for x", "scaler = StandardScaler()\nfor x", 1)
    assert "grad_scaler.scale(loss).backward()" in migrated(text)[0]


# -- whole scripts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names("apex"))
def test_case(name: str) -> None:
    one = case(name, "apex")
    check_case(one)
    no_new_names(one.script, one.output)
    assert find(one.output) == []
    every = Settings(codes=default_codes())
    assert checks.check_module(Module.read("train.py", one.output.encode()), every).findings == ()


def test_an_import_that_is_all_of_an_if() -> None:
    """`if args.amp: from apex import amp` goes as a whole."""
    text = PLAIN.replace("from apex import amp\n", "if args.amp:\n    from apex import amp\n")
    assert migrated(text) == (AFTER, "safe")


def test_a_state_that_is_not_saved() -> None:
    """What apex lacked as well is no reason to leave the file, but to ask."""
    text, applicability = migrated(PLAIN + 'torch.save(optimizer.state_dict(), "optimizer.pt")\n')
    assert applicability == "unsafe"
    assert text.startswith(AFTER)


# -- what a person must do ---------------------------------------------------------------------------------------------

REFUSED = {
    "a level that apex does not have": ([(")\nfor", ', opt_level="O4")\nfor')], "none that apex has"),
    "a level that is computed": ([(")\nfor", ", opt_level=level())\nfor")], "computed by a call"),
    "a closure": ([("optimizer.step()", "optimizer.step(closure)")], "step() takes arguments"),
    "an elif, and more": (
        [(SETUP, f"if half:\n    {SETUP}elif b:\n    print('float32')\nelse:\n    print('none')\n")],
        "stands in an `elif`",
    ),
    "a switch that is computed inside": (
        [(SETUP, f"if a:\n    b = c()\n    if b:\n        {SETUP}")],
        "computed in the",
    ),
    "saved master parameters": ([("for x", "keep = list(amp.master_params(optimizer))\nfor x")], "kept or saved"),
    "a clip of every micro-batch": (
        [
            (
                "    optimizer.step()",
                "    clip(amp.master_params(optimizer))\n    if i % 4 == 0:\n        optimizer.step()",
            )
        ],
        "on steps that the optimizer does not take",
    ),
    "amp passed on": ([("for x", "helper(amp)\nfor x")], "amp itself is passed on"),
    "amp asked for": ([("for x", "on = bool(amp)\nfor x")], "amp itself is passed on, compared"),
    "a step in the body": (
        [("scaled_loss.backward()", "scaled_loss.backward(); optimizer.step()")],
        "used inside `with",
    ),
    "an own list": ([("for x", "amp.lists.functional_overrides.FP32_FUNCS += ['gelu']\nfor x")], "amp.lists"),
    "a function that is to run in float32": (
        [("for x", "amp.register_float_function(torch, 'sigmoid')\nfor x")],
        "sigmoid in float32, which autocast does not do",
    ),
    "inner state": (
        [("for x", "amp._amp_state.loss_scalers[0]._loss_scale = 1\nfor x")],
        "reaches into amp._amp_state",
    ),
    "a decorator": ([("for x", "@amp.promote_function\ndef f(x): return x\nfor x")], "no amp.promote_function"),
    "a method in half": (
        [("for x", "class M(nn.Module):\n    @amp.half_function\n    def forward(self, x):\n        return x\nfor x")],
        "runs a whole method in half",
    ),
    "a function of a list": (
        [("for x", "@amp.float_function\ndef f(xs):\n    return torch.cat(xs)\nfor x")],
        "of something else than a tensor",
    ),
    "a loss without a name": ([("(loss, opt", "(F.l1_loss(loss, y), opt")], "computed where it is scaled"),
    "a try around more": (
        [
            ("from apex import amp\n", ""),
            (
                SETUP,
                "try:\n    from apex import amp\n    print(1)\n    amp.initialize(model, optimizer)\n"
                "except ImportError:\n    pass\n",
            ),
        ],
        "in the `try` around the import",
    ),
    "an apex that is asked for in words": (
        [("for x", "if 'apex' in sys.modules:\n    train()\nfor x")],
        "used for more than apex.amp",
    ),
    "a wrapper that steps": (
        [("model, optimizer = amp", "model, inner = amp"), ("(model, optimizer)", "(model, optimizer.inner)")],
        "optimizer only holds the optimizer that amp.initialize is given",
    ),
    "no initialize": ([(SETUP, "")], "amp.initialize is not in this file"),
    "no scale_loss": ([(SCALE, "    loss.backward()\n")], "amp.scale_loss is not in this file"),
    "what autocast refuses": (
        [("F.mse_loss(model(x.cuda())", "F.binary_cross_entropy(model(x.cuda()).sigmoid()")],
        "AMP216",
    ),
    "one name for both": ([("model, optimizer = amp", "both = amp")], "kept in one name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    changes, reason = REFUSED[case]
    text = PLAIN
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    findings = find(text)
    assert all(one.fix is None for one in findings)
    (refusal,) = (one.help for one in findings if one.help.startswith("not migrated: "))
    assert reason in refusal


def test_files_that_change_together() -> None:
    """A script that hands the saving of apex's state to another file is not migrated alone."""
    put("from apex import amp\n\n\ndef state():\n    return amp.state_dict()\n", "saving.py")
    text = PLAIN.replace("import torch\n", "import saving\nimport torch\n", 1) + "torch.save(saving.state(), 'a.pt')\n"
    put(text)
    (finding,) = find(text)
    assert finding.fix is None
    assert "`amplint fix saving.py train.py` changes all of them" in finding.help


# -- several files -----------------------------------------------------------------------------------------------------


def fixed(*names: str, dtype: str = "float16") -> list[Result | None]:
    modules = [Module.read(name, Path(name).read_bytes()) for name in names]
    return fix_all(modules, Settings(codes=default_codes()), {"dtype": dtype})


@pytest.mark.parametrize("named", [("main.py",), ("engine.py",), ("engine.py", "state.py")])
def test_not_all_files_are_named(named: tuple[str, ...]) -> None:
    """All are in projects/apex.case."""
    before, _, _ = project("apex")
    command = f"`amplint fix {' '.join(sorted(before))}` changes all of them"
    for name, text in before.items():
        put(text, name)
    for result in fixed(*named):
        assert result is not None
        assert result.refused
        assert all(command in line for line in result.lines)
    assert contents(sorted(before)) == before


def test_by_default_and_what_changes_is_said() -> None:
    put(PLAIN.replace("(model, optimizer)", '(model, optimizer, opt_level="O2")'))
    (result,) = fixed("train.py")
    assert result is not None
    assert result.text == AFTER
    assert "changed: weights, which O2 kept in float16, are float32 now" in result.lines[0]


def test_refused_is_not_already_amp() -> None:
    put(PLAIN.replace("for x", "amp._amp_state.loss_scalers[0]\nfor x"))
    (result,) = fixed("train.py")
    assert result is not None
    assert result.refused
    assert "refused: it reaches into amp._amp_state" in result.lines[0]


# -- whether and how loudly --------------------------------------------------------------------------------------------

TRY = "try:\n    from apex import amp\nexcept ImportError:\n    {}\n"
NATIVE = "import torch\nscaler = torch.amp.GradScaler('cuda')\n"
USE = "with amp.scale_loss(loss, optimizer) as s:\n    s.backward()\n"
SEVERITY = {
    "other parts": ("from apex.optimizers import FusedAdam\nimport apex\napex.parallel.LARC(optimizer)\n", None),
    "a fallback to torch": (TRY.format("from torch.cuda import amp") + "amp.GradScaler()\n", None),
    "a guarded import that nothing uses": (TRY.format("amp = None"), None),
    "a parameter called amp": ("import apex\n\ndef f(amp):\n    return amp.scale_loss\n", None),
    "a branch beside torch's own": (TRY.format("amp = None") + NATIVE + f"if use_apex:\n    {USE[:-1]}", Severity.NOTE),
    "beside torch's own, unguarded": (f"from apex import amp\n{NATIVE}{USE}", Severity.ERROR),
    "an import that nothing uses": ("from apex import amp\n", Severity.ERROR),
    "relative": ("from .apex import amp\n" + USE, None),
}


@pytest.mark.parametrize("case", SEVERITY)
def test_severity(case: str) -> None:
    text, severity = SEVERITY[case]
    text = text.replace("as s:\n    s.backward()", "as s: s.backward()")
    assert [one.severity for one in find(text)] == ([severity] if severity else [])
