"""`trimtok kernels`: the budgets it holds kernels against, its estimates and its floors."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections import Counter

import pytest
import torch

from tests.ptxsim import compile_for
from tests.ptxsim.tests import sample_kernels
from trimtok_fast.cli import main
from trimtok_fast.errors import BackendUnavailableError
from trimtok_fast.inspection.compilation import (
    _SASS,
    Launch,
    Resources,
    _nvidia_opcodes,
    _products,
    _row_bits,
    _tool,
    compiling_for,
)
from trimtok_fast.inspection.devices import DATA_SHEETS, TARGETS
from trimtok_fast.inspection.run import _broken
from trimtok_fast.inspection.workload import Workload
from trimtok_fast.kernels import common, rounds, similarity, statistics

GOOD = Resources(
    num_warps=4,
    registers=128,
    spills=0,
    scalar_spills=3,
    shared_bytes=50_000,
    matrix_instructions=16,
    products=2,
    products_by_hand=0,
    endless_loops=0,
    load_bits={32: 4, 128: 8},
    row_bits={128: 6},
)


def broken(kernel="similarity", module="similarity", target="sm_90", workload=None, **changes):
    launch = Launch(kernel, module, None)
    return list(
        _broken(launch, dataclasses.replace(GOOD, **changes), TARGETS[target], workload or Workload())
    )


def test_a_good_kernel_breaks_no_budget():
    assert broken() == []
    assert (
        broken(kernel="greedy", module="greedy", matrix_instructions=0, load_bits={32: 1}, row_bits={}) == []
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spills": 1}, "1 spills"),
        ({"shared_bytes": 70_000, "target": "gfx942"}, "70000 bytes of shared memory, wanted at most 65536"),
        ({"products_by_hand": 1}, "1 of 2 products without matrix instructions"),
        ({"matrix_instructions": 0}, "no matrix instruction"),
        ({"row_bits": {128: 3, 64: 7}}, "46% of the bits of rows loaded 128 at a time, wanted 50%"),
        ({"endless_loops": 1}, "1 loops whose condition"),
        ({"load_bits": {}}, "no global load"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_broken_budget_is_named(changes, words):
    assert any(words in line for line in broken(**changes))


def test_budgets_know_what_can_be_asked_for():
    assert broken(workload=Workload(dtype="fp32"), matrix_instructions=0) == []
    assert broken(workload=Workload(dim=3587), row_bits={16: 4}) == []  # rows do not lie on 16 bytes


def test_only_loads_of_rows_are_held_to_128_bits():
    source, first = inspect.getsourcelines(common.load_rows.fn)
    assembly = "\n".join(
        [
            f".loc 2 {first + len(source) - 1} 7",
            "@%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];",
            "ld.global.L1::evict_last.v2.b64 { %rd2, %rd3 }, [ %rd1 + 0 ];",
            "cp.async.cg.shared.global [ %r5 + 0 ], [ %rd4 + 0 ], 0x10, %r6;",
            "  global_load_dwordx4 v[0:3], v[4:5], off",
            f".loc 2 {first + len(source)} 7",
            "ld.global.b16 { %rs1 }, [ %rd1 + 0 ];",
            f".loc 1 {first} 7",
            "  global_load_dword v0, v[4:5], off",
            f".loc 2 {first} 7",
            "  global_load_dwordx2 v[0:1], v[4:5], off",
            '.file 1 "/kernels/gather.py"',
            '.file 2 "/kernels" "common.py"',
        ]
    )
    assert _row_bits(assembly) == {128: 4, 64: 1}


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_code_that_is_disassembled_together_reads_as_it_does_alone(target):
    x = torch.zeros(1024)
    codes = [
        compile_for(sample_kernels.add_kernel, x, x, x, 1024, BLOCK=512, target=target),
        compile_for(sample_kernels.strided_copy_kernel, x, x, 1, 64, 64, 1, 64, 1, BLOCK=64, target=target),
        compile_for(sample_kernels.add_kernel, x[1:], x, x, 1000, BLOCK=256, target=target),
    ]
    alone = [_tool("nvdisasm", code.asm["cubin"], "-c", "-ndf") for code in codes]
    counted = [Counter(opcode for _, opcode in _SASS.findall(sass)) for sass in alone]
    assert _nvidia_opcodes(codes) == counted
    assert counted[0] != counted[1] != counted[2] and all(opcodes.total() > 20 for opcodes in counted)


def test_products_outside_the_matrix_units_are_counted():
    operands = "tensor<64x64xf16, #d> * tensor<64x64xf16, #e> -> tensor<64x64xf32, "
    ttgir = "\n".join(
        [
            "#blocked = #ttg.blocked<{sizePerThread = [1, 4]}>",
            "#mma = #ttg.nvidia_mma<{versionMajor = 2}>",
            "#amd = #ttg.amd_mfma<{version = 3}>",
            f"%1 = tt.dot %a, %b, %c : {operands}#mma>",
            f"%2 = tt.dot %a, %b, %c : {operands}#amd>",
            f"%3 = tt.dot %a, %b, %c : {operands}#blocked>",
            f"%4 = tt.dot %a, %b, %c : {operands}#blocked>".replace("f16", "f32"),
            f"%5 = ttng.warp_group_dot %a, %b, %c : {operands}#mma>".replace("f16", "bf16"),
        ]
    )
    assert _products(ttgir) == (4, 1)


@pytest.mark.parametrize(
    ("target", "registers", "shared", "warps", "wanted"),
    [
        ("sm_80", 32, 0, 4, 1.0),
        ("sm_80", 128, 0, 4, 16 / 64),
        ("sm_90", 255, 0, 8, 8 / 64),
        ("sm_90", 40, 113 * 1024, 4, 8 / 64),  # and a kibibyte for the system
        ("sm_120", 64, 0, 4, 32 / 48),
        ("gfx942", 128, 0, 4, 16 / 32),
        ("gfx942", 24, 33 * 1024, 4, 4 / 32),
        ("gfx950", 24, 33 * 1024, 4, 16 / 32),
    ],
)
def test_occupancy_by_the_allocation_rules(target, registers, shared, warps, wanted):
    assert TARGETS[target].occupancy(registers, shared, warps) == wanted


def test_a_floor_is_the_longer_of_moving_and_working():
    a100 = DATA_SHEETS[0]
    assert a100.floor(2_039_000_000, 0, 0, sixteen_bits=True) == pytest.approx(1e-3)
    assert a100.floor(1, 156_000_000_000, 0, sixteen_bits=True) == pytest.approx(1e-3)
    assert a100.floor(1, 26_000_000_000, 0, sixteen_bits=False) == pytest.approx(1e-3)
    assert a100.floor(1, 1, 19_500_000_000, sixteen_bits=True) == pytest.approx(1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("centred", [True, False])
def test_statistics_move_little_more_than_the_tokens(centred, dtype):
    sizes, d = (576,) * 32, 3584
    moved = statistics.traffic(sizes, d, dtype, centred=centred).bytes_moved
    tokens = sum(sizes) * d * dtype.itemsize * (2 if centred else 1)
    assert tokens < moved <= 1.1 * tokens


def test_similarities_take_little_more_than_half_the_products():
    for size in range(576, 2049):
        products = similarity.traffic((size,), 3584, torch.float16, torch.int16).products
        assert 0.5 * size**2 * 3584 < products <= 0.6 * size**2 * 3584


def test_rounds_take_little_more_than_the_picks_products():
    size, picks, d = 28_672, 5_734, 588
    products = rounds.traffic((size,), (picks,), d, torch.float32, 128, stored=True).products
    assert picks * size * d < products <= 1.25 * picks * size * d


def test_where_kernels_are_interpreted_there_is_nothing_to_compile(capsys):
    with pytest.raises(BackendUnavailableError, match="TRITON_INTERPRET"), compiling_for(TARGETS["sm_80"]):
        pass


@pytest.mark.parametrize(
    "arguments", [["--target", "sm_1"], ["--dtype", "fp8"], ["--dim", "0"], ["--keep", "2"]]
)
def test_wrong_arguments_are_one_line(arguments, capsys):
    assert main(["kernels", *arguments]) == 2
    assert re.fullmatch(r"trimtok kernels: .+\n", capsys.readouterr().err)
