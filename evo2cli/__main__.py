"""`evo2`, and `python -m evo2cli`."""

import sys

from evo2cli.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
