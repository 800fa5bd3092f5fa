"""The command line. Thin: read options, call, print. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from amplint import __version__
from amplint.options import FILES, FORMAT_HELP, KEYS, OUTPUT_FILE, SETTINGS, list_option, with_options
from amplint.report.formats import FORMATS


def main() -> None:
    """The entry point: no traceback for Ctrl-C, a closed pipe, or a mistake of amplint's own."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what a terminal cannot show is escaped, not a crash
            stream.reconfigure(errors="backslashreplace")
    warnings.simplefilter("ignore")  # what the parser says of invalid escapes in users' files
    signal.signal(signal.SIGTERM, _stop)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup has it ignored
        signal.signal(signal.SIGHUP, _stop)
    try:
        _no_file_is_an_option(sys.argv[1:])
        sys.exit(cli(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except OSError as error:  # files are read and written under guard: this is standard output or input
        fail(f"cannot go on: {error.strerror or error}")
    except Exception as error:
        if os.environ.get("AMPLINT_DEBUG"):
            raise
        fail(f"internal error: {type(error).__name__}: {error}; please report (AMPLINT_DEBUG=1 shows the traceback)")


def _no_file_is_an_option(arguments: Sequence[str]) -> None:
    """A file called `--fix` that a hook hands over would be taken for the option."""
    for argument in arguments:
        if argument == "--":
            return
        if argument.startswith("-") and os.path.lexists(argument):
            fail(f"{argument!r} is a file here, and reads as an option: write ./ before it, or rename it")


def _stop(number: int, frame: object) -> None:
    """To be terminated is to be interrupted: half-written files go, workers stop."""
    raise SystemExit(128 + number)


def fail(message: str) -> NoReturn:
    """One line on stderr, exit code 2."""
    click.echo(f"amplint: {message}", err=True)
    raise SystemExit(2)


# -- options ------------------------------------------------------------------------------------------------------


def _settings(paths: Sequence[str], options: dict[str, Any]) -> Any:
    """The settings for a run; a mistake in them ends it."""
    from amplint.config import ConfigError, load

    values = {key: options.get(key.replace("-", "_")) for key in KEYS}
    flags = {key: value for key, value in values.items() if value is not None}
    try:
        return load(paths, flags, options["config"], options["isolated"])
    except ConfigError as error:
        fail(str(error))


def _named(paths: Sequence[str]) -> None:
    """A path without a name is a variable that was not set."""
    if "" in paths:
        fail("a path is empty")


def _only_mine(stdin: bool, options: dict[str, Any]) -> None:
    """What `--diff-base` and `--baseline` go with."""
    chosen = [flag for flag in ("--diff-base", "--baseline") if options[flag[2:].replace("-", "_")] is not None]
    if options["write_baseline"] and chosen != ["--baseline"]:
        fail("--write-baseline goes with --baseline FILE, and not with --diff-base")
    if chosen and not all(options[flag[2:].replace("-", "_")] for flag in chosen):
        fail(f"{chosen[0]} is empty")
    if chosen and any(options[name] for name in ("fix", "fix_only", "diff", "add_ignore")):
        fail(f"{chosen[0]} chooses what is reported; it goes with neither fixes nor --add-ignore")
    if stdin and chosen and (options["diff_base"] or options["write_baseline"]):
        fail("--diff-base and --write-baseline look at files, not at standard input")


def _colour(choice: str) -> bool | None:
    """Whether to colour; None leaves it to click, which looks for a terminal."""
    if choice != "auto":
        return choice == "always"
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return True if os.environ.get("FORCE_COLOR", "0") not in ("", "0") else None


# -- commands -----------------------------------------------------------------------------------------------------


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", message="amplint %(version)s")
def cli() -> None:
    """Finds and repairs mixed-precision mistakes in PyTorch training code."""


@cli.command(short_help="Find mistakes in code that uses low precision.")
@click.argument("paths", nargs=-1, metavar="[PATH]... | -")
@click.option("--fix", is_flag=True, help="Apply the safe fixes.")
@click.option("--unsafe-fixes", is_flag=True, help="Apply, or count, the unsafe fixes, too.")
@click.option("--fix-only", is_flag=True, help="Apply the fixes, and say nothing of what is left.")
@click.option("--diff", is_flag=True, help="Print what --fix would change as a diff; write nothing.")
@click.option("--show-fixes", is_flag=True, help="List what was fixed in each file.")
@click.option("--add-ignore", is_flag=True, help="Hide what is found now behind comments.")
@click.option("--reason", metavar="TEXT", default="", help="What these comments say.")
@click.option("--diff-base", metavar="REF", help="Report only what touches lines changed since the merge base with it.")
@click.option("--baseline", metavar="FILE", help="Do not report what is listed there.")
@click.option("--write-baseline", is_flag=True, help="List there what is found now, and report nothing.")
@click.option("--ignore-noqa", is_flag=True, help="Report also what comments hide.")
@click.option("--show-files", is_flag=True, help="List the files that would be checked, and stop.")
@click.option("--show-settings", is_flag=True, help="Print the settings as TOML, and stop.")
@click.option("--output-format", type=click.Choice(["full", "concise", *FORMATS]), default="full", help=FORMAT_HELP)
@OUTPUT_FILE
@click.option("--statistics", is_flag=True, help="Print how many findings each rule has, instead of the findings.")
@click.option("--exit-zero", is_flag=True, help="Exit 0 in spite of findings.")
@click.option("--exit-non-zero-on-fix", is_flag=True, help="Exit 1 if something was fixed, even if nothing is left.")
@click.option("--stdin-filename", metavar="FILE", help="Read standard input, as if it were this file.")
@click.option("--no-cache", is_flag=True, help="Neither read nor write .amplint_cache/.")
@click.option("-q", "--quiet", is_flag=True, help="Print findings only.")
@click.option("-v", "--verbose", is_flag=True, help="Say what was done, and show tracebacks of internal errors.")
@with_options(SETTINGS)
@with_options(FILES)
@click.pass_context
def check(context: click.Context, /, paths: tuple[str, ...], **options: Any) -> None:
    """Find mistakes in code that uses low precision; with --fix, repair them.

    Exit code: 0 nothing found or left, 1 findings, 2 bad input or settings.
    """
    from amplint.commands import check as run

    context.color = _colour(options["color"])
    if options["stdin_filename"] and paths in ((), ("-",)):
        paths = ("-",)
    elif options["stdin_filename"] or ("-" in paths and len(paths) > 1):
        fail('"-" reads standard input and goes with no other path')
    _named(paths)
    if options["reason"] and not options["add_ignore"]:
        fail("--reason goes with --add-ignore")
    if options["add_ignore"] and (paths == ("-",) or options["fix"] or options["fix_only"] or options["diff"]):
        fail("--add-ignore writes comments into files; it goes with neither standard input nor fixes")
    _only_mine(paths == ("-",), options)
    places = [options["stdin_filename"] or "."] if paths == ("-",) else list(paths or (".",))
    context.exit(run(paths or (".",), _settings(places, options), options))


@cli.command(short_help="Turn FP32 training into correct AMP code.")
@click.argument("paths", nargs=-1, metavar="PATH...")
@click.option("--from-trace", metavar="FILE", help="Keep in FP32 what `amplint trace --output-format json` marked.")
@click.option("--diff", is_flag=True, help="Print what would change as a diff; write nothing.")
@click.option("--check", is_flag=True, help="Write nothing, print the summary; exit 1 if something would change.")
@click.option("--explain", is_flag=True, help="Write comments, too, that say why, above the first edit of each kind.")
@click.option("--dtype", type=click.Choice(["float16", "bfloat16", "auto"]), help="What to train in.")
@click.option("--device", metavar="DEVICE", help="What to train on; the same as --target-device.")
@with_options(SETTINGS)
@with_options(FILES)
@click.pass_context
def fix(context: click.Context, /, paths: tuple[str, ...], **options: Any) -> None:
    """Turn full-precision training steps into correct AMP code, and complete half-done ones.

    Exit code: 0 done or nothing to do, 1 a step was refused (--check: something would change), 2 bad input or settings.
    """
    from amplint.commands import fix as run

    if "-" in paths:
        fail("fix works on files, not on standard input; check --fix does")
    _named(paths)
    context.color = _colour(options["color"])
    options["target_device"] = options["device"] or options["target_device"]
    if options["dtype"] in ("float16", "bfloat16"):
        options["target_dtype"] = options["dtype"]
    if options["from_trace"]:
        from amplint.traced import fix as keep

        context.exit(keep(options["from_trace"], paths, _settings(paths or (".",), options), options))
    if not paths:
        raise click.UsageError("Missing argument 'PATH...'.", context)
    context.exit(run(paths, _settings(paths, options), options))


@cli.command(short_help="Tell what a script does, step by step.")
@click.argument("file")
@with_options(SETTINGS)
@click.pass_context
def events(context: click.Context, /, file: str, **options: Any) -> None:
    """Tell what a script does in each training step, as amplint understood it."""
    from amplint.commands import events as run

    context.color = _colour(options["color"])
    context.exit(run(file, _settings([file], options)))


@cli.command(short_help="Find what leaves half precision's range inside a model.")
@click.argument("target", metavar="SCRIPT|PKG.MOD:FACTORY")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGS...]")
@click.option("--input", multiple=True, metavar="SHAPE[:DTYPE[:LOW-HIGH]]", help="An input of a factory's model.")
@click.option("--inputs", metavar="PKG.MOD:FUNCTION", help="What gives its inputs: args, or (args, kwargs).")
@click.option("--eval", is_flag=True, help="A factory's model in evaluation mode [default: training mode].")
@click.option("--meta", is_flag=True, help="Make a factory's model without weights: no data, no memory.")
@click.option("--precision", type=click.Choice(["amp", "half"]), help="Autocast, or a model that is itself half.")
@click.option("--dtype", type=click.Choice(["float16", "bfloat16"]), help="The same as --target-dtype.")
@click.option(
    "--frontend",
    type=click.Choice(["auto", "export", "compile", "recorder", "symbolic"]),
    default="auto",
    help="What captures the model [default: the first of export, compile and recorder that takes it].",
)
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), default=600, metavar="SECONDS", help="[default: 600]"
)
@click.option(
    "--python", metavar="EXE", help="The Python that has torch and the script's packages [default: this one]."
)
@click.option("--output-format", type=click.Choice(["text", *FORMATS]), default="text", help="[default: text]")
@OUTPUT_FILE
@click.option("--html", metavar="FILE", help="Write the report here, too, as one page.")
@with_options(SETTINGS)
@click.pass_context
def trace(context: click.Context, /, target: str, arguments: tuple[str, ...], **options: Any) -> None:
    """Find what leaves half precision's range inside a model, forward and backward, on one batch.

    `amplint trace train.py -- ARGS` runs the script up to its first backward, in a process of its own, and takes the
    model and the batch that it sees there. `amplint trace pkg.mod:factory --input 8,3,224,224` needs no script.

    Exit code: 0 nothing marked, 1 marks, 2 could not run.
    """
    from amplint.tracing import trace as run

    context.color = _colour(options["color"])
    _named((target,))
    options["target_dtype"] = options["dtype"] or options["target_dtype"]
    context.exit(run(target, arguments, _settings([target if os.path.exists(target) else "."], options), options))


@cli.command(short_help="Prove by runs that a script trains in AMP as it does in FP32.")
@click.argument("script", metavar="SCRIPT")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGS...]")
@click.option("--against", metavar="FILE", help="The AMP script [default: what `amplint fix` makes of SCRIPT].")
@click.option("--steps", type=click.IntRange(1), default=50, metavar="N", help="Optimizer steps a run [default: 50].")
@click.option("--seeds", type=click.IntRange(1), default=3, metavar="N", help="FP32 runs, for the noise [default: 3].")
@click.option("--dtype", type=click.Choice(["float16", "bfloat16"]), help="The same as --target-dtype.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="[default: auto]")
@click.option(
    "--accumulate",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    help="What products are summed in [default: float32].",
)
@click.option("--launcher", metavar="COMMAND", help='What starts SCRIPT, as "torchrun --nproc-per-node 8".')
@click.option(
    "--python", metavar="EXE", help="The Python that has torch and the script's packages [default: this one]."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=600,
    metavar="SECONDS",
    help="Of a run [default: 600].",
)
@click.option(
    "--output-format", type=click.Choice(["text", "json", "markdown"]), default="text", help="[default: text]"
)
@click.option("--html", metavar="FILE", help="Write the report here, too, as one page.")
@list_option("--fail-on", "What exits 1, too: not-enough, fault, overflow, skipped, slower.")
@click.option("--batch-sweep", is_flag=True, help="Find the largest batch that fits, and the throughput there.")
@click.option(
    "--sweep-time",
    type=click.FloatRange(0, min_open=True),
    default=300,
    metavar="SECONDS",
    help="Of the whole batch sweep [default: 300].",
)
@click.option("--keep", metavar="FOLDER", help="Keep the runs' working folders there.")
@with_options(SETTINGS)
@click.pass_context
def verify(context: click.Context, /, script: str, arguments: tuple[str, ...], **options: Any) -> None:
    """Run a script in FP32 and in AMP, from the same seeds, and say whether it trains the same.

    Each run has a working folder of its own: the project's small files are copies, large ones links. Without a GPU the
    runs are on the CPU under CUDA's autocast policy, with every half product counted.

    Exit code: 0 the same, 1 not the same or what --fail-on names, 2 could not run or too few steps.
    """
    from amplint.verifying import verify as run

    context.color = _colour(options["color"])
    _named((script,))
    options["target_dtype"] = options["dtype"] or options["target_dtype"]
    context.exit(run(script, arguments, _settings([script], options), options))


@cli.command(short_help="Build the compiled FP16 matmul that verify counts with, or tell what there is.")
@click.argument("action", type=click.Choice(["build", "info"]))
@click.option("--cuda", is_flag=True, help="The one for NVIDIA GPUs, too.")
@click.option("--python", metavar="EXE", help="The Python that has torch [default: this one].")
@click.pass_context
def kernels(context: click.Context, /, action: str, cuda: bool, python: str | None) -> None:
    """Build the compiled FP16 matmul ahead of the first `amplint verify`, or tell what there is of it.

    It is kept in $AMPLINT_CACHE_DIR, or amplint/ in the user's cache folder. Exit code: 0 done, 2 could not be built.
    """
    import subprocess

    where = os.path.join(os.path.dirname(__file__), "verify", "kernels", "__main__.py")
    command = [python or sys.executable, where, action, "cpu", *(["cuda"] if cuda or action == "info" else [])]
    context.exit(subprocess.run(command, check=False).returncode)


@cli.command(short_help="Explain a rule.")
@click.argument("code", required=False)
@click.option("--all", "every", is_flag=True, help="Explain all rules.")
@click.option("--output-format", type=click.Choice(["text", "markdown", "json"]), default="text")
@click.pass_context
def rule(context: click.Context, /, code: str | None, every: bool, output_format: str) -> None:
    """Explain a rule: what is wrong, why it matters, and what to write instead."""
    from amplint.show import rule as run

    if (code is None) is not every:
        raise click.UsageError("name a rule, or use --all", context)
    context.exit(run(code, output_format))


@cli.command(short_help="Serve editors: findings as you type, fixes, hovers.")
def server() -> None:
    """Speak the Language Server Protocol over standard input and output.

    An editor starts it; docs/editors.md says how. It needs pygls: pip install amplint[lsp].
    """
    try:
        from amplint.editor.server import serve
    except ImportError as error:
        fail(f"server needs {error.name or 'pygls'}, which is not installed: pip install amplint[lsp]")
    serve()


@cli.command(short_help="Comment on a pull or merge request.")
@click.option("--github", is_flag=True, help="A pull request of GitHub; the token is GITHUB_TOKEN.")
@click.option("--gitlab", is_flag=True, help="A merge request of GitLab; the token is GITLAB_TOKEN.")
@click.option("--repository", metavar="OWNER/NAME", help="Which repository [default: that of the running workflow].")
@click.option("--number", type=click.IntRange(1), help="Which request [default: that of the running workflow].")
@click.option("--api", metavar="URL", help="Where the API is [default: that of the running workflow].")
@click.option("--verify", metavar="FILE", help="Attach the verdict of `amplint verify --output-format json`.")
@click.option("--exit-zero", is_flag=True, help="Exit 0 in spite of findings.")
@with_options(SETTINGS)
@with_options(FILES)
@click.pass_context
def review(context: click.Context, /, **options: Any) -> None:
    """Check what a pull or merge request changes, and say it there: a comment for each finding on a changed line.

    What was said before is not said again; comments that nobody answered go with what they were about. Run it in a
    checkout of the request's head; nothing of it is executed.

    Exit code: 0 nothing found on changed lines, 1 findings, 2 could not review.
    """
    from amplint.reviewing import review as run

    if options["github"] == options["gitlab"]:
        raise click.UsageError("name one: --github or --gitlab", context)
    context.exit(run(_settings(["."], options), options))
