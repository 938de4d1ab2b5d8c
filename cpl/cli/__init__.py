"""The ``cpl`` command: one module per sub-command, errors in one line.

A command is a module ``cpl/cli/<name>.py`` with ``HELP``, ``EXTRA`` (the extra of cpl-kernels that
it needs, or None), ``add_arguments(parser)`` and ``run(args) -> int``; optionally ``EPILOG``
(examples, shown as written) and ``NEEDS`` (the modules of the extra that it really imports).
These modules import nothing heavy at their top, so that ``cpl --help`` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NoReturn

from cpl.errors import CplError, MissingExtra
from cpl.extras import pip_name

COMMANDS = ("train", "restore", "eval", "degrade", "inspect", "serve", "data", "info")

INTERRUPTED = 130  # what a shell reports for a command that Ctrl-C ended (128 + SIGINT)
_DESCRIPTION = "All-in-one image restoration: noise, blur, rain, haze, low light, by one network."
_EPILOG = """\
examples:
  cpl restore photo.jpg --checkpoint model.safetensors --output restored/
  cpl train demo                       train the small demonstration model
  cpl eval --checkpoint model.safetensors
  cpl info                             versions, devices, what is installed

`cpl COMMAND --help` explains a command. CPL_DEBUG=1 or --debug shows the whole traceback of an error.
"""


class _Parser(argparse.ArgumentParser):
    """argparse, with errors in one line instead of the usage text and an error."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)  # an abbreviation breaks when an option is added later
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see: {self.prog} --help)\n")


class _Version(argparse.Action):
    """``--version``, asking the package only when wanted: its import may cost seconds."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from cpl import __version__

        print(f"cpl {__version__}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: sys.argv[1:]) and return the exit status.

    0: done; 1: done, with some inputs failed and reported; 2: nothing done, because of what was
    asked or what this machine lacks (one line on stderr says it); 130: interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("CPL_DEBUG", "") not in ("", "0")
    try:
        with _one_line_warnings():
            status = _dispatch(arguments)
        sys.stdout.flush()  # a closed pipe must show here, not at interpreter exit
        return status
    except SystemExit as stop:  # argparse: --help, --version, or a wrong option that it has reported
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `cpl ... | head`: the reader left, which is no error of ours
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit's flush complains
        return 0
    except (CplError, ValueError, TypeError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        # A backend asked for by CPL_BACKEND that cannot serve is the user's to mend; another RuntimeError is a bug.
        if debug or type(error).__name__ != "BackendError":
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2


def one_line(error: BaseException) -> str:
    """An error's message without newlines; for a system error, what failed and on which file."""
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        message = str(error)
    return " ".join(message.split()) or type(error).__name__


def missing_modules(names: Sequence[str]) -> list[str]:
    """Pip's names of those packages, given by import name, that are not installed."""
    return [pip_name(name) for name in names if importlib.util.find_spec(name) is None]


def _dispatch(arguments: list[str]) -> int:
    # Only the chosen command is imported; without one (help, a misspelling) all are, for their help lines.
    chosen = next((a for a in arguments if not a.startswith("-")), None)
    parser = _build_parser([chosen] if chosen in COMMANDS else COMMANDS)
    if not arguments:
        parser.print_help()
        return 2
    args = parser.parse_args(arguments)
    module: ModuleType = args.command_module
    if module.EXTRA is not None:
        absent = missing_modules(module.NEEDS)
        if absent:
            raise MissingExtra(
                f"cpl {args.command} needs {', '.join(absent)}: pip install 'cpl-kernels[{module.EXTRA}]'"
            )
    status = module.run(args)
    return 0 if status is None else int(status)


def _build_parser(names: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(prog="cpl", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")
    for name in names:
        module = importlib.import_module(f"cpl.cli.{name}")
        sub = commands.add_parser(
            name,
            help=module.HELP,
            description=getattr(module, "DESCRIPTION", module.HELP),
            epilog=getattr(module, "EPILOG", None),
        )
        module.add_arguments(sub)
        # Accepted here too; `main` looks for it itself, since errors may come before parsing ends.
        sub.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
        sub.set_defaults(command_module=module)
    return parser


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Show warnings as `warning: text` on stderr, without the source line that raised them."""

    def show(
        message: Any, category: Any, filename: Any, lineno: Any, file: Any = None, line: Any = None
    ) -> None:
        print(f"warning: {' '.join(str(message).split())}", file=file or sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
