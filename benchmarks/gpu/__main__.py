"""Everything that a machine with a GPU is asked, in one command that needs no network and takes at most nine minutes.

    python -m benchmarks.gpu --out DIR [--only OP ...] [--wheels DIR] [--seconds S] [--dry]

In DIR: result.json and page.md, rewritten after every stage, and log.txt, what the stages printed. The exit status is
1 when a stage failed or overran its time; the stages after it run all the same.
"""

from __future__ import annotations

import argparse
import signal
import sys
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.gpu import checks, stages
from benchmarks.gpu.stages import Stage

SECONDS = 530  # of nine minutes; what is left is for starting and writing
DRY_SECONDS = 110


def plan(only: list[str], wheels: Path | None, dry: bool) -> list[Stage]:
    """The stages; all that are not left out have at most ``seconds``, the benchmarks what the others leave."""
    device = "cpu" if dry else "cuda"
    python = sys.executable

    def module(name: str, *arguments: str) -> list[str]:
        return [python, "-m", f"benchmarks.gpu.{name}", "--device", device, *arguments]

    def last(text: str) -> dict[str, object]:
        return stages.json_lines(text)[-1]

    carried = sorted(wheels.glob("*.whl")) if wheels else []
    no_wheels = (
        "dry: nothing is installed" if dry
        else "" if carried
        else f"{wheels} holds no wheel" if wheels
        else "no --wheels: no peer was carried along"
    )  # fmt: skip
    sanitizer = None if dry else checks.sanitizer()
    no_sanitizer = (
        "dry: there is no GPU" if dry else "" if sanitizer else "compute-sanitizer is not installed"
    )
    return [
        Stage("machine", 20, module("machine"), last),
        Stage("wheels", 20, checks.install_wheels(carried), lambda text: {"wheels": [p.name for p in carried]},
              left_out=no_wheels),
        Stage("build", 80, checks.BUILD, checks.read_build, checks.build_environment(),
              left_out="dry: the core that is there is used" if dry else ""),
        Stage("tests", 180, checks.tests(collect_only=dry), checks.read_tests),
        Stage("small calls", 30, module("small_calls", *only), checks.read_small_calls),
        *(
            Stage(tool, 40, checks.under(tool, sanitizer, module("small_calls", *only)), checks.read_sanitizer,
                  checks.SANITIZED, left_out=no_sanitizer)
            for tool in checks.TOOLS
        ),
        Stage("ceilings", 30, module("ceilings"), last),
        Stage("benchmarks", None, module("cases", "--seconds", "{seconds}", *only),
              checks.read_cases),
    ]  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the results go")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="OP", help=f"of {', '.join(stages.known_ops())}"
    )
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="wheels of peers that only run on a GPU")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for all; default: {SECONDS}")
    parser.add_argument("--dry", action="store_true", help="the same code on the CPU: small, once, no build")
    args = parser.parse_args(argv)
    unknown = [op for op in args.only if op not in stages.known_ops()]
    if unknown:
        parser.error(
            f"--only: {', '.join(unknown)}: no such benchmark; there are {', '.join(stages.known_ops())}"
        )
    if args.wheels and not args.wheels.is_dir():
        parser.error(f"--wheels: {args.wheels} is no folder")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running stage is ended too
    facts = {
        "dry": args.dry,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "only": args.only or list(stages.known_ops()),
    }
    well = stages.run_all(
        plan(args.only, args.wheels, args.dry), args.out, DRY_SECONDS if args.dry else args.seconds, facts
    )
    print(f"{args.out / 'page.md'}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
