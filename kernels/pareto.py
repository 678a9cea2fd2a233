"""Non-dominated ranks of points in descending order (METHOD §4).

    front(i) = 1 + max of front(j) over the points j that dominate i, 0 without any

Sorted by diversity and then alignment, both descending, a point can only be dominated by an earlier one, and
is by every earlier one of at least its alignment (but its own copies, which are left out before). So along a
segment the best alignment of each front so far, its *top*, falls from front to front, and the fronts whose
top is at least y_i are those that hold earlier points which dominate i.

One program a segment walks through its points in tiles of BLOCK: a binary search over the tops gives each
point's front as far as earlier tiles go; points of the tile then raise one another until nothing changes; the
last point of each front in the tile is its new top.

Work: P (BLOCK × the longest chain within a tile + log fronts) comparisons at most, whatever the number of
fronts; 5 bytes a point read (9 in fp64), tops aside, and 4 written; no matrix. A tile depends on the one
before, so a segment keeps one program busy.
Exact: values are compared, never computed with. Points beyond the last boundary are not touched.
"""

import triton
import triton.language as tl
from torch import Tensor

from trimtok_fast.kernels.common import Traffic


@triton.jit
def _pareto_kernel(
    # tensors
    alignment_ptr,  # fp32 or fp64 [N], in sorted order
    leads_ptr,  # int8 [N]: 0 for a copy of the point before
    cu_segments_ptr,  # int64 [g + 1]
    top_ptr,  # [N] workspace, of the alignment's dtype
    front_ptr,  # int32 [N], the output; of no meaning for copies
    # block size
    BLOCK: tl.constexpr,
):
    segment = tl.program_id(0)
    start = tl.load(cu_segments_ptr + segment)
    stop = tl.load(cu_segments_ptr + segment + 1)
    here = tl.arange(0, BLOCK)
    earlier = here[:, None] < here[None, :]  # [j, i]
    fronts = tl.full([], 0, tl.int32)
    # 1 wherever it is used. With a constant 1, triton 3.7 to 3.9 takes the conditions of the loops below for
    # true on AMD, by its analysis of ranges, and they never end.
    one = (stop > start).to(tl.int32)
    for first in range(start, stop, BLOCK):
        offs = first + here
        mask = offs < stop
        y = tl.load(alignment_ptr + offs, mask=mask, other=0.0)
        leads = tl.load(leads_ptr + offs, mask=mask, other=0) != 0

        front = tl.zeros([BLOCK], tl.int32)
        step = one
        while step * 2 <= fronts:
            step = step * 2
        while step > 0:
            ahead = front + step
            top = tl.load(top_ptr + start + ahead - 1, mask=ahead <= fronts, other=0.0)
            front = tl.where((ahead <= fronts) & (top >= y), ahead, front)
            step = step // 2

        dominates = earlier & leads[:, None] & (y[:, None] >= y[None, :])
        rising = one
        while rising > 0:
            above = tl.max(tl.where(dominates, front[:, None], -1), axis=0) + 1
            rising = tl.max((leads & (above > front)).to(tl.int32), axis=0)
            front = tl.maximum(front, above)

        followed = earlier & leads[None, :] & (front[:, None] == front[None, :])
        is_top = leads & (tl.max(followed.to(tl.int32), axis=1) == 0)
        fronts = tl.maximum(fronts, tl.max(tl.where(leads, front + 1, 0), axis=0))
        # Triton orders no memory between the threads of a program. Every thread has searched the tops
        tl.debug_barrier()
        tl.store(top_ptr + start + front, y, mask=is_top)
        tl.store(front_ptr + offs, front, mask=mask)
        tl.debug_barrier()  # before they are replaced, and sees the new ones in the next tile


def launch_config() -> dict[str, int]:
    """Block size and warps: BLOCK × BLOCK comparisons, 32 a thread."""
    return {"BLOCK": 64, "num_warps": 4, "num_stages": 1}


def traffic(points: int) -> Traffic:
    """What ranking points in sorted order takes, at least; the sorting is left out."""
    return Traffic(13 * points, operations=2 * points * launch_config()["BLOCK"])


def pareto_launch(
    front: Tensor, *, alignment: Tensor, leads: Tensor, cu_segments: Tensor, top: Tensor
) -> None:
    """Rank the points of every segment; the kernel's signature says what each tensor is."""
    _pareto_kernel[(len(cu_segments) - 1,)](
        alignment, leads, cu_segments, top, front, **launch_config(), enable_fp_fusion=False
    )
