"""What the ranges of amplint/graph/ranges say, beside what real FP32 runs give, on models of timm and transformers.

    python benchmarks/ranges.py [MODEL …] [--each]

Each model is captured under CUDA's autocast policy and analysed with one batch at hand; the truth is max |x| of every
node on another batch. In a perturbed model one linear or convolution at random is rescaled so that its own largest
output is 2^k times 65504, for k in -5, -3, -1.5, 1.5, 3, 6, or 2^k for k
in -17, -19, -21, -24. Printed: intervals that a value left (there must be none),
precision and recall of the alarm `estimate > 65504` and of `more than 10 % flushed to zero`, the error of the estimate
in bits, and the time beside one FP32 forward.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import zoo

from amplint.graph.capture.captured import Captured, Precision, dtype_of
from amplint.graph.capture.ladder import capture
from amplint.graph.ranges import Declared, Range, analyse
from amplint.graph.run import run

LIMIT = 65504.0
TINY = 2.0**-25
LARGE = (-5, -3, -1.5, 1.5, 3, 6)  # log2 of the rescaled output's largest value beside 65504
SMALL = (-17, -19, -21, -24)  # log2 of that value itself
TIMM = """
    resnet18 regnetx_002 lcnet_035 ghostnet_050 pit_ti_224 xcit_nano_12_p16_224 test_vit test_vit_relpos test_resnet
    test_efficientnet test_convnext test_nfnet
""".split()
TRANSFORMERS = """
    bert gpt2 llama t5 opt bloom mistral deberta-v2 bart vit segformer mamba whisper roberta phi gpt_neox
""".split()
CLIP = 6.0  # the inputs' declared range


@dataclass
class Score:
    """Counts over nodes: of alarms and of truth."""

    hit: int = 0
    false: int = 0
    missed: int = 0
    nodes: int = 0

    def add(self, said: bool, true: bool) -> None:
        self.nodes += 1
        self.hit += said and true
        self.false += said and not true
        self.missed += true and not said

    def __str__(self) -> str:
        precision = self.hit / max(self.hit + self.false, 1)
        recall = self.hit / max(self.hit + self.missed, 1)
        counts = f"{self.hit + self.missed:5d} of {self.nodes:6d}   {self.hit:5d} {self.false:5d} {self.missed:5d}"
        return f"{counts}   {precision:9.3f} {recall:7.3f}"


@dataclass
class Result:
    unsound: int = 0
    values: int = 0
    hidden: int = 0  # nodes with a harmless mask: left out
    scores: dict[str, Score] = field(default_factory=dict)
    bits: list[float] = field(default_factory=list)
    ratios: list[tuple[float, float]] = field(default_factory=list)  # seconds: analysis, forward
    unknown: dict[str, int] = field(default_factory=dict)
    blank: int = 0  # nodes without an estimate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--each", action="store_true", help="print every wrong alarm")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    result = Result()
    chosen = options.models or [*TIMM, *TRANSFORMERS]
    for name in chosen:
        random.seed(f"{options.seed} {name}")
        before = time.time()
        try:
            _model(name, result, options)
        except KeyboardInterrupt:
            raise
        except Exception as error:  # a model that cannot be built or captured is no statement on ranges
            print(f"{name}: left out: {type(error).__name__}: {str(error)[:100]}", file=sys.stderr)
        print(f"{name:32s} {time.time() - before:5.1f} s", file=sys.stderr)
    report(result, len(chosen))


def _model(name: str, result: Result, options: argparse.Namespace) -> None:
    captured, declared, other = prepared(name)
    original = _measure(name, captured, declared, other, result, options, "")
    for what in perturbed(captured, original):
        _measure(name, captured, declared, other, result, options, what)


def prepared(name: str, precision: Precision | None = None) -> tuple[Captured, dict[str, Declared], dict[str, Any]]:
    """A model of the zoo, captured with a batch; what is declared of its inputs; another batch."""
    model, args, kwargs = zoo.transformers(name) if name in zoo.TRANSFORMERS else zoo.timm(name)
    args, kwargs = _bounded(args), _bounded(kwargs)
    for module in model.modules():
        if hasattr(getattr(module, "config", None), "use_cache"):
            module.config.use_cache = False
    captured = capture(model, args, kwargs, precision or Precision())
    inputs = [node for node, kind in captured.kinds.items() if kind == "input"]
    declared = {
        node: Declared(-CLIP, CLIP)
        for node in inputs
        if _float(captured.values[node]) and captured.values[node].ndim > 1
    }
    return captured, declared, {node: _redraw(captured.values[node]) for node in inputs}


def perturbed(captured: Captured, largest: dict[Any, float]) -> Iterator[str]:
    """Which layer is rescaled, and to what: the captured values are those of the perturbed model until the next one.
    `largest`: max |x| of each node, as the model is."""
    drawn = dict(captured.values)
    layers = [node for node in captured.nodes() if _weight(captured, node) and 0 < largest.get(node, 0.0) < math.inf]
    targets = [(f"65504*2^{step:+g}", LIMIT * 2.0**step) for step in LARGE] + [
        (f"2^{step}", 2.0**step) for step in SMALL
    ]
    for label, target in targets if layers else ():
        node = random.choice(layers)
        captured.values.update(drawn)
        for argument in node.args[1:3]:
            if isinstance(argument, torch.fx.Node) and captured.kinds.get(argument.name) == "parameter":
                captured.values[argument.name] = drawn[argument.name].detach() * (target / largest[node])
        yield f"{node.name} {label}"
    captured.values.update(drawn)


def _measure(
    name: str, captured: Captured, declared: Any, other: Any, result: Result, options: argparse.Namespace, what: str
) -> dict[Any, float]:
    """Analyse with the batch at hand; run on it and on another one; compare."""
    start = time.process_time()
    ranges = analyse(captured, declared, strict=True)
    analysis = time.process_time() - start
    at_hand = {node: captured.values[node] for node in other}
    largest: dict[Any, float] = {}
    flushed: dict[Any, float] = {}
    for index, batch in enumerate((at_hand, other)):
        captured.values.update(batch)
        seen = _looker(ranges, result, largest if index else {}, flushed if index else {}, options, name, what)
        torch.manual_seed(index + 1)
        with torch.no_grad():
            run(captured, seen)
    captured.values.update(at_hand)
    with torch.no_grad():
        run(captured)
        start = time.process_time()
        run(captured)
    result.ratios.append((analysis, time.process_time() - start))
    _compare(ranges, largest, flushed, result, options, f"{name} {what}")
    return largest


def _looker(
    ranges: dict[Any, Range],
    result: Result,
    largest: Any,
    flushed: Any,
    options: argparse.Namespace,
    name: str,
    what: str,
) -> Any:
    def seen(node: Any, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.numel():
            return value
        found = ranges.get(node)
        if found is None or "empty" in str(node.target):  # memory as it was found
            return value
        if bool(torch.isnan(value).any()):
            return value
        least, most = (float(one) for one in torch.aminmax(value))
        result.values += 1
        if least < found.low or most > found.high:
            result.unsound += 1
            print(f"UNSOUND {name} {what}: {node} {node.target}: [{least}, {most}] outside [{found.low}, {found.high}]")
        size = value.abs()
        largest[node] = float(size.max())
        held = int((size > 0).sum())
        flushed[node] = int(((size > 0) & (size <= TINY)).sum()) / held if held else 0.0
        return value

    return seen


def _compare(
    ranges: dict[Any, Range], largest: Any, flushed: Any, result: Result, options: argparse.Namespace, what: str
) -> None:
    for node, size in largest.items():
        found = ranges[node]
        if found.unknown:
            result.unknown[found.unknown] = result.unknown.get(found.unknown, 0) + 1
        if found.masked:
            result.hidden += 1
            continue
        if found.amax is None or found.tiny is None:
            result.blank += 1
        half = dtype_of(node) == torch.float16
        amax, share = found.amax or 0.0, found.tiny or 0.0
        said = {
            "alarm": amax > LIMIT,
            "alarm, 2 bits early": amax > LIMIT / 4,
            "interval": max(-found.low, found.high) > LIMIT,
        }
        for label, alarm in said.items():
            for group in ("all nodes", *(["half under AMP"] if half else [])):
                score = result.scores.setdefault(f"{label}, {group}", Score())
                score.add(alarm, size > LIMIT)
        for group in ("all nodes", *(["half under AMP"] if half else [])):
            result.scores.setdefault(f"flushed > 10 %, {group}", Score()).add(share > 0.1, flushed[node] > 0.1)
        if 0 < size < math.inf and found.amax:
            result.bits.append(math.log2(max(found.amax, 1e-45) / size))
        if options.each:
            wrong = (amax > LIMIT) != (size > LIMIT)
            if wrong:
                label = "MISSED" if size > LIMIT else "FALSE"
                print(f"{label} {what}: {node} {'half' if half else ''} true {size:.3g} estimate {amax:.3g}")
            if (share > 0.1) != (flushed[node] > 0.1):
                said_share = f"true {flushed[node]:.3f} said {share:.3f} size {size:.3g} {amax:.3g}"
                print(f"FLUSH  {what}: {node} {'half' if half else ''} {said_share}")
            if 0 < size < math.inf and abs(math.log2(max(amax, 1e-300) / size)) > 4:
                print(f"BITS   {what}: {node} {node.target} true {size:.3g} estimate {amax:.3g}")


def report(result: Result, models: int) -> None:
    runs = len(result.ratios)
    print(f"{models} models, {runs} analyses, {result.values} values checked against their intervals")
    print(f"left out: {result.hidden} nodes with a mask that all their users discard")
    print(f"unsound intervals: {result.unsound}")
    print(f"{'':38s} {'true of nodes':>15s}     {'hit false missed':s}   precision  recall")
    for label, score in sorted(result.scores.items()):
        print(f"{label:38s} {score}")
    marks = statistics.quantiles(result.bits, n=100) if len(result.bits) > 1 else [0.0] * 99
    print("log2(estimate / true): " + ", ".join(f"p{at} {marks[at - 1]:+.2f}" for at in (1, 5, 50, 95, 99)))
    analysis, forward = zip(*result.ratios, strict=True)
    ratio = statistics.median(a / f for a, f in result.ratios)
    times = statistics.median(analysis), statistics.median(forward), ratio
    print("CPU seconds, median: analysis {:.3f}, one FP32 forward {:.3f}, ratio {:.2f}".format(*times))
    print(f"nodes without an estimate: {result.blank}; unknown operations: {result.unknown or 'none'}")


def _weight(captured: Captured, node: Any) -> bool:
    """Whether a node is a linear or a convolution with a parameter for its weight."""
    if not any(one in str(node.target) for one in ("aten.linear", "aten.conv")) or len(node.args) < 2:
        return False
    return captured.kinds.get(getattr(node.args[1], "name", "")) == "parameter"


def _float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _bounded(given: Any) -> Any:
    return torch.utils._pytree.tree_map(lambda one: one.clamp(-CLIP, CLIP) if _float(one) else one, given)


def _redraw(value: Any) -> Any:
    """Another batch: normal numbers, other tokens, the same masks."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.is_floating_point():
        return torch.randn_like(value).clamp(-CLIP, CLIP) if value.ndim > 1 else value
    if value.dtype == torch.bool or int(value.max()) <= 1:
        return value
    return torch.randint(int(value.min()), int(value.max()) + 1, value.shape, dtype=value.dtype)


if __name__ == "__main__":
    main()
