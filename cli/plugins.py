"""Commands of other packages: entry points of the group `advl.commands`, imported when they run.

An entry point is called as a user types it, words joined by dots: `mine` is `advl mine`, and `datasets.mine` is
`advl datasets mine`. It holds a click command or group.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

from advl_pipeline.errors import ConfigError, again

COMMAND_GROUP = "advl.commands"


class PluginGroup(click.Group):
    """A group that other packages add commands to; its help names them without loading any."""

    @property
    def place(self) -> str:
        """What the names of entry points begin with that add a command here."""
        return f"{self.name}."

    def plugins(self) -> dict[str, EntryPoint]:
        """Return the commands of other packages by the name that they have in this group."""
        points = {point.name: point for point in entry_points(group=COMMAND_GROUP)}
        names = {name: name.removeprefix(self.place) for name in points if name.startswith(self.place)}
        return {short: points[name] for name, short in sorted(names.items()) if short and "." not in short}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self.plugins()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        point = self.plugins().get(cmd_name)
        if own is not None or point is None:
            return own
        try:
            command: click.Command = point.load()
        except ImportError as error:
            return _Broken(cmd_name, point, error)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = [(name, command) for name, command in sorted(self.commands.items()) if not command.hidden]
        self.write_commands(formatter, [(name, command.get_short_help_str(formatter.width)) for name, command in own])

    def write_commands(self, formatter: click.HelpFormatter, own: list[tuple[str, str]]) -> None:
        """Write the group's own commands with their help, then those of other packages with the package."""
        for title, rows in (("Commands", own), ("Commands of plug-ins", self._plugin_rows())):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def _plugin_rows(self) -> list[tuple[str, str]]:
        return [
            (name, f"From the package {point.dist.name if point.dist else point.value}.")
            for name, point in self.plugins().items()
        ]


class _Broken(click.Command):
    """A command that cannot be imported, which it says when it is called, however it is called."""

    def __init__(self, name: str, point: EntryPoint, error: ImportError) -> None:
        super().__init__(name, help="Not usable: it cannot be imported.", add_help_option=False)
        self.obstacle = ConfigError(
            f"The command {name!r} of a plug-in cannot be imported.",
            where=f"entry point {point.value}",
            why=str(error),
            next_command=again("install what it needs, then give the same command again"),
        )

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        raise self.obstacle
