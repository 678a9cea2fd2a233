"""The command line, `trimtok`: one function a command, heavy imports inside it."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import trimtok_fast
from trimtok_fast.config import PruneConfig
from trimtok_fast.demo import DEFAULT_QUERY, METHODS, OURS
from trimtok_fast.errors import InvalidInputError, TrimTokError
from trimtok_fast.inspection import DTYPES
from trimtok_fast.inspection.devices import TARGETS
from trimtok_fast.ops import BACKENDS

DESCRIPTION = """\
Training-free pruning of visual tokens for multimodal language models.
"""

DEMO_DESCRIPTION = """\
Prune the visual tokens of real pictures, and compare with other ways to keep as many.

The pictures form one sample of many images: the 28 that scikit-image and scikit-learn
carry, or a folder of your own. A small CNN turns each of them into 14 x 14 tokens, and
an ImageNet class is the text query. Prints what was kept and why, the time of each
stage and the comparison; writes report.html (one page, nothing else needed) and
kept.png. Works offline.
"""

DEMO_EPILOG = """\
examples:
  trimtok demo                                  28 pictures, a fifth of the tokens, query "espresso"
  trimtok demo --query "Egyptian cat" --keep 0.1
  trimtok demo --keep 256 --no-query            256 tokens over all pictures, no text
  trimtok demo --images ~/holiday --out album   your own pictures
  trimtok demo --method divprune                show another method's tokens
"""

KERNELS_DESCRIPTION = """\
Compile every Triton kernel for GPUs that need not be there, and say what it takes.

A table for each target: registers, spills, shared memory, matrix instructions, the
widest global load, occupancy (an estimate) and how many variants were compiled, for
the launches that pruning a workload makes. Then the bytes that each kernel moves, the
operations it does, and its floor on GPUs by their vendors' data sheets. Exits with 1
when a budget is broken: a spill, too much shared memory, a product of 16-bit tokens
without matrix instructions, rows of which less than half is loaded 128 bits at a time,
a loop that cannot end.
"""

KERNELS_EPILOG = """\
examples:
  trimtok kernels                               all targets, 32 images x 576 tokens x 3584, bf16
  trimtok kernels --target sm_90 gfx942 --dtype fp32
  trimtok kernels --images 8 --tokens 1024 --dim 1280 --keep 0.1 --json > kernels.json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after the program's name; `None` takes them from the process.

    Returns:
        The exit status: 0; 1 where `kernels` finds a broken budget; 2 after one line on stderr that says
        what is wrong.
    """
    parser = _build_parser()
    try:
        arguments = parser.parse_args(argv)
        status: int = arguments.run(arguments)
        return status
    except SystemExit as stop:  # argparse has printed the help, the version or the error
        return stop.code if isinstance(stop.code, int) else 0
    except TrimTokError as error:
        _complain(str(error))
        return 2
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}. Try: {self.prog} --help\n")


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="trimtok",
        description=DESCRIPTION,
        epilog="trimtok COMMAND --help tells more about a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"trimtok_fast {trimtok_fast.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_kernels(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="prune the tokens of real pictures, compare, and draw what was kept",
        description=DEMO_DESCRIPTION,
        epilog=DEMO_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=_run_demo)
    query = parser.add_mutually_exclusive_group()
    query.add_argument(
        "--query",
        metavar="CLASS",
        help=f"an ImageNet class by name, in any case (default: {DEFAULT_QUERY}; none with --images)",
    )
    query.add_argument("--no-query", action="store_true", help="prune without text; --query '' does the same")
    parser.add_argument(
        "--images",
        metavar="DIR",
        type=Path,
        help="a folder of your own pictures; what cannot be read is named and skipped",
    )
    parser.add_argument(
        "--keep",
        metavar="AMOUNT",
        type=_parse_keep,
        default="0.2",
        help="a share of the tokens in (0, 1], or a whole number of tokens from 2 on (default: 0.2)",
    )
    parser.add_argument(
        "--method",
        metavar="METHOD",
        choices=METHODS,
        default=OURS,
        help=f"whose tokens are shown first, of {', '.join(METHODS)}; all are compared (default: {OURS})",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path("trimtok-demo"),
        help="where to write (default: trimtok-demo)",
    )
    parser.add_argument(
        "--backend",
        metavar="NAME",
        choices=BACKENDS,
        default="auto",
        help=f"who does the pruning, of {', '.join(BACKENDS)}; reference is slow (default: auto)",
    )
    parser.add_argument(
        "--seed", metavar="N", type=_parse_seed, default=0, help="of the random selection (default: 0)"
    )


def _add_kernels(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser(
        "kernels",
        help="compile the kernels without a GPU, and say what they take and cost at least",
        description=KERNELS_DESCRIPTION,
        epilog=KERNELS_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=_run_kernels)
    parser.add_argument(
        "--target",
        metavar="NAME",
        nargs="+",
        choices=tuple(TARGETS),
        default=tuple(TARGETS),
        help=f"what to compile for, of {', '.join(TARGETS)} (default: all)",
    )
    parser.add_argument(
        "--dtype",
        metavar="NAME",
        choices=tuple(DTYPES),
        default="bf16",
        help=f"of the tokens, of {', '.join(DTYPES)} (default: bf16)",
    )
    for option, default, meaning in (
        ("--dim", 3584, "channels of a token"),
        ("--images", 32, "number of images, in one sample"),
        ("--tokens", 576, "tokens of each image"),
    ):
        parser.add_argument(
            option, metavar="N", type=_parse_size, default=default, help=f"{meaning} (default: {default})"
        )
    parser.add_argument(
        "--keep", metavar="SHARE", type=_parse_share, default=0.2, help="share that stays (default: 0.2)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _parse_size(text: str) -> int:
    if text.isdecimal() and 0 < int(text) < 2**31:
        return int(text)
    raise argparse.ArgumentTypeError(f"wanted a whole number above 0, got {text!r}")


def _parse_share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if 0 < share <= 1:
        return share
    raise argparse.ArgumentTypeError(f"wanted a share in (0, 1], got {text!r}")


def _parse_keep(text: str) -> PruneConfig:
    """`--keep`: up to 1 it is a share, above that a number of tokens."""
    try:
        amount = float(text)
    except ValueError:
        amount = 0.0
    if 0 < amount <= 1:
        return PruneConfig(keep_ratio=amount)
    if amount > 1 and amount.is_integer():
        return PruneConfig(keep_tokens=int(amount))
    raise argparse.ArgumentTypeError(
        f"wanted a share in (0, 1] or a whole number of tokens from 2 on, got {text!r}, as in 0.2 or 512"
    )


def _parse_seed(text: str) -> int:
    if text.isdecimal() and int(text) < 2**63:
        return int(text)
    raise argparse.ArgumentTypeError(f"wanted a whole number from 0 to 2**63 - 1, got {text!r}")


def _run_demo(arguments: argparse.Namespace) -> int:
    try:
        from rich.console import Console
        from rich.progress import Progress

        from trimtok_fast.demo.console import print_result
        from trimtok_fast.demo.pictures import bundled_pictures, pictures_in
        from trimtok_fast.demo.report import write_report
        from trimtok_fast.demo.run import Options, run_demo
    except ModuleNotFoundError as error:
        raise _not_installed("demo", error, "demo") from error

    out = _writable_folder(arguments.out)
    folder = arguments.images
    pictures = bundled_pictures() if folder is None else pictures_in(folder, skipped=_complain)
    if (arguments.keep.keep_tokens or len(pictures)) < len(pictures):
        raise InvalidInputError(
            "--keep",
            f"at least {len(pictures)} tokens: every picture keeps one",
            str(arguments.keep.keep_tokens),
            "Keep more, or give fewer pictures.",
        )
    options = Options(_query(arguments), arguments.keep, arguments.method, arguments.backend, arguments.seed)
    terminal = Console(stderr=True)
    with Progress(console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        result = run_demo(pictures, options, progress)
        progress.add_task("drawing", total=None)
        files = write_report(result, out)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # bars and Greek letters on a terminal that has none
    print_result(Console(), result, files)
    return 0


def _run_kernels(arguments: argparse.Namespace) -> int:
    os.environ.pop(
        "TRITON_INTERPRET", None
    )  # read when triton is imported; what is interpreted is not compiled
    try:
        from rich.console import Console

        from trimtok_fast.inspection.console import print_inspection
        from trimtok_fast.inspection.run import inspect_kernels
        from trimtok_fast.inspection.workload import Workload
    except ModuleNotFoundError as error:
        raise _not_installed("kernels", error, "demo,triton") from error

    workload = Workload(arguments.images, arguments.tokens, arguments.dim, arguments.dtype, arguments.keep)
    terminal = Console(stderr=True)
    with terminal.status("") as status:
        inspection = inspect_kernels(
            workload, arguments.target, lambda target: status.update(f"compiling for {target}")
        )
    if arguments.json:
        print(json.dumps(inspection.as_json(), indent=2))
    else:
        print_inspection(Console(), inspection)
    return 1 if inspection.broken else 0


def _not_installed(command: str, error: ModuleNotFoundError, extras: str) -> Exception:
    if (error.name or "").startswith("trimtok_fast"):
        return error
    return TrimTokError(
        command,
        f"the package {error.name}",
        "none installed",
        f"Install it: pip install 'trimtok_fast[{extras}]'.",
    )


def _query(arguments: argparse.Namespace) -> str | None:
    if arguments.no_query:
        return None
    if arguments.query is None:
        return DEFAULT_QUERY if arguments.images is None else None
    query: str = arguments.query.strip()
    return query or None


def _writable_folder(folder: Path) -> Path:
    """The folder, made where it is missing: better an error now than after the work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
        reason = "it may not be written to"
    except OSError as error:
        reason = error.strerror or str(error)
    raise InvalidInputError(
        "--out", "a folder to write to", f"{folder} ({reason})", "Choose another with --out."
    )


def _complain(message: str) -> None:
    print("trimtok:", " ".join(message.split()), file=sys.stderr)
