"""``python -m torch_lsh``."""

import sys

from .cli import main

sys.exit(main())
