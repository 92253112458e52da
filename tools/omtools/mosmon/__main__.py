"""``python -m omtools.mosmon``."""

import sys

from omtools.mosmon import main

sys.exit(main())
