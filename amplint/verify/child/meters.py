"""What a GPU says of a run: time that is synchronised, peak memory, energy. Nothing of it without one."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

import torch


class Meters:
    """Time, memory and energy of this process's device; `on_gpu` false: time only."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self._handle: Any = None
        self._nvml: Any = None
        self._began: float | None = None

    def now(self) -> float:
        """Seconds, after all that the device was asked to do is done."""
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def is_recording(self) -> bool:
        """Whether a CUDA graph is being captured: nothing may be asked of the device then."""
        return self.on_gpu and torch.cuda.is_current_stream_capturing()

    def begin(self) -> None:
        """From here on energy counts: the warm-up is over."""
        if self.on_gpu and self._nvml is None:
            with contextlib.suppress(Exception):  # no nvidia-ml-py, no driver, no right to ask
                self._nvml, self._handle = _nvml()
        self._began = self._energy()

    def energy(self) -> float | None:
        """Joules since `begin`, of the whole GPU; None where it does not tell."""
        ended = self._energy()
        return None if ended is None or self._began is None else ended - self._began

    def memory(self) -> int | None:
        """The most bytes that tensors took on the device at once."""
        return int(torch.cuda.max_memory_allocated()) if self.on_gpu else None

    def _energy(self) -> float | None:
        if self._handle is None:
            return None
        try:
            return (
                float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
            )  # millijoules; from Volta on
        except Exception:
            return None


def _nvml() -> tuple[Any, Any]:
    """NVML and its handle of the GPU that torch's current device is."""
    import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]

    pynvml.nvmlInit()
    index = torch.cuda.current_device()
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    if uuid is not None:
        with contextlib.suppress(Exception):  # a part of a GPU (MIG) has no such handle
            return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    if not visible:
        return pynvml, pynvml.nvmlDeviceGetHandleByIndex(index)
    name = visible[index]
    if name.isdigit():
        return pynvml, pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return pynvml, pynvml.nvmlDeviceGetHandleByUUID(name.encode())


def device(on_gpu: bool) -> dict[str, Any]:
    """What a record says of the device."""
    name, capability, total = "CPU", None, None
    if on_gpu:
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        name = torch.cuda.get_device_name()
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
    return {
        "name": name,
        "torch": torch.__version__,
        "capability": capability,
        "memory": total,
        "policy": "CUDA" if on_gpu else "CUDA's on the CPU",
    }
