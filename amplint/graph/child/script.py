"""The first door: the user's script runs, as `python train.py ARGS` would run it, until its first backward."""

from __future__ import annotations

import builtins
import io
import multiprocessing
import multiprocessing.spawn
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, NoReturn
from unittest import mock

from amplint.graph.child import analyse, device, spawned
from amplint.graph.child.answer import claim, describe, finish, give_way, say
from amplint.graph.child.observe import Watch, watching
from amplint.graph.child.seen import Seen

_TORCHRUN = "RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 MASTER_ADDR=localhost MASTER_PORT=29500"
_HELD: list[ExitStack] = []  # patches that stay for the life of the process
_OWN = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep


def script(folder: str, job: dict[str, Any]) -> None:
    """Run the script under watch; ends the process."""
    shown, path, main = job["target"], os.path.abspath(job["target"]), os.getpid()
    watch = under_watch(folder, job)
    names = as_main(path, [shown, *job["arguments"]])
    say(folder, "script")
    try:
        execute(path, names)
        wait()
    except SystemExit as error:
        problem = _ended(shown, error.code, watch)
    except KeyboardInterrupt:
        os._exit(130)
    except BaseException as error:
        show(error)
        problem = f"{shown} {crashed(error)}"
    else:
        problem = _ended(shown, 0, watch)
    if os.getpid() != main:  # a process that the script forked off: only the script itself speaks
        os._exit(1)
    give_way(folder)
    finish(folder, {"error": problem})


def under_watch(folder: str, job: dict[str, Any]) -> Watch:
    """From now on this process, and those that it starts, answer at their first backward."""
    patches = ExitStack()
    _HELD.append(patches)
    patches.enter_context(device.cuda_on_cpu())
    gate = patches.enter_context(ExitStack())
    gate.enter_context(device.open_gate())
    gate.enter_context(in_spawned_too(folder, job["target"]))
    start = time.perf_counter()

    def found(seen: Seen) -> NoReturn:
        claim(folder)
        say(folder, "analysis")
        gate.close()
        seen.seconds["script"] = round(time.perf_counter() - start, 3)
        finish(folder, analyse.answer(seen, job))

    return gate.enter_context(watching(found))


def as_main(path: str, arguments: list[str]) -> dict[str, Any]:
    """The names of a new `__main__`, and the rest of the interpreter as `python path ARGS` has it."""
    if not sys.flags.safe_path:
        sys.path.insert(0, os.path.dirname(path))
    sys.argv[:] = arguments
    module = ModuleType("__main__")
    module.__dict__.update(__file__=path, __builtins__=builtins, __cached__=None)
    sys.modules["__main__"] = module
    return module.__dict__


@contextmanager
def in_spawned_too(folder: str, target: str) -> Iterator[None]:
    """While it is open, processes that the script spawns go through the same door (spawned.py)."""
    prepare = multiprocessing.spawn.get_preparation_data

    def prepared(name: str) -> dict[str, Any]:
        data: dict[str, Any] = prepare(name)
        return data | {"init_main_from_path": spawned.__file__} if "init_main_from_path" in data else data

    os.environ |= {spawned.FOLDER: folder, spawned.SCRIPT: os.path.abspath(target)}
    with mock.patch.object(multiprocessing.spawn, "get_preparation_data", prepared):
        yield


def execute(path: str, names: dict[str, Any]) -> None:
    """Run a file's code in these names."""
    with io.open_code(path) as stream:
        code = compile(stream.read(), path, "exec", dont_inherit=True)
    exec(code, names)


def wait() -> None:
    """A script is not at its end before its threads and processes are."""
    for process in multiprocessing.active_children():
        if not process.daemon:
            process.join()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()


def _ended(path: str, code: Any, watch: Watch) -> str:
    if isinstance(code, str):
        print(code, file=sys.stderr)  # as Python does
    how = "ended" if code in (None, 0) else f"ended with exit code {code if isinstance(code, int) else 1}"
    if not watch.names:
        return f"{path} {how} and never called a model: no nn.Module with trainable parameters was called"
    names = ", ".join(sorted(watch.names)[:3])
    return f"{path} {how} before a training step: it called {names}, but no output of that reached a backward"


def crashed(error: BaseException) -> str:
    """What happened to the user's code, in a line that goes on from its name."""
    what = describe(error)
    if what.startswith("out of memory"):
        what += "; try a smaller batch"
    elif isinstance(error, EOFError):
        return f"reads standard input, which is empty here ({what}): give what it asks for on its command line"
    elif isinstance(error, KeyError | ValueError) and re.search("RANK|WORLD_SIZE|MASTER_", what):
        what += f"; set what torchrun sets: {_TORCHRUN}"
    return f"crashed before its first training step: {what}"


def show(error: BaseException) -> None:
    """The user's traceback, without amplint's frames."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    told = traceback.TracebackException.from_exception(error)
    todo: list[traceback.TracebackException | None] = [told]
    while todo:
        one = todo.pop()
        if one is not None:
            frames = [frame for frame in one.stack if not os.path.abspath(frame.filename).startswith(_OWN)]
            one.stack = traceback.StackSummary.from_list(frames)
            todo += [one.__cause__, one.__context__]
    print("".join(told.format()), end="", file=sys.stderr)
