"""Errors of the library, as one who typed a command reads them: by the names of its options."""

import pytest
import typer
from typer.testing import CliRunner

from retrograde.cli.app import app
from retrograde.cli.wording import as_options


def context_of(command, *words):
    """What a command gets when these words are typed."""
    commands = typer.main.get_command(app)
    return commands.commands[command].make_context(command, ["edges.csv", *words], parent=typer.Context(commands))


@pytest.mark.parametrize(
    ("command", "message", "said"),
    (
        ("influence", "scale: nothing to scale; scale=None takes W", "--scale: nothing to scale; --scale none takes W"),
        ("influence", "exclude_transmitters: no", "--exclude-transmitter: no"),
        ("influence", "name it by columns={'id': ...}", "name it by --column id=..."),
        ("influence", "3 counts are negative; signs= gives", "3 counts are negative; --signs gives"),
        ("influence", "edges /max_steps=3/scale: a", "edges /max_steps=3/scale: a"),
        ("influence", "the scale of it, by hand", "the scale of it, by hand"),
        ("fit", "fit: failed; try more max_steps", "fit: failed; try more --max-steps"),
        ("fit", "hold_out: give hold_out_by='neuron'", "--hold-out: give --hold-out-by neuron"),
        ("stability", "k: expected a number", "--modes: expected a number"),
        ("stability", "state: failed. Try more. throw=False returns what was found.", "state: failed. Try more."),
        ("simulate", "stimulus, strength: a is named twice", "--source, strength: a is named twice"),
    ),
)
def test_arguments_are_named_as_options(command, message, said):
    words = {"fit": ("--recorded", "r.csv"), "simulate": ("--source", "a")}.get(command, ())
    assert as_options(message, context_of(command, *words)) == said


@pytest.mark.parametrize(
    ("given", "said"),
    (
        ('{"gaba": -1, "glutamate": -1}', "did you mean gaba=-1,glutamate=-1?"),
        ("gaba:-1", "did you mean gaba=-1?"),
        ("worm", "did you mean worm-gaba?"),
        ("gaba=x", "--signs: expected +1 or -1 behind each ="),
        ("gabba=-1", "--signs: no neuron's transmitter is 'gabba'; there are acetylcholine"),
    ),
)
def test_signs_that_are_none_are_told_with_what_was_meant(given, said):
    words = ["influence", "--example", "worm", "--target", "AVAL", "--signs", given]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 2 and "error --signs: " in told.output and said in told.output
