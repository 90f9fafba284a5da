"""Every number of the command line is finite and in a stated range, or the command ends with one sentence."""

from __future__ import annotations

import argparse
import math

import pytest

from m2distill_policy import cli
from m2distill_policy.commands import SUMMARIES
from m2distill_policy.commands.ablate import seeds_of
from m2distill_policy.errors import ConfigError
from m2distill_policy.options import LARGEST_SEED, real, whole
from m2distill_policy.sim_robot.options import add_options

#: What no option takes, whatever its range.
NEVER = ("nan", "NaN", "inf", "-inf", "Infinity", "1e400", "-1e400", "-1", "-0.5", "1e300", "9" * 400, "9" * 5000)
NO_NUMBERS = ("", " ", "x", "1,5", "0x10", "1e", "None", "True", "1 2", "\x00", "x" * 100_000)


def numeric_options() -> list[tuple[str, str, argparse.Action]]:
    """(command, option, action) for every option of every command that takes a number."""
    found = []
    for name in SUMMARIES:
        parser = argparse.ArgumentParser()
        cli.load_command(name).add_parser(parser.add_subparsers())
        actions = next(iter(parser._subparsers._group_actions[0].choices.values()))._actions  # type: ignore[union-attr]
        for action in actions:
            if action.type in (int, float) or getattr(action.type, "__module__", "") == "m2distill_policy.options":
                found.append((name, action.option_strings[-1], action))
    return found


def test_every_numeric_option_has_a_range() -> None:
    options = numeric_options()
    assert len(options) > 25
    for command, option, action in options:
        assert action.type not in (int, float), f"{command} {option} takes any number"
        if action.default is not None:
            assert action.type(str(action.default)) == action.default  # type: ignore[operator, misc]
    parser = argparse.ArgumentParser()
    add_options(parser)
    assert not [action for action in parser._actions if action.type in (int, float)]


@pytest.mark.parametrize(("command", "option"), [(command, option) for command, option, _ in numeric_options()])
def test_numbers_out_of_range_end_with_one_sentence(
    command: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in (*NEVER, *NO_NUMBERS):
        assert cli.main([command, f"{option}={text}"]) == 2, text
        said = capsys.readouterr().err
        assert said.startswith(f"m2distill: {option} is ") and said.count("\n") == 1 and len(said) < 300


def test_ranges_include_their_ends() -> None:
    assert [whole("--n", 1, 5)(text) for text in ("1", "5")] == [1, 5]
    assert [real("--x", 0, 0.5)(text) for text in ("0", "0.5", "-0")] == [0, 0.5, 0]
    for text in ("0", "6"):
        with pytest.raises(ConfigError):
            whole("--n", 1, 5)(text)
    for text in ("0.5000001", "-1e-9"):
        with pytest.raises(ConfigError):
            real("--x", 0, 0.5)(text)
    assert math.isfinite(real("--x", 0, 1)("1e-400"))


@pytest.mark.parametrize("text", ["", "a", "1,", "-1", "1.5", "9" * 400, "9" * 5000, f"0,{LARGEST_SEED + 1}"])
def test_lists_of_seeds(text: str) -> None:
    assert seeds_of("0,1,2") == (0, 1, 2)
    with pytest.raises(ConfigError):
        seeds_of(text)


def test_a_long_list_of_tasks_is_not_repeated_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demos", "--tasks", "9" * 5000, "--out", "never"]) == 2
    assert len(capsys.readouterr().err) < 300
