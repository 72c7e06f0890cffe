"""``python -m hub`` is ``fedhub``; prefer ``fedhub``, which does not look into the current folder."""

import sys

from hub.cli import main

if __name__ == "__main__":
    sys.exit(main())
