"""Where a reading begins: the module's top level, then every function and method that nothing called."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

from amplint import knowledge
from amplint.limit import deep_recursion, with_room
from amplint.source import symbols
from amplint.source.events import Event
from amplint.source.interpret import classes, declared, functions, imports, loops, protocol, statements, tensors
from amplint.source.interpret.frames import Arguments, Flow, Frame
from amplint.source.interpret.library import Library
from amplint.source.interpret.machine import Exhausted, Machine
from amplint.source.interpret.project import Project
from amplint.source.interpret.world import World, join_all
from amplint.source.module import FunctionNode, Module
from amplint.source.symbols import sym
from amplint.source.tree import last_name
from amplint.source.values import Autocast, Class, Function, Region, Value
from amplint.source.walk import walk

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(eq=False)
class Reading:
    """What a script does: every event, in the order met, and what was needed to see it."""

    module: Module
    events: list[Event]
    machine: Machine
    complete: bool  # false if the work limit ended it early

    @property
    def dependencies(self) -> list[str]:
        """The other files of the project that this reading read or looked for."""
        return sorted(str(path) for path in self.machine.project.sought)


def read(
    module: Module,
    roots: tuple[str, ...] = (),
    apis: tuple[dict[str, Any], ...] = (),
    others: Sequence[Module] = (),
    at: frozenset[str] | None = None,
    unset: frozenset[str] = frozenset(),
) -> Reading:
    """Interpret a module: from its top level and `__main__`, then whatever nothing called: training steps, and
    functions that hold one of the words `at` (None: any numerics). `others` stand for the files at their paths;
    constants at the top that are `unset` may be anything."""
    symbols.reset()
    machine = Machine(Project.around(module, roots, others), Library((*apis, *knowledge.apis())), at, unset=unset)
    complete = True
    try:
        with deep_recursion():
            with_room(partial(_run, machine, module))
    except (Exhausted, RecursionError):
        complete = False
    return Reading(module, machine.log, machine, complete)


def _run(m: Machine, module: Module) -> None:
    frame = imports.module_frame(m, module)
    m.loaded[module] = {}
    worlds = join_all(statements.run(m, module.tree.body, [World()], frame, Flow()))
    start = worlds[0] if worlds else World()
    m.loaded[module] = dict(start.spaces)
    for node in m.relevance(module).callers_first(_definitions(module.tree.body)):
        _enter(m, node, start, frame)


def _definitions(body: list[ast.stmt]) -> list[Definition]:
    """What the top level defines, under conditions too."""
    found: list[Definition] = []
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found.append(node)
            case ast.If() | ast.Try() | ast.With() | ast.For() | ast.While():
                found += _definitions([inner for inner in ast.iter_child_nodes(node) if isinstance(inner, ast.stmt)])
    return found


def _enter(m: Machine, node: Definition, start: World, frame: Frame) -> None:
    """Run what a statement defines, if no call has reached it."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            if node not in m.entered and m.relevance(frame.module).begins(node):
                found = start.get(frame.scope, node.name)
                function = found if isinstance(found, Function) and found.node is node else Function(node, frame)
                m.alone = not m.relevance(frame.module).steps(node)
                _enter_function(m, function, start.copy())
                m.alone = False
        case ast.ClassDef():
            _enter_class(m, node, start, frame)


def _enter_class(m: Machine, node: ast.ClassDef, start: World, frame: Frame) -> None:
    relevance = m.relevance(frame.module)
    methods = relevance.callers_first(
        [inner for inner in node.body if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)], methods=True
    )
    if all(method in m.entered or not relevance.begins(method) for method in methods):
        return
    found = start.get(frame.scope, node.name)
    cls = found if isinstance(found, Class) and found.node is node else Class(node, frame)
    instance = symbols.instance(cls, symbols.number(("entry", id(node))))
    ready = start.copy()
    ready.contexts, ready.loops = (), ()
    module = classes.is_module(m, cls, ready, frame)
    m.alone = module or not relevance.steps(node)
    init = classes.method(m, cls, "__init__", ready, frame)
    if init is None:
        classes.open_fields(cls, instance, ready)
        init = classes.method(m, cls, "__post_init__", ready, frame)
    if init is not None:
        done = functions.call_function(
            m, replace(init, owner=instance), Arguments(open=True), init.node, ready, None, entry=True
        )
        joined = join_all(world for _, world in done)
        ready = joined[0] if joined else start.copy()
    if init is not None and relevance.steps(node):
        m.alone = False
        declared.forget_unset(m, instance, ready)
        ready = declared.set_up(m, instance, ready)
        declared.forget_changed(m, instance, ready)
    loops.forget_counted(instance, ready)
    own = {inner.attr for inner in walk(node) if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name)}
    for method in sorted(methods, key=lambda one: one.name in own):  # what other methods call comes after them
        if method in m.entered or method.name in ("__init__", "__post_init__") or not relevance.begins(method):
            continue
        bound = classes.member(m, instance, method.name, method, ready.copy(), frame) if _plain(method) else None
        function = bound[0][0] if bound else None
        if not isinstance(function, Function) or function.node is not method:
            function = Function(method, replace_code(cls, frame), owner=instance, cls=cls)
        world = ready.copy()
        assumed = module and _computes(method)
        m.alone = assumed or not relevance.steps(method)
        _enter_function(m, function, world, assumed)
    m.alone = False


def replace_code(cls: Class, frame: Frame) -> Frame:
    """The frame of the class body, which a method's frame lies in."""
    return Frame(cls, cls.node, frame.module, frame)


def _plain(method: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return not any(isinstance(d, ast.Name) and d.id in ("property", "classmethod") for d in method.decorator_list)


def _computes(method: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a method of a module is part of its forward: not the ones that train, save or configure it, and not the
    backward of an autograd.Function, which runs outside unless it asks for its forward's region (custom_bwd)."""
    if method.name == "backward" and not any("bwd" in ast.unparse(one) for one in method.decorator_list):
        return False
    return not method.name.startswith("__") and not any(
        isinstance(inner, ast.Attribute) and inner.attr in ("backward", "zero_grad", "state_dict")
        for inner in walk(method)
    )


def _enter_function(m: Machine, function: Function, world: World, assumed: bool = False) -> None:
    """Run a function with unknown arguments, as often as a training step needs to show what it leaves behind."""
    world.contexts, world.loops = (), ()
    protocol.begin(world)
    m.in_entry = True
    code = function.node
    given = Arguments(open=True)
    if assumed:
        world.contexts = (Region(Autocast(("assumed",)), code, 0, assumed=True),)
        given = Arguments(_activations(function), {}, True)
    repeated = _is_step(code)
    worlds = [world]
    for number in (1, 2, 3) if repeated else (1,):
        after: list[World] = []
        logged = len(m.log)
        m.round = number
        for one in worlds:
            m.starts.setdefault((code, number), []).append(one.trace)
            results = functions.call_function(m, function, given, code, one, None, entry=True, in_model=assumed)
            after += [done for _, done in results]
        worlds = join_all(after)
        m.rounds.setdefault((code, number), []).extend(done.copy() for done in worlds)
        if not worlds or len(m.log) == logged:
            break
    m.round = 1
    _enter_closures(m, function, worlds)


_OTHERS = re.compile(r"\b(int|float|bool|str|[dD]ict|Mapping|Callable|device|dtype|Any)\b")


def _may_be_tensor(annotation: ast.expr | None) -> bool:
    """Whether an argument's annotation, if it has one, leaves open that it is a tensor, or holds some."""
    match annotation:
        case None:
            return True
        case ast.Name(id=said) | ast.Attribute(attr=said) | ast.Constant(value=str() as said):
            pass
        case _:
            said = " ".join(
                getattr(node, "id", getattr(node, "attr", str(getattr(node, "value", "")))) for node in walk(annotation)
            )
    return "Tensor" in said or not _OTHERS.search(said)


def _activations(function: Function) -> tuple[Value, ...]:
    parameters = function.node.args.args[1 if function.owner is not None else 0 :]
    required = len(function.node.args.args) - len(function.node.args.defaults)
    own = 1 if function.owner is not None else 0
    others = _no_tensors(function.node)
    return tuple(
        tensors.argument(parameter, _whole(parameter.annotation))
        if position + own < required and _may_be_tensor(parameter.annotation) and parameter.arg not in others
        else sym("argument", id(function.node), parameter.arg)
        for position, parameter in enumerate(parameters)
        if position + own < required
    )


def _whole(annotation: ast.expr | None) -> str:
    """ "integer" for what is annotated as a tensor of whole numbers: `torch.LongTensor`."""
    said = {last_name(node) for node in walk(annotation)} if annotation else set()
    return "integer" if said & _WHOLE and "Tensor" not in said and "FloatTensor" not in said else ""


_WHOLE = frozenset(("LongTensor", "IntTensor"))


@lru_cache(1024)  # an entry runs more than once
def _no_tensors(code: FunctionNode) -> frozenset[str]:
    """The names that are no tensors by how they are used: only to say where to, or in which dtype (`x.to(device)`,
    `zeros(n, dtype=dtype)`)."""
    loads: dict[str, int] = {}
    settings: dict[str, int] = {}
    for node in walk(code):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                loads[name] = loads.get(name, 0) + 1
            case ast.Call(func=ast.Attribute(attr=attr), args=args, keywords=keywords):
                said = [one.value for one in keywords if one.arg in ("device", "dtype")]
                for one in (*said, *(args if attr == "to" else ())):
                    if isinstance(one, ast.Name):
                        settings[one.id] = settings.get(one.id, 0) + 1
    return frozenset(name for name, count in settings.items() if loads[name] == count)


def _is_step(code: FunctionNode) -> bool:
    """Whether a function is (part of) a training step, which its caller repeats: it runs backward and steps or
    unscales, outside any loop of its own."""
    found = set()
    for inner in walk(code):
        if isinstance(inner, ast.Attribute) and inner.attr in ("backward", "step", "unscale_", "update"):
            found.add(inner.attr)
    return "backward" in found and len(found) > 1 and not any(isinstance(n, ast.For | ast.While) for n in walk(code))


def _enter_closures(m: Machine, function: Function, worlds: list[World]) -> None:
    """Functions, and classes that train, that this one defined and nothing called."""
    if not functions.shape(function.node)[1]:
        return
    for inner in walk(function.node):
        if inner is function.node or not isinstance(inner, ast.FunctionDef | ast.ClassDef):
            continue
        if inner in m.entered or not worlds:
            continue
        world = worlds[0].copy()
        for scope, space in list(world.spaces.items()):
            found = space.get(inner.name)
            if not isinstance(scope, int) or not isinstance(found, Function | Class) or found.node is not inner:
                continue
            if isinstance(found, Function):
                _enter_function(m, found, world)
            elif m.relevance(found.frame.module).steps(inner):
                _enter_class(m, found.node, world, found.frame)
            break
