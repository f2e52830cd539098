"""``python -m fsspec_csx`` is the command ``cszoo``."""

import sys

from fsspec_csx.cli import main

sys.exit(main())
