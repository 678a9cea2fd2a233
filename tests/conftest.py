"""What every test needs before the package is imported."""

import os

from tests.interpreter import remember

# The kernels run in Triton's interpreter: there may be no GPU. It is read when triton is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

if os.environ["TRITON_INTERPRET"] == "1":
    remember()
