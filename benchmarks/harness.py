"""Contenders in turn, each judged before it is timed, and the maths on what that gives."""

from __future__ import annotations

import math
import statistics
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from benchmarks.machine import Peak, available_bytes, device

if TYPE_CHECKING:
    from trimtok_fast.kernels.common import Traffic

OURS = "trimtok_fast"
#: What a rival may fail with without stopping the run: it is not installed, or does not run on this machine.
UNABLE = (ImportError, MemoryError, NotImplementedError, RuntimeError)
Item = TypeVar("Item")
#: Seconds that a turn lasts at least: whoever needs less is called again.
TURN = 0.2


class WrongAnswerError(AssertionError):
    """Our own result is wrong: there is nothing to time."""


@dataclass
class Contender:
    """One way to a result.

    Attributes:
        run: makes it.
        work: how much it does, in any unit, if its time is known to grow with that; 0 if not.
        needs: bytes that it holds at once, if they could be more than there are.
        limit: whether it is no rival but a part of the work, as a bound: its result is not judged.
        target: how many times faster than a rival ours should be, or how many times a limit's time it may
            take.
        memory_target: how many times the memory of ours a rival should need besides.
    """

    run: Callable[[], Any]
    work: float = 0
    needs: int = 0
    limit: bool = False
    target: float | None = None
    memory_target: float | None = None


@dataclass
class Case:
    """Contenders on one input.

    Attributes:
        name: what is measured, with its shape.
        contenders: by name, ours first.
        check: called with a contender's name and result, asserts that it is right.
        traffic: what our kernels must move and do, as their modules state it; asked for on a GPU only.
        sixteen_bits: whether the tokens are fp16 or bf16.
    """

    name: str
    contenders: dict[str, Contender]
    check: Callable[[str, Any], None]
    traffic: Callable[[], Traffic] | None = None
    sixteen_bits: bool = False


@dataclass
class Row:
    """One contender in one case.

    Attributes:
        case: what was measured, with its shape.
        contender: who did it.
        seconds: median over the runs that count; `None` for who did not run.
        rounds: how many those are, over all rounds.
        ratio: its time over ours, from the medians of one interleaved run.
        peak_bytes: how far memory rose in its first run, in its second if that took less than a turn; `None`
            where the system does not tell.
        target: what the ratio should reach, e.g. ">= 3" or "ours <= 1.5 x"; empty without one.
        met: whether it does; `None` without a target.
        gigabytes: a second, of those that the kernels must move; on a GPU only.
        share_of_floor: what the GPU's data sheet allows at best, over the time taken; `None` without one.
        work: the contender's.
        note: why it did not run.
    """

    case: str
    contender: str
    seconds: float | None = None
    rounds: int = 0
    ratio: float | None = None
    peak_bytes: int | None = None
    target: str = ""
    met: bool | None = None
    gigabytes: float | None = None
    share_of_floor: float | None = None
    work: float = 0
    note: str = ""


@dataclass
class Effort:
    """How long to measure.

    Attributes:
        rounds: interleaved rounds of a case.
        patience: seconds that a contender may use; once they are over, it sits out the later rounds.
        longest: seconds that one run may take, as far as that is known before.
        turn: seconds that a contender's turn lasts at least.
        paces: seconds for a unit of work, by contender, as far as they are known.
    """

    rounds: int
    patience: float
    longest: float = math.inf
    turn: float = TURN
    paces: dict[str, float] = field(default_factory=dict)


def measure(case: Case, effort: Effort) -> list[Row]:
    """Run every contender once and judge it; then time those who are right in turn, round by round.

    The first run is also the warm-up. It is what counts of a contender that has no patience left after it.

    Raises:
        WrongAnswerError: our own result is wrong. A rival that is wrong gets no time, and a note.
    """
    notes: dict[str, str] = {}
    times: dict[str, list[float]] = {}
    used: dict[str, float] = {}
    peaks: dict[str, int | None] = {}
    for name, contender in case.contenders.items():
        notes[name] = _left_out(name, contender, effort)
        if not notes[name]:
            first, peaks[name], notes[name] = _judged(case, name)
        if not notes[name]:
            used[name] = first
            times[name] = [first] if first >= effort.patience else []
    interleave({name: case.contenders[name].run for name in times}, times, used, effort)

    medians = {name: statistics.median(values) for name, values in times.items()}
    own = medians[OURS]
    rows = []
    for name, contender in case.contenders.items():
        row = Row(case.name, name, work=contender.work, note=notes[name])
        if name in medians:
            row.seconds, row.rounds, row.peak_bytes = medians[name], len(times[name]), peaks[name]
            row.ratio = row.seconds / own
        _hold_against_target(row, contender, peaks[OURS])
        rows.append(row)
    if case.traffic is not None and device() == "cuda":
        rows[0].gigabytes, rows[0].share_of_floor = against_floor(case.traffic(), own, case.sixteen_bits)
    return rows


def _hold_against_target(row: Row, contender: Contender, own_bytes: int | None) -> None:
    """Fill in `target` and `met`."""
    if contender.target is None:
        return
    row.target = f"ours <= {contender.target:g} x" if contender.limit else f">= {contender.target:g}"
    if row.ratio is not None:
        row.met = row.ratio * contender.target >= 1 if contender.limit else row.ratio >= contender.target
    if contender.memory_target is not None:
        row.target += f", memory >= {contender.memory_target:g} x"
        if row.met and row.peak_bytes is not None and own_bytes is not None:
            row.met = row.peak_bytes >= contender.memory_target * own_bytes


def interleave(
    runs: Mapping[str, Callable[[], Any]],
    times: dict[str, list[float]],
    used: dict[str, float],
    effort: Effort,
) -> None:
    """Add the seconds of every run to its times and to what it has used, in turn, round by round.

    Every second round goes backwards: who comes after a hard worker finds a hot chip, which is slower.
    """
    for number in range(effort.rounds):
        for name, run in (reversed if number % 2 else iter)(runs.items()):
            if used[name] < effort.patience:
                turn = _turn(run, effort.turn)
                times[name] += turn[1:] or turn
                used[name] += sum(turn)


def _turn(run: Callable[[], Any], least: float) -> list[float]:
    """Seconds of the calls of one turn, one or as many as it takes to last `least`.

    The first of several finds cores asleep and caches cold, and is not to count.
    """
    seconds = [timed(run)[0]]
    spent = seconds[0]
    while spent < least:
        seconds.append(timed(run, rest=0)[0])
        spent += seconds[-1]
    return seconds


def _left_out(name: str, contender: Contender, effort: Effort) -> str:
    """Why a contender is not even started."""
    if name == OURS:
        return ""
    if contender.needs > available_bytes():
        return f"left out: needs {contender.needs / 2**30:.3g} GiB, {available_bytes() / 2**30:.3g} are free"
    if effort.paces.get(name, 0) * contender.work > effort.longest:
        return f"left out: at its pace on less, over {effort.longest:g} s"
    return ""


def _first_line(text: str) -> str:
    return textwrap.shorten(text.splitlines()[0], 160, placeholder=" …")


def _judged(case: Case, name: str) -> tuple[float, int | None, str]:
    """Seconds of the first run, peak memory, and what is wrong with the result."""
    contender = case.contenders[name]
    try:
        if device() == "cuda":
            contender.run()  # what is compiled for this shape is no contender's time
        with Peak() as peak:
            seconds, result = timed(contender.run)
        if seconds < TURN:
            with Peak() as peak:  # what libraries load at a first call is no contender's memory
                contender.run()
    except UNABLE as error:
        if name == OURS:
            raise
        return 0.0, None, f"does not run here: {_first_line(str(error) or repr(error))}"
    try:
        if not contender.limit:
            case.check(name, result)
    except AssertionError as error:
        if name == OURS:
            raise WrongAnswerError(f"{case.name}: {error}") from error
        return seconds, peak.grown, f"refused: {(str(error) or 'a wrong answer').splitlines()[0]}"
    return seconds, peak.grown, ""


def timed(run: Callable[[], Any], rest: float = 0.1) -> tuple[float, Any]:
    """Seconds of one call, and its result: on a GPU device time with a cold cache, else on idle cores.

    Args:
        run: the call.
        rest: seconds before it, until the threads of the last contender have stopped spinning.
    """
    if device() == "cuda":
        torch.empty(2**28, dtype=torch.int8, device="cuda").zero_()  # larger than any L2
    else:
        time.sleep(rest)
    with Span() as span:
        result = run()
    return span.seconds(), result


class Span:
    """The time of a `with` block: on a GPU the device's, from the first kernel launched in it to the last."""

    def __enter__(self) -> Span:
        self._start = self._now()
        return self

    def __exit__(self, *failure: object) -> None:
        self._end = self._now()

    def seconds(self) -> float:
        """How long it took; waits until it is over."""
        if isinstance(self._start, float):
            return self._end - self._start
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3

    @staticmethod
    def _now() -> Any:
        if device() != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def against_floor(traffic: Traffic, seconds: float, sixteen_bits: bool) -> tuple[float, float | None]:
    """Gigabytes a second; and the floor on this GPU over the time, if its data sheet is known."""
    from trimtok_fast.inspection.devices import DATA_SHEETS

    name = torch.cuda.get_device_name()
    sheet = next((sheet for sheet in DATA_SHEETS if sheet.name in name), None)
    share = None if sheet is None else sheet.floor(*traffic, sixteen_bits=sixteen_bits) / seconds
    return traffic.bytes_moved / seconds / 1e9, share


def growth(sizes: Sequence[float], values: Sequence[float | None]) -> float | None:
    """The exponent with which values grow: the slope of a line through their logarithms; needs three."""
    points = [(math.log(x), math.log(y)) for x, y in zip(sizes, values, strict=True) if y]
    if len(points) < 3:
        return None
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def break_even(sizes: Sequence[float], ratios: Sequence[float]) -> float | None:
    """The size from which on the ratio stays at 1 or above, between the two sizes where it gets there.

    Args:
        sizes: ascending.
        ratios: time without over time with, at each of them.

    Returns:
        Interpolated, the ratio linear in the logarithm of the size. The smallest size if the ratio never is
        below 1; `None` if it is at the largest size.
    """
    below = [place for place, ratio in enumerate(ratios) if ratio < 1]
    if not below:
        return sizes[0]
    last = below[-1]
    if last == len(sizes) - 1:
        return None
    share = (1 - ratios[last]) / (ratios[last + 1] - ratios[last])
    return sizes[last] * (sizes[last + 1] / sizes[last]) ** share


def track(items: Iterable[Item], title: str, name: Callable[[Item], str]) -> Iterator[Item]:
    """The items, with a bar on a terminal that says which is at work; a line for each elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    items, terminal = list(items), Console(stderr=True)
    with Progress(console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        task = progress.add_task(title, total=len(items))
        for number, item in enumerate(items, 1):
            progress.update(task, description=f"{title}: {name(item)}")
            if not terminal.is_terminal:
                print(f"{title} {number}/{len(items)}: {name(item)}", flush=True)
            yield item
            progress.advance(task)
