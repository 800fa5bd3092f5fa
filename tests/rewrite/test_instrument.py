"""`amplint fix`: case files, what it writes and what it leaves, in one file and in several."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from tests.rewrite.fixing import HEAD, STEP, amplint, case, check_case, names, put

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.mark.parametrize("name", names())
def test_case(name: str) -> None:
    check_case(case(name))


def test_a_model_that_runs_where_nothing_looks_keeps_its_sigmoid() -> None:
    """BCEWithLogitsLoss only where all that its model returns is seen to reach the loss."""
    script = case("bce_on_logits").script
    for use in ("def rate(x):\n    return judge(x)\n", "def rate(net, x):\n    return net(x)\nlater(rate(judge, 1))\n"):
        path = put(script + use)
        assert amplint("train.py").exit_code == 0
        assert "nn.BCELoss()" in path.read_text(encoding="utf-8")


def test_reinforcement_learning_is_converted_in_the_dtype_that_is_named() -> None:
    put("import gymnasium\n" + HEAD + STEP)
    assert "converted" in amplint("train.py", "--check", "--dtype", "float16").stdout
    assert "converted" in amplint("train.py", "--check", "--target-dtype", "bfloat16").stdout


def test_a_cast_behind_the_training_stays() -> None:
    path = put(HEAD + STEP + "model.half()\ntorch.save(model.state_dict(), 'small.pt')\n")
    assert "casts" not in amplint("train.py").stdout
    text = path.read_text(encoding="utf-8")
    assert "scaler.step(optimizer)" in text
    assert "\nmodel.half()\n" in text
    path = put(HEAD + STEP + "    model.half()\n    torch.save(model.state_dict(), 'small.pt')\n")
    assert "refused: the model's weights are cast to float16 (line 10)" in amplint("train.py").stdout


def test_a_step_with_four_results_is_no_game() -> None:
    put(HEAD + STEP + "    total, first, second, scores = judge.step(x)\n")
    assert "converted" in amplint("train.py", "--check").stdout


def test_a_step_with_three_results_is_a_game() -> None:
    put(HEAD + STEP + "    state, reward, done = world.step(x)\n")
    assert "refused: it is reinforcement learning" in amplint("train.py").stdout


def test_a_scale_that_a_resumed_run_finds_anew_is_said() -> None:
    """The optimizer's state has a file of its own by a name that is made: the scaler's is left to a person."""
    save = "for name in ('adam',):\n    torch.save(optimizer.state_dict(), f'{name}.pth')\n"
    load = "optimizer.load_state_dict(torch.load(os.path.join(folder, 'adam.pth')))\n"
    put("import os\n" + HEAD + load + STEP + save)
    result = amplint("train.py")
    assert result.exit_code == 0
    assert "the checkpoint holds the optimizer's state but not the scaler's" in result.stdout


def test_a_folder_of_its_own_is_not_there_for_the_scaler() -> None:
    """Only the last part of a path is another one for the scaler: the folder of its name would have to be made."""
    path = put("import os\n" + HEAD + STEP + "torch.save(optimizer.state_dict(), os.path.join('state_opt/last.pt'))\n")
    result = amplint("train.py")
    assert "the checkpoint holds the optimizer's state but not the scaler's" in result.stdout
    assert "state_scaler" not in path.read_text(encoding="utf-8")
    put("import os\n" + HEAD + STEP + "torch.save(optimizer.state_dict(), os.path.join('state/opt/', 'opt.pt'))\n")
    assert "the scaler's" in amplint("train.py").stdout
    put("import os\n" + HEAD + STEP + "torch.save(optimizer.state_dict(), os.path.join('state', 'opt.pt'))\n")
    assert amplint("train.py").exit_code == 0
    assert "torch.save(scaler.state_dict(), os.path.join('state', 'scaler.pt'))" in path.read_text(encoding="utf-8")


def test_a_function_that_evaluates_twice_is_said_once() -> None:
    rate = "def rate(x, more):\n    with torch.no_grad():\n        first = model(x)\n        if more:\n"
    rate += "            second = model(x + 1)\n            first += second\n    return first.argmax(1)\n"
    put(HEAD + STEP + rate + "print(rate(x, True))\n")
    assert amplint("train.py").stdout.count("rate() evaluates under autocast") == 1


def test_a_backward_that_trains_nothing_is_not_refused() -> None:
    put("import torch\nmodel = torch.nn.Linear(4, 4)\nmodel(torch.rand(2, 4)).sum().backward()\n")
    result = amplint("train.py")
    assert (result.exit_code, result.stdout) == (0, "")


def test_a_loss_that_is_divided_where_its_backward_is_called() -> None:
    path = put(HEAD + STEP.replace("loss.backward()", "(loss / len(y)).backward()"))
    assert amplint("train.py").exit_code == 0
    assert "scaler.scale(loss / len(y)).backward()" in path.read_text(encoding="utf-8")


def test_numpy_has_no_bfloat16() -> None:
    """Values are cast; what may hold integers, for all that is seen, is left to a person."""
    put(HEAD + STEP + "    print(model(x).max(1)[0].detach().cpu().numpy().shape)\n")
    assert "converted" in amplint("train.py").stdout
    step = STEP.replace("    loss = ", "    output = model(x.to(device))\n    found = output.max(1)[0]\n    loss = ")
    step = step.replace("model(x.to(device)), y", "output, y")
    put(HEAD + step + "    print(found.detach().cpu().numpy().shape)\n")
    result = amplint("train.py", "--dtype", "bfloat16")
    assert "refused: it turns model outputs into NumPy arrays, which have no bfloat16" in result.stdout


def test_auto_does_not_switch_the_region_off_with_the_scaler() -> None:
    path = put(case("functions").script)
    assert amplint("train.py", "--dtype", "auto").exit_code == 0
    text = path.read_text(encoding="utf-8")
    assert "is_enabled" not in text
    assert text.count("def amp_dtype():") == 1
    assert text.count("dtype=amp_dtype(), enabled=device.type") == 2
    assert amplint("train.py", "--dtype", "auto").stdout.endswith("already AMP\n")


@pytest.mark.slow
@pytest.mark.parametrize(("gpu", "bf16", "dtype"), [(0, 0, "float16"), (1, 0, "float16"), (1, 1, "bfloat16")])
def test_auto_asks_the_gpu(gpu: bool, bf16: bool, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    put(case("functions").script)
    amplint("train.py", "--dtype", "auto")
    function = Path("train.py").read_text(encoding="utf-8").partition("def ")[2].partition("\n\n")[0]
    constant = "amp_dtype" + case("auto").output.partition("amp_dtype")[2].partition(")\n\n")[0] + ")"
    for text in ("chosen = (lambda: amp_dtype)\n" + constant, f"chosen = lambda: amp_dtype()\ndef {function}"):
        names: dict[str, Any] = {}
        exec("import torch\n" + text, names)
        assert names["chosen"]() is getattr(torch, dtype)


def test_what_already_amp_could_still_do_with_is_said() -> None:
    put(
        HEAD.replace("optimizer =", "scaler = torch.amp.GradScaler('cuda')\noptimizer =")
        + "for x in loader:\n    optimizer.zero_grad()\n    with torch.autocast('cuda', dtype=torch.float16):\n"
        "        loss = model(x).square().mean()\n    scaler.scale(loss).backward()\n    scaler.step(optimizer)\n"
        "    scaler.update()\ntorch.save({'model': model.state_dict(), 'optimizer': optimizer.state_dict()}, 'x.pt')\n"
    )
    result = amplint("train.py", "--check")
    assert result.exit_code == 0
    assert result.stdout.endswith(
        "already AMP; the scaler's state is not in its checkpoint (amplint check says more)\n"
    )


def test_a_project_s_own_oldest_torch_is_no_hindrance() -> None:
    put("torch>=1.11\n", "requirements.txt")
    path = put(HEAD + STEP)
    assert "+scaler = torch.cuda.amp.GradScaler(" in amplint("train.py", "--diff").stdout
    assert amplint("train.py", "--device", "cpu").exit_code == 0  # where no old torch has a scaler
    assert "\nscaler = torch.amp.GradScaler(" in path.read_text(encoding="utf-8")


def test_older_versions_of_torch_get_the_names_that_they_have() -> None:
    path = put(HEAD + STEP)
    amplint("train.py", "--target-torch", "2.1")
    assert '\nscaler = torch.cuda.amp.GradScaler(enabled=device.type == "cuda")\n' in path.read_text(encoding="utf-8")


# -- several files, and what is written -------------------------------------------------------------------------------

MODEL = """\
import torch
class Net(torch.nn.Module):
    def forward(self, x, mask):
        scores = torch.matmul(x, x)
        return scores.masked_fill(mask, -1e9).softmax(dim=-1)
"""
USES = "from model import Net\n" + HEAD.replace("torch.nn.Linear(4, 4)", "Net()") + STEP.replace("x.to(device)", "x, y")


def test_a_file_that_must_change_is_named() -> None:
    put(MODEL, "model.py"), put(USES)
    result = amplint("train.py")
    assert result.exit_code == 1
    assert "refused: model.py:5 cannot run in half precision: " in result.stdout
    assert result.stdout.endswith("; amplint fix model.py train.py changes both\n")
    assert Path("train.py").read_text(encoding="utf-8") == USES
    both = amplint("model.py", "train.py")
    assert both.exit_code == 0
    assert "finfo(" in Path("model.py").read_text(encoding="utf-8")
    assert "scaler.step(optimizer)" in Path("train.py").read_text(encoding="utf-8")


FUNCTION = """\
import torch
import fused
class Bias(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return fused.add_bias(x)
    @staticmethod
    def backward(ctx, grad):
        return fused.add_bias_backward(grad)
class Net(torch.nn.Module):
    def forward(self, x, mask):
        return Bias.apply(x) * mask
"""


def test_what_hands_tensors_to_compiled_code_stays_in_float32() -> None:
    path = put(FUNCTION, "model.py")
    put(USES)
    result = amplint("train.py")
    assert result.exit_code == 1
    assert result.stdout.endswith("Bias has no custom_fwd; amplint fix model.py train.py changes both\n")
    assert amplint("train.py", "model.py", "--target-torch", "2.2").exit_code == 0
    text = path.read_text(encoding="utf-8")
    assert "@torch.cuda.amp.custom_fwd(cast_inputs=torch.float32)\n    def forward(ctx, x):" in text
    assert "@torch.cuda.amp.custom_bwd\n    def backward(ctx, grad):" in text
    path.write_text(FUNCTION, encoding="utf-8"), put(USES)
    assert amplint("train.py", "model.py").exit_code == 0
    text = path.read_text(encoding="utf-8")
    assert '@torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)\n    def forward(ctx, x):' in text
    assert amplint("train.py", "model.py").exit_code == 0
    assert path.read_text(encoding="utf-8") == text


def test_what_a_helper_compiles_is_compiled_code() -> None:
    helper = "    @staticmethod\n    def kernel():\n        import fused\n        return fused.build()\n"
    text = FUNCTION.replace("import fused\n", "").replace("fused.add_bias_backward", "Bias.kernel()")
    put(text.replace("fused.add_bias", "Bias.kernel()").replace("class Net", f"{helper}class Net"), "model.py")
    put(USES)
    assert amplint("train.py").stdout.endswith("Bias has no custom_fwd; amplint fix model.py train.py changes both\n")


@pytest.mark.parametrize("forward", ["return torch.mm(x, x.t()).div_(0.07).exp_()", "return torch.mm(sp_mm, x)"])
def test_exponentials_in_place_and_sparse_products_stay_in_float32(forward: str) -> None:
    path = put(FUNCTION.replace("return fused.add_bias(x)", forward).replace("fused.add_bias_backward", ""), "model.py")
    put(USES)
    assert amplint("train.py", "model.py").exit_code == 0
    text = path.read_text(encoding="utf-8")
    assert '@torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)\n' in text


def test_a_named_file_is_decorated_though_nothing_shows_that_it_is_used() -> None:
    path = put(FUNCTION.replace("import torch\n", "from torch import autograd, nn\n").replace("torch.", ""), "model.py")
    script = put(
        USES.replace("from model import Net", "import sys\nimport model as models").replace(
            "Net()", "getattr(models, sys.argv[1])()"
        )
    )
    assert amplint("train.py").stdout.endswith("Bias has no custom_fwd; amplint fix model.py train.py changes both\n")
    assert amplint("train.py", "model.py").exit_code == 0
    text = path.read_text(encoding="utf-8")
    assert "import torch\n" in text
    assert text.count("@torch.amp.custom_") == 2
    assert "scaler.step(optimizer)" in script.read_text(encoding="utf-8")


def test_a_function_with_a_context_of_its_own_cannot_be_decorated() -> None:
    text = FUNCTION.replace("class Net", "    @staticmethod\n    def setup_context(ctx, x, y): pass\nclass Net")
    put(text, "model.py"), put(USES)
    result = amplint("train.py", "model.py")
    assert result.exit_code == 1
    assert (
        "Bias is a custom autograd function with a setup_context(), which custom_fwd cannot decorate" in result.stdout
    )


def test_a_refused_step_leaves_the_files_it_uses_alone() -> None:
    put(MODEL, "model.py"), put("import gymnasium\n" + USES)
    assert amplint("model.py", "train.py").exit_code == 1
    assert Path("model.py").read_text(encoding="utf-8") == MODEL


def test_all_files_are_written_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from amplint import files

    texts = {name: put(HEAD + STEP, name) for name in ("a.py", "b.py", "c.py")}
    write = files.write

    def fail_on_b(path: str, data: bytes, expected: bytes) -> None:
        if path.endswith("b.py"):
            raise files.Unreadable("disk full")
        write(path, data, expected)

    monkeypatch.setattr(files, "write", fail_on_b)
    result = amplint("a.py", "b.py", "c.py")
    assert result.exit_code == 2
    assert "b.py:1:1: AMP902 disk full" in result.stderr
    assert all(path.read_text(encoding="utf-8") == HEAD + STEP for path in texts.values())


def test_check_and_diff_write_nothing() -> None:
    path = put(HEAD + STEP)
    checked, diff = amplint("train.py", "--check"), amplint("train.py", "--diff")
    assert path.read_text(encoding="utf-8") == HEAD + STEP
    assert (checked.exit_code, diff.exit_code) == (1, 0)
    assert "train.py:9: converted: " in checked.stdout
    assert "+scaler = torch.amp.GradScaler(" in diff.stdout
    assert "train.py:9: converted: " in diff.stderr
    assert amplint("train.py").exit_code == 0
    assert amplint("train.py", "--check").exit_code == 0


def test_comments_that_hide_findings_are_honoured() -> None:
    text = MODEL.replace("softmax(dim=-1)", "softmax(dim=-1)  # amplint: ignore[AMP401] never filled")
    path = put(text, "model.py")
    amplint("model.py")
    assert "-1e9" in path.read_text(encoding="utf-8")


def test_what_is_to_be_ignored_is_not_brought_up_to_date_along_with_other_edits() -> None:
    script = (HEAD + STEP).replace("    loss = ", "    with torch.cuda.amp.autocast():\n        loss = ")
    put(script), put(script, "other.py")
    assert "torch.amp.autocast(" in amplint("other.py", "--diff").stdout
    assert "torch.amp.autocast(" not in amplint("train.py", "--diff", "--ignore", "AMP601").stdout
    assert "GradScaler" in amplint("train.py", "--diff", "--ignore", "AMP601", "--select", "AMP6").stdout
    assert "torch.amp.autocast(" not in amplint("train.py", "--diff", "--ignore", "AMP601", "--select", "AMP6").stdout


# -- why-comments -----------------------------------------------------------------------------------------------------

EXPLAINED = {
    "    # scales the loss, so that small gradients do not become zero in float16": "    scaler = torch.amp.Grad",
    "        # checkpoints from before have none": "        if state.get(",
    "        # forward and loss in half precision, where that is safe; backward stays outside": "        with torch",
    "        # the gradients come scaled, too, until unscale_() or step()": "        scaler.scale(",
    "        # leaves the weights alone where a gradient is inf or nan": "        scaler.step(",
    "        # adapts the scale: once, after the last step of the iteration": "        scaler.update(",
    "                # so that a resumed run goes on with the same scale": "                'scaler_state_dict': ",
}


def test_explain_writes_why_above_the_first_edit_of_each_kind() -> None:
    _, script, output, _ = case("checkpoints")
    path = put(script)
    assert amplint("train.py", "--explain").exit_code == 0
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line not in EXPLAINED] == output.splitlines()
    assert [line for line in lines if line in EXPLAINED] == list(EXPLAINED)
    assert all(lines[lines.index(comment) + 1].startswith(below) for comment, below in EXPLAINED.items())


@pytest.mark.parametrize("name", names())
def test_comments_are_all_that_explain_adds(name: str) -> None:
    options, script, output, _ = case(name)
    path = put(script.replace("\n", "\r\n"))
    amplint("train.py", "--explain", *options)
    explained = path.read_bytes().decode()
    assert explained.count("\n") == explained.count("\r\n")
    assert ast.dump(ast.parse(explained)) == ast.dump(ast.parse(output or script))
    amplint("train.py", "--explain", *options)
    assert path.read_bytes().decode() == explained
