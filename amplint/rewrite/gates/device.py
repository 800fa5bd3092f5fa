"""Where AMP is switched on: the script's own device, and the expression that compares it with the target."""

from __future__ import annotations

import ast
import builtins
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from amplint.rewrite.fixes import bound_before
from amplint.rewrite.gates.absent import may_be_none, moved_before, none_by_default, perhaps_none
from amplint.rewrite.gates.guards import SAYS_GPU, guards, is_truth
from amplint.rewrite.refusals.refused import Refused
from amplint.source.module import FunctionNode, Module
from amplint.source.tree import assigned_to, called_name, last_name, names_in, parameters, place_of

AUTO = "amp_dtype"


def auto_lines(module: Module, torch: str, version: tuple[int, int]) -> list[str]:
    """What `--dtype auto` writes: GPUs without bfloat16 (and machines without a GPU) get float16. A constant in a
    script that runs at import anyway; a function where the work is done in functions: a constant would start CUDA on
    import, in every process that is spawned, and on the first GPU."""
    emulated = "including_emulation=False" if version >= (2, 4) else ""
    asks = f"{torch}.cuda.is_available() and {torch}.cuda.is_bf16_supported({emulated})"
    if auto_dtype(module) == AUTO:
        return ["", f"{AUTO} = (", f"    {torch}.bfloat16", f"    if {asks}", f"    else {torch}.float16", ")"]
    return [
        *("", "", f"def {AUTO}():"),
        *(f"    if {asks}:", f"        return {torch}.bfloat16", f"    return {torch}.float16"),
    ]


def auto_dtype(module: Module) -> str:
    """How the dtype that `--dtype auto` chooses is read in a file."""
    for node in ast.walk(module.tree):
        match node:
            case ast.Attribute(attr="backward" | "step" | "parameters") if module.function(node) is not None:
                return f"{AUTO}()"
            case ast.Compare(left=ast.Name(id="__name__")):
                return f"{AUTO}()"
    return AUTO


@dataclass(frozen=True)
class Gate:
    """How a place in the script says on which device AMP runs: `device` is the first argument of autocast, `enabled`
    the condition ("" where there is nothing to ask). Cast copies of weights are `cached`, as a rule."""

    device: str
    enabled: str = ""
    cached: bool = True

    def arguments(self, dtype: str) -> str:
        enabled = f", enabled={self.enabled}" if self.enabled else ""
        return f"{self.device}, dtype={dtype}{enabled}{'' if self.cached else ', cache_enabled=False'}"


def always_on(module: Module, scaler: str) -> bool:
    """Whether every scaler of that name is made here, without being told whether it is enabled."""
    made = assigned_to(module.tree, scaler)
    return bool(made) and all(
        isinstance(call, ast.Call) and not any(keyword.arg in ("enabled", None) for keyword in call.keywords)
        for call in made
    )


def moved_to(module: Module) -> Counter[str]:
    """The device expressions that `.to(…)` is given, as names or attributes, with how often."""
    found: Counter[str] = Counter()
    for node in ast.walk(module.tree):
        match node:
            case (
                ast.Call(func=ast.Attribute(attr="to"), args=[ast.Name() | ast.Attribute() as device, *_])
                | ast.Call(
                    func=ast.Attribute(attr="to"),
                    args=[],
                    keywords=[ast.keyword(arg="device", value=ast.Name() | ast.Attribute() as device), *_],
                )
            ):
                text = ast.unparse(device)
                if not text.startswith("torch.") and _may_be_device(module, text):
                    found[text] += 1
    return found


def handed_on(module: Module) -> list[str]:
    """The devices that a file makes and hands to what moves things for it: `Loader(args, device)`."""
    made = [one for one in module.nodes(ast.Assign) if makes_device(module, one.value)]
    devices = {ast.unparse(target) for one in made if "cuda" in ast.unparse(one.value) for target in one.targets}
    given = (one for call in module.nodes(ast.Call) for one in (*call.args, *(kw.value for kw in call.keywords)))
    handed = dict.fromkeys(ast.unparse(one) for one in given if isinstance(one, ast.Name | ast.Attribute))
    return [text for text in handed if text in devices and is_device_object(module, text)]


def moves(module: Module) -> bool:
    """Whether a file may move anything to another device."""
    return re.search(r"cuda|gpu|device|\.to\(", module.text, re.IGNORECASE) is not None


def unknown(modules: Sequence[Module], target: str, reason: str, advice: str) -> Refused:
    """Why there is no gate: as a rule a device that is somewhere else, in a script for the CPU none at all."""
    if target != "cpu" and not any(_MOVES.search(one.text) for one in modules):
        return Refused("nothing here moves the model to a GPU", "move it and what it is given there first")
    return Refused(reason, advice)


_MOVES = re.compile(r"cuda|gpu|device|\.to\((?!torch\.|dtype)", re.IGNORECASE)
_SAYS_DEVICE = re.compile(r"dev|gpu|cuda|cpu|rank|accelerator", re.IGNORECASE)


def _may_be_device(module: Module, text: str) -> bool:
    """`.to(x)` also takes a dtype or a tensor: a device is called one, is made from one, or is given as one."""
    values = assigned_to(module.tree, text)
    made = [module.source(one.func if isinstance(one, ast.Call) else one) for one in values]
    if any(".dtype" in one or one.startswith(("torch.float", "torch.bfloat", "torch.half")) for one in made):
        return False
    if any(_SAYS_DEVICE.search(one.rpartition(".")[2]) for one in (text, *made)):
        return True
    return any(
        keyword.arg in ("device", "map_location") and ast.unparse(keyword.value) == text
        for call in module.nodes(ast.Call)
        for keyword in call.keywords
    )


def hard_coded(module: Module) -> bool:
    """Whether the script moves its model or data with a bare `.cuda()` or `.to("cuda")`, whatever the machine has."""
    for node in ast.walk(module.tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="cuda")):
                if not _asked_for(module, node):
                    return True
            case ast.Call(func=ast.Attribute(attr="to"), args=[ast.Constant(value=str() as text), *_]):
                if text.startswith("cuda") and not _asked_for(module, node):
                    return True
    return False


def _asked_for(module: Module, node: ast.AST) -> bool:
    """Whether a condition above asks for a GPU first."""
    tests = (above.test for above in module.ancestors(node) if isinstance(above, ast.If | ast.IfExp))
    return any(SAYS_GPU.search(ast.unparse(test)) for test in tests)


def gate(
    module: Module, place: ast.stmt, target: str, torch: str, model: str | None, early: bool = False
) -> Gate | None:
    """The gate for autocast (or a scaler) at a statement; None if no expression for the device is at hand there.
    `early`: the model may be moved only behind it."""
    for text, _ in moved_to(module).most_common():
        if visible(module, text, place):
            if target == "cuda" and _is_rank(module, text):
                return Gate('"cuda"')
            if none_by_default(module, text):
                continue
            kind = text if is_type(module, text, place) else f"{torch}.device({text}).type"
            if is_device_object(module, text, place) and not given_another(module, text, place):
                kind = f"{text}.type"
            return Gate(kind, f'{kind} == "{target}"')
        if parameter := _kept_later(module, text, place):
            kind = f"{torch}.device({parameter}).type"
            return Gate(kind, f'{kind} == "{target}"')
    if hard_coded(module):
        return Gate('"cuda"')
    moves = [one for one in moved_to(module) if not _of_tensor(module, one)]
    if moves:  # a device that may be None says nothing; a model that was moved knows where it is
        return _of_model(model, target) if model and moved_before(module, model, place, moves) else None
    for text in handed_on(module):
        if visible(module, text, place):
            return Gate(f"{text}.type", f'{text}.type == "{target}"')
    if target == "cpu":
        return Gate('"cpu"')
    tests = guards(module) if target == "cuda" else []
    for test in tests:
        if _readable(module, test, place):
            text = ast.unparse(test)
            text = f"({text})" if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or) else text
            return Gate('"cuda"', text if is_truth(module, test) else f"bool({text})")
    if model is None or (tests and early):
        return None
    return _of_model(model, target)


def _kept_later(module: Module, text: str, place: ast.stmt) -> str:
    """The parameter that the function around a place keeps in a field further down: `self.device = device`."""
    function = module.function(place)
    values = assigned_to(function, text) if function is not None and text.startswith("self.") else []
    names = [one.id for one in values if isinstance(one, ast.Name) and one.id in parameters(function)]
    if len(values) != 1 or not names or _is_rank(module, text) or _is_rank(module, names[0]):
        return ""
    return names[0] if visible(module, names[0], place) and not none_by_default(module, names[0]) else ""


def _of_tensor(module: Module, text: str) -> bool:
    """Whether a device is asked of a tensor: `x.to(data.device)` moves no model."""
    root, _, last = text.rpartition(".")
    parts = [one for one in module.nodes(ast.Attribute) if one.attr in ("size", "shape", "dtype", "ndim")]
    read = [one.value for one in parts] + [one.value for one in module.nodes(ast.Subscript)]
    return last == "device" and any(isinstance(one, ast.Name) and one.id == root for one in read)


def _of_model(model: str, target: str) -> Gate:
    """The gate that asks a model where it is."""
    if target == "cuda":
        return Gate('"cuda"', f"next({model}.parameters()).is_cuda")
    kind = f"next({model}.parameters()).device.type"
    return Gate(kind, f'{kind} == "{target}"')


def visible(module: Module, text: str, place: ast.stmt) -> bool:
    """Whether an expression can be evaluated at a statement: its root is bound there, in its function or globally, and
    a field of `self` is set by then."""
    root = text.partition(".")[0]
    if root == "self":
        return _is_field(module, text, place) and not perhaps_none(module, text, place)
    functions = [above for above in module.ancestors(place) if isinstance(above, FunctionNode)]
    for function in functions:
        if root in parameters(function):
            return "device" not in root or not may_be_none(function, root)
        if module.stores(root, function):
            return bound_before(module, text, place)
    stores = module.stores(root, module.tree)
    if imported(module, root):
        return True
    if functions:
        return bool(stores) and not _foreign(module, root, place)
    return any(place_of(node) < place_of(place) for node in stores)


def imported(module: Module, name: str) -> bool:
    """Whether a name is an import's, perhaps one of everything: it is read, and nothing in the file binds it."""
    uses = [node for node in module.nodes(ast.Name) if node.id == name]
    bound = {one.arg for one in module.nodes(ast.arg)} | {node.id for node in uses if isinstance(node.ctx, ast.Store)}
    if not uses or name in bound or hasattr(builtins, name):
        return False
    starred = any(alias.name == "*" for one in module.nodes(ast.ImportFrom) for alias in one.names)
    return starred or name in module.imports


def _foreign(module: Module, name: str, place: ast.stmt) -> bool:
    """Whether a global is an object of a class of the file, and the class around a place knows nothing of it: it may
    not be there yet while an object of that class is being made."""
    classes = {one.name for one in module.tree.body if isinstance(one, ast.ClassDef)}
    around = module.class_of(place)
    if around is None or name in names_in(around):
        return False
    return any(
        isinstance(one, ast.Assign)
        and any(getattr(target, "id", "") == name for target in one.targets)
        and isinstance(one.value, ast.Call)
        and getattr(one.value.func, "id", "") in classes
        for one in ast.walk(module.tree)
    )


def known_at(module: Module, place: ast.stmt) -> bool:
    """Whether a file says where it moves things, in words that a statement has at hand."""
    told = any(visible(module, one, place) for one in moved_to(module))
    return told or hard_coded(module) or any(_readable(module, one, place) for one in guards(module))


def _readable(module: Module, test: ast.expr, place: ast.stmt) -> bool:
    """Whether a condition can be asked at a statement."""
    for node in ast.walk(test):
        if isinstance(node, ast.Name) and node.id not in module.imports and not hasattr(builtins, node.id):
            text = next((ast.unparse(one) for one in ast.walk(test) if getattr(one, "value", None) is node), node.id)
            if not visible(module, text, place):
                return False
    return True


def _is_field(module: Module, text: str, place: ast.stmt) -> bool:
    """Whether a field of `self` is there at a statement of the same class."""
    around = module.class_of(place)
    if around is None:
        return False
    uses = [node for node in ast.walk(around) if isinstance(node, ast.Attribute) and ast.unparse(node) == text]
    stores = [node for node in uses if isinstance(node.ctx, ast.Store)]
    here = [node for node in stores if module.function(node) is module.function(place)]
    if here:
        return min(place_of(node) for node in here) < place_of(place)
    return bool(uses) and (not stores or getattr(module.function(place), "name", "") != "__init__")


def _is_rank(module: Module, text: str) -> bool:
    """Whether a device is the number of a GPU: made by int() or get_rank() and nothing else, compared with a number,
    given to .cuda() whatever the machine has, or the one that a process is bound to."""
    told = False
    for node in ast.walk(module.tree):
        match node:
            case ast.Assign(targets=[target], value=value) if ast.unparse(target) == text:
                if isinstance(value, ast.Name | ast.Attribute):
                    continue  # what else it is called
                function = value.func if isinstance(value, ast.Call) else None
                name = last_name(function)
                if name not in ("int", "get_rank", "current_device"):
                    return False
                told = True
            case ast.keyword(arg="device_ids" | "output_device", value=value):
                parts = value.elts if isinstance(value, ast.List) else [value]
                told |= any(ast.unparse(part) == text for part in parts)
            case ast.Compare(left=left, comparators=[ast.Constant(value=int())]):
                told |= ast.unparse(left) == text
            case ast.Call(func=ast.Attribute(attr="set_device"), args=[argument]):
                told |= ast.unparse(argument) == text
            case ast.Call(func=ast.Attribute(attr="cuda"), args=[argument, *_]):
                told |= ast.unparse(argument) == text and not _asked_for(module, node)
    return told


def given_another(module: Module, name: str, place: ast.AST) -> bool:
    """Whether a parameter of the function around is given something else than a torch.device by a call: a rank."""
    for function in module.ancestors(place):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        names = [one.arg for one in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
        if name not in names:
            continue
        for call in module.nodes(ast.Call):
            if called_name(call) != function.name:
                continue
            given = [keyword.value for keyword in call.keywords if keyword.arg == name]
            given += [value for one, value in zip(names, call.args, strict=False) if one == name]
            if not all(makes_device(module, one) or is_device_object(module, ast.unparse(one)) for one in given):
                return True
    return False


def is_device_object(module: Module, text: str, place: ast.AST | None = None) -> bool:
    """Whether every assignment of the name (or attribute) makes a torch.device, or its type is read; otherwise it may
    be a string. A name of the function around a place is what that assigns to it."""
    owner, _, name = text.rpartition(".")
    function = module.function(place) if place is not None else None
    if function is not None and not owner and (own := assigned_to(function, text)):
        return all(makes_device(module, value) for value in own)
    reads = (one for one in module.nodes(ast.Attribute) if owner and one.attr == "type")
    if any(ast.unparse(one.value) == text and getattr(module.parents[one], "func", None) is not one for one in reads):
        return True
    if owner and owner != "self" and not assigned_to(module.tree, text):
        text = f"self.{name}"  # trainer.device
    made = [makes_device(module, value) for value in assigned_to(module.tree, text)]
    return bool(made) and all(made)


def is_type(module: Module, text: str, place: ast.AST) -> bool:
    """Whether a name (of the module, or of the function around) is "cuda" or "cpu" and no more, such as "cuda:0"."""
    functions = [above for above in module.ancestors(place) if isinstance(above, FunctionNode)]
    if any(text in parameters(function) for function in functions):
        return False
    values = assigned_to(module.tree, text)
    return bool(values) and all(map(says_type, values))


def says_type(value: ast.expr) -> bool:
    match value:
        case ast.Constant(value=str() as text):
            return text.isalpha()
        case ast.IfExp(body=body, orelse=orelse):
            return says_type(body) and says_type(orelse)
    return False


def makes_device(module: Module, value: ast.expr) -> bool:
    match value:
        case ast.Call(func=function):
            names = module.dotted(function)
            return bool(names & {"torch.device", "torch.accelerator.current_accelerator"})
        case ast.Attribute(attr="device", value=ast.Call(func=ast.Name(id="next"))):
            return True  # next(model.parameters()).device
        case ast.IfExp():
            return makes_device(module, value.body) and makes_device(module, value.orelse)
    return False
