"""Compiles the kernels where they are first used: plain calls of the compiler, into a cache folder, under a lock.

A library's folder is named after what it was made of: torch's version, the machine, and a hash of the sources and
flags. It holds the library and the compiler's log. A library is made under another name and moved into its place, so
that a builder that is killed leaves nothing half; two at once build once. The cache may be shared between machines:
which instructions a library uses is decided when it runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
OLDEST = (2, 10)  # the first torch whose stable ABI has all that the sources use
SECONDS = 900
_COMMON = ("-std=c++17", "-fPIC", "-fvisibility=hidden")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512")
_CUDA = (
    *("-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-DUSE_CUDA", "--expt-relaxed-constexpr"),
    *("-gencode=arch=compute_80,code=[sm_80,compute_80]", "-gencode=arch=compute_90a,code=sm_90a"),
    "-Xptxas=-v",  # registers and spills, into the log
)


class BuildError(Exception):
    """Why there is no library, in one line."""


@dataclass(frozen=True)
class Torch:
    """The torch to build for, as it lies on the disk."""

    version: str
    folder: Path

    @property
    def flags(self) -> tuple[str, ...]:
        """Its headers, and the oldest version that the library is for."""
        return (f"-DTORCH_TARGET_VERSION=0x{OLDEST[0]:02x}{OLDEST[1]:02x}000000000000", "-isystem", self._at("include"))

    @property
    def libraries(self) -> tuple[str, ...]:
        """What a library of ours is linked with: it finds them loaded."""
        if sys.platform == "darwin":
            return ("-undefined", "dynamic_lookup")
        return ("-L", self._at("lib"), "-Wl,--no-as-needed", "-ltorch_cpu")

    def _at(self, name: str) -> str:
        return str(self.folder / name)


@dataclass(frozen=True)
class Part:
    """One call of the compiler: a source file and its own flags."""

    source: str
    flags: tuple[str, ...]


def parts(device: str) -> tuple[Part, ...]:
    """What a library is made of."""
    if device == "cuda":
        return (Part("mm_cuda.cu", _CUDA),)
    paths: tuple[tuple[str, ...], ...] = ((),)
    if platform.machine() in ("x86_64", "AMD64"):
        paths = ((), _AVX2, _AVX512)
    one_each = (Part("mm_path.cpp", (*_COMMON, "-O3", f"-DAMPLINT_PATH={i}", *own)) for i, own in enumerate(paths))
    return (Part("mm_cpu.cpp", (*_COMMON, "-O2")), *one_each)


def cache_folder() -> Path:
    """$AMPLINT_CACHE_DIR, or amplint in the user's cache folder."""
    named = os.environ.get("AMPLINT_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(named or os.path.join(base, "amplint"))


def place(device: str, torch: Torch) -> Path:
    """Where a library is, or will be."""
    digest = hashlib.sha256(repr((device, parts(device), torch.flags[0])).encode())
    for source in sorted(HERE.glob("*.[ch]*")):
        if source.suffix in (".cpp", ".cu", ".cuh", ".h"):
            digest.update(source.name.encode() + b"\0" + source.read_bytes())
    machine = f"{sys.platform}-{platform.machine()}"
    name = f"torch{torch.version}-{machine}-{device}-{digest.hexdigest()[:16]}"
    return cache_folder() / "kernels" / name / f"amplint_{device}.so"


def compiler(device: str) -> str:
    """The compiler's path; $CXX and $CUDACXX win."""
    if device == "cuda":
        homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
        names = [os.environ.get("CUDACXX"), "nvcc", *(os.path.join(home, "bin", "nvcc") for home in homes if home)]
        what = "no CUDA compiler (nvcc)"
    else:
        names = [os.environ.get("CXX"), "c++", "g++", "clang++"]
        what = "no C++ compiler (c++, g++, clang++)"
    for name in names:
        if name and (found := shutil.which(name)):
            return found
    raise BuildError(what)


def library(device: str, torch: Torch) -> Path:
    """The library for a device ("cpu", "cuda"), built if it is not there yet. Raises BuildError."""
    numbers = tuple(int(number) for number in torch.version.split("+")[0].split(".")[:2])
    if numbers < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise BuildError(f"torch {torch.version} is older than {oldest}, whose stable ABI the kernel needs")
    target = place(device, torch)
    if target.exists():
        return target
    tool = compiler(device)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent.with_suffix(".lock")):
            if not target.exists():
                for left in target.parent.glob("making-*"):  # by a builder that was killed: the lock is ours
                    shutil.rmtree(left, ignore_errors=True)
                with tempfile.TemporaryDirectory(prefix="making-", dir=target.parent) as folder:
                    _make(tool, device, torch, Path(folder), target)
    except OSError as error:
        raise BuildError(f"cannot write {error.filename or target.parent}: {error.strerror or error}") from error
    return target


def _make(tool: str, device: str, torch: Torch, folder: Path, target: Path) -> None:
    """Compile the parts, at the same time, link them, and move the library into its place."""
    log = target.parent / "build.log"
    log.write_text("", encoding="utf-8")
    objects = [str(folder / f"{i}.o") for i in range(len(parts(device)))]
    commands = [
        [tool, *part.flags, *torch.flags, "-c", str(HERE / part.source), "-o", made]
        for part, made in zip(parts(device), objects, strict=True)
    ]
    _run(commands, log)
    made = folder / target.name
    libraries = list(torch.libraries)
    if device == "cuda" and (torch.folder / "lib" / "libtorch_cuda.so").exists():
        libraries.append("-ltorch_cuda")  # a CPU build of torch has none: it can compile, and not load
    if device == "cuda":
        libraries = [flag.replace("-Wl,", "-Xlinker=") for flag in libraries]
    _run([[tool, "-shared", "-o", str(made), *objects, *libraries]], log)
    os.replace(made, target)


def _run(commands: Sequence[Sequence[str]], log: Path) -> None:
    """Run them at the same time, all of their output into the log; raises BuildError with the first error's line."""
    with open(log, "ab") as output:
        for command in commands:
            output.write(f"$ {shlex.join(command)}\n".encode())
        output.flush()
        running: list[subprocess.Popen[bytes]] = []
        try:
            for command in commands:
                running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output))
            codes = [process.wait(SECONDS) for process in running]
        except subprocess.TimeoutExpired as error:
            raise BuildError(f"the compiler took more than {SECONDS} s; see {log}") from error
        finally:
            for process in running:
                process.kill()
                process.wait()
    if any(codes):
        text = log.read_text(encoding="utf-8", errors="replace").splitlines()
        lines = [line for line in text if "error" in line.lower() and not line.startswith("$ ")]
        what = lines[0].strip()[:200] if lines else f"the compiler's exit code is {next(filter(None, codes))}"
        raise BuildError(f"the compiler failed: {what}; see {log}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One builder at a time; the system frees the lock of one that dies."""
    with open(path, "ab") as stream:
        with contextlib.suppress(ImportError):  # Windows has no fcntl; there the last one's library stays
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
