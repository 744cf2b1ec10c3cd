"""``python -m xaps_watch`` is the command ``xaps-watch``."""

import sys

from xaps_watch.cli import main

sys.exit(main())
