"""``python -m dittools``: the command, also where no script of it is on the path."""

import sys

from dittools.cli.main import main

sys.exit(main())
