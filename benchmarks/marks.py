"""The marks of amplint/graph/marks beside what the models do under CUDA's autocast policy in float16.

    python benchmarks/marks.py [MODEL …] [--each] [--precision amp|half]

Models and perturbations are those of ranges.py: each model as it is, and with one layer at random rescaled so that its
own largest output is 2^k times 65504, or 2^k. Marks are made twice: from one batch at hand (measured), and without a
run (estimated). The truth is a run of the same graph on another batch, each operation in the dtype that it has, beside
a run in FP32:

  AMP451  a half value of the marked line is inf or nan, and finite in FP32; where the mark only says that it comes near
          the limit, a value of the marked line does, to within a bit of the 2 (a note: 4) that are meant
  AMP452  more than 10 % of the non-zero values of the marked line are 0
  AMP453  the marked value is off by more than 2^-6 (root mean square), or is an integer and another one

To be found are the lines where that begins: the operands are finite (hold what is not zero), the result is not, and
somebody uses it (an inf that all its users hide is harmless).
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ranges as perturbations
import torch
from torch import fx

from amplint.findings import Severity
from amplint.graph.calibrate import measure
from amplint.graph.capture.captured import Captured, Precision, dtype_of, place_of
from amplint.graph.marks import Mark, marks
from amplint.graph.marks.facts import VIEWS, name
from amplint.graph.policy import cuda_policy
from amplint.graph.ranges import analyse
from amplint.graph.run import run

LIMIT = 65504.0
SHARE = 0.1  # of the non-zero values, flushed
ERROR = 2.0**-6
INFINITE, ZERO, SPOILT = "AMP451", "AMP452", "AMP453"


@dataclass
class Value:
    """What a node gave in a run."""

    finite: bool
    nonzero: int
    largest: float
    kept: torch.Tensor | None = None


@dataclass
class Score:
    right: int = 0
    wrong: int = 0

    def add(self, right: bool) -> None:
        self.right += right
        self.wrong += not right

    def __str__(self) -> str:
        count = self.right + self.wrong
        return f"{self.right:5d} of {count:5d}   {self.right / count:.3f}" if count else "none"


@dataclass
class Result:
    precision: dict[tuple[str, str, str], Score] = field(default_factory=dict)  # how, code, class
    recall: dict[tuple[str, str], Score] = field(default_factory=dict)  # how, code
    runs: int = 0
    harmless: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--each", action="store_true", help="print every wrong mark, and every line without one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("amp", "half"), default="amp")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    result = Result()
    chosen = options.models or [*perturbations.TIMM, *perturbations.TRANSFORMERS]
    for model in chosen:
        random.seed(f"{options.seed} {model}")
        before = time.process_time()
        try:
            _model(model, result, options)
        except KeyboardInterrupt:
            raise
        except Exception as error:  # a model that cannot be built, or run in half, is no statement on marks
            print(f"{model}: left out: {type(error).__name__}: {str(error)[:100]}", file=sys.stderr)
        print(f"{model:32s} {time.process_time() - before:5.1f} s", file=sys.stderr)
    report(result, len(chosen))


def _model(model: str, result: Result, options: argparse.Namespace) -> None:
    captured, declared, other = perturbations.prepared(model, Precision(options.precision))
    largest: dict[fx.Node, float] = {}

    def seen(node: fx.Node, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
            largest[node] = float(value.abs().max())
        return value

    with torch.no_grad():
        run(captured, seen)
    _judge(model, captured, declared, other, result, options)
    for what in perturbations.perturbed(captured, largest):
        _judge(f"{model} {what}", captured, declared, other, result, options)


def _judge(
    what: str, captured: Captured, declared: Any, other: Any, result: Result, options: argparse.Namespace
) -> None:
    """Mark with the batch at hand; run on the other one; compare."""
    ranges = analyse(captured, declared)
    told = {
        "measured": marks(captured, ranges, measure(captured)),
        "estimated": marks(captured, ranges, None),
    }
    kept = {mark.node for found in told.values() for mark in found if mark.code == SPOILT}
    at_hand = {node: captured.values[node] for node in other}
    captured.values.update(other)
    full, half = _run(captured, True, kept), _run(captured, False, kept)
    captured.values.update(at_hand)
    truth = Truth(captured, full, half)
    result.runs += 1
    result.harmless += truth.harmless
    for how, found in told.items():
        for mark in found:
            right = truth.right(mark)
            if right is not None:
                result.precision.setdefault((how, mark.code, _class(mark)), Score()).add(right)
            if options.each and right is False and mark.severity is not Severity.NOTE:
                print(f"WRONG  {what}: {how} {mark.code} {_class(mark)} {mark.node}: {mark.message}; {mark.cause}")
        for code, roots in ((INFINITE, truth.overflows), (ZERO, truth.underflows)):
            lines = {_line(mark.node) for mark in found if mark.code == code and _is_alarm(mark)}
            for node in {_line(node): node for node in roots}.values():
                said = _line(node) in lines
                result.recall.setdefault((how, code), Score()).add(said)
                if options.each and not said:
                    print(f"MISSED {what}: {how} {code} {node} {node.target} {_line(node)}")


def _run(captured: Captured, full: bool, kept: set[fx.Node]) -> dict[fx.Node, Value]:
    values: dict[fx.Node, Value] = {}

    def seen(node: fx.Node, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and "empty" not in name(node):
            copy = value.double().clone() if node in kept else None
            size = float(value.abs().max()) if value.numel() else 0.0
            values[node] = Value(math.isfinite(size), int((value != 0).sum()), size, copy)
        return value

    torch.manual_seed(0)
    with torch.no_grad(), cuda_policy():
        run(captured, seen, full=full)
    return values


class Truth:
    """What happened in half, node by node."""

    def __init__(self, captured: Captured, full: dict[fx.Node, Value], half: dict[fx.Node, Value]) -> None:
        self.full, self.half = full, half
        held = [node for node in captured.nodes() if dtype_of(node) == torch.float16 and node in full and node in half]
        self.infinite = {node for node in held if full[node].finite and not half[node].finite}
        self.zero = {node for node in held if half[node].finite and self.share(node) > SHARE}
        roots = [node for node in held if node in self.infinite and not self.spoilt(node)]
        self.overflows = [node for node in roots if any(self.reaches(user) for user in node.users)]
        self.harmless = len(roots) - len(self.overflows)
        begun = [node for node in held if node in self.zero and not self.starved(node)]
        self.underflows = [node for node in begun if name(node) not in VIEWS]  # a part of it may hold more zeros

    def share(self, node: fx.Node) -> float:
        """How many of the values that are not zero in FP32 are."""
        before, after = self.full[node].nonzero, self.half[node].nonzero
        return (before - after) / before if before else 0.0

    def spoilt(self, node: fx.Node) -> bool:
        return any(not self.half[one].finite for one in self.operands(node))

    def starved(self, node: fx.Node) -> bool:
        return any(self.share(one) > SHARE for one in self.operands(node))

    def operands(self, node: fx.Node) -> Iterator[fx.Node]:
        """What a node is given, that is a tensor: behind the tuple that it is in."""
        for one in node.all_input_nodes:
            if one in self.half and one in self.full:
                yield one
            elif one.op == "call_function":
                yield from self.operands(one)

    def reaches(self, user: fx.Node) -> bool:
        """Whether an infinity is still one, or not a number, at what uses it: behind its views."""
        if user.op == "output":
            return True
        if name(user) in VIEWS or user not in self.half:
            return any(map(self.reaches, user.users))
        return not self.half[user].finite and user in self.full and self.full[user].finite

    def right(self, mark: Mark) -> bool | None:
        """None where this is no statement on what these runs show."""
        if mark.code == INFINITE and mark.headroom_bits is not None and mark.headroom_bits > 0:
            sizes = [self.full[node].largest for node in self.full if _line(node) == _line(mark.node)]
            return max(sizes, default=0.0) >= LIMIT / (32 if mark.severity is Severity.NOTE else 8)
        if mark.code == INFINITE:
            return mark.node in self.infinite or _line(mark.node) in set(map(_line, self.infinite))
        if mark.code == ZERO:
            return mark.node in self.zero or _line(mark.node) in set(map(_line, self.zero))
        if mark.code == SPOILT:
            before, after = (found[mark.node].kept if mark.node in found else None for found in (self.full, self.half))
            if before is None or after is None:
                return None
            error = (after - before).square().mean().sqrt() / before.square().mean().sqrt().clamp(min=1e-30)
            return bool(error > ERROR) or ("integers" in mark.message and not torch.equal(before, after))
        return None


def _line(node: fx.Node) -> object:
    place = place_of(node)
    return (place.path, place.row) if place else node


def _class(mark: Mark) -> str:
    """What a mark says: that it is so, that it is near, or that it is a note."""
    if mark.severity is Severity.NOTE:
        return f"{mark.verdict}, a note"
    near = mark.code == INFINITE and mark.headroom_bits is not None and mark.headroom_bits > 0
    return f"{mark.verdict}, near" if near else mark.verdict


def _is_alarm(mark: Mark) -> bool:
    """Underflow that larger values decide over is told as a note, and is true all the same."""
    return mark.severity is not Severity.NOTE or mark.code == ZERO


def report(result: Result, models: int) -> None:
    print(f"{models} models, {result.runs} runs; {result.harmless} infinities that all their users hide, left out")
    print(f"{'':44s} {'right':s} of marks   precision")
    for (how, code, kind), score in sorted(result.precision.items()):
        print(f"{how:10s} {code} {kind:25s} {score}")
    for how in ("measured", "estimated"):
        for code in (INFINITE, ZERO):
            chosen = [one for (by, of, kind), one in result.precision.items() if (by, of) == (how, code)]
            alarms = [
                one
                for (by, of, kind), one in result.precision.items()
                if (by, of) == (how, code) and "near" not in kind and (code == ZERO or "note" not in kind)
            ]
            both = Score(sum(one.right for one in alarms), sum(one.wrong for one in alarms))
            print(f"{how:10s} {code} all that say it is so       {both}" if chosen else f"{how} {code}: no marks")
    print(f"{'':44s} {'found':s} of lines   recall")
    for (how, code), score in sorted(result.recall.items()):
        print(f"{how:10s} {code} {'':25s} {score}")
    counts = math.fsum(score.right + score.wrong for score in result.precision.values())
    print(f"{counts:.0f} marks judged")


if __name__ == "__main__":
    main()
