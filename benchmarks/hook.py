"""Times the pre-commit hook on a commit of one changed file: CPU seconds (user + system) of whole processes.

python benchmarks/hook.py [RUNS]

`pre-commit` and `prek` come from the environment of the Python that runs this; the hook's environment is made first,
with pip, on a line of its own. Cold: without a cache of amplint's; warm: the file was checked before.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = Path(sys.executable).parent
SHIPPED = ("amplint", "rules", "pyproject.toml", "README.md", "LICENSE", ".pre-commit-hooks.yaml")
CONFIG = "repos:\n- repo: {repo}\n  rev: v0.1.0\n  hooks:\n  - id: {hook}\n"
Task = Callable[[], object]


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory(prefix="amplint-hook-") as name:
        folder = Path(name)
        hooks, project = folder / "hooks", folder / "project"
        env = environment(folder)
        make_hooks(hooks, env)
        make_project(project, env)
        print("CPU seconds, median of", runs, "runs; one changed file of 150 lines among 40 of the project\n")
        for hook in ("amplint", "amplint-fix"):
            (project / ".pre-commit-config.yaml").write_text(CONFIG.format(repo=hooks.as_uri(), hook=hook))
            run(["git", "add", ".pre-commit-config.yaml"], project, env)
            for tool in ("pre-commit", "prek"):
                command = [str(TOOLS / tool), "run"]
                print(f"{tool} {hook}: making the environment {cpu(lambda: run(command, project, env)):8.2f}")  # noqa: B023
                cold, warm = times(command, project, env, runs)
                print(f"{tool} {hook}: cold {cold:27.2f}\n{tool} {hook}: warm {warm:27.2f}")
        bare = next(folder.glob("home/repo*/py_env-*/bin/amplint"))
        cold, warm = times([str(bare), "check", "--force-exclude", "train.py"], project, env, runs)
        print(f"amplint check alone: cold {cold:18.2f}\namplint check alone: warm {warm:18.2f}")
        idle = statistics.median(cpu(lambda: run([str(bare), "--version"], project, env)) for _ in range(runs))
        print(f"amplint --version: {idle:25.2f}")


def times(command: list[str], project: Path, env: dict[str, str], runs: int) -> tuple[float, float]:
    """The median cold and warm."""
    cold, warm = [], []
    for _ in range(runs):
        change(project, env)
        shutil.rmtree(project / ".amplint_cache", ignore_errors=True)
        cold.append(cpu(lambda: run(command, project, env)))
        change(project, env)
        warm.append(cpu(lambda: run(command, project, env)))
    return statistics.median(cold), statistics.median(warm)


def cpu(task: Task) -> float:
    """CPU seconds of the processes that a task starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    task()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run(command: list[str], folder: Path, env: dict[str, str]) -> None:
    subprocess.run(command, cwd=folder, env=env, capture_output=True, check=False)


def environment(folder: Path) -> dict[str, str]:
    drop = ("PYTHON", "GIT_", "VIRTUAL_ENV", "PRE_COMMIT", "PREK")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(drop)}
    who = {f"GIT_{role}_{key}": "a@b" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    return kept | who | {"PRE_COMMIT_HOME": str(folder / "home"), "PREK_HOME": str(folder / "prek")}


def make_hooks(folder: Path, env: dict[str, str]) -> None:
    """A repository that holds this checkout, tagged."""
    for name in SHIPPED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        folder.mkdir(exist_ok=True)
        copy(ROOT / name, folder / name)
    for step in ("init -q", "add --all --force", "commit -q -m x", "tag v0.1.0"):
        run(["git", *step.split()], folder, env)


def make_project(folder: Path, env: dict[str, str]) -> None:
    """A repository of 40 committed files, with one more in the index: a training script with findings."""
    folder.mkdir()
    for number in range(40):
        shutil.copy(ROOT / "fixtures/train_fp32.py", folder / f"other_{number}.py")
    for step in ("init -q", "add --all", "commit -q -m x"):
        run(["git", *step.split()], folder, env)
    change(folder, env)


def change(folder: Path, env: dict[str, str]) -> None:
    """The changed file, in the index, as it was before any hook."""
    shutil.copy(ROOT / "fixtures/train_amp.py", folder / "train.py")
    run(["git", "add", "train.py"], folder, env)


if __name__ == "__main__":
    main()
