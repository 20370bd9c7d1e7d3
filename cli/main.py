"""The `advl` group: lazily loaded commands, readable errors, and one exit code per error class."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, NoReturn

import click

from advl_pipeline.base.errors import AdvlError, ConfigError, Interrupted, again, name_too_long, suggest_names
from advl_pipeline.base.inert import inert_streams
from advl_pipeline.base.interruption import listening
from advl_pipeline.base.locations import not_allowed
from advl_pipeline.base.packages import entry_points, load_plugin, missing_extra

from .advice import Invocation, near_name

COMMANDS = {
    "cache": ("cache", "Inspect, verify, repair or convert a teacher feature cache."),
    "datasets": ("datasets", "List datasets, show their cards, check downloads."),
    "evaluate": ("evaluate", "Score a finetuned run on test and shifted sets."),
    "export": ("students", "Write a run's student as a folder that loads anywhere, with its model card."),
    "extract": ("extract", "Phase 1: run a frozen teacher once over a dataset and write its cache."),
    "finetune": ("finetune", "Phase 2: finetune a student while streaming teacher caches."),
    "predict": ("evaluate", "Write the predictions of a run in the leaderboards' format."),
    "prepare": (
        "extract",
        "Decode a split's pictures once, for faster training and evaluation.",
    ),
    "readout": ("evaluate", "Measure how well a student agrees with its teachers, and what they would add."),
    "report": ("study", "Turn a study, or runs, into one self-contained HTML page or a table."),
    "score": ("evaluate", "Compare scores of a run."),
    "students": ("students", "List students, show one, check a checkpoint."),
    "study": ("study", "Run a grid of methods, shots, seeds and test sets from one TOML file."),
    "teachers": ("teachers", "List teachers, show one, install its weights, check them."),
}
"""Command name -> the module of this package that defines it under that name, and one-line help."""


COMMAND_GROUP = "advl.commands"
"""Entry points of other packages that add a click command or group, named by its words joined with dots.

`mine` is `advl mine`, and `datasets.mine` is `advl datasets mine`. They are imported when they run.
"""


class PluginGroup(click.Group):
    """A group to which other packages add commands; its help lists them without loading any."""

    @property
    def place(self) -> str:
        """The name prefix of entry points that add a command to this group."""
        return f"{self.name}."

    def plugins(self) -> dict[str, EntryPoint]:
        """Return the commands of other packages by their name in this group."""
        points = {point.name: point for point in entry_points(group=COMMAND_GROUP)}
        names = {name: name.removeprefix(self.place) for name in points if name.startswith(self.place)}
        return {short: points[name] for name, short in sorted(names.items()) if short and "." not in short}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self.plugins()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        builtin = super().get_command(ctx, cmd_name)
        point = self.plugins().get(cmd_name)
        if builtin is not None or point is None:
            return builtin
        try:
            command: click.Command = load_plugin(point, "command")
        except ConfigError as error:
            return _Broken(cmd_name, error)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in known:
            raise ConfigError(
                f"There is no command {args[0]!r}.",
                why=suggest_names(args[0], known, meant=near_name(args[0], known)),
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the group's own commands with their help, then those of other packages with the package."""
        builtins = [
            (name, command.get_short_help_str(formatter.width)) for name, command in sorted(self.commands.items())
        ]
        others = [
            (name, f"From the package {point.dist.name if point.dist else point.value}.")
            for name, point in self.plugins().items()
        ]
        for title, rows in (("Commands", builtins), ("Commands of plug-ins", others)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class _Broken(click.Command):
    """A command that cannot be loaded; any call reports the error."""

    def __init__(self, name: str, obstacle: ConfigError) -> None:
        super().__init__(name, help="Not usable: it cannot be loaded.", add_help_option=False)
        self.obstacle = obstacle

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        raise self.obstacle


class LazyGroup(PluginGroup):
    """A group whose commands are imported when they run, which keeps help fast."""

    place = ""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: click.Command(name, short_help=text) for name, (_, text) in COMMANDS.items()}

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f".{module}", package=__package__), cmd_name)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="advl-pipeline", prog_name="advl")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def group(debug: bool) -> None:
    """Distil frozen expert models into a vision-language model while you finetune it.

    \b
    advl datasets check vcr
    advl extract --teacher roberta-b --dataset vcr --split train
    advl finetune --dataset vcr --student vilt --method advl --cache caches/roberta-b/vcr/train \\
        --output runs/advl
    """
    del debug  # Read from the arguments, since an error may come before this runs.


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the code of the outcome (`docs/exit-codes.md`)."""
    with inert_streams():
        _run(sys.argv[1:] if arguments is None else arguments)


def _run(arguments: list[str]) -> NoReturn:
    invocation = Invocation(group, arguments)
    try:
        with listening():
            outcome: Any = group.main(
                args=list(invocation.arguments), prog_name="advl", standalone_mode=False, obj=invocation
            )
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        _stop(invocation.usage_error(error), invocation)
    except AdvlError as error:
        error.next_command = invocation.next_command(error)
        _stop(error, invocation)
    except (KeyboardInterrupt, click.Abort) as error:
        _stop(_interrupted(error, invocation), invocation)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        if _came_of_ctrl_c(error):
            _stop(_interrupted(error, invocation), invocation)
        if isinstance(error, ModuleNotFoundError) and (missing := missing_extra(error)):
            _stop(missing, invocation)
        if refusal := _refusal_of_system(error):
            refusal.next_command = invocation.next_command(refusal)
            _stop(refusal, invocation)
        words = ["--debug", *(word for word in invocation.arguments if word != "--debug")]
        what = f"Unexpected error: {type(error).__name__}: {error}"
        _stop(AdvlError(what, next_command=invocation.command(words)), invocation)
    sys.exit(outcome if isinstance(outcome, int) else 0)


def _refusal_of_system(error: Exception) -> AdvlError | None:
    """Return the error for a file of another user, an impossible name or a deleted working directory; else None."""
    if isinstance(error, PermissionError) and error.filename is not None:
        return not_allowed(Path(os.fsdecode(error.filename)))
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return name_too_long(str(error.filename))
    try:
        Path.cwd()
    except FileNotFoundError:
        return ConfigError(
            "The working directory is gone.",
            why="it was removed or replaced after this shell went there",
            next_command=again("change to an existing folder, such as by cd ~, then run the same command again"),
        )
    return None


def _interrupted(error: BaseException, invocation: Invocation) -> Interrupted:
    """Return the error of a stopped command, in the words of the work that was stopped if it has any."""
    what, kept = "The command was stopped", "what was finished is kept"
    # click turns an interruption into its own exception.
    if (stopped := error.__cause__ or error).args[1:]:
        what, kept = stopped.args
    interrupted = Interrupted(f"{what}.", why=kept)
    interrupted.next_command = invocation.next_command(interrupted)
    return interrupted


def _came_of_ctrl_c(error: BaseException | None) -> bool:
    """Return whether Ctrl-C caused an error: extension modules turn it into an ImportError while loading."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _stop(error: AdvlError, invocation: Invocation) -> NoReturn:
    if "--debug" in invocation.arguments:
        traceback.print_exc()
    click.echo(f"error: {error}", err=True)
    sys.exit(error.exit_code)
