"""Which backend runs: what is named or an error, and for `auto` the kernels wherever they can."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

import trimtok_fast as tt
from trimtok_fast import ops
from trimtok_fast.backends import reference
from trimtok_fast.backends import torch as torch_backend
from trimtok_fast.backends import triton as triton_backend

TOKENS = torch.eye(6)


def on_a_gpu(dtype=torch.bfloat16, width=8):
    """All that the choice looks at."""
    return SimpleNamespace(
        is_cuda=True, ndim=2, dtype=dtype, shape=(5, width), device=torch.device("cuda", 0)
    )


def without_triton(patch):
    found = importlib.util.find_spec
    patch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else found(name))


@pytest.mark.parametrize(
    ("name", "tokens", "backend"),
    [
        ("reference", TOKENS, reference),
        ("torch", TOKENS, torch_backend),
        ("torch", on_a_gpu(), torch_backend),
        ("triton", TOKENS, triton_backend),
        ("triton", TOKENS[0].double(), triton_backend),
        ("auto", TOKENS, torch_backend),
        ("auto", on_a_gpu(), triton_backend),
        ("auto", on_a_gpu(width=8192), triton_backend),
    ],
)
def test_the_choice(name, tokens, backend):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ops.choose_backend(name, tokens) is backend


@pytest.mark.parametrize("tokens", [on_a_gpu(torch.float64), on_a_gpu(width=8193)], ids=["fp64", "too wide"])
def test_auto_falls_back_on_a_gpu_and_says_why_once(tokens):
    ops._warn_once.cache_clear()
    with pytest.warns(UserWarning, match="backend='auto' runs on 'torch'") as caught:
        chosen = [ops.choose_backend("auto", tokens) for _ in range(3)]
    assert chosen == [torch_backend] * 3
    assert len(caught) == 1


def test_without_triton(monkeypatch):
    without_triton(monkeypatch)
    ops._warn_once.cache_clear()
    with pytest.raises(tt.BackendUnavailableError, match="not installed"):
        tt.pareto_front(TOKENS[0], TOKENS[1], [0, 6], backend="triton")
    with pytest.warns(UserWarning, match="not installed"):
        assert ops.choose_backend("auto", on_a_gpu()) is torch_backend


@pytest.mark.parametrize(
    "call",
    [
        lambda tokens: tt.token_statistics(tokens, [0, len(tokens)], backend="triton"),
        lambda tokens: tt.greedy_select(tokens, [0, len(tokens)], [1], backend="triton"),
        lambda tokens: tt.gather_tokens(tokens, torch.tensor([0]), backend="triton"),
        lambda tokens: tt.prune(tokens, [0, len(tokens)], backend="triton"),
    ],
    ids=["token_statistics", "greedy_select", "gather_tokens", "prune"],
)
def test_what_the_kernels_do_not_take(call):
    with pytest.raises(tt.UnsupportedDtypeError, match="float64"):
        call(TOKENS.double())
    with pytest.raises(tt.BackendUnavailableError, match="8193"):
        call(torch.zeros(2, 8193))


def test_a_cpu_tensor_outside_the_interpreter():
    program = """
import torch, trimtok_fast as tt
x = torch.eye(6)
assert tt.token_statistics(x, [0, 6]).diversity.tolist() == [1.0]
for call in (
    lambda: tt.token_statistics(x, [0, 6], backend="triton"),
    lambda: tt.greedy_select(x, [0, 6], [1], backend="triton"),
    lambda: tt.pareto_front(x[0], x[1], [0, 6], backend="triton"),
    lambda: tt.gather_tokens(x, torch.tensor([0]), backend="triton"),
    lambda: tt.prune(x, [0, 6], backend="triton"),
):
    try:
        call()
    except tt.BackendUnavailableError as error:
        assert "needs a GPU" in str(error), error
    else:
        raise SystemExit("no error")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
