"""What makes a script as a whole unfit for conversion."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from amplint.rewrite.islands import penalties
from amplint.rewrite.islands.kernels import check_kernels
from amplint.rewrite.models.halves import exported
from amplint.rewrite.refusals.anomalies import anomaly_mode
from amplint.rewrite.refusals.chosen import check_chosen
from amplint.rewrite.refusals.doubles import trains_in_float64
from amplint.rewrite.refusals.refused import KEEP, Refused
from amplint.rewrite.refusals.sharding import check_sharding
from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.module import Module
from amplint.source.tree import assigned_to, last_name

_BY_HAND = {"add_", "sub_", "assigned in place", "assigned .data", "addcmul_", "addcdiv_", "copy_"}
_ZEROES = re.compile(r"zero|\.grad\s*=|grad_to_none")
_ANSWERS = re.compile(r"reward|done|obs|terminat|truncat")
_REWARDS = re.compile(r"rewards?|(\w+_)?advantages?|adv_targ")
_CHANCES = re.compile(r"(\w+_)?log_?probs?")
_ACTIONS = re.compile(r"actions?|act_dim|action_dim")
_PLAYED = re.compile(r"rollouts?|replay_?buffer|ReplayBuffer|next_(state|obs)s?|clip_param")
_GAMES = {"gym", "gymnasium", "stable_baselines3", "pettingzoo"}
_SPARSE = {
    "spmm", "to_sparse", "to_sparse_csr", "SparseAdam", "sparse_coo_tensor", "sparse_csr_tensor", "ToSparseTensor",
    "to_torch_csr_tensor", "to_torch_coo_tensor", "to_torch_sparse_tensor",
}  # fmt: skip
# What apex, and copies of it, keep half weights and their float32 copies in step with.
_MASTER_COPIES = frozenset("network_to_half prep_param_lists master_params_to_model_params copy_in_params".split())


def whole_script(
    reading: Reading, dtype: str, together: Sequence[Module], used: Sequence[Module] | None = None
) -> None:
    """Raise Refused if something in the script, in the files named with it, or in those it uses, rules it out. While
    `used` is None it is still being planned what stays in float32."""
    module = reading.module
    for event in reading.events:
        if isinstance(event, events.Cast) and event.dtype == "float64":
            raise Refused("the model is float64", "float64 is there for a reason: keep it")
        if isinstance(event, events.Cast) and event.dtype in ("float16", "bfloat16") and not exported(reading, event):
            raise Refused(
                f"the model's weights are cast to {event.dtype} (line {event.module.range(event.node).start.row})",
                "remove the casts first: autocast keeps weights in float32",
            )
        if isinstance(event, events.ChangeWeights) and event.how in _BY_HAND and _trains_by_hand(event):
            raise Refused("parameters are also updated by hand", "a GradScaler only steps optimizers: keep float32")
        if isinstance(event, events.Backward) and event.module is module and _stops_on_loss(module, event):
            raise Refused("its loop ends on a loss threshold, which half precision may never reach", KEEP)
    others = used or ()
    if dtype != "bfloat16" and any(_gram(one) for one in (module, *others)):
        raise Refused(
            "it compares products of a tensor with itself (Gram matrices), whose sums overflow float16",
            "compute it on .float() under torch.autocast(device_type, enabled=False), or use --dtype bfloat16",
        )
    if dtype != "bfloat16":
        check_gradients(reading, others)
        for one in together:
            for call in anomaly_mode(one):
                place = f"{one.path}:{one.range(call).start.row}"
                reason = "turns on anomaly mode, which raises on overflows that a GradScaler means to skip"
                raise Refused(f"{place} {reason}", "turn it off, or use --dtype bfloat16")
    if used is not None:
        check_kernels(reading, used)
    nodes = [node for one in together for node in ast.walk(one.tree)]
    words = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    if any(getattr(node, "id", "") in _MASTER_COPIES for node in ast.walk(module.tree)):
        raise Refused(
            "weights are trained in float16 here, by float32 copies that the script keeps in step by hand",
            "remove the casts, the copies and the scaling of the loss first",
        )
    if "share_memory" in words:
        raise Refused("processes share the parameters without locks (Hogwild)", KEEP)
    if words & _SPARSE or {("torch", "sparse")} & set(_pairs(nodes)) or any(_sparse_gradients(node) for node in nodes):
        raise Refused("it uses sparse tensors, which have no half-precision kernels everywhere", KEEP)
    if trains_in_float64(reading, together):
        raise Refused("it computes in float64", "float64 is there for a reason: keep it")
    check_sharding(together)
    check_chosen(module)


def check_gradients(reading: Reading, used: Sequence[Module]) -> None:
    """Raise Refused where gradients are taken that no GradScaler scales, and that are not those of a penalty which can
    stay in float32, in the script or in files that it uses."""
    for one in (reading.module, *penalties.reached(reading.module, used)):
        if (inner := penalties.inner_steps(one)) is not None:
            where = "it" if one is reading.module else f"{one.path}:{one.range(inner[0]).start.row}"
            reason = f"{where} differentiates through the steps of {inner[1]}, whose gradients no GradScaler scales"
            raise Refused(f"{reason}: small ones become zero", "use --dtype bfloat16")
        if (penalty := penalties.unmet(reading, one)) is not None:
            where = "it" if one is reading.module else f"{one.path}:{one.range(penalty).start.row}"
            raise Refused(penalties.REASON.replace("it", where, 1), penalties.ADVICE)
    if penalties.unscaled(reading):
        raise Refused(
            "it uses the gradients that autograd.grad returns, which no GradScaler scales: small ones become zero",
            "multiply the loss by scaler.get_scale() there and divide the gradients by it, or use --dtype bfloat16",
        )


def check_zeroed(reading: Reading, files: Sequence[Module]) -> None:
    """Raise Refused where gradients add up for ever: a scaler unscales those of a step in place, and the next backward
    adds scaled ones to them."""
    steps = [event for event in reading.events if isinstance(event, events.Step) and event.scaler is None]
    if not steps or not all(event.loops for event in steps):
        return
    zeroed = [event for event in reading.events if isinstance(event, events.ZeroGradient)]
    if not zeroed and not any(_ZEROES.search(one.text) for one in files):
        raise _mixed("its gradients")
    for step in steps if zeroed else ():
        loop = step.loops[-1]
        if not any(isinstance(one, events.Backward) and loop in one.loops for one in step.before.origins):
            continue
        if any(loop.node is one.node for event in zeroed for one in event.loops):
            continue
        if not _ZEROES.search(loop.frame.module.source(loop.node)):
            raise _mixed(f"the gradients in the loop of line {loop.frame.module.range(loop.node).start.row}")


def _mixed(what: str) -> Refused:
    return Refused(
        f"nothing sets {what} to zero, and a GradScaler would mix scaled and unscaled ones",
        "call zero_grad() before each backward, or use --dtype bfloat16",
    )


PLAYS = Refused(
    "it is reinforcement learning: rollout and update must agree in precision",
    "say which with --dtype bfloat16 or --dtype float16, and compare the returns",
)


def plays(module: Module) -> bool:
    """Whether a file trains on what an environment answers: it imports games, takes an environment's step apart, or
    weighs what was played by rewards."""
    if {name.partition(".")[0] for names in module.imports.values() for name in names} & _GAMES:
        return True
    if "reward" in module.text or "advantage" in module.text:
        nodes = list(ast.walk(module.tree))
        words = {getattr(node, "id", getattr(node, "attr", getattr(node, "arg", None))) or "" for node in nodes}

        def says(kind: re.Pattern[str]) -> bool:
            return any(isinstance(word, str) and kind.fullmatch(word) for word in words)

        if says(_REWARDS) and (says(_CHANCES) or (says(_ACTIONS) and says(_PLAYED))):
            return True
    for node in ast.walk(module.tree):
        match node:
            case ast.Assign(
                targets=[ast.Tuple(elts=[_, _, _, *_]) as answer],
                value=ast.Call(func=ast.Attribute(attr="step"), args=[_]) as step,
            ):
                if _ANSWERS.search(ast.unparse(answer)) or "env" in ast.unparse(step.func).lower():
                    return True
    return False


def _gram(module: Module) -> bool:
    """Whether a file divides a product of a tensor with its own transpose by a product of sizes, or squares what such
    a product differs by."""
    for node in ast.walk(module.tree):
        match node:
            case ast.BinOp(op=ast.Div(), left=product, right=divisor):
                pass
            case (
                ast.BinOp(op=ast.Pow(), left=ast.BinOp(op=ast.Sub(), left=one, right=other))
                | ast.Call(func=ast.Attribute(attr="mse_loss"), args=[one, other, *_])
            ):
                if _self_product(module, one) and _self_product(module, other):
                    return True
                continue
            case ast.Call(func=ast.Attribute(value=product, attr="div" | "div_"), args=[divisor, *_]):
                pass
            case _:
                continue
        sizes = isinstance(divisor, ast.BinOp) and isinstance(divisor.op, ast.Mult)
        sizes |= any(getattr(part, "attr", "") in ("numel", "nelement", "size", "shape") for part in ast.walk(divisor))
        if sizes and _self_product(module, product):
            return True
    return False


def _self_product(module: Module, product: ast.AST) -> bool:
    match product:
        case ast.BinOp(op=ast.MatMult(), left=left, right=right):
            pass
        case ast.Call(func=ast.Attribute(value=left, attr="bmm" | "matmul" | "mm"), args=[right]):
            pass
        case ast.Call(func=ast.Attribute(attr="bmm" | "matmul" | "mm"), args=[left, right]):
            pass
        case ast.Name():
            made = [one for one in assigned_to(module.scope(product), product.id) if not isinstance(one, ast.Name)]
            return any(_self_product(module, one) for one in made)
        case _:
            return False
    values = assigned_to(module.scope(right), right.id) if isinstance(right, ast.Name) else []
    other = values[0] if values else right
    match other:
        case ast.Attribute(value=turned, attr="T" | "mT"):
            pass
        case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="transpose" | "t"), args=[turned, *_]):
            pass
        case ast.Call(func=ast.Attribute(value=turned, attr="transpose" | "t" | "permute" | "swapaxes")):
            pass
        case _:
            return False
    return module.source(turned) == module.source(left)


def _pairs(nodes: list[ast.AST]) -> list[tuple[str, str]]:
    return [(n.value.id, n.attr) for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)]


def _sparse_gradients(node: ast.AST) -> bool:
    """nn.Embedding(…, sparse=True)."""
    return isinstance(node, ast.keyword) and node.arg == "sparse" and getattr(node.value, "value", None) is True


def _trains_by_hand(event: events.ChangeWeights) -> bool:
    """Whether a change of weights uses gradients: p.data.add_(p.grad, alpha=-lr)."""
    statement = event.module.statement(event.node)
    return any(isinstance(node, ast.Attribute) and node.attr == "grad" for node in ast.walk(statement))


def by_hand(module: Module) -> bool:
    """Whether something is updated with gradients without an optimizer: `w.data -= lr * w.grad`, `w.sub_(lr * g)`."""
    for node in ast.walk(module.tree):
        match node:
            case ast.AugAssign(value=value) | ast.Assign(targets=[ast.Attribute() | ast.Subscript()], value=value):
                pass
            case ast.Call(
                func=ast.Attribute(attr="add_" | "sub_" | "addcmul_" | "addcdiv_" | "copy_"), args=[value, *_]
            ):
                pass
            case _:
                continue
        if any(last_name(one) in ("grad", "grads") for one in ast.walk(value)):
            return True
    return False


def _stops_on_loss(module: Module, backward: events.Backward) -> bool:
    """Whether a loop around the backward ends when its loss is small: `while loss > 1e-3`, `if loss < eps: break`."""
    node = backward.node
    receiver = node.func.value if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else None
    names = _paths(module, receiver) if receiver else set()
    for loop in module.ancestors(node):
        if not isinstance(loop, ast.For | ast.While):
            continue
        tests = [loop.test] if isinstance(loop, ast.While) else []
        tests += [
            inner.test
            for inner in ast.walk(loop)
            if isinstance(inner, ast.If) and any(isinstance(last, ast.Break) for last in inner.body)
        ]
        for test in (part for one in tests for part in ast.walk(one) if isinstance(part, ast.Compare)):
            if names & _paths(module, test):
                return True
    return False


def _paths(module: Module, node: ast.AST) -> set[str]:
    """The names and fields that an expression reads; not the `self` of a field."""
    found = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            found.add(inner.id)
        elif isinstance(inner, ast.Attribute):
            found.add(module.source(inner))
    return found - {"self"}
