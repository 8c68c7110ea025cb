"""The command `shardyard`: a table of commands, each loaded on demand.

`--help` and `validate` stay fast because nothing here imports torch, Ray or DeepSpeed, and a command's module is
imported only when it is called.
"""

from __future__ import annotations

from shardyard.cli.first import end_quietly

# isort: split
import contextlib
import difflib
import importlib
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperCommand, TyperGroup

from shardyard import __version__
from shardyard.cli.view import output
from shardyard.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, RenamedFieldWarning, ShardyardError

# name, module, function (or typer app), and help text.
COMMANDS: tuple[tuple[str, str, str, str], ...] = (
    (
        "recipes",
        "shardyard.cli.commands.recipes",
        "recipes",
        "List, show and copy the shipped recipes.",
    ),
    (
        "validate",
        "shardyard.cli.commands.validate",
        "validate",
        "Check recipes and report every problem; starts nothing.",
    ),
    (
        "explain",
        "shardyard.cli.commands.validate",
        "explain",
        "Explain a field, or the derived values of a recipe.",
    ),
    ("plan", "shardyard.cli.commands.plan", "plan", "Show the plan of a recipe: steps, batches, memory, FLOPs."),
    ("launch", "shardyard.cli.commands.launch", "launch", "Train a recipe."),
    ("resume", "shardyard.cli.commands.launch", "resume", "Resume a run from its newest checkpoint."),
    (
        "sweep",
        "shardyard.cli.commands.sweep",
        "sweep",
        "Train a recipe with many values of its fields and find the best.",
    ),
    ("submit", "shardyard.cli.commands.submit", "submit", "Submit a recipe as a job to Ray, Slurm or Kubernetes."),
    ("ps", "shardyard.cli.commands.jobs", "ps", "List the jobs of all schedulers."),
    ("logs", "shardyard.cli.commands.jobs", "logs", "Show the log of a job or run."),
    ("stop", "shardyard.cli.commands.jobs", "stop", "Stop jobs or runs, each with a checkpoint."),
    ("wait", "shardyard.cli.commands.jobs", "wait", "Wait until a job or run ends, and exit with its exit code."),
    ("inspect", "shardyard.cli.commands.jobs", "inspect", "Show the details of a job or run."),
    ("runs", "shardyard.cli.commands.runs", "runs", "List runs or show one."),
    ("dashboard", "shardyard.cli.commands.dashboard", "dashboard", "Show runs, curves, logs and jobs in the browser."),
    (
        "compare",
        "shardyard.cli.commands.compare",
        "compare",
        "Compare runs: differing fields and metrics.",
    ),
    (
        "watch",
        "shardyard.cli.commands.watch",
        "watch",
        "Follow a run in the terminal: progress, loss, evaluations, events.",
    ),
    ("wandb", "shardyard.cli.commands.wandb", "wandb", "Upload runs to Weights & Biases, and import its offline runs."),
    ("sample", "shardyard.cli.commands.trained", "sample", "Continue a prompt with a trained model."),
    ("eval", "shardyard.cli.commands.trained", "eval", "Measure a trained model on held-out data."),
    (
        "export",
        "shardyard.cli.commands.export",
        "export",
        "Write a checkpoint as a folder that from_pretrained loads.",
    ),
    (
        "checkpoint",
        "shardyard.cli.commands.stored.checkpoints",
        "checkpoint",
        "List, verify and remove the checkpoints of a run.",
    ),
    ("push", "shardyard.cli.commands.export", "push", "Send a trained model to a hub."),
    (
        "cluster",
        "shardyard.cli.commands.cluster",
        "cluster",
        "Start, inspect and stop a Ray cluster, here or on several hosts.",
    ),
    ("data", "shardyard.cli.commands.data", "data", "Prepare datasets for use in recipes."),
    ("tokenizer", "shardyard.cli.commands.tokenizer", "tokenizer", "List, show and train tokenizers."),
    ("doctor", "shardyard.cli.doctor.doctor", "doctor", "Check this machine: devices, libraries, disk, network."),
)


# Command names of other tools → names in Shardyard.
OTHER_NAMES = {
    "train": "launch",
    "run": "launch",
    "start": "launch",
    "fit": "launch",
    "continue": "resume",
    "restart": "resume",
    "check": "validate",
    "lint": "validate",
    "evaluate": "eval",
    "test": "eval",
    "generate": "sample",
    "predict": "sample",
    "complete": "sample",
    "jobs": "ps",
    "queue": "ps",
    "cancel": "stop",
    "kill": "stop",
    "log": "logs",
    "list": "runs",
    "ls": "runs",
    "diff": "compare",
    "status": "inspect",
    "describe": "inspect",
    "show": "runs",
    "checkpoints": "checkpoint",
    "ui": "dashboard",
    "tensorboard": "dashboard",
    "server": "dashboard",
    "tune": "sweep",
    "dataset": "data",
    "datasets": "data",
    "info": "doctor",
    "env": "doctor",
    "version": "--version",
}


class LazyCommand(TyperCommand):
    """A row of the table; loads the real command when it is called or its help is shown."""

    def __init__(self, name: str, module: str, attribute: str, summary: str) -> None:
        super().__init__(name=name, help=summary, short_help=summary, rich_markup_mode=None)
        self.module, self.attribute = module, attribute

    def load(self) -> Any:
        """The real command, from a typer app or a plain function."""
        target = getattr(importlib.import_module(self.module), self.attribute)
        if not isinstance(target, typer.Typer):
            app = typer.Typer(add_completion=False, rich_markup_mode=None)
            app.command(self.name)(target)
            target = app
        return typer.main.get_command(target)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Pass the arguments to the real command, which takes over this context."""
        try:
            return self.load().make_context(info_name, args, parent=parent, **extra)
        except typer.TyperException as error:
            if getattr(error, "ctx", self) is None:  # errors of the option parser have no command
                error.ctx = typer.Context(self, info_name=info_name, parent=parent)  # type: ignore[attr-defined]
            raise


class LazyGroup(TyperGroup):
    """The commands of the table, in order."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name, *_ in COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return next((LazyCommand(*row) for row in COMMANDS if row[0] == cmd_name), None)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """`help COMMAND` is `COMMAND --help`, at any depth."""
        return list(super().parse_args(ctx, [*args[1:], "--help"] if args[:1] == ["help"] else args))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Like typer's, but an unknown command is refused with the nearest known one."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            known = [row[0] for row in COMMANDS]
            meant = OTHER_NAMES.get(name.lower())
            near = [meant] if meant is not None else difflib.get_close_matches(name.lower(), known, n=2)
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Like typer's, but Ctrl-C prints a line before exit code 130."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            output.note("Interrupted.")
            raise


app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode=None,
    no_args_is_help=True,
    # Commands below inherit these names.
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`shardyard help COMMAND` describes a command.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        output.line(f"shardyard {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def shardyard(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may appear anywhere in the line.")] = False,
) -> None:
    """Train large language models on many machines from one YAML recipe."""


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code; errors are printed as one paragraph on stderr.

    A command ends with 0, with the whole number that it returns, or with the exit code of the error that it raises.
    """
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = typer.main.get_command(app).main(args=arguments, prog_name="shardyard", standalone_mode=False)
        sys.stdout.flush()
    except ShardyardError as error:
        _report(error, str(error), debug)
        return error.exit_code
    except typer.TyperException as error:
        return _usage(error)
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _forget(sys.stdout)
        return EXIT_FAILED
    except OSError as error:
        _report(error, f"{error.filename or 'input or output'}: {error.strerror or error}.", debug)
        return EXIT_FAILED
    except Exception as error:  # noqa: BLE001  the last resort: a person gets a paragraph, --debug the traceback
        name = type(error).__name__
        _report(error, f"{name}: {error}. This is a bug in Shardyard; --debug shows the traceback.", debug)
        return EXIT_FAILED
    return code if isinstance(code, int) else 0


def _report(error: BaseException, message: str, debug: bool) -> None:
    try:
        if debug:
            traceback.print_exception(error)
        output.print_error(message)
    except OSError:
        # Its file is on a full disk.
        _forget(sys.stderr)


def _usage(error: Any) -> int:
    """Typer's usage error with a pointer to the help. An empty command line shows the help."""
    message = error.format_message()
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        output.line(message)
        return EXIT_USAGE
    path = context.command_path if context is not None else "shardyard"
    text = message if message.endswith("?") else f"{message.rstrip('.')};"
    output.print_error(f"{text} `{path} --help` shows what can be given.")
    return EXIT_USAGE


def _forget(stream: TextIO) -> None:
    """Redirect a stream to nothing after its pipe was closed or its disk is full; else Python fails on flush."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def main() -> None:
    """Entry point of the `shardyard` script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Characters that the terminal cannot show are escaped instead of raising an error.
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _show_warning
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = run(sys.argv[1:])
    end_quietly(code)
    sys.exit(_flushed(code))


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show warnings about user input as one line; those of libraries keep Python's format."""
    if issubclass(category, RenamedFieldWarning):
        text = f"Warning: {message}.\n"
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
    (file or sys.stderr).write(text)


def _flushed(code: int) -> int:
    """Flush the output and return the exit code. Python itself would exit with 120 and no message if stdout goes to a
    file on a full disk."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            code = code or EXIT_FAILED
            _forget(stream)
            if stream is sys.stdout and not isinstance(error, BrokenPipeError):
                output.note(f"Error: the output cannot be written: {error.strerror or error}.")
    return code


if __name__ == "__main__":
    main()
