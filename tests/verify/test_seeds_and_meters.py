"""What a run draws at random, where it imports from, and what is asked of a GPU. In this process, without a GPU."""

from __future__ import annotations

import random
import sys
import types
from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest

torch = pytest.importorskip("torch")

import numpy  # noqa: E402

from amplint.verify.child import meters, outside, seeds  # noqa: E402


def draws(run: int, script: Any) -> list[float]:
    """What a script draws in a run."""
    with ExitStack() as stack:
        seeds.begin(run)
        for owner, name, new in seeds.patches(run):
            stack.enter_context(mock.patch.object(owner, name, new))
        script()
        return [torch.rand(()).item(), float(numpy.random.rand()), random.random()]


def fixes() -> None:
    torch.manual_seed(3)
    numpy.random.seed(3)
    random.seed(3)


@pytest.mark.parametrize("script", [fixes, lambda: None])
def test_runs_differ_in_all_generators_and_can_be_repeated(script):
    first, second = draws(0, script), draws(1, script)
    assert not set(first) & set(second)
    assert draws(0, script) == first and draws(1, script) == second
    if script is fixes:  # the first run is the script's own
        fixes()
        assert first == [torch.rand(()).item(), float(numpy.random.rand()), random.random()]


def test_seeds_that_are_no_numbers_stay():
    moved = seeds._moved(lambda *args: args, 2)
    assert moved(2**32 - 1, "word", None, True) == (2 * seeds.STRIDE - 1, "word", None, True)


class Nvml(types.ModuleType):
    """nvidia-ml-py of a machine with two GPUs."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.millijoules = 5000

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"GPU {index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> str:
        if uuid.startswith(b"GPU-"):
            return f"GPU of {uuid.decode()}"
        raise ValueError(uuid)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        self.millijoules += 2500
        return self.millijoules


@pytest.mark.parametrize(
    ("uuid", "visible", "handle"),
    [
        ("aa-bb", "", "GPU of GPU-aa-bb"),
        (None, "", "GPU 1"),
        (None, "3, 2", "GPU 2"),
        (None, "GPU-cc,GPU-dd", "GPU of GPU-dd"),
    ],
)
def test_energy_is_that_of_the_gpu_that_torch_uses(monkeypatch, uuid, visible, handle):
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: types.SimpleNamespace(uuid=uuid))
    meter = meters.Meters(True)
    assert meter.energy() is None  # not begun
    meter.begin()
    assert meter._handle == handle and meter.energy() == 2.5


def test_without_a_gpu_there_is_time_alone():
    meter = meters.Meters(False)
    meter.begin()
    assert meter.energy() is None and meter.memory() is None and not meter.is_recording() and meter.now() > 0


def test_what_lies_in_a_moved_folder_is_imported_from_its_copy(monkeypatch):
    finder = types.ModuleType("__editable___net_1_0_finder")
    finder.MAPPING = {"net": "/home/me/net/src/net", "other": "/opt/other"}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, finder.__name__, finder)
    monkeypatch.setattr(sys, "path", ["/home/me/net", "/home/me/netting", "/usr/lib"])
    outside.move([["/home/me/net", "/tmp/copy"]])
    assert sys.path == ["/tmp/copy", "/home/me/netting", "/usr/lib"]
    assert finder.MAPPING == {"net": "/tmp/copy/src/net", "other": "/opt/other"}


@pytest.mark.parametrize(
    ("given", "size"), [({}, 3), ({"batch_size": 4}, 12), ({"batch_size": None}, None), ({"drop_last": True}, 3)]
)
def test_batches_grow_by_a_factor(given, size):
    init = outside._larger(torch.utils.data.DataLoader.__init__, 3)
    with mock.patch.object(torch.utils.data.DataLoader, "__init__", init):
        assert torch.utils.data.DataLoader([1, 2, 3], **given).batch_size == size
