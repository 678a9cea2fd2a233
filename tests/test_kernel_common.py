"""What kernels share on the host."""

from __future__ import annotations

import torch

from trimtok_fast.kernels.common import repeated


class Kernel:
    """Stands in for a compiled kernel: the first launch goes by names, the others by places."""

    arg_names = ("out_ptr", "origin_ptr", "step", "size", "BLOCK")

    def __init__(self, compiled=True):
        self.compiled, self.first, self.others, self.grids = compiled, [], [], []

    def __getitem__(self, grid):
        def launch(**arguments):
            self.first.append(arguments)
            return self.code if self.compiled else None

        self.grids.append(grid)
        return launch

    @property
    def code(self):
        return type("Code", (), {"__getitem__": lambda _, grid: self._direct(grid)})()

    def _direct(self, grid):
        self.grids.append(grid)
        return lambda *values: self.others.append(values)


OUT = torch.empty(3)
ARGUMENTS = {"BLOCK": 16, "out_ptr": OUT, "size": 7, "origin_ptr": None, "num_warps": 4}


def test_only_the_first_launch_goes_through_the_compiler():
    kernel = Kernel()
    launch = repeated(kernel, (5,), **ARGUMENTS)
    for step in range(3):
        launch(step=step)
    assert kernel.first == [{**ARGUMENTS, "step": 0}]
    assert kernel.others == [(OUT.data_ptr(), None, step, 7, 16) for step in (1, 2)]
    assert kernel.grids[0] == (5,) and kernel.grids[1][:3] == (5, 1, 1)


def test_where_nothing_is_compiled_every_launch_is_alike():
    kernel = Kernel(compiled=False)
    launch = repeated(kernel, (5, 2), **ARGUMENTS)
    for step in range(3):
        launch(step=step)
    assert [arguments["step"] for arguments in kernel.first] == [0, 1, 2] and kernel.others == []
