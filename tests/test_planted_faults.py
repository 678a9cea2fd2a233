"""Faults planted in every component: each changes a snippet of its real code, and the suite's checks see it.

A snippet that the code no longer has fails loudly: plant that fault anew, or drop it with the code it was in.
"""

from __future__ import annotations

import functools
import inspect
import math
import textwrap
from functools import partial

import pytest
import torch

import trimtok_fast as tt
from benchmarks.workloads import make_tokens
from tests import test_budgets, test_greedy, test_prune, test_statistics
from tests.test_greedy import check_selection
from tests.test_pareto import check_fronts
from tests.test_statistics import check_statistics
from trimtok_fast import budgets, certificate, pipeline, segments
from trimtok_fast.backends import directions, greedy, lockstep, reference
from trimtok_fast.backends import torch as torch_backend
from trimtok_fast.certificate import certify
from trimtok_fast.config import OBJECTIVES


def plant(patch, function, old, new):
    """Give `function` the code of its own source with one snippet replaced, wherever it has been imported."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__qualname__} has {source.count(old)} times {old!r}"
    names = {}
    exec(source.replace(old, new), function.__globals__, names)
    patch.setattr(function, "__code__", names[function.__name__].__code__)


@functools.cache
def passes(check):
    """The check, once without any fault."""
    check()
    return True


def statistics():
    """Zero tokens, an image of them, one without a sum, a token at the mean, a zero text token, one image."""
    for dtype in (torch.float32, torch.bfloat16):
        test_statistics.test_a_constant_image_has_no_diversity(255, dtype, "torch")
    test_statistics.test_zero_tokens_are_left_out("torch")
    tokens = make_tokens("clusters", 1010, 48, offset=1.0)
    tokens[7:300:7] = 0
    tokens[300:350] = 1e-20
    tokens[1003] = 0
    tokens[850:1000] = -tokens[700:850]
    tokens[500] = torch.cat([tokens[350:500], tokens[501:1000]]).mean(0)
    text = make_tokens("noise", 9, 48, seed=1)
    text[2] = 0
    boundaries = [0, 1, 300, 350, 600, 700, 1000, 1010], [0, 3, 6, 7]
    for center in ("sample", "none"):
        check_statistics(tokens, *boundaries, text=text, cu_text=[0, 4, 9, 9], center=center)
        test_statistics.test_a_batch_equals_its_samples_alone("torch", torch.float32, center)


def selection(objective):
    """Ties, seeds, zero tokens, given norms, ragged rows; few and many candidates, small and no workspace."""
    degenerate = test_greedy.TestDegenerate()
    ways = ((greedy.ONE_ROUND, 0), (0, greedy.SMALL), (0, 0))
    for one_round, small in ways if objective == "max_min" else ways[:1]:  # the others know one way
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(greedy, "ONE_ROUND", one_round)
            patch.setattr(greedy, "SMALL", small)
            degenerate.test_equal_tokens_are_picked_from_the_lowest_row(objective, "torch")
            if objective != "max_mean":
                degenerate.test_duplicates_are_picked_last_and_from_the_lowest_row(objective, "torch")
                degenerate.test_what_equals_a_seed_is_picked_last(objective, "torch")
            degenerate.test_orthogonal_tokens_tie(objective, "torch")
            degenerate.test_seeds_come_first_in_their_order(objective, "torch")
            degenerate.test_a_batch_equals_its_segments_alone(objective, "torch")
            for number in (1, 2, 7) if objective == "max_min" else ():
                test_greedy.test_ties_among_tokens_outside_the_round_go_to_the_lowest_row(number)
                test_greedy.test_ties_with_who_left_the_running_go_to_the_lowest_row(number, patch)

    tokens = make_tokens("noise", 100, 4)  # many are more than a right angle apart
    tokens[3] = 0
    for budget in (30, 40):
        check_selection(tokens, [0, 100], [budget], objective, seeds=torch.tensor([3, 50]))
    tokens = make_tokens("noise", 60, 24)
    check_selection(tokens, [0, 60], [12], objective, tokens.mean(0, keepdim=True), candidates=1)
    tokens = make_tokens("clusters", 700, 24, offset=0.5)
    origin, rows = tokens.mean(0, keepdim=True), torch.arange(100, 700)
    norms = 1 / (tokens - origin).norm(dim=1)
    check_selection(tokens, [0, 600], [120], objective, origin, rows, inverse_norm=norms, candidates=8)
    check_selection(tokens, [0, 700], [70], objective, origin, workspace_bytes=0)

    tokens[::50] = 0
    generator = torch.Generator().manual_seed(1)
    rows = torch.randperm(700, generator=generator)[:430]
    origin = torch.randn(4, 24, generator=generator) * 0.1
    seeds = {"seeds": rows[[5, 50, 400, 102]], "cu_seeds": [0, 0, 2, 2, 4]}
    check_selection(tokens, [0, 0, 100, 101, 430], [0, 30, 1, 329], objective, origin, rows, **seeds)


def fronts():
    """Few distinct values: ties, equal pairs and many fronts."""
    values = torch.randint(0, 8, (2, 200), generator=torch.Generator().manual_seed(0)).float()
    check_fronts(values[0], values[1], [0, 60, 60, 200])


def plans():
    """Plans by hand, floors that bind, and two samples that vary in different measure."""
    test_budgets.test_by_hand()
    test_budgets.test_a_full_image_hands_its_share_on()
    test_budgets.test_when_all_with_weight_are_full_the_rest_goes_by_size()
    test_budgets.test_zero_tokens_do_not_count_in_the_weights()
    test_budgets.test_by_hand_with_text()
    test_budgets.test_what_is_set_aside_binds_even_where_the_split_leaves_less()
    test_budgets.test_stage_1_does_all_where_images_differ_or_variation_is_undefined(math.nan, 20)
    test_budgets.test_kept_counts_by_hand({"keep_ratio": 0.125}, [13, 1])
    test_budgets.plan([50, 50], [1e-4, 2.0], 1.0, min_tokens_per_image=12, stage_split=1.0)
    test_budgets.plan([50, 50], [1.0, 1.0], 1.0, keep_ratio=1.0)
    images, samples = segments.cumulative([60, 40, 80]), segments.cumulative([2, 1])
    known = test_budgets.statistics_of([0.5, 0.3, 0.2], [0.1, 1.0], [60, 40, 80])
    batch = test_budgets.test_a_batch_plans_each_sample_as_if_alone.hypothesis.inner_test
    batch((images, samples, known, tt.PruneConfig()))


def prune():
    """`test_prune`: what a result says, every stage, both kinds of samples, cuts and ties."""
    test_prune.test_the_result_means_what_it_says()
    test_prune.test_each_stage_is_greedy_by_its_certificate()
    test_prune.test_a_plan_overrides_the_budgets()
    test_prune.test_a_batch_equals_its_samples_alone(torch.float32, "coverage", "max_min")
    test_prune.test_a_batch_equals_its_samples_alone(torch.float32, "coverage", "coverage")
    test_prune.test_the_pool_starts_from_the_anchors_and_its_order_decides_without_text(2, "torch")
    test_prune.test_whole_fronts_go_first_and_the_cut_one_by_the_sum_of_both("photo-like", 3.0)
    test_prune.test_scores_of_the_cut_front_that_tie_go_to_the_lowest_row()


def certificates():
    """By hand: good picks, bad ones, seeds, and what a selection is worth."""
    # Column sums of sim⁺: 1.8, 2.4, 1.6, 1. About row 1, distances .2, 0, .4, 1.8.
    tokens = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
    good = certify(tokens, [1, 3, 2, 0, 4], objective="coverage")
    part = certify(tokens, [1, 2], objective="coverage")
    assert (good.regret, good.margin) == (pytest.approx(0, abs=1e-9), pytest.approx(0.2 / 2.4))
    assert (part.coverage, part.radius) == (pytest.approx(2.8), pytest.approx(1.0))

    def regret(objective, *picks, seeds=0):
        return round(certify(tokens, list(picks), objective=objective, seeds=seeds).regret, 6)

    assert regret("coverage", 1, 2, 3) == regret("coverage", 0, 2) == round(0.6 / 2.4, 6)
    assert regret("max_min", 1, 2, 3) == regret("max_mean", 1, 2, 3) == round(1.4 / 1.8, 6)
    assert regret("coverage", 0, 1, seeds=1) == 0.2
    assert (regret("max_min", 1, 4), regret("max_mean", 4, 1, 3, seeds=1)) == (1, 0)


SELECTIONS = COVERAGE, MAX_MIN, MAX_MEAN = [partial(selection, objective) for objective in OBJECTIVES]

# The function, the check that must fail, and its faults: what each says, a snippet, what takes its place.
FAULTS = {
    (torch_backend.token_statistics, statistics): [
        ("zero tokens counted", "(norm >= constants.ZERO_NORM) & ", ""),
        ("origin ignored in the norms", "block.sub_(origin[sample])", "block"),
        ("alignment about 0", "block.sub_(origin[sample])", "(block - origin[sample])"),
        ("origin of the last image", "total += sum(rest)", "total = sum(rest)"),
        ("sum of the last block", "torch.stack(sums).sum(0, ", "torch.stack(sums[-1:]).sum(0, "),
        (
            "variation of the batch",
            "(direction_sum[span], square[span], nonzero[span])",
            "(direction_sum, square, nonzero)",
        ),
        ("last bits from a neighbour", "total += sum(rest)", "total += sum(rest) + 1e-7 * tokens[0]"),
    ],
    (torch_backend._blocks, statistics): [
        ("last row lost", "BLOCK_ROWS, segment.stop)", "BLOCK_ROWS, max(segment.stop - 1, start + 1))")
    ],
    (torch_backend._mean_direction, statistics): [
        ("zero text tokens left out", "(segment.stop - segment.start)", "text[segment].any(1).sum()"),
        ("lengths of text tokens", " @ block", ".sign() @ block"),
    ],
    (torch_backend._usable_inverse, statistics): [
        ("zero tokens that weigh", "inverse_of(norm, norm)", "norm.reciprocal()"),
    ],
    (torch_backend._alignment, statistics): [
        ("zero tokens aligned without text", "words == 0", "words < 0"),
        ("lengths of tokens", "dot * inverse_norm", "dot"),
    ],
    (torch_backend._mean_distance, statistics): [("no diagonal term", "(square - count)", "square")],
    (torch_backend._variation, statistics): [
        ("images without a direction", "= directed.sum()", "= (length >= 0).sum()"),
        ("rounding taken for a direction", "constants.ZERO_SUM * nonzero", "0"),
        ("sums not normalised", "(inverse @ direction_sum)", "(direction_sum / nonzero[:, None]).sum(0)"),
        ("one image is enough", "count > 1", "count > 0"),
    ],
    (directions.inverse_of, statistics): [
        ("ZERO_SHARE rule dropped", " | (about <= constants.ZERO_SHARE * norm)", ""),
        ("ZERO_NORM rule dropped", "(norm < constants.ZERO_NORM) | ", ""),
    ],
    (directions.Directions.__init__, COVERAGE): [
        ("origin ignored", "origin.to(self.dtype)", "0 * origin.to(self.dtype)"),
        ("norms by position", ".index_select(0, rows)", "[: len(rows)]"),
        (
            "norms about 0",
            "torch.linalg.vector_norm(block, dim=1)\n            self",
            "norm\n            self",
        ),
    ],
    (directions.Directions.load, COVERAGE): [
        ("tokens by position", "rows = self.rows[index]", "rows = torch.arange(len(self.rows))[index]"),
        (
            "last bits from a neighbour",
            "return torch.index_select",
            "return 1e-6 * self.tokens[0] + torch.index_select",
        ),
    ],
    (directions.Similarities._fill, COVERAGE): [
        ("mirror not transposed", "= tile[width:].T", "= tile[width:].reshape(width, -1)"),
        ("wrong tile", "[part.stop :, part] = tile[width:]", "[part.stop :, part] = tile[:-width]"),
        ("square not mirrored", "square.tril(-1).T", "square.tril(-1)"),
        ("diagonal twice", "square.tril(-1).T", "square.tril().T"),
    ],
    (directions.Similarities.__getitem__, COVERAGE): [
        ("block offset", "rows[:, part] = tile", "rows[:, part] = tile.roll(min(1, part.start), 1)"),
        ("not finished", "self.finish(tile)", "pass"),
    ],
    (directions.Similarities.entries, COVERAGE): [("wrong row", "slice(row, row + 1)", "slice(0, 1)")],
    (greedy.coverage, COVERAGE): [
        ("moves not taken out of the gains", "gain -= _handed_over", "_handed_over"),
        ("only the first block of moves", "moved[start : start + BLOCK_ROWS]", "moved[:BLOCK_ROWS]"),
        ("bounds not refreshed after a flush", "PICKED, gain)", "PICKED, bound)"),
        ("best forgets", "np.maximum(best, similarities", "np.maximum(0, similarities"),
        ("picks revived by a flush", "np.where(bound == PICKED, PICKED, gain)", "gain.copy()"),
    ],
    (greedy.coverage_similarities, COVERAGE): [
        ("negative similarities", "cosine.clamp_(min=0).masked", "cosine.masked")
    ],
    (lockstep.coverage, COVERAGE): [
        ("picked again", "gain[places, pick] = NEVER", "pass"),
        ("another segment's row", "places * width + pick", "places[::-1] * width + pick"),
        ("seeds left out", "np.where(seed >= 0, seed, ", "np.where(seed < -1, seed, "),
    ],
    (lockstep._hand_over, COVERAGE): [
        ("more than the move", "np.minimum(lost,", "np.maximum(lost,"),
        ("old values left in", "lost -= old", "pass"),
        ("only the first block of moves", "range(0, len(moved), BLOCK_ROWS)", "(0,)"),
        ("another segment's gains", "gain[segment[starts]]", "gain[segment[starts][::-1]]"),
    ],
    (greedy._one_round, MAX_MIN): [
        ("zero tokens that are far", "apart[~present] = np.inf", "pass"),
        ("the first pick alone", "apart[picks].min(0)", "apart[picks[0]]"),
        ("duplicates apart", "distance.masked_fill_(distance < constants.ZERO_DISTANCE, 0)", "distance"),
    ],
    (greedy._in_the_running, MAX_MIN): [
        ("bounds for values", "higher(outside, bound)", "outside"),
        ("zero seed lowers others", "for pick in picks if present[pick]]", "for pick in picks]"),
        (
            "values rise",
            "np.fmin(value, nearest(unit, count - len(joining)), out=value)",
            "value[:] = nearest(unit, count - len(joining))",
        ),
        ("seeds picked again", "value[picks] = -1", "pass"),
        ("picked again", "value[chosen[accepted]] = -1", "pass"),
        ("bounds of the last to leave alone", "higher(bound, (", "higher(NOTHING, ("),
        ("bounds stay bounds", "np.fmin(values[others], nearest(again, met))", "values[others]"),
    ],
    (greedy._round, MAX_MIN): [("others join", "to_device(won, ", "to_device(won[::-1] * 0, ")],
    (greedy._even, MAX_MIN): [
        ("the newest alone", "-(-(count - known) // COLUMNS)", "((count - known) // COLUMNS)")
    ],
    (greedy._unmet, MAX_MIN): [
        ("zero tokens far from all", "directions.present & ~directions.copies", "~directions.copies"),
    ],
    (greedy._handed_over, COVERAGE): [
        ("more than the move", "torch.minimum(block,", "torch.maximum(block,"),
        ("old values left in", " - old.sum(dtype=np.int64)", ""),
    ],
    (greedy._lazy_argmax, COVERAGE): [
        ("a bound taken for a gain", "pick in exact or", "True or"),
        ("a move taken out twice", "gain[pick] -", "bound[pick] -"),
        ("tie to the highest row", "int(bound.argmax())", "len(bound) - 1 - int(bound[::-1].argmax())"),
    ],
    (greedy._opening, MAX_MIN): [
        ("the first rows are typical", "directions[part].sum(0)", "directions[slice(0, 99)].sum(0)"),
        ("tie to the highest row", "(typical.argmax())", "(len(typical) - 1 - typical[::-1].argmax())"),
    ],
    (greedy.max_min, MAX_MIN): [
        ("newest centres alone", "met[part].min()", "met[part].max()"),
        ("met though not applied", "met[part] = count\n", "met[:] = count\n"),
        ("values rise", "np.fmin(value[part], nearest)", "nearest"),
        ("bound of the other candidates ignored", "if beaten[1] >= 0", "if False"),
        ("centres one column off", "[:, count : count + len", "[:, count - 1 : count - 1 + len"),
        ("zero seed lowers others", "for p in picks if present[p]]", "for p in picks]"),
        ("seeds picked again", "value[picks] = -1", "pass"),
        ("picked again", "value[accepted] = -1", "pass"),
    ],
    (greedy._contest, MAX_MIN): [
        ("bound ignored", "value[best] < bound or", "False and"),
        ("candidates blind to each other", "np.fmin(value, apart[best], out=value)", "pass"),
        ("tie with the bound ignored", "contenders[best] > bound_row", "False"),
        ("tie by candidate, not by row", "contenders[best] > bound_row", "best > bound_row"),
        ("tie to the highest row", "int(value.argmax())", "len(value) - 1 - int(value[::-1].argmax())"),
    ],
    (greedy.largest, MAX_MIN): [("bound of the rest", "(float(threshold), int", "(-np.inf, int")],
    (greedy._distance, MAX_MIN): [("copies apart", "constants.ZERO_DISTANCE", "0")],
    (greedy.max_mean, MAX_MEAN): [
        ("newest pick alone", "total += ", "total = "),
        ("older picks again", "value[picks] = ", "value[picks[-1:]] = "),
        ("sum for mean", "total / count", "total"),
        ("zero tokens far from all", "total / count, 0.0)", "total / count, 2.0)"),
        ("zero seed counted", "if directions.present[pick]]", "]"),
        ("tie to the highest row", "(value.argmax())", "(len(value) - 1 - value[::-1].argmax())"),
    ],
    (torch_backend.greedy_select, MAX_MIN): [
        ("rows not sorted", "rows[own[index]].sort().values", "rows[own[index]]"),
        ("origin of the first segment", "origin[index]", "origin[0]"),
        (
            "positions for rows",
            "own[index][torch.tensor",
            "torch.arange(segments[index].start, segments.end)[torch.tensor",
        ),
    ],
    (torch_backend.pareto_front, fronts): [
        ("equal pairs in different fronts", "if point != previous", "if True"),
        ("bisect to the left", "bisect_right(", "np.searchsorted("),
        ("axes swapped in the order", "(-y, -x)", "(-x, -y)"),
        ("ranks by position", "segment.start + i", "i"),
        ("fronts keep their first", "tops[front : front + 1]", "tops[front:front]"),
    ],
    (torch_backend.gather_tokens, prune): [("rows in reverse", ", indices)", ", indices.flip(0))")],
    (budgets._kept, plans): [
        ("rounded down", "size + 0.5", "size"),
        ("floor ignored", ", 1, floor)", ", 1)"),
    ],
    (budgets.stage_weight, plans): [
        ("split inverted", "(1 - LEAST_WEIGHT) * differ", "(1 - LEAST_WEIGHT) * (1 - differ)"),
        ("undefined taken for 0", "nan=1.0", "nan=0.0"),
        ("a sum of distances for their growth", "variation * (1 - diversity)", "variation"),
        ("text ignored", "where(has_text, LEAST", "where(has_text & False, LEAST"),
    ],
    (budgets._plan_sample, plans): [
        ("survivors rounded down", "weight + 0.5", "weight"),
        ("pool of all survivors", "(survivors - kept)", "survivors"),
        ("pool without text", "torch.where(has_text, (", "torch.where(has_text | True, ("),
        ("floors of samples without text", "floors_of(sizes, kept, True", "floors_of(sizes, kept, False"),
        ("what is set aside left out", ".maximum(floors.sum())", ""),
        ("caps ignored", "budgets = _l", "lengths = size.expand_as(lengths)\n    budgets = _l"),
        ("zero tokens weigh", "nonzero * diversity,", "lengths * diversity,"),
    ],
    (budgets.anchors_of, plans): [
        ("floor ignored", "min(config.min_tokens_per_image, length)", "0"),
        ("the text's share", "(1 - config.text_share)", "0"),
    ],
    (budgets.survivors_at_most, plans): [
        ("as if images differed", "LEAST_WEIGHT if", "1.0 if"),
        ("what is set aside left out", ", sum(floors))", ")"),
        ("more than there are", "sum(floors)), size", "sum(floors)), 2 * size"),
    ],
    (budgets.pools_at_most, plans): [("pool of all survivors", "(bound - count)", "bound")],
    (budgets.text_seeds_of, plans): [("none for the text", "kept * length", "0 * length")],
    (budgets.plan_of, plans): [("variation of the batch", ".variation[sample]", ".variation.mean()")],
    (budgets._water_fill, plans): [("rest not shared", "saturated & ~positive", "saturated & positive")],
    (budgets._largest_remainder, plans): [
        ("remainder not handed out", "(rank < total - whole.sum())", "0"),
        ("tie to the higher image", ".round()", ".round() + torch.arange(len(share))"),
    ],
    (pipeline._stage_1, prune): [
        ("origin of another sample", "samples.owner(device)", "samples.owner(device).flip(0)"),
        ("rule of stage 2", "config.image_objective", "config.pool_objective"),
        (
            "last picks for anchors",
            "integers_on(device, skipped)",
            "plan.image_budgets - integers_on(device, tuple(anchors))",
        ),
        ("the text's tokens for anchors", "min(seed, length - anchor)", "0"),
    ],
    (pipeline._most_aligned, prune): [
        ("least aligned", "descending=True", "descending=False"),
        (
            "the first of each image",
            "alignment.argsort(descending=True, stable=True)",
            "torch.arange(images.end)",
        ),
    ],
    (pipeline._stage_2, prune): [
        ("origin ignored", "origin=statistics.origin", "origin=None"),
    ],
    (pipeline._finite, prune): [
        ("distance of the batch", "largest[sample], value", "largest.max(), value"),
        ("anchors at the smallest distance", '"amax"', '"amin"'),
    ],
    (pipeline._select, prune): [
        ("anchors not protected", "pad(front, (0, 1)).scatter(0, at, ranks)[:-1]", "front * 0"),
        ("anchors ranked", "behind = integers_on(device, cu_anchors.lengths)", "behind = 0 * cu_pool[1:]"),
        (
            "samples mixed",
            "sample * (total + 1)",
            "sample.clamp(min=2) * (total + 1)",
        ),
        (
            "score before front",
            "(score, sample * (total + 1) + front)",
            "(front, score, sample)",
        ),
        ("order without text by row", "(score, sample", "(score * 0, sample"),
        ("ties to the highest row", "order.argsort(", "(-order).argsort("),
        ("score normalised over the pool", "cu_ranked[owner] + ranks", "cu_ranked[owner]"),
        ("score of the alignment alone", "group).sum(0)", "group)[1]"),
        ("score of the distance alone", "group).sum(0)", "group)[0]"),
        (
            "distance not normalised",
            "[delta.double(), cosine.double()]), group).sum(0)",
            "[cosine.double()]), group)[0] + delta",
        ),
        ("fronts upside down", "rank(run, delta,", "rank(run, -delta,"),
        ("fronts mixed", "cu_ranked[owner] + ranks", "ranks"),
        ("ranked without text", "map(int, texts)", "[1] * len(texts)"),
    ],
    (pipeline._places, prune): [("stretches of the first", "[counts.owner(starts.device)]", "[0]")],
    (pipeline.prune, prune): [
        ("stage codes swapped", "len(tokens)), PARETO)", "len(tokens)), STAGE_2)"),
        (
            "kept in the order of picks",
            "= order[places].sort()",
            "= order[places], torch.arange(len(places))",
        ),
        ("cu_tokens one off", "images.tensor(tokens.device))", "images.tensor(tokens.device), right=True)"),
        ("fronts of others", "front[places]", "front[places.flip(0)]"),
        ("distances of others", "=distance[places]", "=distance[: len(places)]"),
        ("plan ignored", "if plan is None:", "if True:"),
    ],
    (pipeline.PruneResult.gather, prune): [("the rows in reverse", "self.indices)", "self.indices.flip(0))")],
    (segments.Segments.owner, prune): [("samples mixed", "[0]", "[0].flip(0)")],
    (certificate.certify, certificates): [
        ("regret always 0", "max(step[0] for step in steps)", "0.0"),
        ("regret of the last pick", "max(step[0] for step in steps)", "steps[-1][0]"),
        ("margin always 0", "min(step[1] for step in steps)", "0.0"),
        ("a pick not judged", "if step < seeds", "if step <= seeds"),
        ("another scale", "largest = max(largest, best)", "largest = 100.0"),
        ("coverage of the worst pick", "(cosine).max(1)", "(cosine).min(1)"),
        ("radius of the farthest pick", "(cosine).min(1)", "(cosine).max(1)"),
    ],
    (certificate.certify, MAX_MEAN): [
        ("seeds judged", "if step < seeds", "if False"),
        ("picks compete again", "value[places[:step]] = -torch.inf", "pass"),
    ],
    (certificate._replay_coverage, COVERAGE): [("moves stay in the gains", "= gain - ", "= gain - 0 * ")],
    (certificate._replay_max_mean, MAX_MEAN): [("newest pick alone", "total + unit[pick]", "unit[pick]")],
    (reference._coverage, COVERAGE): [("best forgets", "best.maximum(", "(")],
    (reference._max_min, MAX_MIN): [("farthest pick", ".min(dim=1)", ".max(dim=1)")],
    (reference._opening, MAX_MIN): [("least typical", "along(unit, unit", "along(unit, -unit")],
    (reference.dominates, fronts): [("both must be better", "one[1] >= other[1]", "one[1] > other[1]")],
    (reference.mean_pairwise_distance, statistics): [("pairs with oneself", "(count - 1)", "count")],
}


@pytest.mark.parametrize(
    ("function", "old", "new", "check"),
    [
        pytest.param(
            function,
            old,
            new,
            check,
            id=f"{function.__module__[13:]}.{function.__name__}: {name}",
            # Of a function that selects the first alone: all of them take too long together for `make test`.
            marks=pytest.mark.slow if number > 0 and check in SELECTIONS else (),
        )
        for (function, check), faults in FAULTS.items()
        for number, (name, old, new) in enumerate(faults)
    ],
)
def test_a_planted_fault_is_caught(function, old, new, check, monkeypatch):
    assert passes(check)
    plant(monkeypatch, function, old, new)
    with pytest.raises((AssertionError, IndexError)):
        check()


def test_a_fault_that_does_not_fit_the_code_is_an_error(monkeypatch):
    with pytest.raises(AssertionError, match="has 0 times"):
        plant(monkeypatch, reference.dominates, "one[2]", "one[3]")
