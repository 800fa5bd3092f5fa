"""Where the child begins: `python start.py FOLDER`, and FOLDER/job.json says what to do.

Until amplint can be imported it imports nothing of it; the packages beside amplint stay out of the user's way."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from types import ModuleType


def mount(folder: str) -> None:
    """Make `amplint` importable from its folder without putting what lies beside it on the path."""
    init = os.path.join(folder, "__init__.py")
    spec = importlib.util.spec_from_file_location("amplint", init, submodule_search_locations=[folder])
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules["amplint"] = module
    spec.loader.exec_module(module)


def _die_with_parent() -> None:
    """Where the system can: also a parent that is killed leaves nothing behind."""
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL


def _main() -> None:
    _die_with_parent()
    folder = sys.argv[1]
    if sys.version_info < (3, 11):  # noqa: UP036 (the user's interpreter may be any)
        text = f"{sys.executable} is Python {sys.version.split()[0]}; amplint needs 3.11 or newer"
        with open(os.path.join(folder, "answer.json"), "w", encoding="utf-8") as stream:
            json.dump({"error": text}, stream)
        raise SystemExit(2)
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or os.getcwd()) != here]
    mount(os.path.dirname(os.path.dirname(here)))
    from amplint.graph.child.run import run

    run(folder)


if __name__ == "__main__":
    _main()
