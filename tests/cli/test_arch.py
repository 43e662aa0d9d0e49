"""--arch beside a converted network: used for the teacher, else ignored with a note, and nothing said about weights."""

import pytest
from cli_desk import run


@pytest.mark.parametrize("command", ["evaluate", "inspect", "export"])
def test_an_architecture_that_a_network_does_not_need_is_ignored_with_a_note(command, desk, tmp_path):
    more = {"export": ("-o", tmp_path / "net.onnx"), "evaluate": ("--data", desk.data)}.get(command, ())
    result = run(command, desk.net, "--arch", desk.factory, *more)

    assert result.exit_code == 0, result.stderr
    assert f"--arch {desk.factory} was not used" in result.stderr
    assert "the weights are" not in result.stderr


def test_the_architecture_builds_the_teacher_of_a_network(desk):
    words = ("evaluate", desk.net, "--data", desk.data, "--teacher", desk.checkpoint, "--arch", desk.factory)
    result = run(*words)

    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert "agreement with the teacher" in result.stdout
