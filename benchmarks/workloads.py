"""Token sets with known structure, for tests and benchmarks alike."""

from __future__ import annotations

import torch
from torch import Tensor

#: Shapes at which loops, blocks and vector widths begin and end: (tokens, width).
SHAPES = [
    (1, 1),
    (2, 3),
    (7, 5),
    (31, 16),
    (64, 33),
    (127, 64),
    (255, 8),
    (256, 40),
    (257, 40),
    (512, 16),
    (521, 9),
]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

KINDS = ("noise", "clusters", "photo-like")


def make_tokens(
    kind: str, count: int, width: int, seed: int = 0, offset: float = 0.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Random tokens [count, width].

    Args:
        kind: `"noise"` (nothing alike), `"clusters"` (32 tokens a cluster) or `"photo-like"` (a falling
            spectrum and neighbours that resemble each other, as patches of a picture do).
        count: number of tokens.
        width: channels.
        seed: of the generator.
        offset: length of a constant vector added to every token, in units of the mean norm: what projectors
            do.
        dtype: of the result.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    if kind == "noise":
        tokens = normal(count, width)
    elif kind == "clusters":
        groups = max(1, count // 32)
        tokens = normal(groups, width)[torch.randint(groups, (count,), generator=generator)] + 0.5 * normal(
            count, width
        )
    elif kind == "photo-like":
        rank = min(width, 64)
        walk = normal(count, rank).mul_(0.4)
        for row in range(1, count):
            walk[row] += 0.9 * walk[row - 1]
        spectrum = torch.arange(1, rank + 1).pow(-0.5)
        tokens = (walk * spectrum) @ normal(rank, width) + 0.1 * normal(count, width)
    else:
        raise ValueError(f"unknown kind {kind!r}")
    if offset:
        direction = normal(width)
        tokens = tokens + offset * tokens.norm(dim=1).mean() * direction / direction.norm()
    return tokens.to(dtype)
