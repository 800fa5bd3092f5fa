"""Building the kernels: once, whole, and in a line where it cannot be done. Most tests have a compiler of their own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from amplint.verify.kernels import build, ops

FAKE = """#!{python}
import os, sys, time
with open({log!r}, "a") as log:
    log.write("compile\\n" if "-c" in sys.argv else "link\\n")
{does}
with open(sys.argv[sys.argv.index("-o") + 1], "w") as made:
    made.write("a library")
"""
BUILD = """
from pathlib import Path
from amplint.verify.kernels.build import Torch, library
print(library("cpu", Torch("2.13.0", Path("/nowhere"))))
"""
TORCH = build.Torch("2.13.0", Path("/nowhere"))


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A compiler that writes down what it is asked for; `compiler("…")` gives it something to do before."""
    monkeypatch.setenv("AMPLINT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(tmp_path / "compiler"))
    log = tmp_path / "log"

    def make(does: str = "") -> Path:
        script = tmp_path / "compiler"
        script.write_text(FAKE.format(python=sys.executable, log=str(log), does=does))
        script.chmod(0o755)
        log.write_text("")
        return log

    return make


def builder() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", BUILD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_at_once_build_once(compiler):
    log = compiler("time.sleep(0.3)")
    both = [builder(), builder()]
    made = {one.communicate(timeout=60)[0].strip() for one in both}
    assert len(made) == 1 and Path(made.pop()).read_text() == "a library"
    calls = log.read_text().split()
    assert calls.count("link") == 1 and calls.count("compile") == len(build.parts("cpu"))
    assert [path.name for path in build.place("cpu", TORCH).parent.iterdir() if path.name.startswith("making")] == []


def test_a_builder_that_is_killed_leaves_nothing_half(compiler):
    log = compiler("time.sleep(60) if '-shared' in sys.argv else None")
    one = builder()
    end = time.monotonic() + 60
    while "link" not in log.read_text() and time.monotonic() < end:
        time.sleep(0.05)
    one.send_signal(signal.SIGKILL)
    one.communicate()
    assert not build.place("cpu", TORCH).exists()
    compiler()
    made = build.library("cpu", TORCH)
    assert made.read_text() == "a library"
    assert sorted(path.name for path in made.parent.iterdir()) == ["amplint_cpu.so", "build.log"]


def test_a_compiler_that_fails_is_a_line_and_a_log(compiler):
    compiler("print('x.cpp:3: error: no such thing', file=sys.stderr); sys.exit(1)")
    with pytest.raises(
        build.BuildError, match=r"the compiler failed: x\.cpp:3: error: no such thing; see .*log"
    ) as told:
        build.library("cpu", TORCH)
    assert "\n" not in str(told.value)
    assert "no such thing" in Path(str(told.value).rpartition("see ")[2]).read_text()
    assert not build.place("cpu", TORCH).exists()


def test_without_a_compiler_it_is_emulated(monkeypatch, tmp_path):
    monkeypatch.setenv("AMPLINT_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert ops._load("cpu") == "emulation: no C++ compiler (c++, g++, clang++)"


def test_an_older_torch_is_emulated():
    with pytest.raises(build.BuildError, match=r"torch 2\.9\.1\+cpu is older than 2\.10"):
        build.library("cpu", build.Torch("2.9.1+cpu", Path("/nowhere")))


def test_a_cache_that_cannot_be_written_is_a_line(monkeypatch, tmp_path, compiler):
    compiler()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AMPLINT_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(build.BuildError, match="cannot write"):
        build.library("cpu", TORCH)


def test_a_library_that_does_not_load_is_emulated(compiler):
    compiler()
    assert ops._load("cpu").startswith("emulation: the library cannot be loaded: ")


def test_the_sources_decide_the_place(monkeypatch, tmp_path):
    before = build.place("cpu", TORCH)
    assert before != build.place("cuda", TORCH) != build.place("cpu", build.Torch("2.12.0", Path("/nowhere")))
    for source in build.HERE.glob("*.*"):
        shutil.copy(source, tmp_path)
    monkeypatch.setattr(build, "HERE", tmp_path)
    assert build.place("cpu", TORCH) == before
    with open(tmp_path / "mm_tile.cuh", "a") as stream:
        stream.write("// changed\n")
    assert build.place("cpu", TORCH) != before


def test_the_command_builds_and_tells(compiler, tmp_path):
    compiler()
    told = [
        subprocess.run(
            [sys.executable, "-m", "amplint", "kernels", *words], capture_output=True, text=True, check=False
        )
        for words in (["info"], ["build"])
    ]
    assert [one.returncode for one in told] == [0, 0], told
    assert f"cache: {tmp_path / 'cache'}" in told[0].stdout and "cpu: not built yet" in told[0].stdout
    assert Path(told[1].stdout.removeprefix("cpu: ").strip()).read_text() == "a library"
    compiler("sys.exit(3)")
    shutil.rmtree(tmp_path / "cache")
    last = subprocess.run([sys.executable, "-m", "amplint", "kernels", "build"], capture_output=True, text=True)
    assert last.returncode == 2 and "the compiler's exit code is 3" in last.stdout


def test_the_kernel_for_gpus_compiles(monkeypatch, tmp_path):
    """For sm_80 and sm_90; also against a CPU build of torch, which cannot load it. Half a minute, and not among the
    slow tests: without a GPU, nothing else tells a change that broke it."""
    try:
        build.compiler("cuda")
    except build.BuildError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("AMPLINT_CACHE_DIR", str(tmp_path))
    made = build.library("cuda", build.Torch(torch.__version__, Path(torch.__file__).parent))
    assert made.stat().st_size > 100_000
    assert os.access(made, os.R_OK)
    log = (made.parent / "build.log").read_text()
    spills = re.findall(r"Compiling entry function '(\w+)' for '(\w+)'\n.*\n.* (\d+) bytes spill stores", log)
    assert {arch for _, arch, _ in spills} == {"sm_80", "sm_90a"}
    tiles = [spilled for name, arch, spilled in spills if "4tile6kernel" in name and arch == "sm_80"]
    assert tiles == ["0"] * 8  # what a thread holds is in registers
