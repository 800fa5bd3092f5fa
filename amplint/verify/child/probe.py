"""Watches a training script: its backward calls, scalers, clipping and optimizer steps, and changes nothing of them.

What is on the device is read at the end of a step, when the device is done with it; the time that this takes counts for
no step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from amplint.graph.child.answer import internal
from amplint.verify.child import protocol, tensors
from amplint.verify.child.attempt import Attempt
from amplint.verify.child.counting import Counting
from amplint.verify.child.lines import Line, here, innermost, shown
from amplint.verify.child.meters import Meters
from amplint.verify.child.protocol import Pool, Pools, Scale
from amplint.verify.child.records import Records, number

SCALE = "amplint.scale"  # on the autograd nodes of a scaler's multiplication
_DEEP = 200  # nodes, from the loss on, among which that is looked for
_OTHERS = 5  # times as many steps of another optimizer than the first one end a run as well
Run = Callable[[], Any]


def _metadata(node: Any) -> dict[str, Any]:
    noted: dict[str, Any] = node.metadata
    return noted


class Probe:
    """One process's view of its training steps."""

    def __init__(self, records: Records, meters: Meters, counting: Counting | None, finish: Callable[[], None]) -> None:
        self.records, self.meters, self.counting, self.finish = records, meters, counting, finish
        self.off = False  # in a process that loads data
        self.pools = Pools()
        self.samples: int | None = None
        self.names: dict[int, str] = {}  # of the first model's parameters
        self._losses: list[tuple[Line, torch.Tensor, Scale | None]] = []
        self._in_backward = self._in_step = self._in_clip = False
        self._scaling: Attempt | None = None  # the scaler's step that is running
        self._scaled = False  # whether any loss was ever scaled
        self._order: list[int] = []  # optimizers, by their first step
        self._attempts: dict[int, int] = {}
        self._checked: set[int] = set()
        self._measured: set[int] = set()  # optimizers that have made a step
        self._nudged: dict[int, int] = {}  # optimizers whose parameters are off by a rounding, and by which
        self._mark = time.perf_counter()

    @contextmanager
    def own(self) -> Iterator[None]:
        """What is computed inside is not the script's; a mistake in it is ours, and noted."""
        outer = self.counting.paused if self.counting else False
        if self.counting:
            self.counting.paused = True
        try:
            with torch.no_grad():
                yield
        except Exception as error:
            self.records.note(internal(error))
        finally:
            if self.counting:
                self.counting.paused = outer

    def _passes(self) -> bool:
        """Whether what happens now is none of the probe's business."""
        return self.off or self.meters.is_recording()

    # -- backward ---------------------------------------------------------------------------------------------------

    def backward(self, roots: Any, weights: Any, run: Run, inputs: Any = None) -> Any:
        """A backward call. `inputs`: torch.autograd.grad's, which leaves what it finds to the script."""
        if self._in_backward or self._passes():
            return run()
        frame, line = innermost(2)
        unit: Scale | None = None
        before: list[tuple[Pool, tensors.State]] = []
        with self.own():
            if torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu"):
                self.records.fault("AMP202", "runs backward inside an autocast region", line)
            found = [root for root in tensors.listed(roots) if isinstance(root, torch.Tensor)]
            unit = self._unit(found)
            self._losses.append((line, tensors.total(found, tensors.listed(weights)), unit))
            before = [(pool, tensors.state(pool.parameters())) for pool in self.pools.alive()]
        counted = self.counting.begin_backward(frame) if self.counting else None
        self._in_backward = True
        try:
            result = run()
        finally:
            self._in_backward = False
            half = bool(self.counting and self.counting.end_backward(counted))
        with self.own():
            taken = self.pools.of(inputs) if inputs is not None else []
            for pool, state in before:
                after = tensors.state(pool.parameters())
                if after == state and pool not in taken:
                    continue
                protocol.backward(pool, unit, not any(state), self._fault(line))
                pool.half |= half and unit is None
                pool.seen = after
                if self._scaling is not None and unit is not None:
                    self.records.fault("AMP118", "runs backward on a scaled loss inside the scaler's step", line)
        return result

    def _unit(self, roots: list[torch.Tensor]) -> Scale | None:
        """What the loss was scaled by: the scaler's multiplication is near the graph's end."""
        if not self._scaled:
            return None
        todo: list[Any] = [root.grad_fn for root in roots if root.grad_fn is not None]
        for node in todo:
            unit: Scale | None = _metadata(node).get(SCALE)
            if unit is not None:
                return unit
            if len(todo) < _DEEP:
                todo += [inner for inner, _ in node.next_functions if inner is not None]
        return None

    # -- scalers ----------------------------------------------------------------------------------------------------

    def scaled(self, scaler: Any, outputs: Any) -> None:
        """A scaler has multiplied these."""
        with self.own():
            self._scaled = True
            unit = protocol.current(scaler)
            for leaf in torch.utils._pytree.tree_leaves(outputs):
                if isinstance(leaf, torch.Tensor) and leaf.grad_fn is not None:
                    _metadata(leaf.grad_fn)[SCALE] = unit

    def unscale(self, scaler: Any, optimizer: Any, run: Run) -> Any:
        pool = self.pools.of_optimizer(optimizer)
        asked = self._scaling is None  # by the script
        if asked:
            with self.own():
                protocol.unscale(scaler, optimizer, pool, self._fault(here()))
        result = run()
        if pool is not None:
            pool.unscaled = True
        return result

    def scaler_step(self, scaler: Any, optimizer: Any, run: Run) -> Any:
        if self._scaling is not None or self._passes():
            return run()
        attempt = None
        with self.own():
            attempt = self._begin(optimizer, scaler)
            protocol.scaler_step(scaler, optimizer, attempt.pool, self._fault(attempt.line))
            self._norm(attempt)
        self._scaling = attempt
        try:
            result = run()
        finally:
            self._scaling = None
        if attempt is not None:
            self._end(attempt)
        return result

    # -- steps ------------------------------------------------------------------------------------------------------

    def step(self, optimizer: torch.optim.Optimizer, closure: Any, run: Run) -> Any:
        """An optimizer's own step, in a scaler's or not; what steps inside a step is part of it."""
        if self._in_step or self._passes():
            return run()
        attempt = None
        if self._scaling is not None:
            self._scaling.stepped = True
        else:
            with self.own():
                attempt = self._begin(optimizer, None)
                if attempt.pool is not None:
                    self._plain(attempt, attempt.pool)
                if closure is None:
                    self._norm(attempt)
        self._in_step, left_out = True, False
        stepping = self._scaling or attempt
        if stepping is not None and closure is None and id(optimizer) not in self._measured:
            with self.own():
                stepping.measure(self.names)
                stepping.hold()
        try:
            with self._exactly(optimizer), self._followed(optimizer) as left_out:
                result = None if left_out else run()
        finally:
            self._in_step = False
        if attempt is not None:
            with self.own():
                if closure is not None:
                    attempt.scale = attempt.pool.scale if attempt.pool else None
                    self._norm(attempt)
                attempt.stepped = not left_out
            self._end(attempt)
        return result

    def measured(self) -> int:
        """The steps of the first optimizer whose energy was measured."""
        return max(0, self._attempts.get(0, 0) - int(self.records.job.get("warmup", 0)))

    def diverged(self) -> bool:
        """Whether something that is trained is not finite."""
        trained = (one for pool in self.pools.alive() for one in pool.parameters())
        plain = (torch.Tensor, torch.nn.Parameter)  # a part of a sharded one cannot be asked alone
        return any(type(one) in plain and not bool(torch.isfinite(one).all()) for one in trained)

    @contextmanager
    def _followed(self, optimizer: Any) -> Iterator[bool]:
        """Whether this step is left out, as AMP's was that was skipped; at the rates of AMP's. The job says so, by the
        optimizer's index: [skipped, rates] of each step."""
        index = self._index(optimizer)
        steps = self.records.job.get("follow", {}).get(str(index), ())
        at = self._attempts.get(index, 0)
        skipped, rates = steps[at] if at < len(steps) else (False, ())
        before = [group.get("lr") for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, rates, strict=False):
            if isinstance(group.get("lr"), float) and rate is not None:
                group["lr"] = rate
        yield skipped
        for group, rate in zip(optimizer.param_groups, before, strict=False):
            if isinstance(rate, float):
                group["lr"] = rate

    def _begin(self, optimizer: Any, scaler: Any) -> Attempt:
        if isinstance(optimizer, torch.optim.Optimizer) and self.pools.of_optimizer(optimizer) is None:
            self.pools.add(optimizer)
        attempt = Attempt(optimizer, scaler, self.pools.of_optimizer(optimizer))
        if id(optimizer) not in self._checked:
            self._checked.add(id(optimizer))
            self._check(attempt)
        return attempt

    def _check(self, attempt: Attempt) -> None:
        """What an optimizer trains, at its first step."""
        if not type(attempt.optimizer).__module__.startswith("torch.optim"):  # it may keep master weights
            return
        dtypes = {parameter.dtype for group in attempt.optimizer.param_groups for parameter in group["params"]}
        fault = self._fault(attempt.line)
        if torch.float16 in dtypes and attempt.scaler is not None:
            fault("AMP303", "steps float16 parameters through a scaler")
        elif torch.float16 in dtypes:
            fault("AMP301", "trains float16 parameters")
        if torch.bfloat16 in dtypes:
            fault("AMP305", "trains bfloat16 parameters without a float32 copy")

    @contextmanager
    def _exactly(self, optimizer: Any) -> Iterator[None]:
        """A step on the parameters as they are. Where the job wants them `perturb`ed, forward and backward see them
        off by a rounding, another one each time: what a run in half sees, and all that it does."""
        draw, dtype = self.records.job.get("perturb", 0), self.records.job.get("dtype", "float16")
        if not draw:
            yield
            return
        with self.own():
            before = self._nudged.pop(id(optimizer), None)
            if before is not None:
                tensors.nudge(optimizer, dtype, before, back=True)
        yield
        with self.own():
            count = self._attempts.get(self._index(optimizer), 0)
            self._nudged[id(optimizer)] = draw * 1_000_003 + count
            tensors.nudge(optimizer, dtype, self._nudged[id(optimizer)])

    def _plain(self, attempt: Attempt, pool: Pool) -> None:
        fault = self._fault(attempt.line)
        protocol.plain_step(pool, fault)
        parameters = list(pool.parameters())
        rescaled = pool.seen != tensors.state(parameters)  # by hand
        if pool.half and not rescaled and not any(one.dtype == torch.float16 for one in parameters):
            fault("AMP101", "trains on gradients computed in float16 of a loss that was not scaled")

    def _norm(self, attempt: Attempt) -> None:
        if attempt.pool is not None and attempt.pool.norm is not None:  # before clipping
            attempt.norm, attempt.scale = attempt.pool.norm
            return
        groups = getattr(attempt.optimizer, "param_groups", None) or ()
        attempt.norm = tensors.norm(parameter for group in groups for parameter in group["params"])

    def _end(self, attempt: Attempt) -> None:
        """Write the step down, and end the run if it was the last."""
        now = self.meters.now()
        done = False
        with self.own():
            done = self._write(attempt, now - self._mark)
        if done:
            self.finish()
        self._mark = time.perf_counter()

    def _write(self, attempt: Attempt, seconds: float) -> bool:
        optimizer, scaler, pool = attempt.optimizer, attempt.scaler, attempt.pool
        scale = attempt.scale.value if attempt.scale else 1.0
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        skipped = not attempt.stepped or bool(scaler and fused and protocol.overflowed(scaler, optimizer))
        index = self._index(optimizer)
        if skipped:
            attempt.parts.clear()
        elif attempt.parts:
            self._measured.add(id(optimizer))
        self.records.step(
            {
                "losses": [
                    [shown(line), number(float(value) / (unit.value if unit else 1.0))]
                    for line, value, unit in self._losses
                ],
                "norm": number(None if attempt.norm is None else float(attempt.norm) / scale),
                "optimizer": index,
                "skipped": skipped,
                "scale": number(scaler.get_scale()) if scaler is not None else None,
                "seconds": seconds,
                "samples": self.samples,
            }
            | attempt.told()
        )
        self._losses.clear()
        self.samples = None
        if pool is not None:
            pool.stepped, pool.half, pool.norm = True, False, None
        count = self._attempts[index] = self._attempts.get(index, 0) + 1
        if not index and count == self.records.job.get("warmup", 0):
            self.meters.begin()
        steps = int(self.records.job["steps"])
        return count >= (steps if not index else _OTHERS * steps)

    def _index(self, optimizer: Any) -> int:
        """Optimizers are counted by their first step."""
        if id(optimizer) not in self._order:
            self._order.append(id(optimizer))
        return self._order.index(id(optimizer))

    # -- the rest ---------------------------------------------------------------------------------------------------

    def clip(self, parameters: list[Any], run: Run) -> Any:
        if self._in_clip or self._passes():
            return run()
        pools: list[Pool] = []
        with self.own():
            pools = self.pools.of(parameters)
            for pool in pools:
                protocol.clip(pool, self._fault(here()))
                if pool.norm is None:  # the step will see what clipping leaves
                    pool.norm = (tensors.norm(pool.parameters()), pool.scale)
        self._in_clip = True
        try:
            return run()
        finally:
            self._in_clip = False
            with self.own():
                for pool in pools:
                    pool.seen = tensors.state(pool.parameters())

    def called(self, args: Any, kwargs: Any) -> None:
        """The model was, with these."""
        if not self.off and torch.is_grad_enabled():
            size = tensors.leading(args, kwargs)
            self.samples = (self.samples or 0) + size if size is not None else self.samples

    def named(self, model: torch.nn.Module) -> None:
        """The first model that trains; what wraps it has no name of its own."""
        for name, parameter in model.named_parameters():
            self.names[id(parameter)] = name.replace("_orig_mod.", "").removeprefix("module.")

    def layer(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        """A module was called, in a run that counts."""
        if self.off or self.counting is None or self.counting.paused:
            return
        with self.own():
            self.counting.layer(module, output)
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.training:
                mean = module.running_mean
                if mean is not None and mean.dtype == torch.float16:
                    self.records.fault("AMP302", "keeps the running statistics of BatchNorm in float16", here())

    def zeroed(self, parameters: Any) -> None:
        with self.own():
            for pool in self.pools.of(parameters):
                pool.clear()

    def hint(self) -> str:
        """Why there was no step."""
        if not self._losses:
            return ": it called no backward"
        return (
            f": the gradients of its backward (line {self._losses[0][0][1]}) reached no optimizer of torch.optim's kind"
        )

    def forked(self) -> None:
        """This process is a copy of the one that was watched."""
        self.records.forked()
        if self.counting is not None:
            self.counting.clear()
        self.__init__(self.records, self.meters, self.counting, self.finish)  # type: ignore[misc]

    def _fault(self, line: Line) -> protocol.Fault:
        return lambda code, what: self.records.fault(code, what, line)
