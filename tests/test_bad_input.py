"""Bad input: a wrong argument gives the documented error, and nothing that comes in is ever written to."""

from __future__ import annotations

import contextlib
import functools
import pickle
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import trimtok_fast as tt
from trimtok_fast.errors import BackendUnavailableError as Unavailable
from trimtok_fast.errors import InvalidInputError as Invalid
from trimtok_fast.errors import TrimTokError
from trimtok_fast.errors import UnsupportedDtypeError as Unsupported

BUILT_IN = {Invalid: ValueError, Unsupported: TypeError, Unavailable: RuntimeError}
NAN, INF = float("nan"), float("inf")


def guarded(values: Tensor) -> Tensor:
    """The values as every second column (or entry) of a larger buffer; what lies around them is guard."""
    *rows, count = values.shape
    buffer = torch.full([*(n + 2 for n in rows), 2 * count + 4], 77, dtype=values.dtype)
    view = buffer[tuple([slice(1, -1)] * len(rows) + [slice(2, -2, 2)])]
    return view.copy_(values)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def ints(*values: int) -> Tensor:
    return guarded(torch.tensor(values))


# Good input: samples of two images and one, 12 tokens of width 5, two text tokens and one.
TOKENS, TEXT = guarded(normal(12, 5)), guarded(normal(3, 5))
IMAGES = {"cu_tokens": ints(0, 4, 7, 12), "cu_images": ints(0, 2, 3)}
SAMPLES = {"tokens": TOKENS, **IMAGES, "text": TEXT, "cu_text": ints(0, 2, 3)}
STATISTICS = tt.token_statistics(**SAMPLES)
PLAN = tt.plan_budgets(STATISTICS, **IMAGES)
RESULT = tt.prune(**SAMPLES)
# Two segments that run over rows 11 … 0, with one seed and two; and two segments of all rows.
SELECTION = {
    "tokens": TOKENS,
    "cu_segments": ints(0, 5, 12),
    "budgets": ints(3, 4),
    "seeds": ints(11, 2, 0),
    "cu_seeds": ints(0, 1, 3),
    "origin": guarded(normal(2, 5)),
    "inverse_norm": guarded(normal(12).abs()),
    "rows": guarded(torch.arange(11, -1, -1)),
    "total": 9,
}
PLAIN = dict(tokens=TOKENS, cu_segments=[0, 5, 12], budgets=[3, 4], seeds=[4, 5], cu_seeds=[0, 1, 2])
FRONT = {"diversity": guarded(normal(12)), "alignment": guarded(normal(12)), "cu_segments": [0, 5, 12]}

OPS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "token_statistics": (tt.token_statistics, SAMPLES),
    "kept_counts": (tt.kept_counts, IMAGES),
    "plan_budgets": (tt.plan_budgets, {"statistics": STATISTICS, **IMAGES}),
    "greedy_select": (tt.greedy_select, SELECTION),
    "greedy_select(plain)": (tt.greedy_select, PLAIN),
    "pareto_front": (tt.pareto_front, FRONT),
    "gather_tokens": (tt.gather_tokens, {"tokens": TOKENS, "indices": ints(7, 0, 7)}),
    "prune": (tt.prune, SAMPLES),
    "result.gather": (RESULT.gather, {"tokens": TOKENS}),
    "PruneConfig": (tt.PruneConfig, {}),
    "PruneConfig(keep_tokens)": (functools.partial(tt.PruneConfig, keep_tokens=5), {}),
    "from_dict": (lambda **values: tt.PruneConfig.from_dict(values), {}),
    "from_dict(mapping)": (tt.PruneConfig.from_dict, {}),
}


def fingerprint(value: Any) -> Any:
    """All bits of an argument, with the guards around a view."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_nested or value.is_meta:
            return None
        whole = value if value._base is None else value._base
        return whole.detach().clone().flatten().view(torch.uint8).tolist(), value.requires_grad
    if isinstance(value, list | np.ndarray):
        return pickle.dumps(value)
    if isinstance(value, tt.BudgetPlan | tt.TokenStatistics):
        return [fingerprint(getattr(value, field.name)) for field in fields(value)]
    return None


def call(op: str, **changes: Any) -> Any:
    """Run an op on good input but for the changes; whatever happens, its input is as it was."""
    function, arguments = OPS[op]
    arguments = {**arguments, **changes}
    before = {name: fingerprint(value) for name, value in arguments.items()}
    try:
        return function(**arguments)
    finally:
        changed = [name for name, value in arguments.items() if fingerprint(value) != before[name]]
        assert not changed, f"{op} wrote to {changed}"


CASES: list[Any] = []


def bad(
    ops: str, argument: str, kind: type[TrimTokError], *rows: Any, named: str = "", label: str = ""
) -> None:
    """A case for each op and row (a value, what the error says it got); the error names `named`."""
    for op in ops.split():
        for value, got in rows:
            name = f"{op}-{argument}-{label or repr(value)[:20]}"
            CASES.append(pytest.param(op, {argument: value}, kind, named or argument, got, id=name))


def arguments(*names: str) -> list[tuple[str, str, Any]]:
    """Op, argument and good value of every argument that has one of the names."""
    return [(op, name, good[name]) for op, (_, good) in OPS.items() for name in names if name in good]


for op, argument, good in arguments(
    "cu_tokens", "cu_images", "cu_text", "cu_segments", "cu_seeds", "budgets"
):
    numbers = torch.as_tensor(good)
    listed, end = numbers.tolist(), int(numbers[-1])
    for label, kind, value, got in (
        ("float", Unsupported, [*listed[:-1], float(end)], f"{float(end)} (float)"),
        ("nan", Unsupported, [*listed[:-1], NAN], "nan (float)"),
        ("bool", Unsupported, [False, True, True], "False (bool)"),
        ("nested", Unsupported, [listed], "(list) at position 0"),
        ("string", Unsupported, "0 4 12", "str"),
        ("number", Unsupported, end, "int"),
        ("generator", Unsupported, iter(listed), "list_iterator"),
        ("set", Unsupported, set(listed), "set"),
        ("dict", Unsupported, dict.fromkeys(listed), "dict"),
        ("numpy-0d", Unsupported, np.array(end), "ndarray"),
        ("numpy-float", Unsupported, np.array(listed) / 1, "float64"),
        ("float-tensor", Unsupported, numbers / 1, "float32"),
        ("bool-tensor", Unsupported, numbers > 0, "bool"),
        ("int16-tensor", Unsupported, numbers.short(), "int16"),
        ("2d-tensor", Invalid, numbers[None], f"[1, {len(listed)}]"),
        ("0d-tensor", Invalid, numbers[-1], "[]"),
        ("meta-tensor", Invalid, numbers.to("meta"), "meta"),
        ("sparse-tensor", Invalid, numbers.to_sparse(), "sparse"),
        ("past-int64", Invalid, [0, 2**63], "position 1"),
        ("empty", Invalid, [], "0"),
    ):
        bad(op, argument, kind, (value, got), label=label)
    if argument != "budgets":
        bad(op, argument, Invalid, ([0], "1 of them"), ([1, *listed[1:]], "1"), ([-1, *listed[1:]], "-1"))
        bad(op, argument, Invalid, ([0, end + 1, end], f"{end + 1} before {end} at position 1"))
        if (op, argument) != ("kept_counts", "cu_tokens"):  # which knows of no tokens to end at
            bad(op, argument, Invalid, ([*listed[:-1], end + 1], f"{end + 1}"), ([0, end - 1], f"{end - 1}"))
    if argument in ("cu_tokens", "cu_images"):
        segment = "image" if argument == "cu_tokens" else "sample"
        bad(op, argument, Invalid, ([0, 1, 1, end], f"an empty {segment} at position 1"), label="empty-one")

warnings.filterwarnings("ignore", "The PyTorch API of nested tensors")
for op, argument, good in arguments("tokens", "text", "origin", "inverse_norm", "diversity", "alignment"):
    shape = list(good.shape)
    for label, kind, value, got in (
        ("list", Unsupported, good.tolist(), "list"),
        ("numpy", Unsupported, good.numpy(), "ndarray"),
        ("number", Unsupported, 1.5, "float"),
        ("int64", Unsupported, good.long(), f"int64 {shape} on cpu"),
        ("bool", Unsupported, good > 0, f"bool {shape} on cpu"),
        ("complex", Unsupported, good.to(torch.complex64), f"complex64 {shape} on cpu"),
        ("sparse", Invalid, good.to_sparse(), f"float32 sparse_coo {shape} on cpu"),
        ("nested", Invalid, torch.nested.nested_tensor([good[:1], good[1:]]), "float32 of nested shape"),
        ("other-device", Invalid, good.to("meta"), f"float32 {shape} on meta"),
        ("0d", Invalid, good.flatten()[0], "float32 [] on cpu"),
        ("a-dimension-more", Invalid, good[..., None], f"float32 {[*shape, 1]} on cpu"),
    ):
        bad(op, argument, kind, (value, got), label=label)
    if argument in ("text", "origin"):
        bad(op, argument, Invalid, (good[:, 1:], "4"), label="other-width")
    if argument == "tokens":
        bad(op, argument, Invalid, (good[:, :0], "[12, 0]"), label="no-width")
        bad(op, argument, Unsupported, (None, "NoneType"))

for op, argument, good in arguments("rows", "seeds", "indices"):
    good = torch.as_tensor(good)
    for label, kind, value, got in (
        ("float", Unsupported, good / 1, f"float32 {list(good.shape)} on cpu"),
        ("uint8", Unsupported, good.byte(), f"uint8 {list(good.shape)} on cpu"),
        ("string", Unsupported, "1", "str"),
        ("number", Unsupported, 1, "int"),
        ("2d", Invalid, good[None], f"int64 [1, {len(good)}] on cpu"),
        ("other-device", Invalid, good.to("meta"), "one on meta"),
        ("sparse", Invalid, good.to_sparse(), "sparse_coo"),
        ("negative", Invalid, good - 12, f"to {int(good.max()) - 12}"),
        ("past-the-end", Invalid, good + 12, f"to {int(good.max()) + 12}"),
    ):
        bad(op, argument, kind, (value, got), label=label)

for argument, kind, values in (
    ("keep_ratio", Invalid, [0, -0.0, -1, 1.5, 12, NAN, INF, -INF, 10**400]),
    ("keep_tokens", Invalid, [0, -1]),
    ("min_tokens_per_image", Invalid, [-1]),
    ("center", Invalid, ["mean", "Sample", None, 0]),
    ("pool_fraction", Invalid, [-0.1, 1.1, NAN, INF]),
    ("stage_split", Invalid, [-0.1, 1.1, NAN, "adaptve", "0.5"]),
    ("text_share", Invalid, [-0.1, 1.1, NAN, INF]),
    ("image_objective", Invalid, ["coverge", "", None]),
    ("pool_objective", Invalid, ["maxmin", 3]),
    ("candidates", Invalid, [0, -1]),
    ("workspace_bytes", Invalid, [-1]),
    ("keep_ratio", Unsupported, [True, "0.2", torch.tensor(0.2), [0.2]]),
    ("keep_tokens", Unsupported, [True, 1.0, "5", torch.tensor(5)]),
    ("min_tokens_per_image", Unsupported, [False, 0.5, None]),
    ("pool_fraction", Unsupported, [True, "0.5", None]),
    ("stage_split", Unsupported, [True, None, [0.5]]),
    ("text_share", Unsupported, [True, "0.5", None]),
    ("candidates", Unsupported, [True, 1.5, None]),
    ("workspace_bytes", Unsupported, [True, 1e9, "1GB"]),
    ("check_finite", Unsupported, [1, None, "yes"]),
):
    bad("PruneConfig from_dict", argument, kind, *((value, repr(value)) for value in values))
for argument in ("keep_tokens", "min_tokens_per_image", "candidates", "workspace_bytes"):
    bad("PruneConfig", argument, Invalid, (2**63, "larger"))
bad("PruneConfig(keep_tokens)", "keep_ratio", Invalid, (0.2, "both"))
bad("from_dict", "keep_ration", Invalid, (0.1, "an unknown key"))
bad("from_dict(mapping)", "values", Unsupported, (["keep_ratio"], "list"), (None, "NoneType"))

PLANNERS, FEW = "kept_counts plan_budgets prune", tt.PruneConfig(keep_tokens=3, min_tokens_per_image=2)
bad(PLANNERS, "config", Invalid, (FEW, "3"), named="keep_tokens", label="below-the-floor")
bad(PLANNERS, "config", Unsupported, ({"keep_ratio": 0.1}, "dict"))
bad("plan_budgets", "statistics", Unsupported, (None, "NoneType"))
bad("plan_budgets", "cu_images", Invalid, (None, "shape [2]"), named="statistics.variation")
BACKENDS = "token_statistics greedy_select pareto_front gather_tokens prune"
bad(BACKENDS, "backend", Invalid, ("tirton", "'tirton'"), (None, "None"))
bad("token_statistics prune", "cu_text", Invalid, (None, "None"), ([0, 3], "2"))
bad("token_statistics prune", "text", Invalid, (None, "boundaries"), named="cu_text")
bad("token_statistics", "center", Invalid, ("mean", "'mean'"), (None, "None"))
bad("greedy_select", "objective", Invalid, ("maxmin", "'maxmin'"), (None, "None"))
bad("greedy_select", "budgets", Invalid, ([3, 8], "8"), ([-1, 4], "-1"), ([3], "1"), ([3, 4, 0], "3"))
bad("greedy_select", "budgets", Invalid, ([3, 1], "2"), named="seeds")
bad("greedy_select", "total", Invalid, (6, "6"), (-1, "-1"), (2**63, "larger"))
bad("greedy_select", "total", Unsupported, (9.0, "9.0 (float)"), (True, "True (bool)"))
bad("greedy_select", "candidates", Invalid, (0, "0"), (2**63, "larger"))
bad("greedy_select", "candidates", Unsupported, (1.5, "1.5 (float)"), (None, "NoneType"))
bad("greedy_select", "workspace_bytes", Invalid, (-1, "-1"))
bad("greedy_select", "workspace_bytes", Unsupported, (1e9, "(float)"), (None, "NoneType"))
bad("greedy_select", "seeds", Invalid, ([11, 2, 2], "row 2 twice in segment 1"), ([2, 11, 0], "row 2"))
bad("greedy_select", "seeds", Invalid, ([2**63, 2, 0], "position 0"))
bad("greedy_select(plain)", "seeds", Invalid, ([5, 4], "row 5"), ([4, 12], "4 to 12"), ([-1, 5], "-1 to 5"))
bad("greedy_select(plain)", "seeds", Unsupported, ([4.0, 5.0], "4.0 (float)"), ([True, 5], "True (bool)"))
bad("greedy_select", "seeds", Invalid, (None, "boundaries"), named="cu_seeds")
bad("greedy_select", "cu_seeds", Invalid, (None, "None"), ([0, 3], "2"))
bad("greedy_select", "rows", Invalid, (torch.arange(12) // 2, "row 0 twice in segment 0"), label="twice")
bad("greedy_select", "rows", Unsupported, ([2, 1, 0], "list"))
bad("greedy_select", "origin", Invalid, (normal(1, 5), "[1, 5]"), label="a-row")
bad("greedy_select", "inverse_norm", Invalid, (normal(11), "[11]"), label="too-few")
bad("pareto_front", "alignment", Invalid, (normal(11), "[11]"), label="too-few")
bad("pareto_front", "alignment", Invalid, (normal(12) * NAN, "NaN at position 0"), label="nan")
bad("pareto_front", "diversity", Invalid, (normal(12) * NAN, "NaN at position 0"), label="nan")
bad("result.gather", "tokens", Invalid, (TOKENS[1:], "11 rows"), label="too-few")

bad("prune", "plan", Unsupported, ({}, "dict"))
for label, kind, field, value, named, got in (
    ("list", Unsupported, "keep", [1, 1], "plan.keep", "list"),
    ("int32", Unsupported, "pool", PLAN.pool.int(), "plan.pool", "int32"),
    ("other-device", Invalid, "keep", PLAN.keep.to("meta"), "plan.keep", "on meta"),
    ("of-one-sample", Invalid, "survivors", torch.tensor([3]), "plan.survivors", "[1]"),
    ("above-an-image", Invalid, "image_budgets", torch.tensor([5, 1, 1]), "plan.image_budgets", "5"),
    ("below-the-floor", Invalid, "image_budgets", torch.tensor([0, 3, 1]), "plan.image_budgets", "0"),
    (
        "other-sum",
        Invalid,
        "survivors",
        PLAN.survivors + 1,
        "plan.image_budgets",
        str(int(PLAN.survivors[0])),
    ),
    ("keep-below-the-floor", Invalid, "keep", torch.tensor([1, 1]), "plan", "keep 1"),
    ("pool-past-survivors", Invalid, "pool", torch.tensor([12, 12]), "plan", "pool 12"),
):
    bad("prune", "plan", kind, (replace(PLAN, **{field: value}), got), named=named, label=label)


@pytest.mark.parametrize(("op", "changes", "kind", "argument", "got"), CASES)
def test_bad_input_names_argument_wanted_got_and_remedy(
    op: str, changes: dict[str, Any], kind: type[TrimTokError], argument: str, got: str
) -> None:
    with pytest.raises(TrimTokError) as raised:
        call(op, **changes)
    error = raised.value
    assert type(error) is kind and isinstance(error, BUILT_IN[kind])
    assert error.argument == argument
    assert got in error.got
    for part in (argument, error.wanted, error.got, error.remedy):
        assert part.strip() and part in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error))


@pytest.mark.parametrize("op", OPS)
def test_misspelt_keyword_is_refused_by_name(op: str) -> None:
    with pytest.raises((TypeError, ValueError), match="candidtes"):
        call(op, candidtes=1)


def test_near_misses_are_suggested() -> None:
    for given, meant in (("keep_ration", 0.1), "keep_ratio"), (("center", "smaple"), "sample"):
        with pytest.raises(Invalid, match=f"Did you mean '{meant}'"):
            tt.PruneConfig.from_dict(dict([given]))


@pytest.mark.parametrize("function", [tt.prune, tt.token_statistics, tt.greedy_select, tt.pareto_front])
def test_only_tensors_and_boundaries_are_positional(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="positional"):
        function(TOKENS, IMAGES["cu_tokens"], IMAGES["cu_images"], TEXT)


NOT_FINITE = [(dtype, v) for dtype in ("float32", "float16", "bfloat16", "float64") for v in (NAN, INF, -INF)]
HUGE = [(dtype, v) for dtype in ("float32", "bfloat16", "float64") for v in (1.01e18, -3e38)]


@pytest.mark.parametrize("center", ["sample", "none"])
@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("argument", ["tokens", "text"])
@pytest.mark.parametrize(("dtype", "value"), NOT_FINITE + HUGE)
def test_non_finite_and_huge_values_are_refused_with_their_row(
    dtype: str, value: float, argument: str, backend: str, center: str
) -> None:
    wrong = SAMPLES[argument].to(getattr(torch, dtype), copy=True)
    wrong[2, 3] = value
    with pytest.raises(Invalid) as raised:
        call("prune", **{argument: wrong}, config=tt.PruneConfig(center=center), backend=backend)
    assert raised.value.argument == argument
    assert raised.value.got.startswith("1 ") and raised.value.got.endswith("row 2")
    assert "check_finite=False" in raised.value.remedy


def test_norms_up_to_the_limit_are_taken() -> None:
    tokens = TOKENS / TOKENS.norm(dim=1, keepdim=True) * 9.9e17
    assert call("prune", tokens=tokens, text=tokens[:3]).statistics.inverse_norm.isfinite().all()


@pytest.fixture
def time_limit() -> Iterator[None]:
    old = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it does not end"))
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


@pytest.mark.usefixtures("time_limit")
@pytest.mark.parametrize("rows", [slice(3, 4), slice(None, None, 2), slice(None)], ids=["one", "half", "all"])
@pytest.mark.parametrize("value", [NAN, INF, 1e19])
@pytest.mark.parametrize("objective", ["coverage", "max_min", "max_mean"])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_unchecked_nan_ends(backend: str, objective: str, value: float, rows: slice) -> None:
    tokens = TOKENS.clone()
    tokens[rows] = value
    for center in ("sample", "none"):
        rules = {"center": center, "image_objective": objective, "pool_objective": objective}
        config = tt.PruneConfig(keep_ratio=0.5, check_finite=False, **rules)
        out = call("prune", tokens=tokens, config=config, backend=backend)
        assert len(out.indices) == sum(tt.kept_counts(**IMAGES, config=config))


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_good_calls_leave_strided_input_and_its_guards_alone(dtype: str, backend: str) -> None:
    tokens = guarded(TOKENS.to(getattr(torch, dtype)))
    for objective in ("coverage", "max_min", "max_mean"):
        for changes in ({}, {"origin": None}, {"inverse_norm": None}):
            call("greedy_select", tokens=tokens, objective=objective, backend=backend, **changes)
        call("greedy_select(plain)", tokens=tokens, objective=objective, backend=backend)
    assert call("gather_tokens", tokens=tokens, backend=backend).is_contiguous()
    for center in ("sample", "none"):
        call("token_statistics", tokens=tokens, center=center, backend=backend)
        config = tt.PruneConfig(center=center)
        for changes in ({}, {"plan": PLAN}, {"text": None, "cu_text": None}):
            out = call("prune", tokens=tokens, config=config, backend=backend, **changes)
            assert out.gather(tokens).dtype == tokens.dtype
    call("plan_budgets")
    call("pareto_front", backend=backend)


@pytest.mark.parametrize("sequence", [list, tuple, np.array, torch.tensor, torch.IntTensor])
def test_boundaries_come_as_any_sequence_of_ints(sequence: Callable[[list[int]], Any]) -> None:
    whole = {name: sequence(SAMPLES[name].tolist()) for name in ("cu_tokens", "cu_images", "cu_text")}
    assert torch.equal(call("prune", **whole).indices, call("prune").indices)
    parts = {name: sequence(SELECTION[name].tolist()) for name in ("cu_segments", "budgets", "cu_seeds")}
    assert torch.equal(call("greedy_select", **parts)[0], call("greedy_select")[0])


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_tokens_that_require_grad_work_and_gather_is_differentiable(backend: str) -> None:
    tokens = TOKENS.detach().double().clone().requires_grad_()
    out = call("prune", tokens=tokens, backend=backend)
    assert not any(t.requires_grad for t in (out.distance, out.alignment, out.statistics.inverse_norm))
    indices = torch.tensor([7, 0, 7])
    assert torch.autograd.gradcheck(lambda x: tt.gather_tokens(x, indices, backend=backend), tokens)
    (out.gather(tokens) * 2).sum().backward()
    assert torch.equal(tokens.grad, torch.zeros_like(tokens).index_fill(0, out.indices, 2))


def test_gather_is_differentiable_with_indices_from_inference_mode() -> None:
    with torch.inference_mode():
        out = call("prune")
    tokens = TOKENS.detach().clone().requires_grad_()
    out.gather(tokens).sum().backward()
    assert tokens.grad.sum() == out.indices.numel() * tokens.shape[1]


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    old = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(old)


SURROUNDINGS = {
    "inference_mode": torch.inference_mode,
    "autocast-bf16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast-fp16": lambda: torch.autocast("cpu", torch.float16),
    "default-fp64": lambda: default_dtype(torch.float64),
    "default-fp16": lambda: default_dtype(torch.float16),
    "default-meta": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_result_does_not_hang_on_the_surroundings(surroundings: str, backend: str) -> None:
    tokens, text = normal(300, 16), normal(3, 16)
    for objective in ("coverage", "max_min", "max_mean"):
        config = tt.PruneConfig(image_objective=objective, pool_objective=objective)
        run = functools.partial(
            tt.prune, tokens, [0, 100, 200, 300], text=text, config=config, backend=backend
        )
        expected = run()
        with SURROUNDINGS[surroundings]():
            out = run()
        for name in ("indices", "distance", "alignment", "front"):
            torch.testing.assert_close(getattr(out, name), getattr(expected, name), rtol=0, atol=0)
