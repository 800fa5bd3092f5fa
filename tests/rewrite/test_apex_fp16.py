"""What becomes of apex.fp16_utils: FP16_Optimizer and its helpers."""

from __future__ import annotations

import pytest

from amplint.rewrite.instrument import Result
from tests.rewrite.fixing import case, put
from tests.rewrite.test_apex import PLAIN, fixed, script

pytestmark = pytest.mark.usefixtures("own_folder")


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
