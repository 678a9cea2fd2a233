"""The ops as torch knows them: they keep torch's contract, and compile whole."""

from __future__ import annotations

import pytest
import torch

import trimtok_fast as tt
from benchmarks.workloads import make_tokens
from trimtok_fast.config import CENTERS

TOKENS, TEXT = make_tokens("noise", 40, 6), make_tokens("noise", 5, 6, seed=1)
CU_TOKENS = torch.tensor([0, 11, 30, 40])
BACKENDS = ["reference", "torch", "triton"]


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def assert_same(found, expected):
    assert found.dtype == expected.dtype
    assert torch.equal(found.nan_to_num(nan=-7), expected.nan_to_num(nan=-7))


OPS = torch.ops.trimtok_fast
BUDGETS = torch.tensor([3, 2, 4])
SELECTION = (TOKENS, CU_TOKENS, BUDGETS, "coverage", None, None, None, None, None)
# Without a NaN in what they return: opcheck takes two of them for a difference.
CALLS = {
    "token_statistics": (
        OPS.token_statistics,
        (TOKENS, CU_TOKENS, torch.tensor([0, 3]), None, None, "sample", "torch"),
    ),
    "token_statistics about 0": (
        OPS.token_statistics,
        (TOKENS.bfloat16(), CU_TOKENS, None, TEXT, None, "none", "torch"),
    ),
    "greedy_select": (OPS.greedy_select, (*SELECTION, 9, 128, 2**20, "torch")),
    "greedy_select of unknown size": (OPS.greedy_select, (*SELECTION, None, 128, 2**20, "torch")),
    "dpp_select": (OPS.dpp_select, (TOKENS, CU_TOKENS, BUDGETS, None, None, 9, 128, "torch")),
    "dpp_select of unknown size": (
        OPS.dpp_select,
        (TOKENS.half(), CU_TOKENS, BUDGETS, TOKENS[:, 0].abs(), TOKENS.norm(dim=1), None, 128, "torch"),
    ),
    "pareto_front": (OPS.pareto_front, (TOKENS[:, 0], TOKENS[:, 1], CU_TOKENS, "torch")),
    "gather_tokens": (OPS.gather_tokens, (TOKENS.clone().requires_grad_(), torch.tensor([3, 3, 0]), "torch")),
}


@pytest.mark.parametrize(("op", "arguments"), CALLS.values(), ids=CALLS)
def test_ops_keep_the_contract_of_torch(op, arguments):
    torch.library.opcheck(op, arguments)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("text", [TEXT, None], ids=["text", "no text"])
def test_token_statistics_compiles_whole(text, center, backend):
    options = {"text": text, "cu_text": None if text is None else [0, 2, 5], "center": center}

    def run(tokens):
        return tt.token_statistics(tokens, CU_TOKENS, [0, 2, 3], backend=backend, **options)

    found, expected = compiled(run)(TOKENS), run(TOKENS)
    assert isinstance(found, tt.TokenStatistics)
    for name, value in vars(expected).items():
        if value is None:
            assert getattr(found, name) is None
        else:
            assert_same(getattr(found, name), value)


@pytest.mark.parametrize("budgets", [[3, 0, 4], torch.tensor([3, 0, 4])], ids=["on the host", "a tensor"])
@pytest.mark.parametrize("total", [None, 9])
@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_greedy_select_compiles_whole(budgets, total):

    def run(tokens):
        return tt.greedy_select(tokens, CU_TOKENS, budgets, seeds=[2], cu_seeds=[0, 1, 1, 1], total=total)

    for found, expected in zip(compiled(run)(TOKENS), run(TOKENS), strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("budgets", [[3, 0, 4], torch.tensor([3, 0, 4])], ids=["on the host", "a tensor"])
@pytest.mark.parametrize("backend", BACKENDS)
@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_dpp_select_compiles_whole(backend, budgets):
    def run(tokens):
        picks, left = tt.dpp_select(tokens, CU_TOKENS, budgets, relevance=tokens[:, 0].abs(), backend=backend)
        return picks + 1, left

    for found, expected in zip(compiled(run)(TOKENS), run(TOKENS), strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pareto_front_compiles_whole(backend):
    def run(tokens):
        return tt.pareto_front(tokens[:, 0], tokens[:, 1], [0, 11, 40], backend=backend) + 1

    assert_same(compiled(run)(TOKENS), run(TOKENS))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=["int32", "int64"])
def test_gather_tokens_compiles_whole_and_has_its_gradient(dtype, backend):
    indices = torch.tensor([7, 0, 7, 39], dtype=dtype)

    def run(tokens):
        return tt.gather_tokens(tokens * 2, indices, backend=backend).square()

    grads = []
    for function in (run, compiled(run)):
        leaf = TOKENS.clone().requires_grad_()
        function(leaf).sum().backward()
        grads.append(leaf.grad)
    assert_same(*grads)
    assert_same(compiled(run)(TOKENS), run(TOKENS))


def test_the_number_of_tokens_may_change():
    @compiled
    def run(tokens, cu_tokens):
        return tt.token_statistics(tokens, cu_tokens).diversity

    for count in (40, 33, 21):
        boundaries = torch.tensor([0, 10, count])
        assert_same(
            run(TOKENS[:count], boundaries), tt.token_statistics(TOKENS[:count], boundaries).diversity
        )


def test_statistics_of_tokens_that_need_gradients():
    leaf = TOKENS.clone().requires_grad_()
    assert not compiled(lambda x: tt.token_statistics(x, CU_TOKENS).diversity)(leaf).requires_grad


def test_bad_input_raises_its_error_when_the_compiled_code_runs():
    run = compiled(lambda indices: tt.gather_tokens(TOKENS, indices))
    run(torch.tensor([39]))
    with pytest.raises(tt.errors.InvalidInputError, match="got 40"):
        run(torch.tensor([40]))


def test_there_is_no_op_in_eager_mode():
    with torch.profiler.profile() as profile:
        tt.gather_tokens(TOKENS, torch.tensor([1]))
        tt.token_statistics(TOKENS, CU_TOKENS)
    assert not [event for event in profile.events() if "trimtok_fast::" in event.name]
