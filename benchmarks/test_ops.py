"""Microbenchmarks of the ops, by pytest-benchmark; README.md says how to compare two versions.

One shape, four images of 576 tokens, on the device that there is. Rivals and targets are in the sections.
"""

from __future__ import annotations

import pytest
import torch

import trimtok_fast as tt
from benchmarks.machine import device
from benchmarks.workloads import make_tokens

IMAGES, SIZE, WIDTH = 4, 576, 1024
COUNT, BUDGET = IMAGES * SIZE, 115
CU_TOKENS = list(range(0, COUNT + 1, SIZE))


@pytest.fixture(scope="module")
def tokens():
    return make_tokens("photo-like", COUNT, WIDTH, offset=1.0).to(device())


@pytest.fixture
def measure(benchmark):
    """Times a call, on a GPU until the device is done with it."""

    def run(function, *arguments, **options):
        def call():
            result = function(*arguments, **options)
            if device() == "cuda":
                torch.cuda.synchronize()
            return result

        return benchmark(call)

    return run


@pytest.mark.parametrize("center", ["sample", "none"])
def test_token_statistics(measure, tokens, center):
    assert measure(tt.token_statistics, tokens, CU_TOKENS, center=center).diversity.shape == (IMAGES,)


@pytest.mark.parametrize("objective", ["coverage", "max_min", "max_mean"])
def test_greedy_select(measure, tokens, objective):
    picks, _ = measure(tt.greedy_select, tokens, CU_TOKENS, [BUDGET] * IMAGES, objective=objective)
    assert len(picks) == IMAGES * BUDGET


def test_dpp_select(measure, tokens):
    picks, _ = measure(tt.dpp_select, tokens, CU_TOKENS, [BUDGET] * IMAGES)
    assert len(picks) == IMAGES * BUDGET


def test_pareto_front(measure, tokens):
    assert len(measure(tt.pareto_front, tokens[:, 0], tokens[:, 1], [0, COUNT])) == COUNT


def test_gather_tokens(measure, tokens):
    indices = torch.arange(0, COUNT, 5, device=tokens.device)
    assert torch.equal(measure(tt.gather_tokens, tokens, indices), tokens[::5])


@pytest.mark.parametrize("words", [0, 32], ids=["without text", "with text"])
def test_prune(measure, tokens, words):
    text = make_tokens("noise", words, WIDTH, seed=1).to(tokens) if words else None
    assert len(measure(tt.prune, tokens, CU_TOKENS, text=text).indices) == round(0.2 * COUNT)
