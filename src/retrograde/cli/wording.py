"""What the library calls its arguments, as they are typed in a command: max_steps=50 is --max-steps 50."""

from __future__ import annotations

import re

import typer

# Where a command has other names than the library: those that are given come first.
_CALLED = {
    "columns": ("column",),
    "exclude_transmitters": ("exclude_transmitter",),
    "k": ("modes",),
    "stimulus": ("stimulus", "source"),
    "target": ("target", "targets"),
}
_THROW = " throw=False returns what was found."  # which no command takes


def as_options(message: str, context: typer.Context) -> str:
    """The message, in which arguments that this command has are named as its options are.

    They are looked for at the start, "scale: expected ..."; before a value, "scale=None"; and, where an underscore
    tells them from plain words, everywhere.
    """
    options = {each.name or "": each.opts[0] for each in context.command.params if each.opts[0].startswith("--")}
    for name, others in _CALLED.items():
        there = sorted((each for each in others if each in options), key=lambda each: not context.params.get(each))
        if there:
            options[name] = options[there[0]]
    if not options:
        return message
    names = "|".join(sorted(map(re.escape, options), key=len, reverse=True))
    message = message.removesuffix(_THROW)
    message = re.sub(rf"^({names})(?=[:,] )", lambda found: options[found[1]], message)
    message = re.sub(
        rf"(?<![\w/.-])({names})=(?:\{{'(\w+)': \.\.\.\}}|'([^']*)'|([\w.+-]*))",
        lambda found: _given(options[found[1]], found[2], found[3] or found[4] or ""),
        message,
    )
    several = "|".join(name for name in names.split("|") if "_" in name) or "(?!)"
    return re.sub(rf"(?<![\w/.-])({several})(?![\w/.-])", lambda found: options[found[1]], message)


def _given(option: str, role: str | None, value: str) -> str:
    if role:
        return f"{option} {role}=..."
    return f"{option} {'none' if value == 'None' else value}".strip()
