"""What every test needs before the package is imported."""

import os

import pytest

from tests.interpreter import remember

# The kernels run in Triton's interpreter: there may be no GPU. It is read when triton is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

#: Tests that start processes or compile much.
LONGEST = {"test_compiled_kernels", "test_hf_tensor_parallel", "test_packaging", "test_simulated"}


def pytest_collection_modifyitems(items):
    """Where tests will run, which is not in the process that hands them out."""
    # Whoever has one of the longest last keeps the others waiting.
    items.sort(key=lambda item: item.path.stem not in LONGEST)
    if os.environ["TRITON_INTERPRET"] == "1":
        remember()


@pytest.fixture
def uneven_products(monkeypatch):
    """Products that round an entry by where it stands: BLAS does, in shapes that differ from CPU to CPU."""
    import torch

    def uneven(multiply):
        def product(left, right, *, out=None):
            result = multiply(left, right)
            place = torch.arange(result.numel(), device=result.device).view_as(result)
            result = result * (1 + place * 5 % 7 * torch.finfo(result.dtype).eps)
            return result if out is None else out.copy_(result)

        return product

    monkeypatch.setattr(torch, "mm", uneven(torch.mm))
    monkeypatch.setattr(torch.Tensor, "__matmul__", uneven(torch.Tensor.__matmul__))
