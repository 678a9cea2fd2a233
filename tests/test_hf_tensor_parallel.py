"""A model sharded over two processes: every rank keeps the tokens that the first one chose."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import trimtok_fast as tt
from tests.hf_zoo import FAMILIES, GENERATE, TWO, accepted

CONFIG = tt.PruneConfig(keep_ratio=0.4)
#: All ranks see the same picture, and the second one another.
ALIKE, DISTURBED = "qwen2_5_vl", "llava"


def _prompt(model: Any, name: str) -> dict[str, torch.Tensor]:
    return accepted(model, FAMILIES[name].inputs(TWO, "left"))


def _disturb(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Other pixels: what differing bits would do to a rank, and far more."""
    noise = torch.randn(inputs["pixel_values"].shape, generator=torch.Generator().manual_seed(7))
    return {**inputs, "pixel_values": noise}


def _prune_sharded(mesh: DeviceMesh, name: str, disturbed: bool) -> tuple[torch.Tensor, ...]:
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
    if disturbed and mesh.get_rank():
        inputs = _disturb(inputs)
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        logits = model(**inputs).logits
        ids = model.generate(**inputs, **GENERATE)
    return handle.last.kept, logits, ids, handle.last.results[0].indices


def _rank(rank: int, port: int, cases: dict[str, bool], folder: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    for name, disturbed in cases.items():
        torch.save(_prune_sharded(mesh, name, disturbed), folder / f"{name}-{rank}.pt")
    dist.destroy_process_group()


def _check_alike(first: tuple[torch.Tensor, ...], second: tuple[torch.Tensor, ...]) -> None:
    """A sharded model prunes like a whole one."""
    model = FAMILIES[ALIKE].build()
    inputs = _prompt(model, ALIKE)
    with tt.patched(model, CONFIG) as handle, torch.no_grad():
        logits = model(**inputs).logits
        ids = model.generate(**inputs, **GENERATE)
    for kept, sharded, new, _ in (first, second):
        assert torch.equal(kept, handle.last.kept)
        assert torch.allclose(sharded, logits, rtol=0, atol=1e-5 * float(logits.abs().max()))
        assert torch.equal(new, ids)


def _check_disturbed(first: tuple[torch.Tensor, ...], second: tuple[torch.Tensor, ...]) -> None:
    """Ranks that see other bits keep the same tokens."""
    model = FAMILIES[DISTURBED].build()
    inputs = _prompt(model, DISTURBED)
    alone = []
    for prompt in (inputs, _disturb(inputs)):
        with tt.patched(model, CONFIG) as handle, torch.no_grad():
            model(**prompt)
        alone.append(handle.last.kept)
    assert not torch.equal(*alone), "the disturbance is too small to show anything"
    assert torch.equal(first[0], alone[0])
    assert torch.equal(second[0], alone[0])
    assert torch.equal(first[3], second[3])


def test_every_rank_keeps_what_the_first_one_chose(tmp_path: Path) -> None:
    """One pair of processes for both models: they take longer to start than to prune."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, (port, {ALIKE: False, DISTURBED: True}, tmp_path), nprocs=2)
    for name, check in ((ALIKE, _check_alike), (DISTURBED, _check_disturbed)):
        check(*(torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(2)))
