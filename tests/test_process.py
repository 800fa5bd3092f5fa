"""The command line as a process of its own, and what a run would do and may do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from amplint import __version__
from tests.test_cli import check, put

pytestmark = pytest.mark.usefixtures("fake")


HERE = str(Path(__file__).parents[1])
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join((HERE, str(Path(__file__).parent)))}
FAKE = (
    "import fakes; from amplint import checks, knowledge;"
    "checks.check_module = fakes.fake_check; knowledge.rules = lambda: fakes.RULES;"
    "from amplint.cli import main; main()"
)


def process(*arguments: str, code: str = FAKE, **rest: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=60, **rest)  # type: ignore[call-overload,no-any-return]


def test_module_entry():
    result = subprocess.run([sys.executable, "-m", "amplint", "--version"], env=ENV, capture_output=True, text=True)
    assert result.stdout == f"amplint {__version__}\n"


def test_check_imports_nothing_heavy():
    put("a.py")
    watched = "import atexit, sys; atexit.register(lambda: print(*sys.modules)); "
    modules = set(process("check", "--output-format", "concise", "a.py", code=watched + FAKE).stdout.split())
    assert "amplint.engine" in modules
    assert not modules & {"torch", "libcst", "concurrent.futures", "multiprocessing", "difflib", "tempfile"}
    modules = set(process("--version", code=watched + "from amplint.cli import main; main()").stdout.split())
    assert not modules & {"amplint.engine", "tomllib", "amplint.knowledge"}


def test_a_closed_pipe_is_no_traceback():
    put("a.py", "bad_call()\n" * 3000)
    command = f"\"{sys.executable}\" -c '{FAKE}' check a.py --no-cache | head -1"
    result = subprocess.run(command, shell=True, env=ENV, capture_output=True, text=True, timeout=60)
    assert result.stdout == "error[AMP105] [*] clip-before-unscale: bad is wrong\n"
    assert result.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_an_output_that_is_full_is_one_line():
    put("a.py")
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", FAKE, "check", "a.py"]
        result = subprocess.run(command, env=ENV, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (2, "amplint: cannot go on: No space left on device\n")


def test_an_input_that_is_closed_is_empty():
    command = f"\"{sys.executable}\" -c '{FAKE}' check - <&-"
    result = subprocess.run(command, shell=True, env=ENV, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "All checks passed!\n", "")


def _at_a_terminal(*arguments):
    """A process that hears Ctrl-C, also where the tests run in the background and would hand on that it is ignored."""
    return subprocess.Popen(
        [sys.executable, "-c", *arguments],
        env=ENV,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_control_c_is_no_traceback():
    put("a.py", "hang_call()\n")
    child = _at_a_terminal(FAKE, "check", "a.py")
    time.sleep(0.7)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=20)
    assert child.returncode == 130
    assert "Traceback" not in said


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and needs fork")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_workers_end_with_the_main_process(number, code):
    for index in range(70):
        put(f"f{index}.py", "hang_call()\n")
    two = "from amplint import parallel; parallel._processors = lambda: 2; "
    child = _at_a_terminal(two + FAKE, "check")
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    workers = _eventually(lambda: len(children.read_text().split()) == 2 and children.read_text().split())
    time.sleep(0.2)
    child.send_signal(number)
    _, said = child.communicate(timeout=20)
    assert child.returncode == code
    assert "Traceback" not in said
    assert _eventually(lambda: not any(os.path.exists(f"/proc/{worker}") for worker in workers))


def _eventually(probe):
    for _ in range(100):
        if found := probe():
            return found
        time.sleep(0.05)
    return pytest.fail("did not happen")


def test_a_terminal_that_cannot_show_a_character():
    put("日本.py", "x = '→'; bad_call()\n")
    result = subprocess.run(
        [sys.executable, "-c", FAKE, "check"], env={**ENV, "PYTHONIOENCODING": "ascii"}, capture_output=True, timeout=60
    )
    assert result.returncode == 1
    assert b"Found 1 error." in result.stdout


def test_a_name_that_is_no_text():
    with open(b"\xff.py", "w") as stream:
        stream.write("bad_call()\n")
    result = process("check", "--output-format", "concise")
    assert result.returncode == 1
    assert "\\udcff.py:1:1: AMP105" in result.stdout
    assert process("check", "--output-format", "json").returncode == 1
    assert process("check", "--fix").returncode == 0


def test_a_disk_that_is_full_leaves_the_file_alone():
    put("a.py", "x = 1\n" * 2000 + "bad_call()\n")
    before = Path("a.py").read_text()
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); " + FAKE
    result = process("check", "--fix", "--no-cache", "--output-format", "concise", code=limited)
    assert result.returncode == 2
    assert "a.py:1:1: AMP902 cannot write the fixes: file too large" in result.stdout
    assert Path("a.py").read_text() == before
    assert os.listdir(".") == ["a.py"]


def test_an_error_of_amplints_own_is_one_line():
    broken = "from amplint import commands; commands.check = lambda *a: 1 / 0; from amplint.cli import main; main()"
    result = process("check", code=broken)
    assert result.returncode == 2
    assert result.stderr.startswith("amplint: internal error: ZeroDivisionError: division by zero; please report")
    assert len(result.stderr.splitlines()) == 1


def test_files_and_settings_are_shown_and_nothing_is_checked():
    put("b.py", "crash_call()\n"), put("sub/a.py"), put("build/c.py")
    assert check("--show-files").stdout == "b.py\nsub/a.py\n"
    shown = check(
        "--show-settings", "--select", "AMP105", "--target-torch", "2.6", "--per-file-ignores", "sub/*:AMP105"
    )
    settings = tomllib.loads(shown.stdout)
    assert (settings["select"], settings["target-torch"]) == (["AMP105"], "2.6")
    assert settings["per-file-ignores"] == {"sub/*": ["AMP105"]}
    put("amplint.toml", shown.stdout)
    assert check("--show-settings").stdout == shown.stdout


@pytest.mark.parametrize(
    ("flags", "left"),
    [
        ("", ["AMP101"]),
        ("--unsafe-fixes", []),
        ("--unfixable AMP105", ["AMP101", "AMP105"]),
        ("--fixable AMP6", ["AMP101", "AMP105"]),
        ("--fixable AMP1 --unfixable AMP101 --unsafe-fixes", ["AMP101"]),
        ("--fixable AMP105 --unfixable AMP1 --unsafe-fixes", ["AMP101"]),
    ],
)
def test_which_fixes_may_be_applied(flags, left):
    put("a.py", "risky_call()\nbad_call()\n")
    assert [line.split()[1] for line in check("a.py", "-q", "--fix", *flags.split()).stdout.splitlines()] == left


def test_a_fix_that_an_error_of_a_rule_that_is_not_selected_follows_is_only_shown():
    """`--select AMP105 --fix` must not bring what AMP113 calls an error, and does not promise to fix it any more."""
    put("a.py", "first_call()\n")
    result = check("--select", "AMP601", "--fix")
    assert Path("a.py").read_text() == "first_call()\n"
    assert result.exit_code == 1 and "AMP601" in result.stdout and "[*]" not in result.stdout
    assert check("--fix", "-q").exit_code == 0
    assert Path("a.py").read_text() == "good_call()\n"


def test_fixes_are_listed():
    put("a.py", "bad_call()\nbad_call()\n"), put("b.py")
    assert check("--fix", "--show-fixes").stdout == (
        "Fixed in a.py:\n    2 × AMP105 clip-before-unscale\nFixed in b.py:\n    1 × AMP105 clip-before-unscale\n\n"
        "Found 3 errors (3 fixed, 0 left).\n"
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("bad_call()\n", "bad_call()  # amplint: ignore[AMP105] later\n"),
        ("bad_call()", "bad_call()  # amplint: ignore[AMP105] later"),
        ("bad_call(); risky_call()\r\n", "bad_call(); risky_call()  # amplint: ignore[AMP105, AMP101] later\r\n"),
        ("bad_call()  # why\n", "bad_call()  # why  # amplint: ignore[AMP105] later\n"),
        (
            "bad_call(), risky_call()  # amplint: ignore[AMP105] known\n",
            "bad_call(), risky_call()  # amplint: ignore[AMP105, AMP101] known\n",
        ),
        ("f(bad_call(),\n  1)\n", "f(bad_call(),  # amplint: ignore[AMP105] later\n  1)\n"),
        ("f(bad_call(), '''\n''')\n", "f(bad_call(), '''\n''')  # amplint: ignore[AMP105] later\n"),
        ("x = bad_call() \\\n  + 1\n", "x = bad_call() \\\n  + 1  # amplint: ignore[AMP105] later\n"),
        ("def f(:\n", "def f(:\n"),
    ],
)
def test_what_is_found_today_is_hidden_behind_comments(before, after):
    Path("a.py").write_bytes(before.encode())
    check("a.py", "--add-ignore", "--reason", "later")
    assert Path("a.py").read_bytes() == after.encode()
    assert check("a.py").exit_code == (2 if "def" in before else 0)
    assert check("a.py", "--ignore-noqa").exit_code > 0
    assert check("a.py", "--add-ignore").output.endswith("Nothing to hide.\n")
    assert Path("a.py").read_bytes() == after.encode()


@pytest.mark.parametrize("flags", ["- --add-ignore", "a.py --add-ignore --fix", "a.py --reason later"])
def test_comments_go_with_neither_fixes_nor_standard_input(flags):
    put("a.py")
    assert check(*flags.split()).exit_code == 2
    assert Path("a.py").read_text() == "bad_call()\n"
