"""A photo of any size exactly, within a limit on memory: python -m benchmarks.large_photo [--out FILE.json]

A case is written MODEL:WxH:LIMIT, with ":compare" behind it where the network is also run on the whole image. The image
is a bundled photo, enlarged and noised. Each case has a process of its own, in which are measured, beyond what the
process had before the work: the peak of anonymous memory (RssAnon of /proc/self/status, looked at fifty times a second)
and the seconds; and with ":compare" the largest difference. The weights are random: time and memory do not depend on
them, and the difference is that of rounding either way.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import cpl
from benchmarks import idle
from benchmarks.facts import facts
from cpl.data.photos import bundled_photos
from cpl.inference.streaming import plan, restore_streaming
from cpl.inference.streaming.limits import parse_memory
from cpl.models.restorer import Restorer

THREADS, NOISE = 2, 15 / 255
CASES = (
    "cplir:256x256:2GB:compare",
    "cplir:512x512:2GB:compare",
    "cplir:1024x1024:4GB:compare",
    "cplir-small:1000x1000:2GB",
    "cplir-small:4000x3000:2GB",
    "cplir:4000x3000:4GB",
)


class Peak:
    """The most anonymous memory of this process while it is watched, in bytes, and what it was at the start."""

    def __init__(self) -> None:
        self.start = self.most = anonymous_bytes()

    @property
    def beyond(self) -> int:
        return self.most - self.start

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        over = threading.Event()

        def look() -> None:
            while not over.wait(0.02):
                self.most = max(self.most, anonymous_bytes())

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            self.most = max(self.most, anonymous_bytes())


def anonymous_bytes() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "RssAnon is Linux's"
    return 1024 * int(found[1])


def photo(width: int, height: int) -> Tensor:
    """[3, H, W] in [0, 1]."""
    given = np.round(bundled_photos("test")[0].image * 255).astype(np.uint8)
    picture = Image.fromarray(given).resize((width, height), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).normal(0, NOISE, (height, width, 3)).astype(np.float32)
    pixels = np.asarray(picture, dtype=np.float32) / 255 + noise
    return torch.from_numpy(np.ascontiguousarray(pixels.clip(0, 1).transpose(2, 0, 1)))


def network(name: str) -> Restorer:
    torch.manual_seed(0)
    return cpl.create_model(name).eval()


def measured(case: str) -> dict[str, Any]:
    name, size, limit, *compare = case.split(":")
    width, height = map(int, size.split("x"))
    model, image, allowed = network(name), photo(width, height), parse_memory(limit)
    needed, peak, begin = plan(model, height, width, allowed), Peak(), time.monotonic()
    with peak.watched():
        restored, margin = restore_streaming(model, image, allowed, torch.device("cpu"))
    seconds = time.monotonic() - begin
    row = {
        "case": case,
        "megapixels": width * height / 1e6,
        "seconds": seconds,
        "seconds_per_megapixel": seconds / (width * height / 1e6),
        "limit_bytes": allowed,
        "peak_anonymous_bytes": peak.beyond,
        "scratch_file_bytes": needed.maps_in_files,
        "margin": margin,
    }
    if compare:
        peak, begin = Peak(), time.monotonic()
        with peak.watched(), torch.inference_mode():
            whole = model(image[None])[0]
        row |= {
            "whole_seconds": time.monotonic() - begin,
            "whole_peak_anonymous_bytes": peak.beyond,
            "largest_difference": float((restored - whole).abs().max()),
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu_large_photo.json"))
    parser.add_argument("--cases", nargs="+", default=list(CASES), metavar="CASE")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    if args.case:
        print(json.dumps(measured(args.case)))
        return
    idle.require()
    rows = []
    for case in args.cases:
        command = [sys.executable, "-m", "benchmarks.large_photo", "--case", case]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        row = json.loads(done.stdout) if done.returncode == 0 else {"case": case, "failed": done.returncode}
        print(json.dumps(row), file=sys.stderr)
        rows.append(row)
        args.out.write_text(json.dumps({**facts(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
