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
from tests.rewrite.test_fix_properties import no_new_names

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


# -- steps: (amp.initialize and what runs behind LOOP, before), (after) ------------------------------------------------

STEPS = {
    "a switch": (
        f"if args.amp:\n    {SETUP}",
        """
        if args.amp:
            with amp.scale_loss(loss, optimizer) as scaled_loss:
                scaled_loss.backward()
        else:
            loss.backward()
        optimizer.step()
        """,
        "args.amp",
        """
        if args.amp:
            scaler.scale(loss).backward()
        else:
            loss.backward()
        scaler.step(optimizer)
        scaler.update()
        """,
    ),
    "arms that step": (
        f"if args.amp:\n    {SETUP}",
        """
        if args.amp:
            with amp.scale_loss(loss, optimizer) as scaled_loss:
                scaled_loss.backward()
            optimizer.step()
        else:
            loss.backward()
            optimizer.step()
        """,
        "args.amp",
        """
        if args.amp:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()
        """,
    ),
    "accumulation": (
        SETUP,
        """
        if step % 4 == 0:
            with amp.scale_loss(loss, optimizer) as scaled_loss:
                scaled_loss.backward()
        else:
            with amp.scale_loss(loss, optimizer, delay_unscale=True) as scaled_loss:
                scaled_loss.backward()
        if step % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
        """,
        "",
        """
        scaler.scale(loss).backward()
        if step % 4 == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        """,
    ),
    "master parameters, clipped sometimes": (
        SETUP,
        """
        with amp.scale_loss(loss, optimizer) as scaled_loss:
            scaled_loss.backward(retain_graph=True)
        if limit:
            torch.nn.utils.clip_grad_norm_(amp.master_params(optimizer), limit)
        optimizer.step()
        """,
        "",
        """
        scaler.scale(loss).backward(retain_graph=True)
        if limit:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
        scaler.step(optimizer)
        scaler.update()
        """,
    ),
    "gradients that are logged, then clipped": (
        SETUP,
        """
        with amp.scale_loss(loss, optimizer) as scaled_loss:
            scaled_loss.backward()
        log_gradients(model)
        for p in amp.master_params(optimizer):
            p.grad.clamp_(-1, 1)
        optimizer.step()
        """,
        "",
        """
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        log_gradients(model)
        for p in model.parameters():
            p.grad.clamp_(-1, 1)
        scaler.step(optimizer)
        scaler.update()
        """,
    ),
    "a body with more in it": (
        SETUP,
        """
        with amp.scale_loss(loss / 2, [optimizer], loss_id=0) as scaled_loss:
            # what is scaled
            print(scaled_loss.item())
            scaled_loss.backward()
        optimizer.step()
        """,
        "",
        """
        scaled_loss = scaler.scale(loss / 2)
        # what is scaled
        print(scaled_loss.item())
        scaled_loss.backward()
        scaler.step(optimizer)
        scaler.update()
        """,
    ),
}


def indented(text: str) -> str:
    return textwrap.indent(script(text), "    ")


@pytest.mark.parametrize("case", STEPS)
def test_steps(case: str) -> None:
    setup, before, switch, after = STEPS[case]
    text, applicability = migrated(HEAD + setup + LOOP + indented(before))
    expected = HEAD_AFTER + SETUP_AFTER + LOOP_AFTER + indented(after)
    assert text == (switched(expected, switch) if switch else expected)
    assert applicability == "safe"


# -- whole scripts -----------------------------------------------------------------------------------------------------

WHOLE = {
    "two players, one loss scale": (
        """
        import torch
        from apex import amp
        from torch import nn

        net, critic = nn.Linear(8, 8).cuda(), nn.Linear(8, 1).cuda()
        first, second = torch.optim.Adam(net.parameters()), torch.optim.Adam(critic.parameters())
        [net, critic], [first, second] = amp.initialize([net, critic], [first, second], num_losses=2)
        judge = nn.BCEWithLogitsLoss()
        for real in loader:
            fake = net(torch.randn(4, 8).cuda())
            loss = judge(critic(real), ones) + judge(critic(fake.detach()), zeros)
            second.zero_grad()
            with amp.scale_loss(loss, second, loss_id=0) as scaled:
                scaled.backward()
            second.step()
            loss = judge(critic(fake), ones)
            first.zero_grad()
            with amp.scale_loss(loss, first, loss_id=1) as scaled:
                scaled.backward()
            first.step()
        """,
        """
        import torch
        from torch import nn

        net, critic = nn.Linear(8, 8).cuda(), nn.Linear(8, 1).cuda()
        first, second = torch.optim.Adam(net.parameters()), torch.optim.Adam(critic.parameters())
        scaler = torch.amp.GradScaler("cuda")
        judge = nn.BCEWithLogitsLoss()
        for real in loader:
            with torch.autocast("cuda", dtype=torch.float16):
                fake = net(torch.randn(4, 8).cuda())
                loss = judge(critic(real), ones) + judge(critic(fake.detach()), zeros)
            second.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(second)
            with torch.autocast("cuda", dtype=torch.float16):
                loss = judge(critic(fake), ones)
            first.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(first)
            scaler.update()
        """,
    ),
    "functions: the scaler and the switch get where they are needed": (
        """
        import torch
        from apex import amp
        from torch import nn


        def train(model, optimizer, loader):
            for x, y in loader:
                loss = nn.functional.mse_loss(model(x), y)
                optimizer.zero_grad()
                with amp.scale_loss(loss, optimizer) as scaled_loss:
                    scaled_loss.backward()
                optimizer.step()


        def evaluate(model, loader, half, path=None):
            model.eval()
            with torch.no_grad():
                for x, y in loader:
                    out = model(x)
                    print(nn.functional.mse_loss(out, y).item())


        def save(path, model, optimizer):
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "amp": amp.state_dict()}
            torch.save(state, path)


        def main(args):
            net = nn.Linear(2, 2).cuda()
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            model, optimizer = amp.initialize(net, optimizer, enabled=args.half)
            for epoch in range(3):
                train(model, optimizer, data)
                evaluate(model, data, args.half)
                save("last.pt", model, optimizer)
        """,
        """
        import torch
        from torch import nn


        def train(model, optimizer, loader, scaler):
            for x, y in loader:
                with torch.autocast("cuda", dtype=torch.float16, enabled=scaler.is_enabled()):
                    loss = nn.functional.mse_loss(model(x), y)
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()


        def evaluate(model, loader, half, path=None):
            model.eval()
            with torch.no_grad():
                for x, y in loader:
                    with torch.autocast("cuda", dtype=torch.float16, enabled=half):
                        out = model(x)
                        print(nn.functional.mse_loss(out, y).item())


        def save(path, model, optimizer, scaler):
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "amp": scaler.state_dict()}
            torch.save(state, path)


        def main(args):
            net = nn.Linear(2, 2).cuda()
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            model = net
            scaler = torch.amp.GradScaler("cuda", enabled=args.half)
            for epoch in range(3):
                train(model, optimizer, data, scaler)
                evaluate(model, data, args.half)
                save("last.pt", model, optimizer, scaler)
        """,
    ),
    "a helper that scales, made partial in a class": (
        """
        from functools import partial

        import torch
        from apex import amp


        def backward(half, loss, optimizer, **options):
            if half:
                with amp.scale_loss(loss, optimizer) as scaled_loss:
                    scaled_loss.backward(**options)
            else:
                loss.backward(**options)


        class Trainer:
            def __init__(self, model, half=False):
                self.model = model
                self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                self.half = half
                if half:
                    self.model, self.optimizer = amp.initialize(self.model, self.optimizer)

            def train(self):
                run = partial(backward, self.half)
                for x in loader:
                    loss = self.model(x)
                    run(loss / 2, self.optimizer)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
        """,
        """
        from functools import partial

        import torch


        def backward(half, loss, optimizer, *, scaler, **options):
            if half:
                scaler.scale(loss).backward(**options)
            else:
                loss.backward(**options)


        class Trainer:
            def __init__(self, model, half=False):
                self.model = model
                self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                self.half = half
                self.scaler = torch.amp.GradScaler("cuda", enabled=half)

            def train(self):
                run = partial(backward, self.half, scaler=self.scaler)
                for x in loader:
                    with torch.autocast("cuda", dtype=torch.float16, enabled=self.scaler.is_enabled()):
                        loss = self.model(x)
                    run(loss / 2, self.optimizer)
                    self.scaler.step(self.optimizer)
                    self.scaler.update()
                    self.optimizer.zero_grad()
        """,
    ),
    "inference": (
        """
        import torch
        from apex import amp

        model = torch.nn.Linear(2, 2).cuda().eval()
        model = amp.initialize(model)
        with torch.no_grad():
            for x in loader:
                y = model(x)
                with amp.disable_casts():
                    z = y.float() @ w
        """,
        """
        import torch

        model = torch.nn.Linear(2, 2).cuda().eval()
        with torch.no_grad():
            for x in loader:
                with torch.autocast("cuda", dtype=torch.float16):
                    y = model(x)
                with torch.autocast("cuda", enabled=False):
                    z = y.float() @ w
        """,
    ),
    "checkpoints that do not hold what apex knows": (
        PLAIN.replace("for x", 'state = torch.load("a.pt")\noptimizer.load_state_dict(state["optimizer"])\nfor x')
        + 'torch.save({"epoch": 1, "optimizer": optimizer.state_dict()}, "a.pt")\n',
        AFTER.replace(
            "for x",
            'state = torch.load("a.pt")\noptimizer.load_state_dict(state["optimizer"])\n'
            'if state.get("scaler"):\n    scaler.load_state_dict(state["scaler"])\nfor x',
        )
        + 'torch.save({"epoch": 1, "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}, "a.pt")\n',
    ),
    "imported where it is used": (
        """
        import torch


        def train(args, model, loader):
            groups = [{"params": model.parameters(), "lr": 0.1}]
            optimizer = torch.optim.SGD(groups)
            if args.fp16:
                try:
                    from apex import amp
                except ImportError:
                    raise ImportError("get apex")
                model, optimizer = amp.initialize(model, optimizer, opt_level=args.level)
            for step, batch in enumerate(loader):
                loss = model(**batch)[0]
                if args.gpus > 1:
                    loss = loss.mean()
                if args.fp16:
                    with amp.scale_loss(loss, optimizer) as loss:
                        loss.backward()
                else:
                    loss.backward()
                if (step + 1) % args.every == 0:
                    if args.fp16:
                        torch.nn.utils.clip_grad_norm_(amp.master_params(optimizer), args.norm)
                    else:
                        torch.nn.utils.clip_grad_norm_(model.parameters(), args.norm)
                    optimizer.step()
                    model.zero_grad()
        """,
        """
        import torch


        def train(args, model, loader):
            groups = [{"params": model.parameters(), "lr": 0.1}]
            optimizer = torch.optim.SGD(groups)
            scaler = torch.amp.GradScaler("cuda", enabled=args.fp16 and args.level != "O0")
            for step, batch in enumerate(loader):
                with torch.autocast("cuda", dtype=torch.float16, enabled=args.fp16 and args.level != "O0"):
                    loss = model(**batch)[0]
                    if args.gpus > 1:
                        loss = loss.mean()
                if args.fp16:
                    scaler.scale(loss).backward()
                else:
                    loss.backward()
                if (step + 1) % args.every == 0:
                    if args.fp16:
                        scaler.unscale_(optimizer)
                        torch.nn.utils.clip_grad_norm_(model.parameters(), args.norm)
                    else:
                        torch.nn.utils.clip_grad_norm_(model.parameters(), args.norm)
                    scaler.step(optimizer)
                    scaler.update()
                    model.zero_grad()
        """,
    ),
    "an import that nothing uses": (
        """
        import torch
        from apex import amp, optimizers

        optimizer = optimizers.FusedAdam(model.parameters())
        """,
        """
        import torch
        from apex import optimizers

        optimizer = optimizers.FusedAdam(model.parameters())
        """,
    ),
}


@pytest.mark.parametrize("case", WHOLE)
def test_whole_scripts(case: str) -> None:
    before, after = (script(text) for text in WHOLE[case])
    text, _ = migrated(before)
    assert text == after
    no_new_names(before, text)
    assert find(text) == []


@pytest.mark.parametrize("case", WHOLE)
def test_check_finds_nothing_new(case: str) -> None:
    text, _ = migrated(script(WHOLE[case][0]))
    every = Settings(codes=default_codes())
    assert checks.check_module(Module.read("train.py", text.encode()), every).findings == ()


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
    (finding,) = find(text)
    assert finding.fix is None
    assert finding.help.startswith("not migrated: ")
    assert reason in finding.help


def test_files_that_change_together(tmp_path: Path) -> None:
    """A script that hands the saving of apex's state to another file is not migrated alone."""
    (tmp_path / "saving.py").write_text("from apex import amp\n\n\ndef state():\n    return amp.state_dict()\n")
    text = PLAIN.replace("import torch\n", "import saving\nimport torch\n", 1) + "torch.save(saving.state(), 'a.pt')\n"
    (tmp_path / "train.py").write_text(text)
    (finding,) = find(text, path=str(tmp_path / "train.py"))
    assert finding.fix is None
    assert f"`amplint fix {tmp_path / 'saving.py'} {tmp_path / 'train.py'}` changes all of them" in finding.help


# -- several files -----------------------------------------------------------------------------------------------------

SEVERAL = {
    "main.py": (
        """
        import torch
        from apex import amp

        from engine import evaluate, measure, train
        from state import Keeper


        def run(loop, args, loader):
            net = torch.nn.Linear(8, 8).cuda()
            opt = torch.optim.SGD(net.parameters(), lr=0.1)
            if args.half:
                net, opt = amp.initialize(net, opt, opt_level="O1")
            keeper = Keeper("last.pt")
            for epoch in range(3):
                loop(net, opt, loader, args.half)
                evaluate(net, loader, args.half)
                keeper.save(net, opt)


        if __name__ == "__main__":
            if args.measure:
                loop = measure
            else:
                loop = train
            run(loop, args, loader)
        """,
        """
        import torch

        from engine import evaluate, measure, train
        from state import Keeper


        def run(loop, args, loader):
            net = torch.nn.Linear(8, 8).cuda()
            opt = torch.optim.SGD(net.parameters(), lr=0.1)
            scaler = torch.amp.GradScaler("cuda", enabled=args.half)
            keeper = Keeper("last.pt")
            for epoch in range(3):
                loop(net, opt, loader, args.half, scaler)
                evaluate(net, loader, args.half)
                keeper.save(net, opt, scaler)


        if __name__ == "__main__":
            if args.measure:
                loop = measure
            else:
                loop = train
            run(loop, args, loader)
        """,
    ),
    "engine.py": (
        """
        import torch
        import torch.nn.functional as F
        from apex import amp


        def train(model, optimizer, loader, half):
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.mse_loss(model(x.cuda()), y.cuda())
                if half:
                    with amp.scale_loss(loss, optimizer) as scaled:
                        scaled.backward()
                else:
                    loss.backward()
                optimizer.step()


        def measure(model, optimizer, loader, half):
            for x, y in loader:
                loss = F.mse_loss(model(x.cuda()), y.cuda())
                print(loss.item())


        def evaluate(model, loader, half):
            with torch.no_grad():
                for x, y in loader:
                    print(F.mse_loss(model(x.cuda()), y.cuda()).item())
        """,
        """
        import torch
        import torch.nn.functional as F


        def train(model, optimizer, loader, half, scaler):
            for x, y in loader:
                optimizer.zero_grad()
                with torch.autocast("cuda", dtype=torch.float16, enabled=scaler.is_enabled()):
                    loss = F.mse_loss(model(x.cuda()), y.cuda())
                if half:
                    scaler.scale(loss).backward()
                else:
                    loss.backward()
                scaler.step(optimizer)
                scaler.update()


        def measure(model, optimizer, loader, half, scaler):
            for x, y in loader:
                loss = F.mse_loss(model(x.cuda()), y.cuda())
                print(loss.item())


        def evaluate(model, loader, half):
            with torch.no_grad():
                for x, y in loader:
                    with torch.autocast("cuda", dtype=torch.float16, enabled=half):
                        print(F.mse_loss(model(x.cuda()), y.cuda()).item())
        """,
    ),
    "state.py": (
        """
        import torch
        from apex import amp


        class Keeper:
            def __init__(self, path):
                self.path = path

            def save(self, model, optimizer):
                torch.save({"optimizer": optimizer.state_dict(), "amp": amp.state_dict()}, self.path)
        """,
        """
        import torch


        class Keeper:
            def __init__(self, path):
                self.path = path

            def save(self, model, optimizer, scaler):
                torch.save({"optimizer": optimizer.state_dict(), "amp": scaler.state_dict()}, self.path)
        """,
    ),
}


def fixed(folder: Path, *names: str, dtype: str = "float16") -> list[Result | None]:
    modules = [Module.read(str(folder / name), (folder / name).read_bytes()) for name in names]
    return fix_all(modules, Settings(codes=default_codes()), {"dtype": dtype})


@pytest.fixture
def several(tmp_path: Path) -> Path:
    for name, (before, _) in SEVERAL.items():
        (tmp_path / name).write_text(script(before))
    return tmp_path


def test_files_of_one_script(several: Path) -> None:
    results = fixed(several, *SEVERAL)
    for result, (_, after) in zip(results, SEVERAL.values(), strict=True):
        assert result is not None
        assert result.text == script(after)
        assert any("completed: apex.amp is torch.amp now" in line for line in result.lines)


@pytest.mark.parametrize("names", [("main.py",), ("engine.py",), ("engine.py", "state.py")])
def test_not_all_files_are_named(several: Path, names: tuple[str, ...]) -> None:
    command = f"`amplint fix {' '.join(str(several / name) for name in sorted(SEVERAL))}` changes all of them"
    for result, name in zip(fixed(several, *names), names, strict=True):
        assert result is not None
        assert result.refused
        assert result.text == script(SEVERAL[name][0])
        assert all(command in line for line in result.lines)


def test_by_default_and_what_changes_is_said(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PLAIN.replace("(model, optimizer)", '(model, optimizer, opt_level="O2")'))
    (result,) = fixed(tmp_path, "train.py")
    assert result is not None
    assert result.text == AFTER
    assert "changed: weights, which O2 kept in float16, are float32 now" in result.lines[0]


def test_refused_is_not_already_amp(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PLAIN.replace("for x", "amp._amp_state.loss_scalers[0]\nfor x"))
    (result,) = fixed(tmp_path, "train.py")
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


def wrapped(tmp_path: Path, text: str, dtype: str = "float16") -> Result:
    (tmp_path / "train.py").write_text(text)
    (result,) = fixed(tmp_path, "train.py", dtype=dtype)
    assert result is not None
    return result


@pytest.mark.parametrize("case", WRAPS)
def test_wrapped_optimizers(case: str, tmp_path: Path) -> None:
    before, after, said = WRAPS[case]
    text, expected = WRAPPED, UNWRAPPED
    for old, new in before:
        assert old in text
        text = text.replace(old, new)
    for old, new in after:
        assert old in expected
        expected = expected.replace(old, new)
    result = wrapped(tmp_path, text)
    assert (result.text, result.refused) == (expected, False)
    assert said in result.lines[0]
    assert "apex.amp" not in result.lines[0]
    assert wrapped(tmp_path, result.text).text == result.text


def test_an_optimizer_that_is_wrapped_under_a_flag(tmp_path: Path) -> None:
    """The flag is the switch; what FusedAdam clipped inside is clipped before the step, where it was."""
    before = script(
        """
        import torch
        from models import Net
        from optimization import SlowAdam


        def main(args):
            net = Net.from_pretrained(args.model)
            if args.fp16:
                net.half()
            net.cuda()
            if args.fp16:
                try:
                    from apex.optimizers import FP16_Optimizer, FusedAdam
                except ImportError:
                    raise ImportError("apex is not there")
                optimizer = FusedAdam(net.parameters(), lr=args.lr, max_grad_norm=1.0)
                if args.loss_scale == 0:
                    optimizer = FP16_Optimizer(optimizer, dynamic_loss_scale=True)
                else:
                    optimizer = FP16_Optimizer(optimizer, static_loss_scale=args.loss_scale)
            else:
                optimizer = SlowAdam(net.parameters(), lr=args.lr)
            for step, (x, y) in enumerate(args.loader):
                loss = net(x, y)
                if args.accumulate > 1:
                    loss = loss / args.accumulate
                if args.fp16:
                    optimizer.backward(loss)
                else:
                    loss.backward()
                if (step + 1) % args.accumulate == 0:
                    optimizer.step()
                    optimizer.zero_grad()
        """
    )
    after = script(
        """
        import torch
        from models import Net
        from optimization import SlowAdam


        def main(args):
            net = Net.from_pretrained(args.model)
            net.cuda()
            scaler = torch.amp.GradScaler("cuda", enabled=args.fp16)
            if args.fp16:
                try:
                    from apex.optimizers import FusedAdam
                except ImportError:
                    raise ImportError("apex is not there")
                optimizer = FusedAdam(net.parameters(), lr=args.lr)
            else:
                optimizer = SlowAdam(net.parameters(), lr=args.lr)
            for step, (x, y) in enumerate(args.loader):
                with torch.autocast("cuda", dtype=torch.float16, enabled=args.fp16):
                    loss = net(x, y)
                    if args.accumulate > 1:
                        loss = loss / args.accumulate
                if args.fp16:
                    scaler.scale(loss).backward()
                else:
                    loss.backward()
                if (step + 1) % args.accumulate == 0:
                    if args.fp16:
                        scaler.unscale_(optimizer)
                        for group in optimizer.param_groups:
                            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad()
        """
    )
    result = wrapped(tmp_path, before)
    assert result.text == after
    assert "max_grad_norm of FusedAdam, which FP16_Optimizer applied, is clip_grad_norm_" in result.lines[0]


TWO = script(
    """
    import torch
    from apex.fp16_utils import FP16_Optimizer

    G = torch.nn.Linear(8, 8).cuda().half()
    D = torch.nn.Linear(8, 1).cuda().half()
    opt_g = FP16_Optimizer(torch.optim.Adam(G.parameters()), dynamic_loss_scale=True)
    opt_d = FP16_Optimizer(torch.optim.Adam(D.parameters()), dynamic_loss_scale=True)
    for x in loader:
        x = x.cuda().half()
        opt_d.zero_grad()
        loss_d = D(G(x).detach()).mean() - D(x).mean()
        opt_d.backward(loss_d)
        opt_d.step()
        opt_g.zero_grad()
        loss_g = -D(G(x)).mean()
        opt_g.backward(loss_g)
        opt_g.step()
    """
)


def test_two_wrapped_optimizers(tmp_path: Path) -> None:
    result = wrapped(tmp_path, TWO)
    assert result.text == script(
        """
        import torch

        G = torch.nn.Linear(8, 8).cuda()
        D = torch.nn.Linear(8, 1).cuda()
        opt_g = torch.optim.Adam(G.parameters())
        opt_d = torch.optim.Adam(D.parameters())
        scaler = torch.amp.GradScaler("cuda")
        for x in loader:
            x = x.cuda()
            opt_d.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss_d = D(G(x).detach()).mean() - D(x).mean()
            scaler.scale(loss_d).backward()
            scaler.step(opt_d)
            opt_g.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss_g = -D(G(x)).mean()
            scaler.scale(loss_g).backward()
            scaler.step(opt_g)
            scaler.update()
        """
    )
    assert "all losses share one loss scale now" in result.lines[0]
    own = wrapped(tmp_path, TWO.replace("dynamic_loss_scale=True", "static_loss_scale=8.0", 1))
    assert "loss scales of their own" in own.lines[0]


def test_a_trainer_that_wraps_its_optimizer(tmp_path: Path) -> None:
    """Weights are cast as the flag says, and so are losses scaled."""
    text = script(
        """
        import torch
        from apex.fp16_utils import FP16_Optimizer, network_to_half


        class Trainer:
            def __init__(self, net, options):
                self.options = options
                self.net = net.cuda()
                if options.fp16:
                    self.net = network_to_half(self.net)
                self.optimizer = torch.optim.Adam(self.net.parameters())
                if options.fp16:
                    self.optimizer = FP16_Optimizer(self.optimizer, dynamic_loss_scale=True)

            def epoch(self, loader):
                for x, y in loader:
                    loss = torch.nn.functional.mse_loss(self.net(x), y)
                    self.optimizer.zero_grad()
                    if self.options.fp16:
                        self.optimizer.backward(loss)
                    else:
                        loss.backward()
                    self.optimizer.step()


        Trainer(torch.nn.Linear(4, 4), parse()).epoch(load())
        """
    )
    result = wrapped(tmp_path, text)
    assert result.text == script(
        """
        import torch


        class Trainer:
            def __init__(self, net, options):
                self.options = options
                self.net = net.cuda()
                self.optimizer = torch.optim.Adam(self.net.parameters())
                self.scaler = torch.amp.GradScaler("cuda", enabled=options.fp16)

            def epoch(self, loader):
                for x, y in loader:
                    with torch.autocast("cuda", dtype=torch.float16, enabled=self.scaler.is_enabled()):
                        loss = torch.nn.functional.mse_loss(self.net(x), y)
                    self.optimizer.zero_grad()
                    if self.options.fp16:
                        self.scaler.scale(loss).backward()
                    else:
                        loss.backward()
                    self.scaler.step(self.optimizer)
                    self.scaler.update()


        Trainer(torch.nn.Linear(4, 4), parse()).epoch(load())
        """
    )


def test_a_wrapped_optimizer_beside_apex_amp(tmp_path: Path) -> None:
    """What is an alternative to apex.amp stays one."""
    text = script(
        """
        import torch
        from apex import amp
        from apex.fp16_utils import FP16_Optimizer

        net = build(half=options.fp16)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        if options.fp16:
            optimizer = FP16_Optimizer(optimizer, dynamic_loss_scale=True)
        if options.amp:
            net, optimizer = amp.initialize(net, optimizer)
        for x, y in loader:
            loss = torch.nn.functional.mse_loss(net(x), y)
            optimizer.zero_grad()
            if options.fp16:
                optimizer.backward(loss)
            elif options.amp:
                with amp.scale_loss(loss, optimizer) as scaled_loss:
                    scaled_loss.backward()
            else:
                loss.backward()
            optimizer.step()
        """
    )
    result = wrapped(tmp_path, text)
    assert result.text == script(
        """
        import torch
        from apex.fp16_utils import FP16_Optimizer

        net = build(half=options.fp16)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        if options.fp16:
            optimizer = FP16_Optimizer(optimizer, dynamic_loss_scale=True)
        scaler = torch.amp.GradScaler("cuda", enabled=options.amp)
        for x, y in loader:
            with torch.autocast("cuda", dtype=torch.float16, enabled=options.amp):
                loss = torch.nn.functional.mse_loss(net(x), y)
            optimizer.zero_grad()
            if options.fp16:
                optimizer.backward(loss)
            elif options.amp:
                scaler.scale(loss).backward()
            else:
                loss.backward()
            scaler.step(optimizer)
            scaler.update()
        """
    )


def test_master_copies_by_hand(tmp_path: Path) -> None:
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
    result = wrapped(tmp_path, text)
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
def test_wrapped_optimizers_for_a_person(case: str, tmp_path: Path) -> None:
    changes, reason = UNCLEAR[case]
    text = WRAPPED
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    result = wrapped(tmp_path, text)
    assert result.text == text
    assert reason in result.lines[0], result.lines


def test_a_wrapped_optimizer_in_another_file(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text("def end(optimizer, loss):\n    optimizer.backward(loss)\n")
    result = wrapped(tmp_path, WRAPPED.replace("import torch\n", "import torch\nfrom engine import end\n", 1))
    assert "optimizer.backward() in" in result.lines[0]
    assert "engine.py may be of the wrapped optimizer" in result.lines[0]


@pytest.mark.parametrize("text", [PLAIN, WRAPPED])
def test_bfloat16_is_not_what_apex_does(text: str, tmp_path: Path) -> None:
    result = wrapped(tmp_path, text, dtype="bfloat16")
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
