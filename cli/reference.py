"""Output of `make docs`: the command reference, `docs/cli.md`, and the table of students in `docs/students.md`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from .flags import SectionedCommand, by_section
from .main import group

TABLE_START, TABLE_END = "<!-- students: written by `make docs` -->", "<!-- end of students -->"

HEADER = """# Command reference

`make docs` writes this page from the commands; a test fails if the two differ.
You can also set options in a TOML file, passed with `--config`; flags override it.
For long commands `--help` lists the common options, `--help-all` all options below.
"""


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield every command and subcommand with its full name, in order, including those of lazy groups."""
    yield from _visit("advl", group)


def render_reference() -> str:
    """Return the reference as Markdown."""
    parts = [HEADER]
    for name, command in commands():
        paragraphs = [f"```sh\n{text}\n```" if is_example else text for is_example, text in help_blocks(command)]
        parts.append("\n\n".join([f"\n## `{name}`", *paragraphs]) + "\n")
        arguments = [item.human_readable_name for item in command.params if isinstance(item, click.Argument)]
        rows = [f"| `{name}` | argument |" for name in arguments]
        sections = by_section(command.params, command.options if isinstance(command, SectionedCommand) else {})
        for title, options in sections.items():
            for item in options:
                text = " ".join((item.help or "").split()).replace("|", "\\|")
                rows.append(f"| `{', '.join(item.opts + item.secondary_opts)}` | {text} |")
            heading = [f"\n**{title}**"] if len(sections) > 1 else []
            parts.append("\n".join([*heading, "\n| option | what |", "| --- | --- |", *rows]) + "\n")
            rows = []
    return "".join(parts)


def _visit(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for child_name in command.list_commands(context):
            child = command.get_command(context, child_name)
            if child is not None:
                yield from _visit(f"{name} {child_name}", child)


def help_blocks(command: click.Command) -> Iterator[tuple[bool, str]]:
    """Yield the paragraphs of a command's help in order: whether each is an example block, and its text."""
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith("\b\n"):
            yield True, paragraph.removeprefix("\b\n")
        else:
            yield False, " ".join(paragraph.split())


def with_student_table(page: str) -> str:
    """Return a page with its table of students updated from `data/students.toml`."""
    from advl_pipeline.students.registry import student_table

    before, _, rest = page.partition(TABLE_START)
    _, _, after = rest.partition(TABLE_END)
    return f"{before}{TABLE_START}\n{student_table()}{TABLE_END}{after}"


if __name__ == "__main__":
    Path("docs/cli.md").write_text(render_reference(), encoding="utf-8")
    students = Path("docs/students.md")
    students.write_text(with_student_table(students.read_text(encoding="utf-8")), encoding="utf-8")
