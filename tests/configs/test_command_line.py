"""Exit codes every command shares."""

import pytest

from configs.command_line import run_command
from configs.errors import RefusedInput


@pytest.mark.parametrize("code", [0, 1, 85])
def test_the_commands_own_code_is_kept(code):
    with pytest.raises(SystemExit) as leaving:
        run_command(lambda argv: code)
    assert leaving.value.code == code


def test_refused_input_is_one_message_and_exit_code_two(capsys):
    def main(argv):
        raise RefusedInput("optim.lr = -1: give a positive number")

    with pytest.raises(SystemExit) as leaving:
        run_command(main)
    assert leaving.value.code == 2
    assert capsys.readouterr().err == "error: optim.lr = -1: give a positive number\n"


def test_an_interrupt_leaves_with_130():
    def main(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as leaving:
        run_command(main)
    assert leaving.value.code == 130


def test_a_bug_of_ours_keeps_its_traceback():
    def main(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(main)
