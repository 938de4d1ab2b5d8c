"""``cpl serve``: a web page around a trained model."""

from __future__ import annotations

import argparse
import os
import signal
import sys

from cpl.cli.common import (
    add_architecture_argument,
    add_device_arguments,
    named_degradations,
    told_architecture,
    trained_degradations,
)

HELP = "a web page to try a trained model on"
DESCRIPTION = """\
Serve a web page: drop a photo (or take one that is offered), add a degradation if it is clean, and see it
before and after, with the prompts that the model's routers chose at each level.

The page is for this machine alone, unless --host says otherwise; there is no password. Nothing is downloaded
and nothing is sent to anyone. What is uploaded is deleted after an hour, and when the server stops. Ctrl-C stops it."""
EPILOG = """\
examples:
  cpl serve --checkpoint demo/model.safetensors
  cpl serve --checkpoint model.safetensors --usage inspected/usage.json    names the likely degradation
  cpl serve --checkpoint model.safetensors --degradation noise:sigma=25 low_light+haze --port 8080
  cpl serve --checkpoint model.safetensors --host 0.0.0.0                  for everyone on the network"""
EXTRA = "serve"
NEEDS = ("gradio", "PIL", "imagecodecs", "pydantic", "rich", "skimage", "sklearn", "yaml")

OFFERED = ("noise", "blur", "rain", "haze", "low_light", "snow", "jpeg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", metavar="FILE", help="the trained model")
    add_architecture_argument(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)"
    )
    parser.add_argument("--port", type=int, default=7860, help="port; 0 takes a free one (default: 7860)")
    parser.add_argument(
        "--usage",
        metavar="FILE",
        help="usage.json of `cpl inspect` for this model: the likely degradation is named",
    )
    parser.add_argument(
        "--degradation",
        nargs="+",
        metavar="SPEC",
        help="what can be added to a photo, as noise:sigma=25 (default: as the demonstration trained, for its model; "
        f"else {' '.join(OFFERED)})",
    )
    parser.add_argument(
        "--megapixels",
        type=float,
        default=12.0,
        metavar="N",
        help="largest photo taken, at most 178 (default: 12)",
    )
    parser.add_argument("--upload", default="32MB", metavar="SIZE", help="largest file taken (default: 32MB)")
    parser.add_argument(
        "--memory",
        default="2GB",
        metavar="SIZE",
        help="limit on the memory that restoring takes beside the model: a photo that would take more is restored "
        "window by window, with the same result (default: 2GB; with --dtype bf16 there is none)",
    )
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from cpl.errors import CplError
    from cpl.extras import require
    from cpl.inference.inspect.usage import read_usage
    from cpl.inference.load import HOW_TO_GET_ONE, load_model
    from cpl.inference.streaming.limits import parse_memory
    from cpl.serving.server import is_loopback, open_socket, serve, url_of
    from cpl.serving.session import Limits, Session, parse_upload

    if args.checkpoint is None:
        raise CplError(f"a trained model is needed, --checkpoint FILE: {HOW_TO_GET_ONE}")
    # Pillow refuses a header with more than twice its limit, whatever is said here.
    most = 2 * require("PIL.Image").MAX_IMAGE_PIXELS // 10**6
    if not 0 < args.megapixels <= most:
        raise CplError(
            f"--megapixels must be above 0 and at most {most}, got {args.megapixels:g}; Pillow, which reads the "
            "photos, refuses larger ones"
        )
    try:
        memory = parse_memory(args.memory)
    except ValueError as error:
        raise CplError(f"--{error}") from error
    limits = Limits(parse_upload(args.upload), int(args.megapixels * 1e6), memory)
    given = named_degradations(args.degradation or [])
    listening = open_socket(args.host, args.port)  # before the model is read, which may take long
    try:
        model, info = load_model(args.checkpoint, args.device, **told_architecture(args))
        offered = given or trained_degradations(info) or {name: name for name in OFFERED}
        usage = None if args.usage is None else read_usage(args.usage, model)
        session = Session(model, offered, usage, limits, args.dtype)
    except BaseException:
        listening.close()
        raise
    if not is_loopback(listening):
        print(
            "warning: everyone who can reach this machine can use the page, and there is no password",
            file=sys.stderr,
        )
    url = url_of(listening)
    about = f"This is {info['architecture']} of {os.path.basename(os.fspath(args.checkpoint))}."
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, until uvicorn takes both
    try:
        busy = serve(session, listening, about, lambda: print(f"serving {url} (Ctrl-C stops it)", flush=True))
    except KeyboardInterrupt:  # while the page was being made
        busy = False
    finally:
        signal.signal(signal.SIGTERM, before)
    print("stopped", flush=True)
    if busy:
        # A thread is still inside a kernel. Letting the interpreter end around it may abort the process.
        sys.stderr.flush()
        os._exit(0)
    return 0
