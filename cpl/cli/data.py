"""``cpl data check``: are all images of a preset there and readable?"""

from __future__ import annotations

import argparse

HELP = "check that the images a preset names are there and readable"
DESCRIPTION = """\
Look at the images that a preset trains and validates on, before hours are spent: folders, pairs, counts,
the header of every file, and some files wholly. Exit status 1 if anything is wrong."""
EPILOG = """\
examples:
  cpl data check demo
  cpl data check three_task ROOT=/datasets
  cpl data check my-preset.yaml --decode-all     decode every file (slow, but finds each truncated one)
"""
EXTRA = "train"
NEEDS = ("PIL", "pydantic", "rich", "yaml", "skimage", "sklearn")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="data_command", metavar="check", required=True)
    check = commands.add_parser(
        "check", help=HELP, description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    check.add_argument("preset", help="name of a preset that comes with cpl, or a YAML file")
    check.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="change the preset, as ROOT=/datasets or data.crop=64",
    )
    check.add_argument(
        "--decode-all", action="store_true", help="decode every file wholly, not 8 of each source"
    )


def run(args: argparse.Namespace) -> int:
    import sys

    from rich.console import Console

    from cpl.data.check import check
    from cpl.training.presets import load_preset

    config = load_preset(args.preset, args.overrides)

    def progress(source: str) -> None:
        if sys.stderr.isatty():
            print(f"reading {source}", file=sys.stderr)

    report = check(config.data, decode_all=args.decode_all, progress=progress)
    # Piped into a file, a table is as wide as it needs to be, not 80 columns.
    Console(width=None if sys.stdout.isatty() else 120).print(report.table())
    for row in report.rows:
        for note in row.notes:
            print(f"note: {row.section} {row.kind} {row.location}: {note}")
    problems = report.problems
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    if problems:
        print(f"{len(problems)} problem{'s' * (len(problems) > 1)}", file=sys.stderr)
        return 1
    print(f"all well: {report.per_epoch} training items per epoch")
    return 0
