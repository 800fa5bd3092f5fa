"""What is taken from the step of a training script, in this process: model, batch, loss, optimizer; CUDA on the CPU."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from amplint.graph.child import device
from amplint.graph.child.observe import watching
from amplint.graph.child.seen import Seen

# -- what is seen, in this process ------------------------------------------------------------------------------------


class Caught(Exception):
    """Carries what was seen out of the step."""


def catch(seen: Seen) -> NoReturn:
    raise Caught(seen)


def seen(step: Any) -> Seen:
    """What the first backward of a step shows."""
    with device.cuda_on_cpu(), device.open_gate(), watching(catch), pytest.raises(Caught) as caught:
        step()
    found: Seen = caught.value.args[0]
    return found


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
        x.mul_(scale)
        return {"logits": self.head(self.drop(self.norm(x))), "features": x}


def test_the_batch_the_buffers_and_the_random_numbers_are_those_before_the_call():
    net, x = Net(), torch.randn(8, 4)
    before = x.clone()

    def step() -> None:
        torch.manual_seed(3)
        F.cross_entropy(net(x, scale=2.0)["logits"], torch.zeros(8, dtype=torch.long)).backward()

    found = seen(step)
    assert found.model is net
    assert torch.equal(found.args[0], before) and found.kwargs == {"scale": 2.0}
    assert not net.norm.running_mean.any() and net.norm.num_batches_tracked == 0
    torch.manual_seed(3)
    assert torch.equal(found.rng, torch.get_rng_state())


def test_tensors_are_copied_wherever_an_input_holds_them():
    from amplint.graph.child.observe import copy

    tensor, parameter = torch.ones(2, 1, requires_grad=True), nn.Parameter(torch.ones(1))
    packed = nn.utils.rnn.pack_padded_sequence(tensor.detach(), [2], enforce_sorted=False)
    module = nn.Linear(1, 1)
    given = {"a": [tensor * 2, (3, "x")], "packed": packed, "weight": parameter, "module": module}
    copied = copy(given)
    with torch.no_grad():
        given["a"][0].zero_()
        packed.data.zero_()
    assert copied["a"][0].tolist() == [[2.0], [2.0]] and copied["a"][0].is_leaf and copied["a"][0].requires_grad
    assert copied["a"][1] == (3, "x") and copied["weight"] is parameter and copied["module"] is module
    assert isinstance(copied["packed"], type(packed)) and copied["packed"].data.tolist() == [1.0, 1.0]


def test_the_loss_gives_the_model_the_gradients_of_the_scripts_loss():
    net, x, target = Net(), torch.randn(8, 4), torch.randint(3, (8,))

    def loss_of(output: dict[str, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(output["logits"], target) / 4  # as in accumulation

    def step() -> None:
        scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
        scaler.scale(loss_of(net(x.clone().cuda()))).backward()

    found = seen(step)
    assert found.scale == 1024.0
    torch.set_rng_state(found.rng)
    found.loss(net(x.clone())).backward()
    got = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    torch.set_rng_state(found.rng)
    expected = loss_of(net(x.clone()))
    expected.backward()
    assert found.value == pytest.approx(expected.item())
    for one, parameter in zip(got, net.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad)


def test_the_optimizer_is_the_one_that_holds_the_model():
    net, other = Net(), nn.Linear(1, 1)

    def step() -> None:
        torch.optim.SGD(other.parameters(), lr=1.0)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, eps=1e-6, weight_decay=0.1)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)  # a warm-up
        net(torch.randn(8, 4))["logits"].sum().backward()

    found = seen(step).optimizer
    assert (
        found.items() >= {"class": "AdamW", "lr": 0.01, "betas": [0.9, 0.999], "eps": 1e-6, "weight_decay": 0.1}.items()
    )


def under(make: Any, scaled: bool = False) -> Seen:
    """What a step shows whose forward runs in the region that `make` makes."""
    net = nn.Linear(4, 2)

    def step() -> None:
        with torch.no_grad(), torch.autocast("cuda"):
            net(torch.randn(3, 4))
        with make():
            loss = net(torch.randn(3, 4)).sum()
        assert loss.dtype == torch.float32  # until then all is FP32
        (torch.amp.GradScaler("cuda").scale(loss) if scaled else loss).backward()

    return seen(step)


@pytest.mark.parametrize(
    ("make", "scaled", "dtype", "scale"),
    [
        (lambda: torch.autocast("cuda"), False, torch.float16, 1.0),
        (lambda: torch.autocast("cuda", dtype=torch.float16), True, torch.float16, 65536.0),
        (lambda: torch.autocast("cuda", torch.bfloat16), False, torch.bfloat16, None),
        (lambda: torch.autocast("cpu"), False, torch.bfloat16, None),
        (lambda: torch.autocast("cuda", enabled=False), False, None, None),
        (lambda: torch.autocast("cuda", torch.float16, False), False, None, None),
        (torch.enable_grad, False, None, None),
    ],
)
def test_whether_the_script_scales_what_it_runs_in_float16(make, scaled, dtype, scale):
    """1 where nothing scales, None where nothing is float16. An evaluation's region is none of the step's."""
    found = under(make, scaled)
    assert (found.dtype, found.scale) == (dtype, scale)


def test_a_region_inside_the_model_is_the_steps_and_works_when_it_is_captured():
    """Made while the script ran: a decorator, and one that the model keeps."""
    from amplint.graph.capture.captured import Precision, dtype_of
    from amplint.graph.capture.ladder import capture

    def step() -> None:
        class Mine(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
                self.full = torch.autocast("cuda", enabled=False)

            @torch.autocast("cuda", dtype=torch.float16)
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.body(x)
                with self.full:
                    return self.head(x.float())

        Mine()(torch.randn(3, 4)).sum().backward()

    found = seen(step)
    assert (found.dtype, found.scale) == (torch.float16, 1.0)
    captured = capture(found.model, found.args, found.kwargs, Precision())
    layers = [dtype_of(node) for node in captured.nodes() if "linear" in str(node.target)]
    assert layers == [torch.float16, torch.float32]


def gan() -> nn.Module:
    generator, critic = nn.Linear(2, 4), nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    fake = generator(torch.randn(5, 2))
    (critic(torch.randn(5, 4)).mean() - critic(fake.detach()).mean()).backward()
    return critic


def penalty() -> nn.Module:
    critic, x = nn.Linear(4, 1), torch.randn(5, 4, requires_grad=True)
    score = critic(x)
    slope = torch.autograd.grad(score.sum(), x, create_graph=True)[0]  # asks for no parameter's gradient
    (score.mean() + (slope.norm() - 1) ** 2).backward()
    return critic


def frozen() -> nn.Module:
    body, head = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 2)
    head(body(torch.randn(3, 4))).sum().backward()
    return head


def evaluated_first() -> nn.Module:
    net = nn.Linear(4, 2)
    for _ in range(3):  # without no_grad: nothing reaches a backward
        net(torch.randn(1, 4))
    net(torch.randn(7, 4)).sum().backward()
    return net


def wrapped() -> nn.Module:
    net = nn.Linear(4, 2)
    nn.DataParallel(net.cuda()).to("cuda:0")(torch.randn(3, 4, device="cuda")).sum().backward()
    return net


def by_forward() -> nn.Module:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    net = Mine()
    net.forward(torch.randn(3, 4)).sum().backward()
    return net


def functional() -> nn.Module:
    net = nn.Linear(4, 2)
    torch.autograd.grad(net(torch.randn(3, 4)).sum(), list(net.parameters()))
    return net


@pytest.mark.parametrize(
    ("step", "shapes", "model", "note"),
    [
        (gan, [(5, 4)], "Sequential", "2 times"),
        (penalty, [(5, 4)], "Linear", ""),
        (frozen, [(3, 4)], "Linear", ""),
        (evaluated_first, [(7, 4)], "Linear", ""),
        (wrapped, [(3, 4)], "Linear", ""),
        (by_forward, [(3, 4)], "Mine", ""),
        (functional, [(3, 4)], "Linear", ""),
    ],
)
def test_the_model_is_the_one_that_the_step_trains(step, shapes, model, note):
    found = seen(step)
    assert type(found.model).__name__ == model
    assert [tuple(one.shape) for one in found.args] == shapes
    assert note in " ".join(found.notes)


def test_one_process_is_a_whole_group_for_distributed_data_parallel(tmp_path):
    net = nn.Linear(4, 2)

    def step() -> None:
        store = f"file://{tmp_path / 'store'}"
        torch.distributed.init_process_group("nccl", init_method=store, rank=0, world_size=1)
        torch.cuda.set_device(0)
        wrapped = nn.SyncBatchNorm.convert_sync_batchnorm(net.cuda(0))
        nn.parallel.DistributedDataParallel(wrapped, device_ids=[0], output_device=0)(
            torch.randn(3, 4)
        ).sum().backward()

    try:
        assert seen(step).model is net
    finally:
        torch.distributed.destroy_process_group()


def test_nothing_is_held_of_a_forward_that_reaches_no_backward():
    import weakref

    net = nn.Linear(4, 2)
    with watching(catch) as watch:
        output = net(torch.randn(3, 4))
        [(call, _, _)] = output.grad_fn.metadata["amplint.calls"]
        held = weakref.ref(call)
        del call, output
        assert watch.calls == 1 and held() is None


# -- CUDA's devices on the CPU ----------------------------------------------------------------------------------------


def test_what_goes_to_cuda_stays_on_the_cpu(tmp_path):
    with device.cuda_on_cpu(), device.open_gate():
        assert torch.cuda.is_available() and torch.cuda.device_count() == 1
        torch.cuda.set_device(0)
        gpu = torch.device("cuda", 0)
        assert gpu.type == "cuda"
        made = [
            torch.zeros(2, device="cuda"),
            torch.tensor([1.0], device=gpu),
            torch.ones(2).cuda(non_blocking=True),
            torch.ones(2).to(gpu, torch.float64),
            torch.ones(2).to(0),
            torch.ones(2).type("torch.cuda.FloatTensor"),
            torch.ones(2).pin_memory(),
            torch.ones(2).new_zeros(2, device=gpu),
            torch.zeros_like(torch.ones(2), device=gpu),
            torch.arange(3, device=gpu, dtype=torch.float32),
            torch.cuda.FloatTensor([1.0]),
            nn.Linear(2, 2, device="cuda").weight,
            nn.Linear(2, 2).to(device=gpu, dtype=torch.float16).cuda().weight,
            torch.randn(2, generator=torch.Generator("cuda").manual_seed(0)),
        ]
        with gpu:
            made.append(torch.rand(2))
        torch.save({"x": torch.ones(2)}, tmp_path / "x.pt")
        made.append(torch.load(tmp_path / "x.pt", map_location="cuda:0")["x"])
        assert {one.device.type for one in made} == {"cpu"}
        with torch.cuda.stream(torch.cuda.Stream()), torch.cuda.device(0):
            torch.cuda.synchronize()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event()
        start.record()
        assert start.elapsed_time(end) == 0.0 and torch.cuda.max_memory_allocated() == 0
        scaler = torch.amp.GradScaler("cuda")
        assert scaler.is_enabled()
        optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
        optimizer.zero_grad()
        loader = torch.utils.data.DataLoader(torch.arange(4.0), batch_size=2, pin_memory=True)
        assert len(list(loader)) == 2
    assert isinstance(torch.Generator(), torch.Generator) and torch.tensor(0).to("cpu").device.type == "cpu"
