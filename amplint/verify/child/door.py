"""The third door: the user's script runs, as `python train.py ARGS` would, for N optimizer steps under a probe."""

from __future__ import annotations

import multiprocessing
import multiprocessing.spawn
import multiprocessing.util
import os
import sys
from contextlib import ExitStack
from typing import Any, NoReturn
from unittest import mock

import torch

from amplint.graph import policy
from amplint.graph.child import answer, device, observe, script
from amplint.graph.child.answer import describe, say
from amplint.verify.child import hooks, lines, meters, outside, seeds
from amplint.verify.child.counting import Counting
from amplint.verify.child.probe import Probe
from amplint.verify.child.records import Records

_UNCOUNTED: dict[str, Any] = {
    "layers": [],
    "half_matmuls": 0,
    "half_ops": 0,
    "lines": [],
    "differences": [],
    "kernel": None,
}
_HELD: list[ExitStack] = []  # patches that stay for the life of the process


def verify(folder: str, job: dict[str, Any]) -> NoReturn:
    """Run the script under the probe; ends the process."""
    shown, path, main = job["target"], os.path.abspath(job["target"]), os.getpid()
    outside.move(job.get("moved", ()))
    probe = under_probe(folder, job)
    names = script.as_main(path, [shown, *job["arguments"]])
    say(folder, "script")
    problem = place = ""
    try:
        script.execute(path, names)
        script.wait()
    except SystemExit as error:
        problem = _exited(error.code)
    except KeyboardInterrupt:
        os._exit(130)
    except BaseException as error:
        script.show(error)
        problem, place = _crashed(error, probe.records), lines.shown(lines.raised(error))
    if os.getpid() != main:  # a process that the script forked off
        os._exit(bool(problem))
    ended(probe, problem, place)


def under_probe(folder: str, job: dict[str, Any]) -> Probe:
    """From now on the training steps of this process, and of those that it starts, are written down."""
    stack = ExitStack()
    _HELD.append(stack)
    on_gpu = _on_gpu(folder, job["device"])
    counts = job["count"] or (job["kind"] == "amp" and not on_gpu)  # a CPU's own half kernels are slow
    counting = Counting(job.get("accumulate", "float32"), on_gpu) if counts else None
    if not on_gpu:
        stack.enter_context(device.cuda_on_cpu())
        stack.enter_context(policy.cuda_policy())
        stack.enter_context(device.open_gate())
    records = Records(folder, job)
    probe = Probe(records, meters.Meters(on_gpu), counting, lambda: finish(probe, "steps"))
    seeds.begin(job["seed"])
    for owner, name, new in (*seeds.patches(job["seed"]), *outside.patches(job, probe)):
        stack.enter_context(mock.patch.object(owner, name, new))
    if counting is not None or not on_gpu:  # compiled code is not seen operation by operation
        stack.enter_context(mock.patch.object(torch, "compile", observe.eager(torch.compile)))
    stack.enter_context(script.in_spawned_too(folder, job["target"]))
    stack.enter_context(hooks.watched(probe))
    if counting is not None:
        stack.enter_context(counting)
    os.register_at_fork(after_in_child=probe.forked)
    multiprocessing.util.register_after_fork(probe, _answering)
    return probe


def _on_gpu(folder: str, wanted: str) -> bool:
    """Whether the run is on a GPU: as asked, or where there is one that works."""
    if wanted == "cpu" or not torch.cuda.is_available():
        problem = "torch finds no GPU here that it can use"
    else:
        try:
            torch.zeros(1, device="cuda")
            return True
        except RuntimeError as error:
            problem = describe(error)
    if wanted == "cuda":
        answer.finish(folder, {"error": f"--device cuda: {problem}"})
    return False


def _answering(probe: Probe) -> None:
    """In a process that multiprocessing has started: it answers at its end, if it trains."""
    multiprocessing.util.Finalize(None, _process_ended, (probe,), exitpriority=0)


def _process_ended(probe: Probe) -> None:
    """At the end of a process that trained, and of which the script is the parent."""
    error = sys.exc_info()[1]
    failed = error is not None and not (isinstance(error, SystemExit) and error.code in (None, 0))
    if probe.records.steps and not failed:
        finish(probe, "script")


def ended(probe: Probe, problem: str, place: str = "") -> NoReturn:
    """The script is at its end, before its time."""
    if probe.records.answered():  # by one of its processes
        os._exit(0)
    steps = probe.records.taken()
    if not steps and not problem:
        problem = "ended without an optimizer step" + probe.hint()
    finish(probe, "error" if problem else "script", problem, steps, place)


def finish(probe: Probe, how: str, problem: str = "", steps: int | None = None, place: str = "") -> NoReturn:
    """Say what was seen, and end the process."""
    counting, meter = probe.counting, probe.meters
    told: dict[str, Any] = {"ended": how}
    if steps is not None:
        told["steps"] = steps
    if problem:
        told |= {"error": problem, "place": place}
    probe.off = True
    with probe.own():
        told |= counting.told() if counting else _UNCOUNTED
        told |= {"device": meters.device(meter.on_gpu), "memory": meter.memory(), "energy": meter.energy()}
        told["energy_steps"] = probe.measured()
        told["diverged"] = probe.diverged()
    probe.records.finish(told, last=steps is not None)


def _exited(code: Any) -> str:
    if isinstance(code, str):
        print(code, file=sys.stderr)  # as Python does
    return "" if code in (None, 0) else f"ended with exit code {code if isinstance(code, int) else 1}"


def _crashed(error: BaseException, records: Records) -> str:
    """What happened to the user's code, in a line that goes on from its name."""
    steps = records.taken()
    if not steps:
        return script.crashed(error)
    return f"crashed after {steps} optimizer step{'s' * (steps != 1)}: {describe(error)}"
