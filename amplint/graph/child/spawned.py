"""What multiprocessing runs, in place of the script's file, in processes that a script spawns: to watch them, too."""

from __future__ import annotations

import os
import sys

FOLDER, SCRIPT = "AMPLINT_TRACE_FOLDER", "AMPLINT_TRACE_SCRIPT"


def _main() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, here)
    import start  # type: ignore[import-not-found]

    sys.path.remove(here)
    del sys.modules["start"]
    start.mount(os.path.dirname(os.path.dirname(here)))
    import json

    from amplint.graph.child.script import execute

    folder = os.environ[FOLDER]
    with open(os.path.join(folder, "job.json"), encoding="utf-8") as stream:
        job = json.load(stream)
    if job["door"] == "verify":
        from amplint.verify.child.door import under_probe

        under_probe(folder, job)
    else:
        from amplint.graph.child.script import under_watch

        under_watch(folder, job)
    names = globals()
    names["__file__"] = os.environ[SCRIPT]
    execute(os.environ[SCRIPT], names)


if __name__ == "__mp_main__":
    _main()
