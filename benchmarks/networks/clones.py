"""Clones of the networks at the commits of the catalogue: python -m benchmarks.networks.clones --root FOLDER

Only the files that are needed are checked out. einops, which most of them import, goes into FOLDER/site.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.networks.catalogue import NETWORKS, Network

SOURCE = "https://github.com/{owner}/{name}"
SITE = "site"
PACKAGES = ("einops==0.8.2",)


def clone(repository: str, commit: str, files: set[str], root: Path, source: str = SOURCE) -> None:
    """A folder that is there already gets the commit and the files, nothing else is fetched."""
    owner, name = repository.split("/")
    folder = root / name
    if not folder.exists():
        url = source.format(owner=owner, name=name)
        _git("clone", "--quiet", "--no-checkout", "--filter=blob:none", url, str(folder))
    _git("-C", str(folder), "sparse-checkout", "set", "--no-cone", *(f"/{file}" for file in sorted(files)))
    _git("-C", str(folder), "-c", "advice.detachedHead=false", "checkout", "--quiet", "--force", commit)


def packages(root: Path) -> None:
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
    subprocess.run([*pip, "--upgrade", "--target", str(root / SITE), *PACKAGES], check=True)


def commit_of(network: Network, root: Path) -> str:
    """What is checked out now, which need not be what the catalogue says."""
    head = _git("-C", str(root / network.folder), "rev-parse", "HEAD")
    changed = _git("-C", str(root / network.folder), "status", "--porcelain", "--untracked-files=no")
    return f"{head} with changes" if changed else head


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--source", default=SOURCE, help="where clones come from (default: %(default)s)")
    args = parser.parse_args(argv)
    args.root.mkdir(parents=True, exist_ok=True)
    wanted: dict[tuple[str, str], set[str]] = {}
    for network in NETWORKS:
        wanted.setdefault((network.repository, network.commit), set()).update(network.files)
    for (repository, commit), files in wanted.items():
        print(repository, commit, flush=True)
        clone(repository, commit, files, args.root, args.source)
    packages(args.root)


if __name__ == "__main__":
    main()
