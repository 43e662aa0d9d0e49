"""The literal tables: every row is complete, and what they name exists."""

import inspect

import pytest

from binarize import errors
from binarize.cli import COMMANDS
from binarize.errors import BinarizeError
from binarize.kernels import dispatch
from binarize.schemes.presets import PRESETS, build_scheme


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_with_its_defaults_and_at_the_ends_of_every_option(name):
    preset = PRESETS[name]

    assert build_scheme(name).spec.startswith(name)
    for key, option in preset.options.items():
        for example in option.examples:
            scheme = build_scheme(f"{name}:{key}={example}")
            assert f"{key}={example}" in scheme.spec or (option.is_optional and example == option.examples[0])
            assert build_scheme(scheme.spec) == scheme
    assert preset.summary
    assert preset.paper


def test_every_error_derives_from_the_base_and_says_what_it_means():
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]

    assert len(kinds) > 5
    for kind in kinds:
        assert issubclass(kind, BinarizeError)
        assert kind.__doc__


def test_every_command_has_help_and_json():
    for command in COMMANDS:
        assert command.help
        assert "as_json" in {parameter.name for parameter in command.params}


def test_command_names_are_unique():
    names = [command.name for command in COMMANDS]

    assert len(set(names)) == len(names)


def test_kernel_levels_end_with_the_reference_that_always_runs():
    levels = dispatch.levels()

    assert levels[-1] == ("reference", None)
    assert len({name for name, _ in levels}) == len(levels)
