"""What the kernels' tests share: recorded launches, changed sources, tokens in awkward places."""

from __future__ import annotations

import importlib.util
import sys

import torch


class Recorder:
    """Stands in for a kernel: keeps what it is launched with, and passes it on if there is something to."""

    def __init__(self, kernel, run=None):
        self.kernel, self.run, self.calls = kernel, run, []

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.calls.append((grid, arguments, options))
            if self.run is not None:
                self.run(self.kernel, grid, arguments, options)

        return launch


def altered(module, old, new, folder):
    """The module, loaded anew from a copy of its source in which one snippet is replaced."""
    with open(module.__file__, encoding="utf-8") as file:
        source = file.read()
    assert source.count(old) == 1, f"{module.__name__} has {source.count(old)} times {old!r}"
    path = folder / f"altered_{module.__name__.rpartition('.')[2]}_{abs(hash((old, new)))}.py"
    path.write_text(source.replace(old, new), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    copy = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = copy
    spec.loader.exec_module(copy)
    return copy


def awkward(tokens):
    """The same values: transposed, strided and misaligned among NaN."""
    count, width = tokens.shape
    wide = torch.full((count + 2, 2 * width + 5), float("nan"), dtype=tokens.dtype)
    wide[1:-1, 1 : 1 + 2 * width : 2] = tokens
    flat = torch.full((count * width + 2,), float("nan"), dtype=tokens.dtype)
    flat[1:-1] = tokens.flatten()
    return {
        "transposed": tokens.T.contiguous().T,
        "strided": wide[1:-1, 1 : 1 + 2 * width : 2],
        "misaligned": flat[1:-1].view(count, width),
    }
