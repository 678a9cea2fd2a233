"""`python -m trimtok_fast`: the same as the console script `trimtok`."""

import sys

from trimtok_fast.cli import main

sys.exit(main())
