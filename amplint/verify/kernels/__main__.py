"""What `amplint kernels` runs, in the Python that has torch: python …/kernels build|info [cuda]."""

from __future__ import annotations

import os
import sys


def main(action: str, devices: list[str]) -> int:
    """Build, or tell what there is; 2 where something asked for could not be built."""
    try:
        import torch
    except ImportError:
        print(f"amplint: {sys.executable} has no torch", file=sys.stderr)
        return 2
    from amplint.verify.kernels import build, ops

    failed = False
    if action == "info":
        print(f"torch: {torch.__version__} ({sys.executable})\ncache: {build.cache_folder()}")
    for device in devices:
        try:
            if action == "build":
                print(f"{device}: {build.library(device, ops.here())}")
                continue
            made = build.place(device, ops.here())
            print(f"{device}: {made if made.exists() else 'not built yet'} (compiler: {build.compiler(device)})")
        except build.BuildError as error:
            failed = failed or action == "build"
            print(f"{device}: emulation: {error}")
    if action == "info" and build.place("cpu", ops.here()).exists():
        print(f"here: {ops.load('cpu')}")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", "..")))
    sys.exit(main(sys.argv[1], sys.argv[2:]))
