"""``python -m dittools``: the command, also where no script of it is on the path."""

import sys

from dittools.cli.main import main

if __name__ == "__main__":  # not in the processes that a report starts
    sys.exit(main())
