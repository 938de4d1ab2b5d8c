"""``python -m cpl``: the same as the ``cpl`` command."""

from __future__ import annotations

import sys

from cpl.cli import main

if __name__ == "__main__":
    sys.exit(main())
