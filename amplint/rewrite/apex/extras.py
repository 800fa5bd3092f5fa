"""What apex lets a script say about single functions: amp.lists, amp.register_*, and the decorators."""

from __future__ import annotations

import ast

from amplint import knowledge
from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.rewrite.apex.uses import Use
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.source.module import Module

_DECORATORS = {"half_function": "float16", "float_function": "float32"}
_REGISTERS = {"register_half_function": "lower", "register_float_function": "fp32"}
NAMES = frozenset((*_DECORATORS, *_REGISTERS))
_ISLAND = "use `with torch.autocast('cuda', enabled=False)` and `.float()` where it is called"


def is_extra(use: Use) -> bool:
    return use.name in NAMES or use.name.partition(".")[0] == "lists"


def extra_edits(module: Module, use: Use, torch: str, old: bool) -> tuple[list[Edit], list[ast.stmt], str]:
    """Edits, statements to delete, and what changes; raises Refused. `old` is for a torch before 2.4."""
    if use.name in _DECORATORS:
        return _decorated(module, use, torch, old), [], ""
    statement = module.statement(use.node)
    call = statement.value if isinstance(statement, ast.Expr) else None
    while isinstance(above := module.parents[statement], ast.If) and above.body == [statement] and not above.orelse:
        statement = above  # `if args.amp:`, with nothing else in it
    if not isinstance(call, ast.Call):
        raise Refused(f"amp.{use.name} is used in an unusual form", BY_HAND)
    if use.name in _REGISTERS:
        name = call.args[1] if len(call.args) == 2 else None
        if call.func is not use.node or not isinstance(name, ast.Constant):
            raise Refused(f"amp.{use.name} is used in an unusual form", BY_HAND)
        return [], [statement], _told(str(name.value), _REGISTERS[use.name])
    match call:
        case ast.Call(func=ast.Attribute(attr="append" | "remove" as how), args=[ast.Constant(value=str() as listed)]):
            wanted = "lower" if ("FP16" in use.name) == (how == "append") else "fp32"
            return [], [statement], _told(listed, wanted)
    raise Refused("it changes amp.lists in a way that amplint does not follow", BY_HAND)


def _told(name: str, wanted: str) -> str:
    """What changes where autocast decides about a function; "" where it decides as the script did."""
    lists = knowledge.ops()["cuda"]
    does = next((key.partition("_")[0] for key, ops in lists.items() if key != "banned" and name in ops), "")
    if does == wanted or name in _decomposed(lists, wanted):
        return ""
    if wanted == "fp32":
        raise Refused(f"it asks for {name} in float32, which autocast does not do", _ISLAND)
    return f"{name} runs in {'float32' if does == 'fp32' else 'the dtype of its inputs'}, which the script had in half"


def _decomposed(lists: dict[str, object], wanted: str) -> set[str]:
    """The ops whose dtype is that of an op on a list."""
    known = knowledge.ops().get("decomposes", {})
    members = lists.get(wanted, ())
    return {name for name, inner in known.items() if isinstance(members, list) and inner in members}


def _decorated(module: Module, use: Use, torch: str, old: bool) -> list[Edit]:
    """`@amp.float_function` → `@torch.amp.custom_fwd(…)`, which casts and switches autocast off as it did."""
    path = f"{torch}.cuda.amp.custom_fwd" if old else f"{torch}.amp.custom_fwd"
    options = [] if old else ['device_type="cuda"']
    options.append(f"cast_inputs={torch}.{_DECORATORS[use.name]}")
    above = module.parents[use.node]
    match above:
        case ast.FunctionDef(name="backward") if use.node in above.decorator_list:
            return edits.replace(module, use.node, path.replace("fwd", "bwd") + ("" if old else '(device_type="cuda")'))
        case ast.FunctionDef() if use.node in above.decorator_list and above.args.args:
            method = isinstance(module.parents[above], ast.ClassDef) and len(above.decorator_list) == 1
            if method and use.name == "half_function":  # with autocast off, the weights stay float32
                raise Refused("@amp.half_function runs a whole method in half", "drop it: autocast casts what it must")
            if not method and _takes_apart(above, above.args.args[0].arg):
                raise Refused(f"@amp.{use.name} is on a function of something else than a tensor", _ISLAND)
            return edits.replace(module, use.node, f"{path}({', '.join(options)})")
        case ast.Call(func=func, args=[inner], keywords=[]) if func is use.node:
            return edits.replace(module, above, f"{path}({module.source(inner)}, {', '.join(options)})")
    raise Refused(f"amp.{use.name} is used in an unusual form", BY_HAND)


def _takes_apart(function: ast.FunctionDef, name: str) -> bool:
    """Whether a function loops over its argument, counts it or joins it: it is a list, which custom_fwd cannot mark."""

    def it(node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id == name

    for node in ast.walk(function):
        match node:
            case ast.For(iter=over) | ast.comprehension(iter=over) if any(it(one) for one in ast.walk(over)):
                return True
            case ast.Call(func=ast.Name(id="len" | "sum" | "list" | "isinstance"), args=[first, *_]) if it(first):
                return True
            case ast.Call(func=ast.Attribute(attr="cat" | "stack" | "concat"), args=[first, *_]) if it(first):
                return True
    return False
