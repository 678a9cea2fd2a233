"""Time to first token of a patched Hugging Face model: by kept share and images, and its break-even."""

from __future__ import annotations

import copy
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import trimtok_fast as tt
from benchmarks import figures
from benchmarks.harness import Effort, Span, WrongAnswerError, break_even, interleave, timed, track
from benchmarks.machine import device
from benchmarks.options import Options
from benchmarks.report import bullets, digits, duration, table, verdict

#: Ids of the prompt's marks: image, video, start and end of an image.
IMAGE, VIDEO, START, END = range(4)
SHARES = (1.0, 0.5, 0.2, 0.1, 0.05)
UNPATCHED = "unpatched"


@dataclass(frozen=True)
class Shape:
    """Of a language model, and of the prompts that are fit for it.

    Attributes:
        width: channels.
        inner: channels within an MLP.
        layers: how many.
        head: channels of an attention head.
        key_heads: heads of keys and values.
        dtype: of weights and tokens.
        images: in the long prompts, one of them after the other.
        side: an image of a long prompt has so many tokens, squared.
        sides: the same of single images, until pruning no longer pays.
    """

    width: int
    inner: int
    layers: int
    head: int
    key_heads: int
    dtype: torch.dtype
    images: tuple[int, ...]
    side: int
    sides: tuple[int, ...]


QUICK = Shape(256, 704, 2, 64, 1, torch.float32, (1, 4, 16), 8, (2, 4, 8))
CPU = Shape(1024, 2816, 8, 64, 4, torch.float32, (1, 4, 16), 16, (2, 3, 4, 6, 8, 12, 16))
#: The language model of Qwen2.5-VL-7B, all but its vocabulary.
CUDA = Shape(3584, 18944, 28, 128, 4, torch.bfloat16, (1, 4, 16, 32), 24, (4, 8, 16, 24, 32, 48))


def build_model(shape: Shape, vocabulary: int = 4096) -> Any:
    """A Qwen2.5-VL with random weights; its vision tower is small, as only its tokens matter here."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": shape.width,
            "intermediate_size": shape.inner,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.width // shape.head,
            "num_key_value_heads": shape.key_heads,
            "vocab_size": vocabulary,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [shape.head // 8, 3 * shape.head // 16, 3 * shape.head // 16],
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 2,
            "out_hidden_size": shape.width,
            "fullatt_block_indexes": [1],
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    torch.manual_seed(0)
    with torch.device(device()):
        return Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=shape.dtype).eval()


def build_prompt(images: int, side: int, text: int = 64) -> dict[str, torch.Tensor]:
    """Images of side² tokens each, then text; every image repeats patches, as pictures do."""
    generator = torch.Generator().manual_seed(0)
    ids, values = [], []
    for _ in range(images):
        ids += [START, *[IMAGE] * side**2, END]
        motifs = torch.randn(side, 3 * 2 * 14 * 14, generator=generator)
        choice = torch.randint(side, (4 * side**2,), generator=generator)
        values.append(motifs[choice] + 0.5 * torch.randn(4 * side**2, 3 * 2 * 14 * 14, generator=generator))
    ids += torch.randint(10, 4096, (text,), generator=generator).tolist()
    input_ids = torch.tensor([ids])
    prompt = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": (input_ids == IMAGE).int(),
        "pixel_values": torch.cat(values),
        "image_grid_thw": torch.tensor([[1, 2 * side, 2 * side]] * images),
    }
    return {name: tensor.to(device()) for name, tensor in prompt.items()}


@dataclass
class Prefill:
    """One prompt, ready to be run with any kept share; the vision tower's result is the same for all.

    Attributes:
        model: unpatched.
        prompt: what the processor would give.
        visual: number of visual tokens.
        tower: seconds of the vision tower, which is timed apart.
        selections: what the selection took, run by run, by kept share.
    """

    model: Any
    prompt: dict[str, torch.Tensor]
    visual: int = 0
    tower: float = 0
    selections: dict[str, list[Span]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        tower = self.model.model.visual
        tower.__dict__.pop("forward", None)  # that of the prompt before
        values, grid = self.prompt["pixel_values"].type(tower.dtype), self.prompt["image_grid_thw"]
        self.visual = int((self.prompt["input_ids"] == IMAGE).sum())

        @torch.no_grad()
        def run() -> Any:
            return tower(values, grid_thw=grid)

        tokens = run()
        self.tower = statistics.median(timed(run)[0] for _ in range(3))
        tower.forward = lambda *args, **kwargs: copy.copy(tokens)

    @torch.no_grad()
    def logits(self, model: Any) -> torch.Tensor:
        """The first token's."""
        return model(**self.prompt, logits_to_keep=1).logits

    def patched(self, share: float) -> Callable[[], torch.Tensor]:
        """What makes the logits of a share of the tokens, selection included."""
        from trimtok_fast.hf import hooks

        # Modules of its own over the same weights: a user patches once, so no run is to pay for it.
        weights = (*self.model.parameters(), *self.model.buffers())
        model = copy.deepcopy(self.model, {id(tensor): tensor for tensor in weights})
        tt.patch(model, tt.PruneConfig(keep_ratio=share))
        choose = hooks.select

        def select(*arguments: Any) -> Any:
            with Span() as span:
                chosen = choose(*arguments)
            self.selections[f"{share:g}"].append(span)
            return chosen

        def run() -> torch.Tensor:
            with mock.patch.object(hooks, "select", select):
                return self.logits(model)

        return run

    def runs(self, shares: tuple[float, ...]) -> dict[str, Callable[[], torch.Tensor]]:
        """What there is to time."""
        whole = {UNPATCHED: lambda: self.logits(self.model)}
        return {**whole, **{f"{share:g}": self.patched(share) for share in shares}}

    def check(self, shares: tuple[float, ...]) -> None:
        """As many tokens stay as should; all of them change nothing."""
        for share in shares:
            with tt.patched(self.model, tt.PruneConfig(keep_ratio=share)) as handle:
                logits = self.logits(self.model)
            images = len(self.prompt["image_grid_thw"])
            size = self.visual // images
            wanted = tt.kept_counts(range(0, self.visual + 1, size), config=tt.PruneConfig(keep_ratio=share))
            kept = handle.last.visual_after.tolist()
            if kept != wanted or not logits.isfinite().all():
                raise WrongAnswerError(f"prefill: {kept} visual tokens, not {wanted}, or no finite logits")
            if share == 1 and not torch.equal(logits, self.logits(self.model)):
                raise WrongAnswerError("prefill: keeping all tokens changes the logits")

    def measure(self, shares: tuple[float, ...], effort: Effort) -> dict[str, Any]:
        """Median seconds by kept share, of the language model and of the selection in it."""
        self.check(shares)
        runs = self.runs(shares)
        self.selections.clear()
        times: dict[str, list[float]] = {name: [] for name in runs}
        interleave(runs, times, dict.fromkeys(runs, 0.0), effort)
        return {
            "visual": self.visual,
            "tower": self.tower,
            "prefill": {name: statistics.median(values) for name, values in times.items()},
            "selection": {
                name: statistics.median(span.seconds() for span in spans)
                for name, spans in self.selections.items()
            },
        }


def measure(options: Options) -> dict[str, Any]:
    """Prompts of more and more images; then single small images, until pruning no longer pays."""
    shape = QUICK if options.quick else CUDA if device() == "cuda" else CPU
    model = build_model(shape)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    long, small = [], []
    for images in track(shape.images, "prefill", lambda images: f"images: {images}"):
        found = Prefill(model, build_prompt(images, shape.side)).measure(
            SHARES, options.effort(rounds=5, patience=3 * options.patience)
        )
        long.append({"images": images, **found})
    for side in track(shape.sides, "break-even", lambda side: f"{side**2} visual tokens"):
        small.append(Prefill(model, build_prompt(1, side)).measure(SHARES[1:], options.effort()))
    return {"parameters": parameters, "images": long, "small": small, "targets": not options.quick}


def break_evens(results: dict[str, Any]) -> dict[str, tuple[float | None, list[float]]]:
    """By kept share: the visual tokens from which on pruning pays, and the ratios it is read from."""
    sizes = [entry["visual"] for entry in results["small"]]
    found = {}
    for share in results["small"][0]["selection"]:
        ratios = [entry["prefill"][UNPATCHED] / entry["prefill"][share] for entry in results["small"]]
        found[share] = break_even(sizes, ratios), ratios
    return found


def tables(results: dict[str, Any]) -> str:
    """Time to first token, the selection's share of it, and the break-even."""
    lines = []
    for entry in results["images"]:
        whole = entry["tower"] + entry["prefill"][UNPATCHED]
        for name, prefill in entry["prefill"].items():
            first, chosen = entry["tower"] + prefill, entry["selection"].get(name)
            lines.append(
                [
                    str(entry["images"]),
                    f"{entry['visual']:,}",
                    name if name == UNPATCHED else f"{float(name):.0%}",
                    duration(entry["tower"]),
                    duration(prefill),
                    duration(first),
                    f"{whole / first:.2f} ×",
                    "" if chosen is None else f"{duration(chosen)}, {chosen / first:.1%}",
                ]
            )
    header = ["images", "visual tokens", "kept", "vision tower", "prefill", "time to first token"]
    text = (
        f"Qwen2.5-VL's shape, random weights, {results['parameters'] / 1e6:.0f} M parameters. Prefill is the "
        "language model's, selection included; the tower is timed apart.\n\n"
        + table([*header, "faster than unpatched", "selection, its share"], lines)
    )
    if results["targets"]:
        text += "\n" + bullets(_targets(results["images"][-1]))

    sizes = [entry["visual"] for entry in results["small"]]
    rows = []
    for share, (even, ratios) in break_evens(results).items():
        found = (
            f"not up to {sizes[-1]}"
            if even is None
            else f"below {sizes[0]}"
            if even == sizes[0]
            else f"{even:.0f}"
        )
        rows.append([f"{float(share):.0%}", *(f"{ratio:.2f}" for ratio in ratios), found])
    return (
        text + "\nOne image: prefill unpatched over patched, by its visual tokens. Break-even: from where "
        "on pruning pays, interpolated between measured points.\n\n"
        + table(["kept", *(f"{count}" for count in sizes), "break-even, visual tokens"], rows)
    )


def _targets(entry: dict[str, Any]) -> list[str]:
    """What the largest prompt should reach."""
    prefill, share = entry["prefill"], "0.2"
    faster = prefill[UNPATCHED] / prefill[share]
    part = entry["selection"][share] / prefill[share]
    added = prefill["1"] / prefill[UNPATCHED] - 1
    return [
        f"{entry['images']} images, keep 20%: prefill {digits(faster)} × faster; "
        f"target at least 3 ×, met: {verdict(faster >= 3)}",
        f"the selection takes {part:.1%} of that prefill; target at most 15%, met: {verdict(part <= 0.15)}",
        f"keep all: the hooks add {added:+.1%}; target at most 2%, met: {verdict(added <= 0.02)}",
    ]


def plot(results: dict[str, Any], path: Path) -> None:
    """Time to first token over the kept share, and what small prompts gain."""
    with figures.saved(path, 1, 2, figsize=(11, 4.4)) as (figure, (left, right)):
        for entry, colour in zip(results["images"], (figures.OURS, *figures.COLOURS), strict=False):
            shares = [share for share in SHARES if f"{share:g}" in entry["prefill"]]
            first = [entry["tower"] + entry["prefill"][f"{share:g}"] for share in shares]
            whole = entry["tower"] + entry["prefill"][UNPATCHED]
            images = "1 image" if entry["images"] == 1 else f"{entry['images']} images"
            name = f"{images}, {entry['visual']:,} tokens"
            left.plot(shares, first, marker="o", color=colour, label=name)
            left.axhline(whole, color=colour, linestyle="--", linewidth=1)
            place = shares.index(0.2)
            left.annotate(
                f"unpatched {whole / first[place]:.1f} ×",
                (0.2, first[place]),
                (4, -11),
                textcoords="offset points",
                color=colour,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
            )
        left.set_xscale("log")
        left.set_yscale("log")
        left.set_xticks(SHARES, [f"{share:.0%}" for share in SHARES])
        left.set_xticks([], minor=True)
        figures.plain_numbers(left.yaxis)
        left.set_xlabel("visual tokens kept")
        left.set_title("Time to first token, s (dashed: unpatched)")
        left.legend(frameon=True, framealpha=0.9, edgecolor="none")  # the dashed lines run below it

        sizes = [entry["visual"] for entry in results["small"]]
        for (share, (even, ratios)), colour in zip(
            break_evens(results).items(), (figures.OURS, *figures.COLOURS), strict=False
        ):
            right.plot(sizes, ratios, marker="o", color=colour, label=f"{float(share):.0%} kept")
            if even is not None and even > sizes[0]:
                right.plot([even], [1], "D", color=colour, markersize=8, markeredgecolor="black")
        right.axhline(1, color="black", linewidth=0.8)
        right.set_xscale("log")
        right.set_xticks(sizes, [str(count) for count in sizes])
        right.set_xticks([], minor=True)
        right.set_xlabel("visual tokens of a prompt with one image")
        right.set_title("Prefill unpatched / patched (diamond: break-even)")
        right.legend()
        figure.suptitle(f"Qwen2.5-VL's shape, {results['parameters'] / 1e6:.0f} M parameters, random weights")
