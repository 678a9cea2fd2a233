"""A model sharded over two processes: every rank keeps the tokens that the first one chose."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import trimtok_fast as tt
from tests.hf_zoo import FAMILIES, GENERATE, TWO, accepted

CONFIG = tt.PruneConfig(keep_ratio=0.4)


def _prompt(model: Any, name: str) -> dict[str, torch.Tensor]:
    return accepted(model, FAMILIES[name].inputs(TWO, "left"))


def _disturb(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Other pixels: what differing bits would do to a rank, and far more."""
    noise = torch.randn(inputs["pixel_values"].shape, generator=torch.Generator().manual_seed(7))
    return {**inputs, "pixel_values": noise}


def _rank(rank: int, port: int, name: str, folder: str, disturbed: bool) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    model = FAMILIES[name].build()
    for layer in model.model.language_model.layers:
        plan = {
            "gate_proj": ColwiseParallel(),
            "up_proj": ColwiseParallel(),
            "down_proj": RowwiseParallel(),
        }
        parallelize_module(layer.mlp, mesh, plan)
    model._device_mesh = mesh  # where from_pretrained(tp_plan="auto") leaves it
    inputs = _prompt(model, name)
    if disturbed and rank:
        inputs = _disturb(inputs)
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        logits = model(**inputs).logits
        ids = model.generate(**inputs, **GENERATE)
    chosen = handle.last.results[0]
    torch.save((handle.last.kept, logits, ids, chosen.indices), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def _run(folder: Path, name: str, disturbed: bool) -> list[Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, (port, name, str(folder), disturbed), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_a_sharded_model_prunes_like_a_whole_one(tmp_path: Path) -> None:
    name = "qwen2_5_vl"
    first, second = _run(tmp_path, name, disturbed=False)
    model = FAMILIES[name].build()
    inputs = _prompt(model, name)
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        logits = model(**inputs).logits
        ids = model.generate(**inputs, **GENERATE)
    for kept, sharded, new, _ in (first, second):
        assert torch.equal(kept, handle.last.kept)
        assert torch.allclose(sharded, logits, rtol=0, atol=1e-5 * float(logits.abs().max()))
        assert torch.equal(new, ids)


def test_ranks_that_see_other_bits_keep_the_same_tokens(tmp_path: Path) -> None:
    model = FAMILIES["llava"].build()
    inputs = _prompt(model, "llava")
    alone = []
    for prompt in (inputs, _disturb(inputs)):
        with tt.patched(model, CONFIG) as handle, torch.no_grad():
            model(**prompt)
        alone.append(handle.last.kept)
    assert not torch.equal(*alone), "the disturbance is too small to show anything"
    first, second = _run(tmp_path, "llava", disturbed=True)
    assert torch.equal(first[0], alone[0])
    assert torch.equal(second[0], alone[0])
    assert torch.equal(first[3], second[3])
