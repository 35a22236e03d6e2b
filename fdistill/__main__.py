"""`python -m fdistill` is the command `fdistill`."""

import sys

from fdistill.cli import main

sys.exit(main())
