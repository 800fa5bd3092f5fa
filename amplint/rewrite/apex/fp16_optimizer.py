"""apex's FP16_Optimizer, told in terms of apex.amp, which migrate.py knows: a script that wraps its optimizer and
trains a half model is one of opt_level O2 that says so by hand."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from amplint.config import Settings
from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.rewrite.apex.fp16_helpers import (
    CLIPPED,
    NAME,
    TO_HALF,
    cast_edits,
    casts_in,
    from_apex,
    fused_edits,
    import_edits,
    is_module,
    stored_in,
    target_of,
)
from amplint.rewrite.apex.uses import uses_of
from amplint.rewrite.fixes import conditions_above, suite_of
from amplint.rewrite.models.halves import flag_of, half_casts, scales_by_hand, without
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.rewrite.syntax.apply import Conflict, apply
from amplint.rewrite.syntax.layout import begins_line, end, ends_line, margin_of, start, unit
from amplint.rewrite.syntax.text import edit
from amplint.source.interpret.entries import read
from amplint.source.module import Module, Unreadable, parse
from amplint.source.tree import called_name, named_argument

_CLIPS = ("clip_master_grads", "clip_fp32_grads")
_PLAIN = frozenset("step zero_grad param_groups state_dict load_state_dict state defaults add_param_group".split())
_KEYS = "the keys of the model's state have no 1. in front, which network_to_half put there"
_LOW = ("half", "float16", "HalfTensor")
_BEFORE = "scale_before"  # the scale before a step, which is smaller behind it where gradients overflowed
_STATE = "the optimizer's state is its own now, and what FP16_Optimizer saved does not load into it"


@dataclass
class Told:
    """A module as it reads in terms of apex.amp, and what changes beside what that says."""

    module: Module
    changes: list[str] = field(default_factory=list)


def told(module: Module, settings: Settings) -> Told | None:
    """None where the module does not wrap an optimizer, or does so beside apex.amp, which then is what is migrated;
    raises Refused where a person has to look at it."""
    if NAME not in module.text:
        return None
    wraps = [
        node
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and called_name(node) == NAME and from_apex(module, node.func)
    ]
    if not wraps or not _backwards(module) or uses_of(module).uses:
        return None
    teller = _Teller(module, wraps)
    teller.tell()
    plain = _applied(module, teller.edits)
    if scales_by_hand(plain):
        raise Refused("the loss is scaled by hand as well", "drop that, and what undoes it, then run amplint again")
    casts = half_casts(read(plain, settings.roots, settings.apis), teller.models)
    if casts is None:
        raise Refused(
            "amplint does not see that the casts to float16 are those of the model and of its inputs",
            "remove them, or the file's own use of float16, first",
        )
    asked = {node.id if isinstance(node, ast.Name) else node.attr for node in teller.asked()}
    flags = {flag_of(plain, one) for one in casts} - {""}
    if unasked := sorted(one for one in flags if one.rpartition(".")[2] not in asked):
        raise Refused(f"casts to float16 ask for {unasked[0]}, and FP16_Optimizer does not", "let one flag decide")
    after = without(plain, casts)
    if after is None:
        raise Refused("the casts to float16 stand in an unusual place", "remove them first")
    if any(isinstance(node, ast.Attribute) and node.attr in _LOW for node in ast.walk(after.tree)):
        raise Refused("it makes other float16 tensors, which meet float32 weights then", "remove them first")
    return Told(after, teller.changes)


def places(module: Module) -> list[ast.AST]:
    """Where the training steps of a file are, as far as FP16_Optimizer says."""
    return [*_backwards(module)]


def _backwards(module: Module) -> list[ast.Call]:
    """The calls of backward() that are given a loss."""
    calls = (node for node in ast.walk(module.tree) if isinstance(node, ast.Call))
    return [one for one in calls if called_name(one) == "backward" and (one.args or named_argument(one, "loss"))]


def refuse_others(modules: Iterable[Module]) -> None:
    """Refuse where another file may be given the wrapped optimizer, and use it as such."""
    for module in modules:
        if f"class {NAME}" not in module.text:
            for node in ast.walk(module.tree):
                refuse_other_name(module, node)


def refuse_other_name(module: Module, node: ast.AST) -> None:
    """Refuse what only FP16_Optimizer has, on what has not its name: it may be the same optimizer."""
    match node:
        case ast.Attribute(attr="backward", value=owner) if "opt" in ast.unparse(owner).rpartition(".")[2].lower():
            pass
        case ast.Attribute(attr="update_master_grads" | "clip_master_grads" | "clip_fp32_grads"):
            pass
        case _:
            return
    raise Refused(
        f"{ast.unparse(node)}() in {module.path} may be of the wrapped optimizer", "give it one name, in one file"
    )


def in_its_words(text: str) -> str:
    """What is said about apex.amp, about a script that does not name it."""
    for old, new in (
        ("amp.initialize", NAME),
        ("amp.scale_loss", "optimizer.backward"),
        ("amp.master_params", "clip_master_grads"),
        ("weights, which O2 kept in float16, are", "weights are"),
        (", nor was that of apex", ", as the loss scale was"),
        ("apex.amp", NAME),
    ):
        text = text.replace(old, new)
    return text


def _applied(module: Module, made: list[Edit]) -> Module:
    try:
        text = apply(module.text, sorted(set(made)))
        return Module(module.path, text, parse(text), module.encoding)
    except Conflict:
        raise Refused("its edits would overlap", "spread the training step over lines of its own") from None
    except Unreadable as error:
        raise Refused(f"the result would not parse ({error.reason})", "please report this") from None


class _Teller:
    """Collects the edits that tell a module in terms of apex.amp."""

    def __init__(self, module: Module, wraps: list[ast.Call]):
        self.module = module
        self.wraps = wraps
        self.edits: list[Edit] = []
        self.changes: list[str] = []
        self.models: list[str] = []
        self.inside: set[ast.AST] = set()  # names that the edits take away
        self.scaled: list[ast.stmt] = []  # the steps before which the scale is kept
        self.owners = {target_of(module, one): None for one in wraps}
        self.scales: dict[str, str] = {}

    def tell(self) -> None:
        module = self.module
        if "mpu" in module.imports:
            raise Refused("its gradients are spread over ranks by model parallelism", BY_HAND)
        self.models = self._models()
        joint = len(self.owners) > 1
        if joint:
            suites = [suite_of(module, module.statement(one)) for one in self.wraps]
            if len(self.owners) < len(self.wraps) or any(one is not suites[0] for one in suites):
                raise Refused("optimizers are wrapped in several places", "wrap them one after the other")
            self.changes.append("all losses share one loss scale now")
        last = max(self.wraps, key=lambda one: one.lineno)
        for call in self.wraps:
            self._wrap(call, call is last or not joint)
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute):
                if module.source(node.value) in self.owners:
                    self._use(node)
                else:
                    refuse_other_name(module, node)
        made, gone = cast_edits(module)
        self.edits += made
        if clips := fused_edits(module, self.owners):
            self.edits += clips
            self.changes.append(CLIPPED)
        self.edits += import_edits(module, self.inside | gone)

    def asked(self) -> Iterator[ast.Name | ast.Attribute]:
        """What the conditions name under which an optimizer is wrapped."""
        for call in self.wraps:
            for above in self.module.ancestors(call):
                if isinstance(above, ast.If):
                    yield from (one for one in ast.walk(above.test) if isinstance(one, ast.Name | ast.Attribute))

    # -- the optimizer ------------------------------------------------------------------------------------------------

    def _models(self) -> list[str]:
        """The models whose weights are cast, by their names where the optimizer is wrapped."""
        module = self.module
        found: dict[str, None] = {}
        for node in ast.walk(module.tree):
            match node:
                case ast.Call(func=ast.Attribute(attr="half", value=model)) if isinstance(
                    module.parents[node], ast.Expr
                ):
                    found[module.source(model)] = None
                case ast.Assign(targets=[ast.Name() | ast.Attribute() as model], value=value) if casts_in(value):
                    name = module.source(model)
                    if is_module(module, name):
                        found[name] = None
        home = module.function(self.wraps[0])
        models = [one for one in found if stored_in(module, one, home)]
        self._wrapped_models(models)
        if not models:
            raise Refused(
                "amplint does not see which model becomes half where the optimizer is wrapped",
                "remove the casts to float16 and FP16_Optimizer by hand, then run amplint again",
            )
        return models

    def _wrapped_models(self, names: Collection[str]) -> None:
        """network_to_half and FP16_Module put a module around the model, which the file may know."""
        helpers = {called_name(one) for one in ast.walk(self.module.tree) if isinstance(one, ast.Call)} & TO_HALF
        for node in ast.walk(self.module.tree) if helpers else ():
            match node:
                case ast.Attribute(attr="module", value=model) | ast.Subscript(value=model, slice=ast.Constant()) if (
                    self.module.source(model) in names
                    and (helpers != {"network_to_half"} or isinstance(node, ast.Subscript))
                ):
                    text = self.module.source(node)
                    raise Refused(f"{text} may be the model inside of {min(helpers)}()", "drop that by hand first")
                case ast.Attribute(attr="state_dict" | "load_state_dict", value=model) if (
                    self.module.source(model) in names
                ):
                    self.changes += [_KEYS] if "network_to_half" in helpers and _KEYS not in self.changes else []

    def _wrap(self, call: ast.Call, begins: bool) -> None:
        """Take a wrapper off; where AMP `begins`, for all optimizers, amp.initialize stands in its place."""
        module, statement = self.module, self.module.statement(call)
        target = target_of(module, call)
        given = dict(zip(("optimizer", "static", "dynamic", "args", "verbose"), call.args, strict=False))
        names = {"init_optimizer": "optimizer", "static_loss_scale": "static", "dynamic_loss_scale": "dynamic"}
        names |= {"dynamic_loss_args": "args", "verbose": "verbose"}
        for keyword in call.keywords:
            if keyword.arg not in names:
                raise Refused(f"FP16_Optimizer is given {keyword.arg or '**'}", "convert it by hand")
            given[names[keyword.arg]] = keyword.value
        inner = given.get("optimizer")
        if inner is None or any(isinstance(one, ast.Starred) for one in call.args):
            raise Refused("the arguments of FP16_Optimizer cannot be seen", BY_HAND)
        source = module.source(inner)
        lines = [f"{target} = {source}"] if source != target else []
        scale = _scale(module, given)
        self.scales.setdefault(scale, target)
        if len(self.scales) > 1 and len(self.owners) > 1:
            raise Refused("the optimizers have loss scales of their own", BY_HAND)
        option = f", loss_scale={scale}" if scale else ""
        both = f"{_listed(self.models)}, {_listed(self.owners)}"
        lines += [f'{both} = amp.initialize({both}, opt_level="O2"{option})'] if begins else []
        if "args" in given and not (isinstance(given["args"], ast.Constant) and given["args"].value is None):
            self.changes.append("how the loss scale moves is GradScaler's own way now, whatever dynamic_loss_args says")
        text = f"{module.newline}{margin_of(module, statement)}".join(lines)
        if lines:
            self.edits.append(edit(module, start(module, statement), end(module, statement), text))
        else:
            self.edits += edits.delete(module, statement)
        self.inside |= set(ast.walk(call.func))

    def _use(self, node: ast.Attribute) -> None:
        """A method or field of the wrapped optimizer."""
        module, above = self.module, self.module.parents[node]
        if node.attr in ("state_dict", "load_state_dict"):
            self.changes += [_STATE] if _STATE not in self.changes else []
        if node.attr == "zero_grad" and isinstance(above, ast.Call) and (above.args or above.keywords):
            raise Refused("zero_grad() is given what FP16_Optimizer alone knows", "drop that, then run amplint again")
        if node.attr in _PLAIN:
            return
        if node.attr in ("loss_scale", "cur_scale") and isinstance(node.ctx, ast.Load):
            self.edits += edits.replace(module, node, f"amp.get_scale({module.source(node.value)})")
            return
        if node.attr == "overflow" and isinstance(node.ctx, ast.Load):
            self._overflow(node)
            return
        call = above if isinstance(above, ast.Call) and above.func is node else None
        if call is None or node.attr not in ("backward", "update_master_grads", *_CLIPS):
            raise Refused(f"it uses {module.source(node)}, which a plain optimizer does not have", BY_HAND)
        owner = module.source(node.value)
        if node.attr in _CLIPS:
            self._clip(call, owner)
            return
        statement = module.parents[call]
        alone = isinstance(statement, ast.Expr) and begins_line(module, statement) and ends_line(module, statement)
        if not alone or not isinstance(statement, ast.Expr):
            raise Refused(f"{owner}.{node.attr}() is part of another statement", "give it a line of its own")
        if node.attr == "backward":
            self._backward(call, statement, owner)
        else:
            self._drop(statement)

    def _backward(self, call: ast.Call, statement: ast.Expr, owner: str) -> None:
        module = self.module
        rest = [one for one in call.keywords if one.arg not in ("update_master_grads", "loss")]
        loss = call.args[0] if call.args else named_argument(call, "loss")
        if loss is None or len(call.args) > 1 or any(one.arg != "retain_graph" for one in rest):
            raise Refused(f"the arguments of {owner}.backward() are not only a loss", BY_HAND)
        given = ", ".join(module.source(one) for one in rest)
        inner = margin_of(module, statement) + unit(module, margin_of(module, statement))
        text = f"with amp.scale_loss({module.source(loss)}, {owner}) as scaled_loss:{module.newline}"
        text += f"{inner}scaled_loss.backward({given})"
        self.edits.append(edit(module, start(module, statement), end(module, statement), text))

    def _overflow(self, node: ast.Attribute) -> None:
        """`optimizer.overflow` behind a step: the scale is smaller than before it."""
        module, owner = self.module, self.module.source(node.value)
        nodes = (one for one in ast.walk(module.tree) if isinstance(one, ast.Call))
        steps = [one for one in nodes if module.source(one.func) == f"{owner}.step"]
        there = module.statement(steps[0]) if len(steps) == 1 else None
        if (
            there is None
            or module.function(there) is not module.function(node)
            or there.lineno >= node.lineno
            or not set(conditions_above(module, there)) <= set(conditions_above(module, node))
            or not _same_loops(module, there, node)
            or _BEFORE in module.text
        ):
            raise Refused(
                f"it asks {owner}.overflow elsewhere than behind the step",
                "compare scaler.get_scale() before and after scaler.update(), by hand",
            )
        line = f"{_BEFORE} = amp.get_scale({owner})"
        if there not in self.scaled:
            self.scaled.append(there)
            self.edits += edits.insert_before(module, there, [line])
        self.edits += edits.replace(module, node, f"(amp.get_scale({owner}) < {_BEFORE})")

    def _clip(self, call: ast.Call, owner: str) -> None:
        module = self.module
        names = ("max_norm", "clip", "norm_type")
        if not (call.args or call.keywords) or any(one.arg not in names for one in call.keywords):
            raise Refused(f"the arguments of {module.source(call.func)}() cannot be seen", BY_HAND)
        torch = edits.binding_of(module, "torch", at=call)
        if torch is None:
            raise Refused("the file has no name for torch where it clips", "import torch at the top")
        given = [f"amp.master_params({owner})", *(module.source(one) for one in call.args)]
        given += [
            f"{one.arg}={module.source(one.value)}" if one.arg == "norm_type" else module.source(one.value)
            for one in call.keywords
        ]
        self.edits += edits.replace(module, call, f"{torch}.nn.utils.clip_grad_norm_({', '.join(given)})")

    def _drop(self, statement: ast.stmt) -> None:
        above = self.module.parents[statement]
        while isinstance(above, ast.If) and above.body == [statement] and not above.orelse:
            statement, above = above, self.module.parents[above]
        if isinstance(above, ast.If) and [statement] in (above.body, above.orelse):
            raise Refused("update_master_grads() stands alone in a branch", "turn the condition round first")
        self.edits += edits.delete(self.module, statement)


def _listed(names: Collection[str]) -> str:
    """One name, or a list of them."""
    return f"[{', '.join(names)}]" if len(names) > 1 else "".join(names)


def _scale(module: Module, given: dict[str, ast.expr]) -> str:
    """The loss scale, as amp.initialize would be given it; "" where it is dynamic."""
    dynamic = given.get("dynamic")
    if isinstance(dynamic, ast.Constant) and dynamic.value is True:
        return ""
    static = given.get("static")
    if static is None and (dynamic is None or isinstance(dynamic, ast.Constant)):
        return "1.0"
    return " ".join(module.source(static or dynamic).split())  # type: ignore[arg-type]


def _same_loops(module: Module, one: ast.AST, other: ast.AST) -> bool:
    """Whether the loops around a node are around another, too."""
    loops = [above for above in module.ancestors(one) if isinstance(above, ast.For | ast.While)]
    return loops == [above for above in module.ancestors(other) if isinstance(above, ast.For | ast.While)]
