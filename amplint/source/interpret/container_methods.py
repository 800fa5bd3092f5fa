"""Methods of lists, dicts and strings that are known."""

from __future__ import annotations

import ast

from amplint.source.interpret import assignment, containers, subscripts
from amplint.source.interpret.frames import Arguments, Frame, Results, scopes
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World
from amplint.source.symbols import fresh, sym
from amplint.source.values import NONE, Const, Items, Many, Mapping, Parameters, Value


def container_method(
    m: Machine, owner: Value, name: str, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    args = given.args
    match owner, name:
        case Mapping(), "get" if args:
            found = owner.get(args[0])
            default = args[1] if len(args) > 1 else NONE
            if found is None and owner.open:
                return [(sym("item", owner, args[0]), world)]
            if found is None and not isinstance(args[0], Const):
                found = subscripts.dispatch(owner, args[0], world, default)
                if found is None and owner.items:
                    found = sym("item", owner, args[0])  # any of them
            return [(found if found is not None else default, world)]
        case Mapping(), "items" | "values":
            values = tuple(value for _, value in owner.items)
            if not owner.open:
                pairs = tuple(Items(pair) for pair in owner.items)
                return [(Items(pairs if name == "items" else values, "list"), world)]
            one = containers.merge_elements(list(values))
            return [(Many(Items((fresh("element"), one)) if name == "items" else one), world)]
        case Many(item=item), "items":
            pair = isinstance(item, Items) and len(item.items) == 2
            return [(owner if pair else Many(Items((fresh("key"), item))), world)]
        case Many(), "values":
            return [(owner, world)]
        case Mapping(), "update" if args and isinstance(args[0], Mapping) and isinstance(node, ast.Call):
            merged = Mapping((*owner.items, *args[0].items), owner.open or args[0].open, owner.node)
            return _rebound(m, owner, merged, node, world, frame)
        case Mapping(), "update" if given.kwargs and not args and isinstance(node, ast.Call):
            named = tuple((Const(key), value) for key, value in given.kwargs.items())
            merged = Mapping((*owner.items, *named), owner.open or given.open, owner.node)
            return _rebound(m, owner, merged, node, world, frame)
        case Items(), "append" if args and isinstance(node, ast.Call):
            in_loop = bool(world.loops)
            grown: Value = Items((*owner.items, args[0]), owner.kind)
            if in_loop:
                grown = Many(containers.merge_elements([*owner.items, args[0]]))
            return _rebound(m, owner, grown, node, world, frame)
        case Many(), "append" if args and isinstance(node, ast.Call):
            return _rebound(m, owner, Many(containers.merge_elements([owner.item, args[0]])), node, world, frame)
        case ((Items() | Many()), "extend") if args and isinstance(node, ast.Call):
            if isinstance(args[0], Parameters) or isinstance(owner, Many):
                return _rebound(m, owner, args[0] if isinstance(args[0], Parameters) else owner, node, world, frame)
            more = containers.elements(args[0])
            if more is not None and isinstance(owner, Items):
                return _rebound(m, owner, Items((*owner.items, *more), owner.kind), node, world, frame)
            return [(NONE, world)]
        case ((Items() | Many() | Mapping()), ("pop" | "index" | "count" | "keys" | "copy" | "insert" | "sort")):
            item = owner.item if isinstance(owner, Many) else fresh("item")
            return [(owner if name == "copy" else item, world)]
    return None


def _rebound(m: Machine, owner: Value, value: Value, node: ast.Call, world: World, frame: Frame) -> Results:
    """A list or dict changed in place: the variable that holds it now holds another value."""
    if not isinstance(node.func, ast.Attribute):  # `add = rows.append`, then `add(row)`: whose, is not said here
        for scope in (one.scope for one in scopes(frame)):
            for name in [name for name, held in world.space(scope).items() if held == owner]:
                world.set(scope, name, fresh("container"))
        return [(NONE, world)]
    target = node.func.value
    if isinstance(target, ast.Name | ast.Attribute):
        return [(NONE, after) for after in assignment.assign(m, target, value, world, frame)]
    return [(NONE, world)]


def text_method(owner: Const, name: str, given: Arguments) -> Value:
    """Methods of known strings that conditions use."""
    text = owner.value
    args = [value.value if isinstance(value, Const) else None for value in given.args]
    if isinstance(text, str) and all(isinstance(arg, str) for arg in args):
        if name in ("lower", "upper", "strip") and not args:
            return Const(getattr(text, name)())
        if name in ("startswith", "endswith") and args:
            return Const(getattr(text, name)(args[0]))
    if name == "format" and isinstance(text, str):
        return Const(text.replace("{}", "*"))
    return fresh("text")
