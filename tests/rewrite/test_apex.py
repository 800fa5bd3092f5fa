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


# -- FP16_Optimizer ----------------------------------------------------------------------------------------------------

WRAPPED = script(
    """
    import torch
    import torch.nn.functional as F
    from apex.fp16_utils import FP16_Optimizer

    net = torch.nn.Linear(8, 8).cuda().half()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer = FP16_Optimizer(optimizer, dynamic_loss_scale=True)
    for x, y in loader:
        x, y = x.cuda().half(), y.cuda().half()
        optimizer.zero_grad()
        loss = F.mse_loss(net(x), y)
        optimizer.backward(loss)
        optimizer.step()
    """
)
UNWRAPPED = script(
    """
    import torch
    import torch.nn.functional as F

    net = torch.nn.Linear(8, 8).cuda()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        x, y = x.cuda(), y.cuda()
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = F.mse_loss(net(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    """
)
Changes = list[tuple[str, str]]
WRAPS: dict[str, tuple[Changes, Changes, str]] = {
    "plain": ([], [], "changed: weights are float32 now"),
    "everything of fp16_utils": ([("import FP16_Optimizer", "import *")], [], ""),
    "a copy of it": ([("apex.fp16_utils", "fp16_utils")], [], ""),
    "network_to_half": (
        [("import FP16", "import network_to_half, FP16"), (".half()\nopt", "\nnet = network_to_half(net)\nopt")],
        [],
        "",
    ),
    "batch norm in float32": (
        [
            ("import FP16", "import BN_convert_float, network_to_half, FP16"),
            (".half()\nopt", "\nnet = BN_convert_float(network_to_half(net))\nopt"),
        ],
        [],
        "",
    ),
    "a static scale": (
        [("dynamic_loss_scale=True", "static_loss_scale=128.0")],
        [('"cuda")\nfor', '"cuda", init_scale=128.0)\nfor')],
        "the loss scale, which was 128.0 throughout, starts there and adapts",
    ),
    "no scale": ([(", dynamic_loss_scale=True", "")], [], "whatever 1.0 says"),
    "a scale of arguments": (
        [("dynamic_loss_scale=True", "static_loss_scale=opt.scale, dynamic_loss_scale=opt.dynamic")],
        [],
        "whatever opt.scale says",
    ),
    "how the scale moves": (
        [("=True)", "=True, dynamic_loss_args={'scale_window': 500}, verbose=False)")],
        [],
        "GradScaler's own way now",
    ),
    "made where it is wrapped": (
        [
            ("optimizer = torch.optim.SGD(net.parameters(), lr=0.1)\n", ""),
            ("(opt", "(torch.optim.SGD(net.parameters()), "),
        ],
        [("(net.parameters(), lr=0.1)", "(net.parameters())")],
        "",
    ),
    "clipped": (
        [("    optimizer.step", "    optimizer.clip_master_grads(5.0)\n    optimizer.step")],
        [
            (
                "    scaler.step",
                "    scaler.unscale_(optimizer)\n"
                "    torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)\n    scaler.step",
            )
        ],
        "unscaled before they are clipped",
    ),
    "master gradients by hand": (
        [
            ("(loss)", "(loss, update_master_grads=False)"),
            (
                "    optimizer.step",
                "    optimizer.update_master_grads()\n"
                "    norm = optimizer.clip_fp32_grads(clip=5.0)\n    optimizer.step",
            ),
        ],
        [
            (
                "    scaler.step",
                "    scaler.unscale_(optimizer)\n"
                "    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)\n    scaler.step",
            )
        ],
        "",
    ),
    "a graph that is kept": ([("(loss)", "(loss, retain_graph=True)")], [("ward()", "ward(retain_graph=True)")], ""),
    "the scale, and whether it was too large": (
        [("step()\n", "step()\n    if not optimizer.overflow:\n        print(loss.item(), optimizer.loss_scale)\n")],
        [
            ("    scaler.step", "    scale_before = scaler.get_scale()\n    scaler.step"),
            (
                "update()\n",
                "update()\n    if not (scaler.get_scale() < scale_before):\n"
                "        print(loss.item(), scaler.get_scale())\n",
            ),
        ],
        "",
    ),
    "the state": (
        [("step()\n", "step()\ntorch.save(optimizer.state_dict(), 'optimizer.pt')\n")],
        [("update()\n", "update()\ntorch.save(optimizer.state_dict(), 'optimizer.pt')\n")],
        "what FP16_Optimizer saved does not load into it",
    ),
}


def wrapped(text: str, dtype: str = "float16") -> Result:
    put(text)
    (result,) = fixed("train.py", dtype=dtype)
    assert result is not None
    return result


@pytest.mark.parametrize("case", WRAPS)
def test_wrapped_optimizers(case: str) -> None:
    before, after, said = WRAPS[case]
    text, expected = WRAPPED, UNWRAPPED
    for old, new in before:
        assert old in text
        text = text.replace(old, new)
    for old, new in after:
        assert old in expected
        expected = expected.replace(old, new)
    result = wrapped(text)
    assert (result.text, result.refused) == (expected, False)
    assert said in result.lines[0]
    assert "apex.amp" not in result.lines[0]
    assert wrapped(result.text).text == result.text


def test_two_wrapped_optimizers_with_loss_scales_of_their_own() -> None:
    text = case("fp16_optimizer_two", "apex").script
    result = wrapped(text.replace("dynamic_loss_scale=True", "static_loss_scale=8.0", 1))
    assert "loss scales of their own" in result.lines[0]


def test_master_copies_by_hand() -> None:
    """Nothing says apex here, and the loss is scaled already."""
    text = script(
        """
        import torch
        from precision import copy_in_params, get_param_copy, network_to_half, set_grad

        net = network_to_half(torch.nn.Linear(8, 8).cuda())
        copy = get_param_copy(net)
        optimizer = torch.optim.SGD(copy, lr=0.1)
        for x, y in loader:
            loss = torch.nn.functional.mse_loss(net(x), y) * 128
            net.zero_grad()
            loss.backward()
            set_grad(copy, list(net.parameters()))
            optimizer.step()
            copy_in_params(net, copy)
        """
    )
    result = wrapped(text)
    assert result.text == text
    assert "float32 copies that the script keeps in step by hand" in result.lines[0]


UNCLEAR = {
    "a model that is not cast here": (
        [(".cuda().half()\n", ".cuda()\n"), (".half(), y", ", y")],
        "which model becomes half",
    ),
    "casts that another flag decides": (
        [(".half()\nopt", "\nif opt.half:\n    net.half()\nopt")],
        "casts to float16 ask for opt.half, and FP16_Optimizer does not",
    ),
    "a loss that is scaled by hand": (
        [("    optimizer.backward", "    loss = loss * opt.loss_scale\n    optimizer.backward")],
        "the loss is scaled by hand",
    ),
    "casts elsewhere": (
        [("for x", "def write():\n    torch.save(table.half(), 'table.pt')\nfor x")],
        "does not see that the casts to float16",
    ),
    "master copies": (
        [("import FP16", "import prep_param_lists, FP16"), ("for x", "masters = prep_param_lists(net)\nfor x")],
        "it uses prep_param_lists",
    ),
    "the inner optimizer": ([("for x", "print(optimizer.optimizer)\nfor x")], "it uses optimizer.optimizer"),
    "an overflow that is asked for before the step": (
        [("    optimizer.step", "    print(optimizer.overflow)\n    optimizer.step")],
        "elsewhere than behind the step",
    ),
    "a closure": ([("optimizer.step()", "optimizer.step(closure)")], "step() takes arguments"),
    "another name": (
        [("for x", "def end(opt, loss):\n    opt.backward(loss)\nfor x")],
        "may be of the wrapped optimizer",
    ),
    "a part of another statement": (
        [("optimizer.backward(loss)", "done = optimizer.backward(loss)")],
        "another statement",
    ),
    "the model inside": (
        [
            ("import FP16", "import network_to_half, FP16"),
            (".half()\nopt", "\nnet = network_to_half(net)\nprint(net[1])\nopt"),
        ],
        "the model inside of network_to_half()",
    ),
    "other half tensors": (
        [("    optimizer.zero", "    x = x + torch.zeros(8, dtype=torch.half)\n    optimizer.zero")],
        "other float16 tensors",
    ),
    "model parallelism": ([("import torch\n", "import torch\nimport mpu\n")], "model parallelism"),
    "another option": ([("=True)", "=True, min_scale=1)")], "FP16_Optimizer is given min_scale"),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_wrapped_optimizers_for_a_person(case: str) -> None:
    changes, reason = UNCLEAR[case]
    text = WRAPPED
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    result = wrapped(text)
    assert result.text == text
    assert reason in result.lines[0], result.lines


def test_a_wrapped_optimizer_in_another_file() -> None:
    put("def end(optimizer, loss):\n    optimizer.backward(loss)\n", "engine.py")
    result = wrapped(WRAPPED.replace("import torch\n", "import torch\nfrom engine import end\n", 1))
    assert "optimizer.backward() in" in result.lines[0]
    assert "engine.py may be of the wrapped optimizer" in result.lines[0]


@pytest.mark.parametrize("text", [PLAIN, WRAPPED])
def test_bfloat16_is_not_what_apex_does(text: str) -> None:
    result = wrapped(text, dtype="bfloat16")
    assert result.text == text
    assert "trains in float16 with a loss scale, and bfloat16 was asked for" in result.lines[0]


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
