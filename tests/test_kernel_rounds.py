"""Max-min in rounds: the kernels in the interpreter, and as compiled for a GPU, against the textbook."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import trimtok_fast as tt
from benchmarks.workloads import KINDS, make_tokens
from tests import test_greedy
from tests.kernel_harness import awkward, launched, plant, quick, quick_faults, simulated
from tests.ptxsim import GlobalRace
from trimtok_fast import ops
from trimtok_fast.backends import triton_rounds
from trimtok_fast.kernels import absorb, common, finish, nominate, opening, rounds, rounds_common

#: Room for û of all tokens, or of a round's candidates alone.
WORKSPACES = {2**29: "stored", 0: "made again"}
DEGENERATE = [name for name in vars(test_greedy.TestDegenerate) if name.startswith("test_")]


def select(tokens, segments, counts, *, rows, seeds, cu_seeds, objective, **options):
    """`select_in_rounds` as a backend's `greedy_select`."""
    device = tokens.device
    return triton_rounds.select_in_rounds(
        tokens,
        segments.tensor(device),
        torch.tensor(counts),
        bound=max(segments.lengths),
        total=sum(counts),
        seeds=seeds,
        cu_seeds=cu_seeds.tensor(device),
        rows=rows,
        **options,
    )


@pytest.fixture(autouse=True)
def rounds_as_a_backend(monkeypatch):
    """A backend of the name; and for tests that ask the torch backend alone, in its stead."""
    choose = ops.choose_backend
    backend = SimpleNamespace(greedy_select=select, ON_HOST=True)
    monkeypatch.setattr(
        ops,
        "choose_backend",
        lambda name, tokens: backend if name in ("rounds", "torch") else choose(name, tokens),
    )


check_selection = partial(test_greedy.check_selection, backend="rounds")
greedy_select = partial(tt.greedy_select, objective="max_min", backend="rounds")


@pytest.mark.parametrize("workspace_bytes", WORKSPACES, ids=WORKSPACES.values())
@pytest.mark.parametrize("dtype", quick("bf16"))
@pytest.mark.parametrize(
    ("count", "width"), [(1, 1), (2, 3), (17, 5), (127, 64), (128, 16), (129, 33), (256, 80), (257, 17)]
)
def test_rounds_make_the_textbooks_picks_at_every_shape(count, width, dtype, workspace_bytes):
    tokens = make_tokens("noise", count, width, dtype=dtype)
    for budget in {max(1, count // 5), count if count < 20 else 1}:
        check_selection(tokens, [0, count], [budget], "max_min", workspace_bytes=workspace_bytes)


@pytest.mark.parametrize("offset", [0, 100], ids=["centred", "mean 100 x the spread"])
@pytest.mark.parametrize("kind", KINDS)
def test_rounds_make_the_textbooks_picks_on_structured_tokens(kind, offset):
    tokens = make_tokens(kind, 300, 48, offset=offset)
    check_selection(tokens, [0, 300], [70], "max_min", origin=tokens.double().mean(0, keepdim=True).float())


@pytest.mark.parametrize("scale", [1e-16, 1e16])
def test_norms_that_are_not_given_are_right_at_every_scale(scale):
    tokens = make_tokens("noise", 60, 24)
    plain, scaled = (greedy_select(x, [0, 60], [20]) for x in (tokens, tokens * scale))
    assert torch.equal(plain[0], scaled[0])
    torch.testing.assert_close(plain[1], scaled[1], rtol=1e-5, atol=1e-6)


def test_ragged_segments_rows_and_seeds_together():
    test_greedy.test_ragged_segments_rows_and_seeds_together("max_min")


def test_the_order_of_rows_does_not_matter():
    test_greedy.test_the_order_of_rows_does_not_matter("max_min", "rounds")


def test_given_norms_are_used():
    test_greedy.test_given_norms_are_used("max_min")


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e19], ids=str)
def test_what_is_not_finite_counts_as_a_zero_token(bad):
    test_greedy.test_what_is_not_finite_counts_as_a_zero_token(bad, "max_min", "rounds")


@pytest.mark.parametrize("test", DEGENERATE)
def test_degenerate(test):
    getattr(test_greedy.TestDegenerate(), test)("max_min", "rounds")


@pytest.mark.parametrize("candidates", [1, 2, 37, 10_000])
def test_candidates_change_the_speed_and_nothing_else(candidates):
    tokens = make_tokens("clusters", 200, 16)
    check_selection(tokens, [0, 200], [20], "max_min", candidates=candidates)


@pytest.mark.parametrize("workspace_bytes", WORKSPACES, ids=WORKSPACES.values())
@pytest.mark.parametrize("candidates", [1, 3, 128])
def test_ties_everywhere_go_to_the_lowest_row(candidates, workspace_bytes):
    # Four channels of eight are 1 or -1: distances are multiples of 1/4, and exact.
    generator = torch.Generator().manual_seed(0)
    channels = torch.rand(60, 8, generator=generator).argsort(1)[:, :4]
    signs = torch.randint(2, (60, 4), generator=generator) * 2.0 - 1
    tokens = torch.zeros(60, 8).scatter_(1, channels, signs)
    found = greedy_select(tokens, [0, 60], [60], candidates=candidates, workspace_bytes=workspace_bytes)
    expected = tt.greedy_select(tokens, [0, 60], [60], objective="max_min", backend="reference")
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_a_full_budget_among_many_near_ties():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(-1, 2, (40, 6), generator=generator).float()
    check_selection(tokens, [0, 40], [40], "max_min", candidates=4)


def test_most_typical_of_nothing_are_zero_tokens():
    # The directions cancel: nothing is more typical than a zero token.
    tokens = torch.zeros(8, 4)
    tokens[3, 0] = tokens[6, 1] = 1
    tokens[5, 0] = tokens[7, 1] = -1
    for budget in (2, 3, 5, 8):
        for seeds in (None, [1]):
            found = greedy_select(tokens, [0, 8], [budget], seeds=seeds)
            expected = tt.greedy_select(
                tokens, [0, 8], [budget], objective="max_min", backend="reference", seeds=seeds
            )
            assert torch.equal(found[0], expected[0])
            torch.testing.assert_close(found[1], expected[1])


def test_more_seeds_than_a_round_has_columns():
    tokens = make_tokens("noise", 300, 8)
    seeds = torch.randperm(300, generator=torch.Generator().manual_seed(2))[:150].tolist()
    check_selection(tokens, [0, 300], [170], "max_min", seeds=torch.tensor(seeds))


def arguments(tokens, offsets, budgets, **options):
    """Of `select_in_rounds`."""
    boundaries = torch.tensor(offsets)
    defaults = dict(
        bound=int(boundaries.diff().max()),
        total=sum(budgets),
        seeds=torch.empty(0, dtype=torch.int64),
        cu_seeds=torch.zeros(len(offsets), dtype=torch.int64),
        origin=None,
        inverse_norm=None,
        rows=None,
        candidates=128,
        workspace_bytes=0,
    )
    return (tokens, boundaries, torch.tensor(budgets)), {**defaults, **options}


@pytest.mark.parametrize("dtype", quick("bf16"))
def test_directions_that_are_stored_change_no_bit(dtype):
    tokens = make_tokens("photo-like", 400, 72, dtype=dtype)
    tokens[[7, 250]] = 0
    tokens[30:40] = tokens[29].clone()
    tokens = awkward(tokens)["strided"]
    generator = torch.Generator().manual_seed(0)
    rows = torch.cat([torch.randperm(330, generator=generator), torch.full((20,), -1)])
    options = {
        "rows": rows,
        "seeds": torch.tensor([int(rows[3]), int(rows[90])]),
        "cu_seeds": torch.tensor([0, 2, 2, 2]),
        "origin": torch.stack(
            [tokens[part].float().mean(0) for part in (slice(99), slice(5), slice(9, 400))]
        ),
    }
    positional, named = arguments(tokens, [0, 170, 175, 330], [60, 5, 90], **options)
    found = [
        triton_rounds.select_in_rounds(*positional, **{**named, "workspace_bytes": w}) for w in WORKSPACES
    ]
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_directions_are_stored_up_to_the_workspace(dtype):
    room = 300 * 72 * dtype.itemsize
    assert rounds.stores(300, 72, dtype, room) and not rounds.stores(300, 72, dtype, room - 1)


def test_a_batch_too_large_to_store_equals_its_segments_that_are_stored():
    tokens = make_tokens("clusters", 200, 24)
    room = 120 * 24 * 4
    together = greedy_select(tokens, [0, 120, 200], [30, 20], workspace_bytes=room)
    alone = [
        greedy_select(tokens[part], [0, len(tokens[part])], [budget], workspace_bytes=room)
        for part, budget in ((slice(120), 30), (slice(120, 200), 20))
    ]
    assert torch.equal(together[0], torch.cat([alone[0][0], alone[1][0] + 120]))
    assert torch.equal(together[1], torch.cat([alone[0][1], alone[1][1]]))


@pytest.mark.parametrize("workspace_bytes", WORKSPACES, ids=WORKSPACES.values())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("width", [20, 64, 130])
def test_the_blocks_of_large_gpus(width, dtype, workspace_bytes, monkeypatch):
    monkeypatch.setattr(common, "capability", lambda: 90)
    tokens = make_tokens("clusters", 200, width, dtype=dtype)
    check_selection(tokens, [0, 200], [40], "max_min", workspace_bytes=workspace_bytes)


def test_loose_bounds_and_spare_rows_change_nothing():
    tokens = make_tokens("noise", 90, 8)
    rows = torch.cat([torch.arange(80).flip(0), torch.full((40,), -1)])
    positional, named = arguments(tokens, [0, 30, 80], [7, 9], rows=rows)
    exact = triton_rounds.select_in_rounds(*positional, **named)
    loose = triton_rounds.select_in_rounds(*positional, **{**named, "bound": 120, "total": 20})
    assert torch.equal(loose[0][:16], exact[0]) and torch.equal(loose[1][:16], exact[1])
    assert loose[0][16:].tolist() == [-1] * 4 and loose[1][16:].isnan().all()


def test_segments_that_others_do_are_left_alone_with_their_seeds_too():
    tokens = make_tokens("noise", 90, 8)
    seeds = {"seeds": torch.tensor([3, 1, 40]), "cu_seeds": torch.tensor([0, 2, 3])}
    positional, named = arguments(tokens, [0, 30, 90], [7, 9], **seeds)
    picks, gain = triton_rounds.select_in_rounds(*positional, **named, above=30)
    assert picks[:7].tolist() == [-1] * 7 and gain[:7].isnan().all()
    assert torch.equal(picks[7:], triton_rounds.select_in_rounds(*positional, **named)[0][7:])


@pytest.mark.parametrize("workspace_bytes", WORKSPACES, ids=WORKSPACES.values())
@pytest.mark.parametrize("planned", [0, 2])
def test_the_finisher_does_what_the_rounds_have_left(planned, workspace_bytes, monkeypatch):
    tokens = make_tokens("photo-like", 90, 24)
    tokens[5:15] = tokens[4]
    tokens[31:36] = 0
    origin = torch.stack([tokens[:30].mean(0), tokens[40:].mean(0)])
    tokens = awkward(tokens)["strided"]
    seeds = {"seeds": [35, 7, 81], "cu_seeds": [0, 2, 3]}
    options = {"origin": origin, "workspace_bytes": workspace_bytes, **seeds}
    expected = greedy_select(tokens, [0, 80, 90], [70, 4], **options)
    monkeypatch.setattr(rounds, "planned_rounds", lambda *sizes: planned)
    found = greedy_select(tokens, [0, 80, 90], [70, 4], **options)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=1e-6)


def test_nothing_is_written_around_the_workspaces_and_all_that_is_read_was_written(monkeypatch):
    guarded = []

    def empty(device, *shape, dtype=torch.float32):
        bad = math.nan if dtype.is_floating_point else torch.iinfo(dtype).max - 5
        whole = torch.full((math.prod(shape) + 64,), bad, dtype=dtype)
        guarded.append((whole, bad))
        return whole[32:-32].view(shape)

    monkeypatch.setattr(triton_rounds, "_empty", empty)
    for width in (13, 64):
        tokens = make_tokens("clusters", 300, width)
        for workspace_bytes in WORKSPACES:
            check_selection(
                tokens, [0, 131, 140, 300], [30, 9, 20], "max_min", workspace_bytes=workspace_bytes
            )
    for whole, bad in guarded:
        expected = torch.full((32,), bad, dtype=whole.dtype)
        for guard in (whole[:32], whole[-32:]):
            torch.testing.assert_close(guard, expected, rtol=0, atol=0, equal_nan=True)


# --- the number of rounds, and the work in them ------------------------------------------------------------


def emulate(unit, budget, candidates):
    """The accepted picks of every round, by the kernels' rule, with numpy for the scans."""
    size, group, keep = len(unit), rounds_common.GROUP.value, rounds_common.KEEP.value
    groups = -(-size // group)
    value = np.where(unit.norm(dim=1) > 0, np.inf, 0.0).astype(np.float32)
    first = int((unit @ unit.double().sum(0).float()).argmax())
    picks, accepted, new = [first], [1], [first]
    while len(picks) < budget:
        distance = 1 - unit @ unit[new].T
        distance[distance < 1e-6] = 0
        value = np.minimum(value, distance.min(1).values.numpy())
        value[picks] = -1
        padded = np.full(groups * group, -1, np.float32)
        padded[:size] = value
        by_group = padded.reshape(group, groups)
        order = np.argsort(-by_group, axis=0, kind="stable")[:keep]
        # Sorted by value, then by position: the last of a group's best bounds what the group held back.
        entries = sorted(
            (-float(by_group[i, g]), int(i) * groups + g) for rank in order for g, i in enumerate(rank)
        )
        bar = min((-float(by_group[i, g]), int(i) * groups + g + 0.5) for g, i in enumerate(order[-1]))
        chosen = [entry for entry in entries[:candidates] if entry < bar]
        if len(entries) > candidates:
            bar = min(bar, entries[candidates])
        if chosen[0][0] == 0:
            break
        position = np.array(sorted(position for _, position in chosen))
        apart = 1 - unit[position] @ unit[position].T
        apart[apart < 1e-6] = 0
        left, new = value[position].copy(), []
        while len(picks) < budget:
            best = int(left.argmax())
            if left[best] < 0 or (-float(left[best]), int(position[best])) >= bar:
                break
            new.append(int(position[best]))
            picks.append(new[-1])
            left = np.where(left < 0, left, np.minimum(left, apart[best].numpy()))
            left[best] = -1
        accepted.append(len(new))
    return picks, accepted


def columns_of(accepted):
    """How many columns `absorb` multiplies for so many accepted picks."""
    done = 0
    for columns in (128, 64, 32, 16):
        if accepted - done > columns - (32 if columns == 128 else 16):
            done += columns
    return done


def test_the_emulated_rounds_are_the_kernels():
    tokens = make_tokens("photo-like", 600, 24)
    seen = []

    def watch(launch):
        launch.interpret()
        if launch.name == "nominate":
            seen.append(int(launch.options["state_ptr"][0, rounds_common.ACCEPTED.value]))

    with launched(watch):
        indices, _ = greedy_select(tokens, [0, 600], [200], candidates=32)
    picks, accepted = emulate(tokens / tokens.norm(dim=1, keepdim=True), 200, 32)
    assert indices.tolist() == picks
    # The last round's picks need not be absorbed.
    assert [count for count in seen if count] == accepted[:-1]


def test_work_on_photographs():
    """28 photographs at 448 x 448 in raw patches: 80 rounds and 1.25 x the multiply-adds at most."""
    pictures = pytest.importorskip("trimtok_fast.demo.pictures")
    patches = []
    for picture in pictures.bundled_pictures():
        pixels = np.asarray(picture.image.resize((448, 448), Image.Resampling.LANCZOS), dtype=np.float32)
        patches.append(torch.from_numpy(pixels.reshape(32, 14, 32, 14, 3)).transpose(1, 2).reshape(1024, 588))
    tokens = torch.cat(patches)
    norm = tokens.norm(dim=1, keepdim=True)
    _, accepted = emulate(tokens / norm.clamp(min=1e-18), 5734, 128)
    assert sum(accepted) == 5734
    assert len(accepted) <= 80
    assert sum(map(columns_of, accepted)) <= 1.25 * 5734
    assert len(accepted) <= rounds.planned_rounds(5734, len(tokens), 0, 128)


@pytest.mark.parametrize("accepted", range(1, 129))
def test_columns_are_rounded_up_to_16(accepted):
    assert columns_of(accepted) == (128 if accepted > 96 else -(-accepted // 16) * 16)


# --- the compiled code, on the CPU -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "workspace_bytes"),
    [
        pytest.param(torch.float32, 2**29, id="fp32-stored"),
        pytest.param(torch.bfloat16, 0, id="bf16-made again"),
        # These share their loads and products with one of those, and their rounds with the other.
        pytest.param(torch.float32, 0, id="fp32-made again", marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, 2**29, id="bf16-stored", marks=pytest.mark.slow),
    ],
)
def test_a_whole_selection_as_ptx(dtype, workspace_bytes, monkeypatch):
    tokens = make_tokens("clusters", 200, 40, dtype=dtype)
    tokens[[3, 150]] = 0
    tokens[20:30] = tokens[19].clone()
    seeds = {"seeds": torch.tensor([3, 11]), "cu_seeds": [0, 2, 2]}
    origin = tokens.float().mean(0).repeat(2, 1)
    options = {"origin": origin, "workspace_bytes": workspace_bytes, **seeds}
    monkeypatch.setattr(rounds, "planned_rounds", lambda *sizes: 3)
    with simulated():
        check_selection(tokens, [0, 140, 200], [16, 6], "max_min", **options)


def test_an_origin_of_16_bits_changes_no_bit_either(monkeypatch):
    tokens = make_tokens("clusters", 100, 40, offset=1.0)
    origin = tokens.mean(0, keepdim=True).bfloat16()
    monkeypatch.setattr(rounds, "planned_rounds", lambda *sizes: 3)
    with simulated():
        found = [
            greedy_select(tokens, [0, 100], [16], origin=origin, workspace_bytes=workspace_bytes)
            for workspace_bytes in WORKSPACES
        ]
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("workspace_bytes", WORKSPACES, ids=WORKSPACES.values())
def test_traffic_counts_what_the_compiled_code_moves_of_every_token(workspace_bytes, monkeypatch):
    # 128 seeds are met in one round, and the last pick in none: two go over the tokens, the opening and that.
    size, width = 300, 16
    tokens = make_tokens("noise", size, width, dtype=torch.bfloat16)
    norms = tt.token_statistics(tokens, [0, size], center="none", backend="reference").inverse_norm
    monkeypatch.setattr(rounds, "planned_rounds", lambda *sizes: 2)
    options = {"inverse_norm": norms.float(), "workspace_bytes": workspace_bytes}
    with simulated(profile=True) as reports:
        greedy_select(tokens, [0, size], [129], seeds=list(range(128)), **options)
    moved = {"_prepare_kernel": 0, "_absorb_kernel": 0}
    for report in reports:
        if report.kernel in moved:
            taken = report.distinct_bytes_loaded + report.distinct_bytes_stored
            moved[report.kernel] = max(moved[report.kernel], taken)
    stored = workspace_bytes > 0
    traffic = rounds.traffic((size,), (129,), width, tokens.dtype, 128, stored=stored).bytes_moved
    # Not stored, the columns of two rounds are written and read in turn; `absorb` reads one's.
    columns = 0 if stored else 128 * width * 2
    assert sum(moved.values()) - columns == pytest.approx(traffic - 4 * columns, rel=0.05)


# --- planted faults ----------------------------------------------------------------------------------------


def small(candidates=6, count=150, **options):
    tokens = make_tokens("clusters", count, 16)
    check_selection(tokens, [0, count], [25], "max_min", candidates=candidates, **options)


def left_over():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "planned_rounds", lambda *sizes: 2)
        small()


def segments():
    check_selection(make_tokens("clusters", 200, 16), [0, 140, 200], [16, 6], "max_min")


def ties():
    test_ties_everywhere_go_to_the_lowest_row(3, 0)


def strides():
    degenerate = test_greedy.TestDegenerate()
    degenerate.test_strided_and_misaligned_tokens_give_the_same_bits("max_min", "rounds")
    test_directions_that_are_stored_change_no_bit(torch.float32)


def copies():
    # Rounding alone would set most copies apart.
    tokens = make_tokens("noise", 20, 61).repeat(3, 1) * torch.linspace(1, 7, 60)[:, None]
    indices, gain = greedy_select(tokens, [0, 60], [60])
    assert indices[20:].tolist() == sorted(indices[20:].tolist())
    assert gain[20:].tolist() == [0.0] * 40


FAULTS = {
    "ties with the bar won": (ties, nominate, "position < position_of(bar)", "position < LAST"),
    "groups hold back without a bound": (
        partial(small, 128),
        nominate,
        "offs % KEEP == KEEP - 1, key - 1",
        "offs < 0, key - 1",
    ),
    "no bound on what is no candidate": (
        partial(small, 5, 500),
        nominate,
        "tl.where(key <= cut, key, NO_KEY)",
        "tl.minimum(key, NO_KEY)",
    ),
    "another pick's column": (small, nominate, "tl.store(slots_ptr + offs_c, pick, mask=mask_a)", "pass"),
    "the finisher's pick where the first token stands": (left_over, finish, "pick.to(tl.int32)", "0"),
    "û of the tokens in another segment": (
        segments,
        absorb,
        "tokens_ptr += start * stride_tokens_m",
        "tokens_ptr += 0",
    ),
    "origin of the first segment": (
        strides,
        absorb,
        "origin_ptr += segment * stride_origin_g",
        "origin_ptr += 0",
    ),
    "candidates about the first origin": (
        strides,
        nominate,
        "origin_ptr += segment * stride_origin_g",
        "origin_ptr += 0",
    ),
    "all û stored in one place": (
        small,
        opening,
        "(start + position)[:, None] * stride_unit_m",
        "(start + position * 0)[:, None] * stride_unit_m",
    ),
    "columns rounded down": (small, absorb, "(32 if halving == 0 else 16)", "1"),
    "candidates blind to each other": (small, nominate, "tl.minimum(key, key_of(distance, offs))", "key"),
    "picks compete again": (small, nominate, "NO_KEY, tl.minimum(key", "key, tl.minimum(key"),
    "stride of the channels": (strides, common, "offs_d[None, :].to(tl.int64) * stride_d", "offs_d[None, :]"),
    "copies apart": (copies, rounds_common, "distance < ZERO_DISTANCE", "distance < 0"),
}


@pytest.mark.parametrize("fault", quick_faults(FAULTS))
def test_a_planted_fault_is_caught(fault, monkeypatch, tmp_path):
    check, *change = FAULTS[fault]
    check()
    plant(monkeypatch, *change, tmp_path)
    with pytest.raises(AssertionError):
        check()


def test_a_missing_barrier_is_a_race(monkeypatch, tmp_path):
    guard = "    if number > 0:\n        tl.debug_barrier()\n"
    plant(monkeypatch, nominate, guard, guard.replace("tl.debug_barrier()", "pass"), tmp_path)
    tokens = make_tokens("clusters", 150, 40, dtype=torch.float16)
    with pytest.raises(GlobalRace), simulated():
        greedy_select(tokens, [0, 150], [30])
