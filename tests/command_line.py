"""Commands run in this process, for the tests of the command line."""

from __future__ import annotations

from torch_lsh import cli


def run(capsys, *arguments):
    """Exit status, standard output and standard error of a command."""
    capsys.readouterr()
    status = cli.main([*map(str, arguments)])
    return status, *capsys.readouterr()


def assert_one_line(result, *parts):
    status, output, errors = result
    assert status == 2
    assert errors.startswith("torch_lsh: ")
    assert errors.count("\n") == 1
    for part in parts:
        assert str(part) in errors
    return output
