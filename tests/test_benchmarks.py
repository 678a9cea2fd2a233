"""The benchmarks: their maths on numbers made by hand, their checks on wrong answers, their command line."""

from __future__ import annotations

import json
import os

import pytest
import torch

from benchmarks import (
    cases,
    checks,
    contenders,
    device_time,
    floors,
    harness,
    long_context,
    machine,
    prefill,
    speed,
    sweep,
)
from benchmarks.__main__ import SECTIONS, main, render
from benchmarks.harness import OURS, Case, Contender, Effort, Row, WrongAnswerError, break_even, growth
from benchmarks.options import Options
from benchmarks.report import duration, size, table
from benchmarks.workloads import KINDS, make_tokens
from trimtok_fast.certificate import certify


@pytest.fixture(autouse=True)
def quick_to_load(monkeypatch):
    """Fresh processes do not load what takes seconds and is not used here."""
    monkeypatch.setattr(machine, "SLOW_TO_LOAD", ())


@pytest.fixture
def clock(monkeypatch):
    """`timed` takes what a run returns for its seconds."""
    monkeypatch.setattr(harness, "timed", lambda run, rest=0: (run(), "result"))


def rows_of(contenders, effort, check=lambda name, result: None):
    rows = harness.measure(Case("case", contenders, check), effort)
    return {row.contender: row for row in rows}


def series(*seconds):
    """A run that takes these seconds, one call after the other."""
    left = iter(seconds)
    return lambda: next(left)


def test_growth_is_the_exponent_of_a_power_law():
    assert growth([1000, 4000, 16000], [0.5, 8, 128]) == pytest.approx(2)
    assert growth([1, 10, 100], [3, 30, 300]) == pytest.approx(1)


def test_growth_leaves_out_who_did_not_run_and_needs_three_points():
    assert growth([1, 2, 4, 8], [1, 2, 4, None]) == pytest.approx(1)
    assert growth([1, 2, 4], [1, 2, None]) is None


def test_break_even_lies_between_the_two_sizes_around_it():
    # Half-way from 0.5 to 1.5, hence half-way in the logarithm: the geometric mean of 10 and 1,000.
    assert break_even([10, 1000], [0.5, 1.5]) == pytest.approx(100)
    assert break_even([4, 16, 64], [0.8, 1.0, 2.0]) == pytest.approx(16)


def test_break_even_counts_from_the_last_loss_and_is_never_extrapolated():
    assert break_even([1, 2, 4, 8], [1.2, 0.9, 1.1, 1.3]) == pytest.approx(2**1.5)
    assert break_even([10, 100], [1.1, 1.5]) == 10
    assert break_even([10, 100], [0.5, 0.9]) is None


def test_ratios_are_of_medians_and_the_first_run_is_a_warm_up(clock):
    rows = rows_of(
        {OURS: Contender(series(9, 1, 2, 3)), "slow": Contender(series(50, 8, 4, 9))}, Effort(3, 100)
    )
    assert (rows[OURS].seconds, rows[OURS].rounds, rows[OURS].ratio) == (2, 3, 1)
    assert (rows["slow"].seconds, rows["slow"].ratio) == (8, 4)


def test_what_libraries_load_at_a_first_call_is_no_memory_of_a_short_contender(clock, monkeypatch):
    grown = iter([90, 10, 70])

    class Peak:
        def __enter__(self):
            return self

        def __exit__(self, *failure):
            self.grown = next(grown)

    monkeypatch.setattr(harness, "Peak", Peak)
    rows = rows_of({OURS: Contender(lambda: 0.1), "long": Contender(lambda: 0.3)}, Effort(1, 9))
    assert (rows[OURS].peak_bytes, rows["long"].peak_bytes) == (10, 70)


def test_out_of_patience_sits_out_and_one_long_run_counts(clock):
    rows = rows_of({OURS: Contender(series(1, 1, 1, 1)), "slow": Contender(series(30))}, Effort(3, 20))
    assert (rows["slow"].seconds, rows["slow"].rounds, rows[OURS].rounds) == (30, 1, 3)
    rows = rows_of({OURS: Contender(series(1, 1, 1, 1)), "slow": Contender(series(4, 8, 14))}, Effort(3, 20))
    assert (rows["slow"].seconds, rows["slow"].rounds) == (11, 2)


@pytest.mark.parametrize(
    ("contender", "met", "target"),
    [
        (Contender(lambda: 6, target=3), True, ">= 3"),
        (Contender(lambda: 5, target=3), False, ">= 3"),
        (Contender(lambda: 1, target=2, limit=True), True, "ours <= 2 x"),
        (Contender(lambda: 0.9, target=2, limit=True), False, "ours <= 2 x"),
    ],
    ids=["rival met", "rival missed", "limit met", "limit missed"],
)
def test_targets_of_rivals_and_limits(clock, contender, met, target):
    row = rows_of({OURS: Contender(lambda: 2), "other": contender}, Effort(2, 100))["other"]
    assert (row.met, row.target) == (met, target)


@pytest.mark.parametrize(("rival", "met"), [(500, True), (499, False)])
def test_a_target_of_memory_besides(rival, met):
    found = Row("case", "rival", 2.0, 3, 2.0, rival)
    harness._hold_against_target(found, Contender(lambda: 1, target=1.2, memory_target=5), 100)
    assert (found.met, found.target) == (met, ">= 1.2, memory >= 5 x")


def test_a_rival_that_is_wrong_gets_no_time(clock):
    def check(name, result):
        assert name == OURS, "two picks are alike"

    row = rows_of({OURS: Contender(lambda: 1), "bad": Contender(lambda: 1)}, Effort(2, 9), check)["bad"]
    assert (row.seconds, row.ratio, row.note) == (None, None, "refused: two picks are alike")


def test_a_limit_is_not_judged(clock):
    def check(name, result):
        assert name == OURS

    rows = rows_of(
        {OURS: Contender(lambda: 1), "part": Contender(lambda: 1, limit=True)}, Effort(1, 9), check
    )
    assert rows["part"].seconds == 1


def test_a_quick_contender_repeats_and_its_first_call_of_a_turn_does_not_count(clock):
    quick, slow = [0.09, 0.05, 0.07, 0.09, 0.03, 0.15], [0.5, 0.5]
    times, used = {"quick": [], "slow": []}, {"quick": 0.0, "slow": 0.0}
    harness.interleave({"quick": series(*quick), "slow": series(*slow)}, times, used, Effort(2, 10))
    assert times == {"quick": [0.05, 0.07, 0.03, 0.15], "slow": slow}
    assert used["quick"] == pytest.approx(0.48)


def test_every_second_round_goes_backwards():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "abc"}
    harness.interleave(runs, {name: [] for name in runs}, dict.fromkeys(runs, 0.0), Effort(3, 10, turn=0))
    assert "".join(calls) == "abccbaabc"


def test_a_short_turn_holds_fewer_calls(clock):
    times, used = {"quick": []}, {"quick": 0.0}
    effort = Effort(1, 10, turn=0.02)
    harness.interleave({"quick": series(0.015, 0.008, 0.01)}, times, used, effort)
    assert times == {"quick": [0.008]} and used["quick"] == pytest.approx(0.023)


def test_a_quick_look_takes_one_round_of_short_turns_whatever_else_is_asked():
    quick, full = Options(quick=True).effort(rounds=5, patience=30), Options().effort(rounds=5, patience=30)
    assert (quick.rounds, quick.patience) == (1, 1) and quick.turn < full.turn
    assert (full.rounds, full.patience, full.turn) == (5, 30, harness.TURN)


def test_nothing_is_timed_once_ours_is_wrong(clock):
    def check(name, result):
        raise AssertionError("off by one")

    with pytest.raises(WrongAnswerError, match="case: off by one"):
        rows_of({OURS: Contender(lambda: 1)}, Effort(2, 9), check)


def test_a_rival_that_cannot_run_is_noted_but_our_failure_stops(clock):
    def fails():
        raise RuntimeError("no kernel image\nfor this device")

    row = rows_of({OURS: Contender(lambda: 1), "other": Contender(fails)}, Effort(2, 9))["other"]
    assert (row.seconds, row.note) == (None, "does not run here: no kernel image")
    with pytest.raises(RuntimeError, match="no kernel image"):
        rows_of({OURS: Contender(fails)}, Effort(2, 9))


def test_left_out_for_memory_and_for_time(clock, monkeypatch):
    monkeypatch.setattr(harness, "available_bytes", lambda: 2 * 2**30)
    contenders = {
        OURS: Contender(lambda: 1),
        "fits": Contender(lambda: 1, needs=2**30, work=10),
        "large": Contender(lambda: 1, needs=3 * 2**30),
        "slow": Contender(lambda: 1, work=1000),
    }
    rows = rows_of(contenders, Effort(1, 99, longest=9, paces={"fits": 0.5, "slow": 0.01}))
    assert rows["fits"].seconds == 1
    assert rows["large"].note == "left out: needs 3 GiB, 2 are free"
    assert rows["slow"].note == "left out: at its pace on less, over 9 s"
    assert rows["large"].seconds is rows["slow"].seconds is None


def test_floor_of_a_known_gpu(monkeypatch):
    from trimtok_fast.kernels.common import Traffic

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    gigabytes, share = harness.against_floor(Traffic(3_350_000_000), 0.002, sixteen_bits=True)
    assert (gigabytes, share) == (pytest.approx(1675), pytest.approx(0.5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Voodoo 2")
    assert harness.against_floor(Traffic(10**9), 1.0, sixteen_bits=True) == (1, None)


def test_device_time_is_taken_by_events(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("event")

        def synchronize(self):
            log.append("synchronize")

        def elapsed_time(self, end):
            return 12.0

    empty = torch.empty
    monkeypatch.setattr(harness, "device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", lambda count, dtype, device: log.append("flush") or empty(1))
    assert harness.timed(lambda: log.append("run")) == (0.012, None)
    assert log == ["flush", "event", "run", "event", "synchronize"]


def test_only_looks_past_commas_and_says_what_there_is(capsys):
    cases = ["max_min, 8,192 x 1,024", "max_min, 1024 x 1024", "prune"]
    assert Options(only="8192 x").chosen(cases, str) == cases[:1]
    assert Options(only="1,024 x 1,024").chosen(cases, str) == cases[1:2]
    assert Options().chosen(cases, str) == cases
    assert capsys.readouterr().err == ""
    assert Options(only="maxmin").chosen(cases, str) == []
    message = capsys.readouterr().err
    assert "'maxmin'" in message and all(case in message for case in cases)


def test_calls_are_timed_where_nothing_can_be_replayed():
    found = device_time.measure(Options(quick=True, rounds=1, only="max_min, 256"))
    assert [row["name"] for row in found["rows"]] == ["max_min, 256 x 1,024, 51 picks"]
    assert found["rows"][0]["call"] > 0 and found["rows"][0]["replay"] is None
    assert device_time.tables(found).startswith("No GPU")
    replayed = {"rows": [{**found["rows"][0], "replay": 0.0025}]}
    assert "2.5 ms" in device_time.tables(replayed) and "No GPU" not in device_time.tables(replayed)


@pytest.mark.parametrize("count", [64, 2048])
def test_every_case_states_its_traffic(count):
    tokens = make_tokens("noise", count, 64)
    for traffic in (
        floors.greedy(tokens, [count], [8], "max_min"),
        floors.greedy(tokens, [count // 2] * 2, [8] * 2, "coverage"),
        floors.statistics(tokens, [count]),
        floors.gather(tokens, 8),
        floors.pareto(count),
    ):
        assert traffic.bytes_moved > 0


def test_traffic_follows_the_form_that_is_chosen():
    stored, rounds = (floors.greedy(make_tokens("noise", 1, 64), [m], [8], "max_min") for m in (1024, 65536))
    assert stored.bytes_moved >= 1024**2 * 4  # the matrix
    assert rounds.bytes_moved < 65536**2 * 4  # none


@pytest.mark.parametrize("kind", KINDS)
def test_max_min_is_certified_as_by_the_matrix(kind):
    tokens = make_tokens(kind, 300, 24)
    picks = contenders.matrix_running_minimum(tokens, 40, 7)
    wrong = picks[[*range(20), 30, *range(21, 30), 20, *range(31, 40)]]
    for order in (picks, wrong):
        for seeds in (0, 1, 5):
            expected = certify(tokens, order, objective="max_min", seeds=seeds).regret
            assert checks.max_min_regret(tokens, order, seeds) == pytest.approx(expected, abs=1e-9)
    checks.assert_max_min(tokens, picks, 1e-4, seeds=1)
    with pytest.raises(AssertionError, match="falls short"):
        checks.assert_max_min(tokens, wrong, 1e-4, seeds=1)


def test_determinant_is_certified_as_by_projections():
    tokens, relevance = make_tokens("noise", 200, 48), torch.linspace(0.5, 1, 200)
    picks = contenders.dpp_loop(tokens, relevance, 30)
    checks.assert_determinant(tokens, relevance, picks, 1e-4)
    wrong = picks.flip(0)
    left = torch.nn.functional.normalize(tokens.double()) * relevance.double()[:, None]
    first, worst = left.square().sum(1).max(), 0.0
    for pick in wrong:
        worst = max(worst, float((left.square().sum(1).max() - left[pick].square().sum()) / first))
        new = left[pick] / left[pick].norm()
        left = left - (left @ new)[:, None] * new
    assert checks.determinant_regret(tokens, relevance, wrong) == pytest.approx(worst, rel=1e-6)
    with pytest.raises(AssertionError, match="falls short"):
        checks.assert_determinant(tokens, relevance, wrong, 1e-4)


def test_fronts_are_checked_by_their_definition():
    diversity, alignment = torch.randint(12, (2, 90), generator=torch.Generator().manual_seed(0)).float()
    front = contenders.pareto_by_matrix(diversity, alignment)
    checks.assert_fronts(diversity, alignment, front)
    for place in range(0, 90, 7):
        for step in (-1, 1):
            wrong = front.clone()
            wrong[place] += step
            if wrong[place] >= 0:
                with pytest.raises(AssertionError):
                    checks.assert_fronts(diversity, alignment, wrong)


#: Seconds to load, and a minute and a half to compile its C++ the first time.
SLOW_TO_START = {cases.APRICOT, cases.FPS}


@pytest.mark.parametrize(
    "slow", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "slow to start"]
)
@pytest.mark.parametrize(
    "build",
    [
        lambda: cases.max_min(make_tokens("clusters", 256, 32), 40),
        lambda: cases.coverage(make_tokens("clusters", 256, 32), 40),
        lambda: cases.divprune(make_tokens("clusters", 256, 32), 40, seeded=False),
        lambda: cases.divprune(make_tokens("clusters", 256, 32), 40, seeded=True),
        lambda: cases.trimtokenator(make_tokens("clusters", 256, 32), 40),
        lambda: cases.dpp(make_tokens("clusters", 256, 64), 40),
        lambda: cases.gather(make_tokens("clusters", 256, 32), 40),
        lambda: cases.pareto(256, "cpu"),
    ],
    ids=["max_min", "coverage", "divprune", "divprune seeded", "trimtokenator", "dpp", "gather", "pareto"],
)
def test_a_case_takes_its_contenders_results_and_no_others(build, slow):
    case = build()
    for name, contender in case.contenders.items():
        if contender.limit or (name in SLOW_TO_START) != slow:
            continue
        result = contender.run()
        case.check(name, result)
        with pytest.raises(AssertionError):
            case.check(name, result.roll(1))


def test_statistics_and_prune_are_checked():
    case = cases.statistics(make_tokens("clusters", 256, 32), 2)
    found = case.contenders[cases.PAIRWISE].run()
    case.check(cases.PAIRWISE, found)
    with pytest.raises(AssertionError):
        case.check(cases.PAIRWISE, found * 1.01)
    case = cases.prune(make_tokens("clusters", 256, 32), 4, 0.2)
    out = case.contenders[OURS].run()
    case.check(OURS, out)
    stage = out.stage.clone()
    stage[(stage == 0).nonzero()[0]] = 1
    with pytest.raises(AssertionError, match="stage 1 differs"):
        case.check(OURS, type(out)(**{**vars(out), "stage": stage}))
    stage = out.stage.clone()
    stage[(stage == 2).nonzero()[0]] = 1
    with pytest.raises(AssertionError, match="the pool differs"):
        case.check(OURS, type(out)(**{**vars(out), "stage": stage}))


def row(case, contender, seconds, ratio, **more):
    return vars(Row(case, contender, seconds, 3, ratio, 3 * 2**20, **more))


SPEED = {
    "rows": [
        row("op, 9 x 9, noise", OURS, 0.25, 1.0),
        row("op, 9 x 9, noise", "rival", 1.0, 4.0, target=">= 5", met=False),
        row("op, 9 x 9, noise", "gone", None, None, note="left out: needs 3 GiB"),
    ]
}


def test_tables_show_losses_and_who_did_not_run():
    text = speed.tables(SPEED)
    assert "| op, 9 x 9, noise | trimtok_fast | 250 ms | 3 | 1 | 3 MiB |" in text
    assert "| rival | 1 s | 3 | 4 | 3 MiB | >= 5 | **no** |" in text
    assert "| gone | left out: needs 3 GiB |" in text


def points():
    found = []
    for count in (100, 1000, 10000):
        rows = [row("op", OURS, count / 1e4, 1.0), row("op", "rival", count**2 / 1e6, count / 100)]
        if count == 10000:
            rows[1] = row("op", "rival", None, None, note="left out: at its pace on less, over 10 s")
        found.append({"point": vars(sweep.Point("max_min", count, 64, 0.1)), "rows": rows})
    return {"points": found}


def test_sweep_table_has_ratios_growth_and_drop_outs():
    text = sweep.tables(points())
    assert "| 1,000 x 64, 10% | 100 ms, 3 MiB | 1 s (10 ×), 3 MiB |" in text
    assert "| 10,000 x 64, 10% | 1 s, 3 MiB | left out: at its pace on less, over 10 s |" in text
    assert "| growth | N^1.00 | – |" in text


@pytest.mark.parametrize("quick", [True, False])
def test_the_grid_has_every_op_and_no_point_twice(quick):
    grid = sweep.grid(quick)
    assert {point.op for point in grid} == set(sweep.OPS) and len(set(grid)) == len(grid)
    assert all(point.count % point.image == 0 for point in grid if point.op in ("prune", "token_statistics"))
    if not quick:
        widths = {point.width for point in grid}
        assert min(widths) == 1024 and max(widths) == 8192 and len(widths) >= 3
        assert {point.share for point in grid} == {0.05, 0.1, 0.2}
        assert min(point.count for point in grid) == 1024 and max(point.count for point in grid) >= 100_000


def test_an_op_is_warmed_up_once_in_a_process(monkeypatch):
    measured = []
    monkeypatch.setattr(
        sweep, "measure_case", lambda case, effort: measured.append((case.name, effort.rounds))
    )
    sweep._warm_up.cache_clear()
    for count, op in ((512, "gather_tokens"), (1024, "gather_tokens"), (512, "pareto_front")):
        sweep.measure_point(sweep.Point(op, count, 32, 0.25), Effort(3, 1))
    assert measured == [
        ("gather_tokens, 256 x 64, 26 rows", 0),
        ("gather_tokens, 512 x 32, 128 rows", 3),
        ("gather_tokens, 1,024 x 32, 256 rows", 3),
        ("pareto_front, 256 points", 0),
        ("pareto_front, 512 points", 3),
    ]
    sweep._warm_up.cache_clear()


def test_who_is_left_out_is_left_out_of_the_warm_up_too(monkeypatch):
    measured = []
    monkeypatch.setattr(sweep, "measure_case", lambda case, effort: measured.append(list(case.contenders)))
    sweep._warm_up.cache_clear()
    sweep.measure_point(sweep.Point("coverage", 300, 32, 0.1), Effort(1, 1), without=(cases.APRICOT,))
    assert len(measured) == 2 and all(names[0] == OURS and cases.APRICOT not in names for names in measured)
    sweep._warm_up.cache_clear()


def prefill_results():
    timed = {
        "visual": 256,
        "tower": 1.0,
        "prefill": {"unpatched": 3.0, "1": 3.03, "0.5": 2.0, "0.2": 1.0, "0.1": 0.8, "0.05": 0.6},
        "selection": {"1": 0.0, "0.5": 0.3, "0.2": 0.2, "0.1": 0.2, "0.05": 0.2},
    }
    small = [
        {"visual": visual, "prefill": {"unpatched": 1.0, "0.2": 1 / ratio}, "selection": {"0.2": 0.1}}
        for visual, ratio in ((10, 0.5), (1000, 1.5))
    ]
    return {"parameters": 1e8, "images": [{"images": 1, **timed}], "small": small, "targets": True}


def test_prefill_table_has_the_first_token_the_selection_and_the_break_even():
    text = prefill.tables(prefill_results())
    assert "| 1 | 256 | 20% | 1 s | 1 s | 2 s | 2.00 × | 200 ms, 10.0% |" in text
    assert "prefill 3 × faster; target at least 3 ×, met: yes" in text
    assert "takes 20.0% of that prefill; target at most 15%, met: **no**" in text
    assert "the hooks add +1.0%; target at most 2%, met: yes" in text
    assert "| 20% | 0.50 | 1.50 | 100 |" in text


def long_results():
    found = []
    for images in (16, 64, 256):
        seconds = dict.fromkeys((*long_context.STAGES, "whole"), images / 100)
        entry = {"tokens": images * 390, "survivors": 9, "pool": 8, "kept": 7, "seconds": seconds}
        prompt = {"images": images, "size": 390, "text": False}
        found.append({"prompt": prompt, **entry, "peak_bytes": 2**20 * images, "input_bytes": 2**20})
    return {"prompts": found, "workspace": 2**29, "targets": True}


def test_long_context_table_has_growth_and_memory_against_their_targets():
    text = long_context.tables(long_results())
    assert "grows as M^1.00, target at most 1.1, met: yes; the whole as M^1.00" in text
    assert "memory rises by 256 MiB, target at most the input's 1 MiB and the workspace's 512 MiB" in text
    assert "| 64 x 390 | no | 24,960 | 9 | 8 | 7 |" in text


def test_stopwatch_sees_every_stage():
    import trimtok_fast as tt

    tokens = make_tokens("clusters", 256, 32)
    with long_context.stopwatch() as seconds:
        tt.prune(tokens, [0, 128, 256], text=make_tokens("noise", 4, 32))
    assert all(seconds[stage] > 0 for stage in long_context.STAGES)
    parts = sum(seconds[stage] for stage in long_context.STAGES)
    assert parts <= seconds["whole"]


@pytest.mark.parametrize(
    ("module", "results"),
    [(speed, SPEED), (sweep, points()), (prefill, prefill_results()), (long_context, long_results())],
    ids=["speed", "sweep", "prefill", "long_context"],
)
def test_plots_are_written(module, results, tmp_path):
    module.plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_numbers_as_people_read_them():
    assert [duration(x) for x in (12.345, 0.25, 0.0004)] == ["12.3 s", "250 ms", "400 µs"]
    assert [size(x) for x in (None, 3 * 2**30)] == ["–", "3,072 MiB"]
    assert table(["a"], [["1|2"]]) == "| a |\n| --- |\n| 1/2 |\n"


def fill(megabytes):
    with machine.Peak() as peak:
        torch.ones(megabytes * 2**18).sum()
    return os.getpid(), peak.grown


def test_peak_memory_in_fresh_processes():
    (first, grown), (second, less) = (machine.in_fresh_process(fill, size) for size in (200, 50))
    assert first != second != os.getpid()
    assert 190 * 2**20 < grown < 260 * 2**20 and 45 * 2**20 < less < 110 * 2**20


def fail():
    raise WrongAnswerError("far away")


def test_failures_cross_processes():
    with pytest.raises(WrongAnswerError, match="far away"):
        machine.in_fresh_process(fail)
    with pytest.raises(MemoryError, match="died with exit status 3"):
        machine.in_fresh_process(os._exit, 3)


def test_help_names_sections_and_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "--quick" in text and "examples:" in text
    assert all(f"  {name} " in text for name in SECTIONS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--section", "speed,prefil"], "got 'prefil'; did you mean prefill?"),
        (["--section", "x"], "wanted some of speed, sweep, prefill, long-context"),
        (["--rounds", "0"], "wanted a whole number above 0, got '0'"),
        (["--patience", "soon"], "wanted a number of seconds, got 'soon'"),
    ],
)
def test_a_bad_command_line_is_one_helpful_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


def test_a_section_is_written_and_the_others_stay(tmp_path, capsys):
    """One real case from the command line to the files; then everything again from the JSON."""
    entry = {"machine": {"cpu": "abacus"}, "quick": True, "seconds": 1.0, "results": long_results()}
    (tmp_path / "results.json").write_text(json.dumps({"long-context": entry}))
    threads = torch.get_num_threads()
    options = ["--quick", "--section", "sweep", "--only", "gather_tokens, 256", "--threads", "1"]
    main([*options, "--out", str(tmp_path)])
    torch.set_num_threads(threads)
    document = json.loads((tmp_path / "results.json").read_text())
    assert list(document) == ["sweep", "long-context"] and document["long-context"] == entry
    assert document["sweep"]["machine"]["threads"] == 1 and document["sweep"]["quick"]
    page = (tmp_path / "results.md").read_text()
    assert page.index("## sweep") < page.index("## long-context") and "abacus" in page
    assert "256 x 128, 5%" in page and (tmp_path / "sweep.png").exists()
    assert not (tmp_path / "long-context.png").exists()

    capsys.readouterr()
    main(["--render", "--out", str(tmp_path), "--threads", str(threads)])
    assert (tmp_path / "results.md").read_text() == page and (tmp_path / "long-context.png").exists()
    assert render("long-context", entry) in capsys.readouterr().out
