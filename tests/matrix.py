"""Laws 1 and 2 of the patch, the loss, and what must be refused, on several releases of transformers.

    make test-matrix                   the oldest that is supported, one in the middle, and the newest
    make test-matrix ARGS="5.3.0"      others

Each release has an environment of its own, `.venv-matrix/<release>`: what it needs and this interpreter's
environment lacks is installed there, and everything else (torch above all) comes from here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
RELEASES = ("5.0.0", "5.10.4", "newest")
FAMILIES = ("llava", "llava_onevision", "internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3")
TESTS = (
    "tests/test_hf_zoo.py",
    "tests/test_hf_laws.py",
    "tests/test_hf_selection.py",
    "tests/test_hf_generation.py::test_the_loss_and_the_gradient_to_the_pixels",
    "tests/test_hf_errors.py::test_placeholders_whose_images_nobody_saw_are_refused",
)


def python_of(release: str) -> Path:
    """The interpreter of a release's environment, made if it is not there."""
    folder = ROOT / ".venv-matrix" / release
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        paths = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "here.pth").write_text("\n".join(paths) + "\n", encoding="utf-8")
    wanted = "transformers>=5,<6" if release == "newest" else f"transformers=={release}"
    subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--upgrade", wanted],
        check=True,
    )
    return python


def run(release: str) -> bool:
    """Whether the laws hold on a release."""
    python = python_of(release)
    version = "import transformers; print('transformers', transformers.__version__)"
    subprocess.run([python, "-c", version], check=True)
    chosen = " or ".join(["placeholders", *(f"{family}-" for family in FAMILIES)])
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, "-k", chosen]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment).returncode == 0


if __name__ == "__main__":
    outcome = {release: run(release) for release in sys.argv[1:] or RELEASES}
    for release, passed in outcome.items():
        print(f"transformers {release}: {'passed' if passed else 'FAILED'}")
    sys.exit(not all(outcome.values()))
