"""Every example runs as it stands, on a tiny model."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py") if path.stem != "tiny")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_example_runs(script: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    runpy.run_path(str(script), run_name="__main__")
    said = {
        "several_images": "120 visual tokens, 24 kept",
        "batch": "row 1: 0 -> 0 visual tokens",
        "video": "112 -> 28 visual tokens",
        "own_model": "52 positions, 16 after pruning",
    }
    assert said[script.stem] in capsys.readouterr().out
