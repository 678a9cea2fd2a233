"""The detectors: each must fire on a wrong kernel, name the place, and stay silent on a right one."""

import re

import numpy as np
import pytest
import torch
import triton

from tests.ptxsim import (
    Divergence,
    ExecutionFault,
    GlobalRace,
    Misaligned,
    OutOfBounds,
    SharedRace,
    StepLimit,
    UninitialisedRegister,
    UnsupportedInstruction,
    compile_for,
    execute,
    execute_ptx,
    run_compiled,
)
from tests.ptxsim.tests import sample_kernels as kernels
from tests.ptxsim.tests.harness import HEADER, run

AT = ".reg .b32 at, from, n;"


def test_out_of_bounds_load_is_named():
    x, out = torch.ones(1000), torch.zeros(1000)
    with pytest.raises(
        OutOfBounds,
        match=r"global load .* x\+4000 bytes \(it has 4000\) by CTA \(7, 0, 0\) thread 104 "
        r"\(warp 3 lane 8\)\n.*ld\.global.*\[sample_kernels\.py:\d+\]",
    ):
        execute(kernels.unmasked_load_kernel, (8,), x, out, 1000, BLOCK=128)
    assert (out == 0).all()


def test_a_view_is_guarded_inside_its_storage():
    storage = torch.ones(1024)
    x, out = storage[:1000], torch.zeros(1000)
    with pytest.raises(OutOfBounds):
        execute(kernels.unmasked_load_kernel, (8,), x, out, 1000, BLOCK=128)
    execute(kernels.unmasked_load_kernel, (8,), x, out, 1000, BLOCK=128, bounds="storage")
    assert (out == 2).all()


def test_pointer_cut_to_32_bits():
    with pytest.raises(OutOfBounds):
        run(
            "cvt.u32.u64 at, x0; cvt.u64.u32 x0, at; ld.global.b32 d, [x0];",
            {"d": np.int32},
            threads=32,
            declare=AT,
            extra=(np.zeros(4, np.int32),),
        )


@pytest.mark.parametrize(
    "code",
    [
        "ld.global.b32 d, [x0+2];",
        "ld.global.v4.b32 {d, _, _, _}, [x0+8];",
        "ld.shared.b32 d, [at+1];",
        "ld.shared.v2.b32 {d, _}, [at+4];",
    ],
)
def test_misaligned(code):
    with pytest.raises(Misaligned):
        run(
            f"mov.b32 at, 0; {code}",
            {"d": np.int32},
            threads=32,
            extra=(np.zeros(64, np.int32),),
            shared_bytes=64,
            declare=AT,
        )


def test_shared_out_of_bounds():
    with pytest.raises(
        OutOfBounds, match="shared store of 4 bytes at 0x40, the CTA has 64 bytes by CTA .* thread 16 "
    ):
        run(
            "shl.b32 at, tid, 2; st.shared.b32 [at], tid; mov.b32 d, at;",
            {"d": np.int32},
            threads=32,
            shared_bytes=64,
            declare=AT,
        )


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("st.shared.b32 [at], tid; ld.shared.b32 d, [from];", "load after a store"),
        ("ld.shared.b32 d, [from]; st.shared.b32 [at], tid;", "store after a load"),
        ("st.shared.b32 [at], tid; st.shared.b32 [from], tid; mov.b32 d, 0;", "store after a store"),
        (
            "and.b32 at, tid, 31; shl.b32 at, at, 2; st.shared.b32 [at], tid; mov.b32 d, 0;",
            "different values",
        ),
        ("setp.lt.s32 p, tid, 1; mov.b32 at, 0; st.shared.b32 [at], tid; mov.b32 d, 0;", "different values"),
        (
            "cp.async.ca.shared.global [at], [x0], 4; cp.async.commit_group; ld.shared.b32 d, [at];",
            "not been waited",
        ),
        (
            "cp.async.ca.shared.global [at], [x0], 4; cp.async.commit_group; cp.async.wait_group 1;"
            "ld.shared.b32 d, [at];",
            "not been waited",
        ),
        (
            "cp.async.ca.shared.global [at], [x0], 4; cp.async.commit_group; cp.async.wait_group 0;"
            "ld.shared.b32 d, [from];",
            "load after a store",
        ),
        ("st.shared.b32 [at], tid; atom.shared.relaxed.cta.add.u32 d, [from], 1;", "atomic after a store"),
        ("ld.shared.b32 d, [at]; atom.shared.relaxed.cta.add.u32 d, [from], 1;", "atomic after a load"),
        ("atom.shared.relaxed.cta.add.u32 d, [from], 1; ld.shared.b32 d, [at];", "load after a store"),
    ],
)
def test_shared_races(code, message):
    prologue = "shl.b32 at, tid, 2; xor.b32 from, at, 128;"
    with pytest.raises(SharedRace, match=message):
        run(
            prologue + code,
            {"d": np.int32},
            threads=64,
            shared_bytes=256,
            declare=AT,
            extra=(np.zeros(64, np.int32),),
        )


@pytest.mark.parametrize(
    "code",
    [
        "st.shared.b32 [at], tid; bar.sync 0; ld.shared.b32 d, [from];",
        "st.shared.b32 [at], tid; ld.shared.b32 d, [at];",  # the same warp
        "mov.b32 at, 0; st.shared.b32 [at], 7; bar.sync 0; ld.shared.b32 d, [at];",  # all store one value
        "cp.async.ca.shared.global [at], [x0], 4; cp.async.commit_group; cp.async.wait_group 0; bar.sync 0;"
        "ld.shared.b32 d, [from];",
        "cp.async.ca.shared.global [at], [x0], 4; cp.async.wait_all; ld.shared.b32 d, [at];",
        "mov.b32 at, 0; atom.shared.relaxed.cta.add.u32 d, [at], 1;"
        "atom.shared.relaxed.cta.add.u32 d, [at], 1;",
        "st.shared.b32 [at], tid; atom.shared.relaxed.cta.add.u32 d, [at], 1;",
    ],
)
def test_ordered_accesses_are_no_races(code):
    run(
        "shl.b32 at, tid, 2; xor.b32 from, at, 128;" + code,
        {"d": np.int32},
        threads=64,
        shared_bytes=256,
        declare=AT,
        extra=(np.zeros(64, np.int32),),
    )


def test_global_race_between_warps():
    x, scratch, out = torch.randn(256), torch.zeros(256), torch.zeros(256)
    with pytest.raises(GlobalRace, match=r"load after another warp's store .* scratch"):
        execute(kernels.global_race_kernel, (1,), x, scratch, out, BLOCK=256, BARRIER=False)
    execute(kernels.global_race_kernel, (1,), x, scratch, out, BLOCK=256, BARRIER=True)
    assert torch.equal(out, x.flip(0))
    report = execute(
        kernels.global_race_kernel, (1,), x, scratch, out, BLOCK=256, BARRIER=False, races="record"
    )
    assert report.races


def test_conflict_between_ctas_is_reported():
    x, out = torch.randn(512), torch.zeros(128)
    report = execute(kernels.colliding_store_kernel, (4,), x, out, BLOCK=128)
    assert any("two CTAs store different values" in text for text in report.conflicts)
    report = execute(kernels.colliding_store_kernel, (1,), x, out, BLOCK=128)
    assert not report.conflicts


def test_lanes_of_one_warp_that_disagree_are_noted():
    """tl.sum(x * x) with fp contraction: each lane of a butterfly rounds another product, and all store."""
    x = torch.randn(256, 200, generator=torch.Generator().manual_seed(0))
    norms, sums, cu = torch.zeros(256), torch.zeros(1, 200), torch.tensor([0, 256])
    options = dict(BLOCK_ROWS=16, BLOCK_D=32)  # triton 3.7 contracts no whole butterfly of 64 columns
    arguments = (kernels.segment_statistics_kernel, (1,), x, cu, norms, sums, 200, 200)
    report = execute(*arguments, **options, enable_fp_fusion=True)
    assert any("lanes of one warp store different values" in text for text in report.conflicts)
    assert (norms - x.norm(dim=1)).abs().max() < 1e-5
    assert not execute(*arguments, **options, enable_fp_fusion=False).conflicts


def test_divergence():
    with pytest.raises(Divergence, match="part of a warp"):
        run(
            "mov.b32 d, 0; setp.lt.s32 p, tid, 5; @p bra SKIP; shfl.sync.bfly.b32 d, tid, 1, 31, -1;"
            "bra.uni DONE; SKIP: mov.b32 d, 1; bar.warp.sync -1; DONE:",
            {"d": np.int32},
            threads=32,
        )
    with pytest.raises(Divergence, match="wait at different barriers"):
        run(
            "mov.b32 d, 0; setp.lt.s32 p, tid, 32; @p bra A; bar.sync 0; bra.uni B; A: bar.sync 0; B:",
            {"d": np.int32},
            threads=64,
        )


def test_reconvergence():
    """Lanes that took different ways meet before the shuffle."""
    result = run(
        "and.b32 n, tid, 1; setp.eq.s32 p, n, 0; @p bra EVEN; mov.b32 d, 100; bra.uni MEET; EVEN: mov.b32 d,"
        " 200; MEET: shfl.sync.bfly.b32 d, d, 1, 31, -1;",
        {"d": np.int32},
        threads=64,
        declare=AT,
    )
    assert np.array_equal(result, np.where(np.arange(64) % 2 == 0, 100, 200))


def test_endless_loop():
    ptx = HEADER + ".visible .entry test()\n.reqntid 32\n{\nLOOP: bra.uni LOOP;\n}\n"
    with pytest.raises(StepLimit):
        execute_ptx(ptx, 1, [], max_steps=1000)


def test_unset_register():
    with pytest.raises(UninitialisedRegister, match="n was never written"):
        run("add.s32 d, tid, n;", {"d": np.int32}, threads=32, declare=AT)


def test_a_packed_register_may_be_set_in_part():
    """The compiler pairs a number with nothing to use a two-lane instruction, and drops that half."""
    packed = run(
        "mov.b64 pair, {tid, n}; mov.b64 {d, _}, pair; mov.b64 {_, e}, pair;",
        {"d": np.int32, "e": np.int32},
        threads=32,
        declare=f"{AT} .reg .b64 pair;",
    )
    assert np.array_equal(packed["d"], np.arange(32))
    assert (packed["e"] != 0).all()


@pytest.mark.parametrize(
    "code",
    [
        "frobnicate.b32 d, tid;",
        "add.s32 d, tid;",
        "add.s32 d, tid, tid, tid;",
        "add.cc.s32 d, tid, tid;",
        "add.rz.f32 d, tid, tid;",
        "max.s32 d, tid, tid, tid;",
        "mul.s32 d, tid, tid;",
        "and.f32 d, tid, tid;",
        "cvt.f32.s64 d, x0;",
        "cvt.rn.satfinite.e4m3x2.f32 d, tid, tid;",
        "ld.local.b32 d, [x0];",
        "ld.b32 d, [x0];",
        "shfl.sync.bfly.b32 d, tid, 1, 31, 15;",
        "mov.u32 d, %smid;",
        "bra NOWHERE;",
        "prmt.b32.f4e d, tid, tid, tid;",
        "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {d}, {d}, {d}, {d};",
        "setp.lo.f32 p, tid, tid;",
        "tcgen05.wait.st;",
        "ld.global.v2.b32 d, [x0];",
        "bar.sync 0, 32;",
        "cp.async.bulk.commit_group;",
        "setp.lt.and.s32 p, tid, tid;",
        "mbarrier.init.shared.b64 [tid], 1;",
    ],
)
def test_anything_unknown_is_refused(code):
    with pytest.raises((UnsupportedInstruction, KeyError)) as caught:
        run(f"mov.b32 d, 0; {code}", {"d": np.int32}, threads=64, extra=(np.zeros(64, np.int32),))
    assert caught.type is UnsupportedInstruction


def test_newer_matrix_units_name_the_way_out():
    with pytest.raises(UnsupportedInstruction, match="not implemented: .*; execute on sm_80"):
        run("mov.b32 d, 0; tcgen05.wait.st;", {"d": np.int32}, threads=32)


def test_trap():
    with pytest.raises(ExecutionFault, match="trap"):
        run("mov.b32 d, 0; setp.eq.s32 p, tid, 3; @p trap;", {"d": np.int32}, threads=32)


def test_seed_changes_the_order_but_not_the_result():
    x = torch.randint(-50, 50, (100, 70)).float()
    for seed in (0, 1, 2):
        out = torch.zeros(70)
        execute(kernels.column_sum_kernel, (4, 3), x, out, 100, 70, BM=32, BN=32, seed=seed)
        assert torch.equal(out, x.sum(0))


# --- deleting synchronisation ---------------------------------------------------------------------


def launches():
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    a, b = random(128, 128).half(), random(128, 128).half()
    product = a.double() @ b.double()
    x = random(64, 64)
    q, k, v = (random(1, 100, 64).half() for _ in "qkv")
    scores = (q.double() @ k.double().transpose(1, 2) / 8).masked_fill(
        ~torch.ones(100, 100, dtype=torch.bool).tril(), -torch.inf
    )
    points = torch.nn.functional.normalize(random(300, 24), dim=1)
    wide = random(4, 1000)
    labels = torch.randint(0, 32, (512,), generator=generator, dtype=torch.int32)
    order = torch.randperm(512, generator=generator).int()
    return {
        "softmax": (
            kernels.softmax_kernel,
            (4,),
            [wide, torch.zeros(4, 1000), 1000, 1000],
            dict(BLOCK=1024),
            1,
            wide.double().softmax(1),
        ),
        "column sum": (
            kernels.column_sum_kernel,
            (2, 2),
            [x, torch.zeros(64), 64, 64],
            dict(BM=32, BN=32),
            1,
            x.double().sum(0),
        ),
        "transpose": (
            kernels.transpose_softmax_kernel,
            (2, 2),
            [x, torch.zeros(64, 64), 64, 64],
            dict(BM=32, BN=32),
            1,
            x.double().reshape(64, 2, 32).softmax(2).reshape(64, 64).T,
        ),
        "dot": (
            kernels.dot_kernel,
            (2, 2),
            [a, b, torch.zeros(128, 128), 128, 128, 128],
            dict(BM=64, BN=64, BK=32, num_stages=1),
            2,
            product,
        ),
        "dot, 3 stages": (
            kernels.dot_kernel,
            (4, 4),
            [a, b, torch.zeros(128, 128), 128, 128, 128],
            dict(BM=32, BN=32, BK=32, num_stages=3),
            2,
            product,
        ),
        "attention": (
            kernels.attention_kernel,
            (2, 1),
            [q, k, v, torch.zeros(1, 100, 64), 100, 0.125],
            dict(D=64, BM=64, BN=32),
            3,
            scores.softmax(-1) @ v.double(),
        ),
        "dot, sm_90": (
            kernels.dot_kernel,
            (2, 2),
            [a, b, torch.zeros(128, 128), 128, 128, 128],
            dict(BM=64, BN=64, BK=32, num_stages=3, target="sm_90"),
            2,
            product,
        ),
        "row minimum": (
            kernels.row_minimum_kernel,
            (3,),
            [points[:70], points[100:170], torch.full((70,), 5.0), 70, 70, 24],
            dict(BM=32, BN=32, BK=32, PRECISION="ieee"),
            2,
            (1 - points[:70].double() @ points[100:170].double().T).amin(1),
        ),
        "gather": (
            kernels.histogram_gather_kernel,
            (1,),
            [labels, torch.zeros(32, dtype=torch.int32), order, torch.zeros(512, dtype=torch.int32)],
            dict(BLOCK=512, BINS=32),
            3,
            labels[order.long()].double(),
        ),
    }


SYNCHRONISATION = re.compile(r"^[ \t]*(bar\.sync|cp\.async\.wait_group|wgmma\.wait_group)[^;]*;", re.M)
# What is not caught, at most; each of these was looked at: see the README.
MISSES_ALLOWED = {"column sum": 2, "dot, 3 stages": 4, "attention": 1}
if triton.__version__.startswith("3.7."):
    MISSES_ALLOWED["dot, sm_90"] = 1  # a barrier between the copies into two stages, which nothing needs


def mutate(name):
    """Delete each barrier and each wait in turn; returns rows (what, verdict)."""
    kernel, grid, args, options, output, expected = launches()[name]
    code = compile_for(kernel, *args, **options)
    fresh = [a.clone() if torch.is_tensor(a) else a for a in args]
    run_compiled(code, grid, *fresh)
    assert (fresh[output].double() - expected).abs().max() < 2e-3
    rows = []
    for match in SYNCHRONISATION.finditer(code.ptx):
        mutant = {**code.asm, "ptx": code.ptx[: match.start()] + code.ptx[match.end() :]}
        fresh = [a.clone() if torch.is_tensor(a) else a for a in args]
        try:
            run_compiled(type(code)(**{**code.__dict__, "asm": mutant}), grid, *fresh)
        except ExecutionFault as fault:
            verdict = type(fault).__name__
        else:
            error = (fresh[output].double() - expected).abs().max().item()
            verdict = "wrong result" if not error < 2e-3 else "not caught, result right"
        rows.append((match.group(0).strip(), verdict))
    return rows


@pytest.mark.parametrize("name", list(launches()))
def test_deleted_synchronisation_is_caught(name, capsys):
    rows = mutate(name)
    missed = [what for what, verdict in rows if verdict.startswith("not caught")]
    faults = sum("Race" in verdict for _, verdict in rows)
    with capsys.disabled():
        print(
            f"\n  {name}: {len(rows)} deletions, {faults} reported as races, "
            f"{len(rows) - faults - len(missed)} wrong "
            f"results, {len(missed)} not caught {missed or ''}"
        )
    assert rows
    assert len(missed) <= MISSES_ALLOWED.get(name, 0)
