"""The command line as a whole: help, errors in one line, exit statuses."""

from __future__ import annotations

import argparse
import errno
import re
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cpl
from cpl import cli, extras
from cpl.errors import CplError, MissingExtra


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a command ``probe`` in place whose run does what the test says."""

    def install(run: Callable[[argparse.Namespace], Any], **attributes: Any) -> None:
        module = types.ModuleType("cpl.cli.probe")
        module.__dict__.update(
            HELP="a probe", EXTRA=None, add_arguments=lambda parser: parser.add_argument("--size", type=int)
        )
        module.__dict__.update(run=run, **attributes)
        monkeypatch.setitem(sys.modules, "cpl.cli.probe", module)
        monkeypatch.setattr(cli, "COMMANDS", ("probe",))

    return install


def fails(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


def test_help_lists_every_command(run: Any) -> None:
    result = run("--help")
    assert result.status == 0
    for name in cli.COMMANDS:
        assert f"  {name} " in result.out
    assert "Traceback" not in result.err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_examples(run: Any, name: str) -> None:
    result = run(name, "--help")
    assert result.status == 0
    assert result.out.startswith(f"usage: cpl {name}")
    assert "examples:" in result.out
    assert f"  cpl {name} " in result.out.partition("examples:")[2]


def test_version(run: Any) -> None:
    assert run("--version") == (0, f"cpl {cpl.__version__}\n", "")


def test_nothing_asked_shows_help(run: Any) -> None:
    result = run()
    assert result.status == 2
    assert "usage: cpl" in result.out


def test_misspelled_command_and_option_are_one_line(run: Any, command: Any) -> None:
    result = run("restor", "a.png")
    assert result.status == 2
    assert result.err.startswith("error: ")
    assert "'restor'" in result.err
    assert "restore" in result.err
    assert result.err.count("\n") == 1
    command(lambda args: 0)
    for arguments, word in ((("probe", "--wrong"), "--wrong"), (("probe", "--size", "big"), "'big'")):
        result = run(*arguments)
        assert result.status == 2
        assert word in result.err
        assert "--help" in result.err
        assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (CplError("a line\n  and another"), "a line and another"),
        (ValueError("size is 3"), "size is 3"),
        (TypeError(), "TypeError"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a.png"),
            "a.png: No such file or directory",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    ],
)
def test_user_errors_are_one_line_and_status_2(run: Any, command: Any, error: Exception, line: str) -> None:
    command(fails(error))
    assert run("probe") == (2, "", f"error: {line}\n")


@pytest.mark.parametrize("arguments", [("--debug", "probe"), ("probe", "--debug")])
def test_debug_shows_the_traceback(run: Any, command: Any, arguments: tuple[str, ...]) -> None:
    command(fails(ValueError("size is 3")))
    result = run(*arguments)
    assert result.status == 2
    assert "Traceback" in result.err
    assert result.err.endswith("error: size is 3\n")


def test_debug_by_environment(run: Any, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    command(fails(ValueError("size is 3")))
    monkeypatch.setenv("CPL_DEBUG", "1")
    assert "Traceback" in run("probe").err
    monkeypatch.setenv("CPL_DEBUG", "0")
    assert "Traceback" not in run("probe").err


def test_a_fault_of_ours_is_not_hidden(command: Any) -> None:
    command(fails(AssertionError("a bug")))
    with pytest.raises(AssertionError, match="a bug"):
        cli.main(["probe"])


def test_interrupt_is_130(run: Any, command: Any) -> None:
    command(fails(KeyboardInterrupt()))
    assert run("probe") == (130, "", "interrupted\n")


def test_status_of_the_command_is_kept(run: Any, command: Any) -> None:
    for status in (0, 1):
        command(lambda args, status=status: status)
        assert run("probe").status == status


def test_warnings_are_one_line(run: Any, command: Any) -> None:
    command(lambda args: warnings.warn("two\nlines", stacklevel=1))
    assert run("probe") == (0, "", "warning: two lines\n")


def test_missing_extra_is_named_before_the_command_runs(
    run: Any, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(fails(AssertionError("must not run")), EXTRA="train", NEEDS=("rich", "skimage"))
    monkeypatch.setitem(sys.modules, "skimage", None)  # what an absent package looks like to an import
    line = "error: cpl probe needs scikit-image: pip install 'cpl-kernels[train]'\n"
    assert run("probe") == (2, "", line)


def test_extras_are_those_of_pyproject() -> None:
    """What the messages read from the package's metadata."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")
    project = Path(cli.__file__).parents[2] / "pyproject.toml"
    if not project.exists():
        pytest.skip(reason="an installed copy has no pyproject.toml")
    declared = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    for extra in (*extras.EXTRAS, "demo", "dev"):
        lines = [line for line in declared[extra] if not line.startswith("cpl-kernels[")]
        more = [
            name for line in declared[extra] if line not in lines for name in extras.packages()[line[12:-1]]
        ]
        names = {re.split("[>=<]", line)[0].lower() for line in lines}
        assert set(extras.packages()[extra]) == names | set(more)
    assert set(extras.packages()["restore"]) < set(extras.packages()["train"]) & set(
        extras.packages()["serve"]
    )


@pytest.mark.parametrize("extra", ["restore", "train", "serve"])
def test_what_is_missing_is_named_by_pips_name_and_the_smallest_extra(
    extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by an import that fails deep inside."""
    for package in extras.packages()[extra]:
        module = extras.module_name(package)
        monkeypatch.setitem(sys.modules, module, None)
        smallest = next(e for e in extras.EXTRAS if package in extras.packages()[e])
        with pytest.raises(
            MissingExtra, match=rf"^this needs {package}: pip install 'cpl-kernels\[{smallest}\]'$"
        ):
            extras.require(module)
        assert cli.missing_modules([module]) == [package]


def test_what_no_extra_lists_is_named_with_the_extra_that_was_asked() -> None:
    with pytest.raises(MissingExtra, match=r"no_such_package: pip install 'cpl-kernels\[serve\]'"):
        extras.require("no_such_package", "serve")


def test_closed_pipe_is_quiet() -> None:
    """`cpl info | head -1`, where the reader leaves early; as a process, since it is about its stdout."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "cpl", "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate()
    assert (process.returncode, err) == (0, b"")


def test_impossible_backend_is_one_line_and_other_runtime_errors_are_not_hidden(
    run: Any, command: Any
) -> None:
    from cpl_kernels import BackendError

    command(fails(BackendError("layer_norm2d: backend 'cuda' cannot serve this call")))
    assert run("probe") == (2, "", "error: layer_norm2d: backend 'cuda' cannot serve this call\n")
    command(fails(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        run("probe")
