"""The machine: registers, the scheduler, memory accesses and their checks.

All threads of a batch of CTAs run side by side as the lanes of numpy arrays. Threads that stand at the same
instruction form a group; the group furthest behind runs first, so that groups meet again after a divergence.
"""

from __future__ import annotations

import collections

import numpy as np

from . import numerics, wgmma  # noqa: F401 - importing wgmma puts it into the table
from .errors import (
    Divergence,
    ExecutionFault,
    GlobalRace,
    Misaligned,
    OutOfBounds,
    SharedRace,
    StepLimit,
    UninitialisedRegister,
    UnsupportedInstruction,
)
from .instructions import access_widths, barrier, prepare
from .memory import (
    ATOMIC,
    GLOBAL_BASE,
    MANY,
    NEVER,
    GlobalMemory,
    SharedMemory,
    atomic_tags,
    make_tags,
    merge_reads,
    same_epoch_other_warp,
)
from .parse import (
    Address,
    Immediate,
    Instruction,
    Kernel,
    Negated,
    Register,
    Sink,
    Special,
    Symbol,
    bit_width,
)

WARP = 32
SECTOR = 32
# Turns after which some other group than the hindmost gets to run. A group that executes atomics or
# volatile loads may be waiting for the others, so its turns count more.
FAIRNESS, POLLING_TURN = 512, 64


class Traffic:
    """Counts of one memory space."""

    def __init__(self) -> None:
        self.requests = collections.Counter()
        self.bytes = collections.Counter()
        self.sectors = collections.Counter()


class Machine:
    def __init__(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        memory: GlobalMemory,
        parameters: dict[str, int],
        shared_bytes: int,
        *,
        profile: bool = True,
        races: str = "raise",
        lanes_per_batch: int = 8192,
        max_steps: int = 3_000_000,
        seed: int = 0,
    ) -> None:
        if races not in ("raise", "record"):
            raise ValueError(f"races must be 'raise' or 'record', not {races!r}")
        if kernel.threads % WARP:
            raise UnsupportedInstruction(f"{kernel.threads} threads are not a whole number of warps")
        self.kernel, self.grid, self.memory, self.parameters = kernel, grid, memory, parameters
        self.shared_bytes = shared_bytes + kernel.shared_bytes
        self.global_base = GLOBAL_BASE
        self.profile, self.race_policy, self.max_steps = profile, races, max_steps
        self.batch = max(1, lanes_per_batch // kernel.threads)
        self.rng = np.random.default_rng(seed)
        self.shuffle = seed != 0
        prepare(kernel)
        widths = [pair for i in kernel.instructions for pair in access_widths(i)]
        self.shared_granule = min([w for s, w in widths if s == "shared"], default=4)
        memory.build(min([w for s, w in widths if s == "global"], default=4))
        self.tracks_async = any(i.opcode == "cp" and "async" in i.modifiers for i in kernel.instructions)
        self.tracks_wgmma = any(i.opcode == "wgmma" for i in kernel.instructions)
        self.issued = np.zeros(len(kernel.instructions), np.int64)
        self.global_traffic = Traffic()
        self.shared_wavefronts = self.shared_requests = self.uninitialised_reads = 0
        self.races: list[str] = []
        self.conflicts: dict[tuple[str, int], list] = {}
        self.steps = 0

    # --- running -------------------------------------------------------------------------------------

    def run(self) -> None:
        ctas = np.arange(int(np.prod(self.grid)))
        if self.shuffle:  # any order of CTAs is legal; a seed picks another one
            self.rng.shuffle(ctas)
        with np.errstate(all="ignore"):
            for first in range(0, len(ctas), self.batch):
                self.run_batch(ctas[first : first + self.batch])

    def start_batch(self, ctas: np.ndarray) -> None:
        threads, count = self.kernel.threads, len(ctas)
        self.lanes = count * threads
        self.thread = np.tile(np.arange(threads, dtype=np.int64), count)
        self.slot = np.repeat(np.arange(count), threads)
        self.cta = np.repeat(ctas, threads).astype(np.int32)
        self.warp = self.thread >> 5
        self.lane_ids = np.arange(self.lanes)
        self.values: list[np.ndarray | None] = [None] * len(self.kernel.registers)
        self.shared = SharedMemory(self.shared_bytes, count, self.shared_granule, self.tracks_async)
        self.epoch = np.zeros(self.lanes, np.int64)
        self.groups_committed = np.zeros(self.lanes, np.int32)  # cp.async groups closed, per thread
        self.groups_finished = np.zeros(self.lanes, np.int32)  # ... and waited for
        self.wgmma_committed = np.zeros(self.lanes, np.int64)
        self.wgmma_finished = np.zeros(self.lanes, np.int64)
        self.wgmma_registers: dict[int, np.ndarray] = {}  # accumulators in flight -> group, per thread
        self.exited = np.zeros(self.lanes, bool)
        self.arrived = np.full(self.lanes, -1, np.int64)  # where a thread waits at a barrier
        self.polled = False  # an atomic or volatile access since the last turn

    def run_batch(self, ctas: np.ndarray) -> None:
        self.start_batch(ctas)
        groups: dict[int, np.ndarray] = {0: np.ones(self.lanes, bool)}
        stalled: set[int] = set()  # places where part of a warp waits for the rest of it
        turns = 0

        def join(place: int, mask: np.ndarray) -> None:
            groups[place] = groups[place] | mask if place in groups else mask
            stalled.discard(place)

        while groups:
            ready = [place for place in groups if place not in stalled]
            if not ready:
                place = min(groups)
                self.fault(
                    Divergence,
                    "only part of a warp reaches a warp-wide instruction",
                    groups[place],
                    self.kernel.instructions[place],
                )
            turns += POLLING_TURN if self.polled else 1
            self.polled = False
            place = min(ready)
            if turns >= FAIRNESS:
                turns, place = 0, int(self.rng.choice(ready))
            mask = groups.pop(place)
            self.run_group(place, mask, groups, stalled, join)

    def run_group(self, place: int, mask: np.ndarray, groups: dict, stalled: set, join) -> None:
        """Run one group until it splits, waits, ends, or another group is further behind."""
        instructions = self.kernel.instructions
        everyone = bool(mask.all())
        warps = int(mask.reshape(-1, WARP).any(1).sum())
        while True:
            self.steps += 1
            if self.steps > self.max_steps:
                self.fault(
                    StepLimit,
                    f"no end after {self.max_steps} steps (max_steps raises the limit)",
                    mask,
                    instructions[place],
                )
            current = self.instruction = instructions[place]
            if current.convergent and not everyone:
                whole = np.repeat((mask | self.exited).reshape(-1, WARP).all(1), WARP) & mask
                if not (whole == mask).all():
                    join(place, mask & ~whole)
                    stalled.add(place)
                    if not whole.any():
                        return
                    mask = whole
                    warps = int(mask.reshape(-1, WARP).any(1).sum())
            active, self.full = mask, everyone
            if current.predicate is not None:
                condition = self.values[current.predicate.slot]
                if condition is None:
                    self.fault(UninitialisedRegister, f"{current.predicate.name} was never written", mask)
                active = mask & (~condition if current.negated else condition)
                self.full = everyone and bool(active.all())
                self.issued[place] += int(active.reshape(-1, WARP).any(1).sum())
            else:
                self.issued[place] += warps
            self.active = active
            opcode = current.opcode
            backward = False
            if opcode == "bra":
                target = self.kernel.labels[current.operands[0].name]
                taken = active.any()
                rest = mask & ~active
                if taken and rest.any():
                    join(target, active)
                    join(place + 1, rest)
                    return
                backward = bool(taken) and target <= place
                place = target if taken else place + 1
            elif opcode in ("ret", "exit"):
                self.exited |= active
                mask = mask & ~active
                self.release_barriers(join)
                if not mask.any():
                    return
                everyone = False
                warps = int(mask.reshape(-1, WARP).any(1).sum())
                place += 1
            elif current.handler is barrier:
                self.arrive(active, place)
                rest = mask & ~active
                if rest.any():
                    join(place + 1, rest)
                self.release_barriers(join)
                return
            else:
                if active.any():
                    current.handler(self, current)
                place += 1
            if backward and groups:
                join(place, mask)
                return
            if groups and (place in groups or min(groups) < place):
                join(place, mask)
                return

    def arrive(self, mask: np.ndarray, place: int) -> None:
        ids = self.kernel.instructions[place].operands
        if len(ids) > 1 and (not isinstance(ids[1], Immediate) or ids[1].bits != self.kernel.threads):
            raise UnsupportedInstruction(
                f"not implemented: barriers of part of a CTA; {self.instruction.describe()}"
            )
        self.arrived[mask] = place

    def release_barriers(self, join) -> None:
        """Let each CTA go on whose every living thread waits."""
        if not (self.arrived >= 0).any():
            return
        threads = self.kernel.threads
        arrived = self.arrived.reshape(-1, threads)
        waiting = arrived >= 0
        ready = (waiting | self.exited.reshape(-1, threads)).all(1) & waiting.any(1)
        if not ready.any():
            return
        places = np.where(waiting, arrived, -1)
        highest = places.max(1)
        lowest = np.where(waiting, arrived, np.iinfo(np.int64).max).min(1)
        mixed = ready & (highest != lowest)
        if mixed.any():
            self.fault(
                Divergence,
                "threads of one CTA wait at different barriers",
                np.repeat(mixed, threads) & (self.arrived >= 0),
            )
        lanes = np.repeat(ready, threads) & (self.arrived >= 0)
        for place in np.unique(highest[ready]):
            join(int(place) + 1, lanes & (self.arrived == place))
        self.epoch[np.repeat(ready, threads)] += 1
        self.arrived[lanes] = -1

    # --- faults --------------------------------------------------------------------------------------

    def who(self, lane: int) -> str:
        x, y = self.grid[0], self.grid[1]
        cta = int(self.cta[lane])
        thread = int(self.thread[lane])
        return (
            f"CTA ({cta % x}, {cta // x % y}, {cta // (x * y)}) thread {thread} "
            f"(warp {thread // WARP} lane {thread % WARP})"
        )

    def fault(
        self,
        kind: type[ExecutionFault],
        message: str,
        lanes: np.ndarray | int | None = None,
        instruction: Instruction | None = None,
    ) -> None:
        """Raise, or note a race and go on if the caller asked for that."""
        if lanes is not None and not isinstance(lanes, (int, np.integer)):
            lanes = int(np.flatnonzero(lanes)[0])
        by = f" by {self.who(int(lanes))}" if lanes is not None else ""
        text = f"{message}{by}\n  at {(instruction or self.instruction).describe()}"
        if self.race_policy == "record" and kind in (SharedRace, GlobalRace):
            self.races.append(text)
            return
        raise kind(text)

    def note_conflict(self, kind: str, lane: int, other: int) -> None:
        """Unordered accesses to the same global bytes: legal with flags and locks, so only noted."""
        key = (kind, self.instruction.index)
        if key in self.conflicts:
            self.conflicts[key][1] += 1
        else:
            x, y = self.grid[0], self.grid[1]
            text = (
                f"{kind}: {self.who(lane)} after CTA ({other % x}, {other // x % y}, {other // (x * y)})"
                if other >= 0
                else f"{kind}: {self.who(lane)}"
            )
            self.conflicts[key] = [f"{text} at {self.instruction.describe()}", 1]

    # --- operands ------------------------------------------------------------------------------------

    def special(self, name: str) -> np.ndarray:
        x, y, z = self.grid
        lane = self.thread & 31
        if name in ("clock", "clock64", "globaltimer"):
            return np.full(self.lanes, self.steps, np.uint64 if name != "clock" else np.uint32)
        one = np.ones(self.lanes, np.int64)
        value = {
            "tid.x": lambda: self.thread,
            "tid.y": lambda: 0 * one,
            "tid.z": lambda: 0 * one,
            "ntid.x": lambda: one * self.kernel.threads,
            "ntid.y": lambda: one,
            "ntid.z": lambda: one,
            "ctaid.x": lambda: self.cta % x,
            "ctaid.y": lambda: self.cta // x % y,
            "ctaid.z": lambda: self.cta // (x * y),
            "nctaid.x": lambda: one * x,
            "nctaid.y": lambda: one * y,
            "nctaid.z": lambda: one * z,
            "laneid": lambda: lane,
            "warpid": lambda: self.warp,
            "lanemask_eq": lambda: one << lane,
            "lanemask_lt": lambda: (one << lane) - 1,
            "lanemask_le": lambda: (one << (lane + 1)) - 1,
            "lanemask_gt": lambda: ~((one << (lane + 1)) - 1),
            "lanemask_ge": lambda: ~((one << lane) - 1),
        }[name]()
        return (value.astype(np.int64) & 0xFFFFFFFF).astype(np.uint32)

    def raw(self, operand, width: int) -> np.ndarray:
        """An operand's bits, at the width it is stored in."""
        kind = type(operand)
        if kind is Register:
            value = self.values[operand.slot]
            if value is None:
                self.fault(UninitialisedRegister, f"{operand.name} was never written", self.active)
            if operand.slot in self.wgmma_registers and self.instruction.opcode != "wgmma":
                self.check_accumulator(operand)
            return value
        if kind is Immediate:
            if operand.float_width and operand.float_width != width:
                raise UnsupportedInstruction(
                    f"float constant of another width: {self.instruction.describe()}"
                )
            return numerics.UNSIGNED[width](operand.bits & ((1 << width) - 1))
        if kind is Special:
            return self.special(operand.name)
        if kind is Symbol:
            if operand.name in self.kernel.shared_symbols:
                return numerics.UNSIGNED[width](self.kernel.shared_symbols[operand.name] + operand.offset)
            if operand.name in self.kernel.global_symbols:
                return numerics.UNSIGNED[width](operand.offset)  # message strings: never a valid address
        raise UnsupportedInstruction(f"operand {operand}: {self.instruction.describe()}")

    def read(self, operand, type_name: str) -> np.ndarray:
        """An operand as an array of the given PTX type (bf16, tf32 and packed types as unsigned bits)."""
        if type_name == "pred":
            return self.read_predicate(operand)
        width = bit_width(type_name)
        value = self.raw(operand, width)
        if value.dtype == bool:
            raise UnsupportedInstruction(f"predicate used as a number: {self.instruction.describe()}")
        if value.dtype.itemsize * 8 != width:
            value = value.astype(numerics.UNSIGNED[width])
        if type_name[0] == "s":
            return value.view(numerics.SIGNED[width])
        if type_name[0] == "f" and not type_name.endswith("x2"):
            return value.view(numerics.FLOAT[width])
        return value

    def read_part(self, operand, type_name: str) -> np.ndarray:
        """A part of a packed register, which may be left unset: compilers fill pairs up with nothing."""
        if type(operand) is Register and self.values[operand.slot] is None:
            return self.garbage(np.dtype(numerics.UNSIGNED[bit_width(type_name)]))
        return self.read(operand, type_name)

    def garbage(self, dtype: np.dtype) -> np.ndarray:
        """What lanes hold that never got a value: no friendly zero."""
        pattern = False if dtype.kind == "b" else 0xA5A5A5A5A5A5A5A5 & np.iinfo(dtype).max
        return np.full(self.lanes, pattern, dtype)

    def read_predicate(self, operand) -> np.ndarray:
        if isinstance(operand, Immediate):
            return np.full(self.lanes, operand.bits != 0)
        if isinstance(operand, Negated):
            return ~self.read_predicate(operand.register)
        value = self.raw(operand, 1)
        if value.dtype != bool:
            raise UnsupportedInstruction(f"{operand} is no predicate: {self.instruction.describe()}")
        return value

    def spread(self, value: np.ndarray) -> np.ndarray:
        """One value a lane."""
        return value if value.shape == (self.lanes,) else np.broadcast_to(value, (self.lanes,))

    def per_warp(self, value: np.ndarray) -> np.ndarray:
        return self.spread(value).reshape(-1, WARP)

    def write(self, operand, value: np.ndarray) -> None:
        """Write the active lanes; a narrower signed value is sign-extended, any other zero-extended."""
        if type(operand) is Sink:
            return
        if type(operand) is not Register:
            raise UnsupportedInstruction(f"result operand {operand}: {self.instruction.describe()}")
        value = np.asarray(value)
        if operand.type == "pred":
            if value.dtype != bool:
                raise UnsupportedInstruction(f"number written to a predicate: {self.instruction.describe()}")
        else:
            wanted = numerics.UNSIGNED[bit_width(operand.type)]
            if value.dtype.kind == "f":
                value = value.view(numerics.UNSIGNED[value.dtype.itemsize * 8])
            if value.dtype != wanted:
                value = value.astype(wanted)
        value = self.spread(value)
        if not self.full:
            old = self.values[operand.slot]
            if old is None:
                old = self.garbage(value.dtype)
            value = np.where(self.active, value, old)
        self.values[operand.slot] = value

    def address(self, operand: Address) -> np.ndarray:
        base = operand.base
        if isinstance(base, Register):
            value = self.raw(base, 64)
            return self.spread(value.astype(np.int64) + operand.offset)
        return self.spread(np.int64(self.raw(base, 64)) + operand.offset)

    # --- memory --------------------------------------------------------------------------------------

    def load(self, space: str, addresses: np.ndarray, width: int, active: np.ndarray) -> np.ndarray:
        """[lanes, width] bytes; inactive lanes get zeros."""
        result = np.zeros((self.lanes, width), np.uint8)
        lanes = np.flatnonzero(active)
        if lanes.size:
            visit = self.visit_global if space == "global" else self.visit_shared
            rows = visit(addresses[lanes], width, lanes, "load")
            image = self.memory.image if space == "global" else self.shared.image
            result[lanes] = image.reshape(-1, width)[rows]
        return result

    def store(self, space: str, addresses: np.ndarray, data: np.ndarray, active: np.ndarray) -> None:
        """data: [lanes, width] bytes."""
        lanes = np.flatnonzero(active)
        if not lanes.size:
            return
        width = data.shape[1]
        visit = self.visit_global if space == "global" else self.visit_shared
        data = data[lanes]
        rows = visit(addresses[lanes], width, lanes, "store", data)
        image = (self.memory.image if space == "global" else self.shared.image).reshape(-1, width)
        image[rows] = data
        differ = (image[rows] != data).any(1)
        if differ.any():
            self.report_clash(space, lanes, addresses[lanes], rows, differ)

    def report_clash(
        self, space: str, lanes: np.ndarray, addresses: np.ndarray, rows: np.ndarray, differ: np.ndarray
    ) -> None:
        """Two lanes stored different values to the same place in one instruction.

        Among lanes of one warp that is only noted: Triton does it when fp contraction makes copies of a sum
        differ in the last bit (x * x + shuffled becomes an fma on each side).
        """
        places, first = np.unique(rows[differ], return_index=True)
        for row, position in zip(places, np.flatnonzero(differ)[first], strict=True):
            loser = int(position)
            same_place = lanes[rows == row]
            if space == "global" and (self.cta[same_place] != self.cta[lanes[loser]]).any():
                continue  # already noted as a conflict between CTAs
            if (same_place // WARP != lanes[loser] // WARP).any():
                break
            what = f"lanes of one warp store different values to one {space} place"
            self.note_conflict(what, int(lanes[loser]), -1)
        else:
            return
        place = (
            self.memory.describe(int(addresses[loser]))
            if space == "global"
            else f"{int(addresses[loser]):#x}"
        )
        kind = GlobalRace if space == "global" else SharedRace
        self.fault(
            kind,
            f"threads of one CTA store different values to {space} address {place} at once",
            int(lanes[loser]),
        )

    def visit_global(
        self, addresses: np.ndarray, width: int, lanes: np.ndarray, what: str, data: np.ndarray | None = None
    ) -> np.ndarray:
        """Check and account for an access; returns the rows of the image seen as [..., width]."""
        memory = self.memory
        offsets = addresses - GLOBAL_BASE
        wrong = (offsets < 0) | (offsets > len(memory.image) - width)
        clipped = np.clip(offsets, 0, len(memory.image) - width)
        aligned = clipped // width
        wrong |= ~memory.valid.reshape(-1, width)[aligned].all(1)
        misaligned = (offsets % width) != 0
        if misaligned.any():
            bad = int(np.flatnonzero(misaligned)[0])
            self.fault(
                Misaligned,
                f"misaligned global {what} of {width} bytes at {memory.describe(int(addresses[bad]))}",
                int(lanes[bad]),
            )
        if wrong.any():
            bad = int(np.flatnonzero(wrong)[0])
            self.fault(
                OutOfBounds,
                f"out-of-bounds global {what} of {width} bytes at {memory.describe(int(addresses[bad]))}",
                int(lanes[bad]),
            )
        (memory.loaded if what == "load" else memory.stored).reshape(-1, width)[aligned] = True
        if what == "atomic":
            memory.loaded.reshape(-1, width)[aligned] = True
        if self.profile:
            warps = lanes // WARP
            self.global_traffic.requests[what] += len(np.unique(warps))
            self.global_traffic.bytes[what] += width * len(lanes)
            self.global_traffic.sectors[what] += len(
                np.unique((warps.astype(np.int64) << 40) | (offsets // SECTOR))
            )
        self.check_global_order(aligned, width, lanes, what, data, addresses)
        return aligned

    def check_global_order(
        self,
        rows: np.ndarray,
        width: int,
        lanes: np.ndarray,
        what: str,
        data: np.ndarray | None,
        addresses: np.ndarray,
    ) -> None:
        memory, per_row = self.memory, width // self.memory.granule
        writer = memory.writer_cta.reshape(-1, per_row)
        write_tag = memory.write_tag.reshape(-1, per_row)
        reader = memory.reader_cta.reshape(-1, per_row)
        read_tag = memory.read_tag.reshape(-1, per_row)
        cta, tags = self.cta[lanes], make_tags(self.epoch[lanes], self.warp[lanes])
        mine, tag = cta[:, None], tags[:, None]
        last_writer, last_tag = writer[rows], write_tag[rows]
        after_write = (last_writer == mine) & same_epoch_other_warp(last_tag, tag)
        if what == "atomic":  # the hardware orders atomics among themselves
            after_write &= last_tag != atomic_tags(tag)
            self.raise_global(after_write, lanes, addresses, "atomic after another warp's store")
            writer[rows] = mine
            write_tag[rows] = atomic_tags(tag)
            reader[rows] = NEVER
            return
        foreign = (last_writer != NEVER) & (last_writer != mine)
        if what == "load":
            self.raise_global(after_write, lanes, addresses, "load after another warp's store")
            self.conflict(foreign, lanes, last_writer, "a CTA loads what another CTA stored")
            last_reader = reader[rows]
            # MANY as a CTA number would be a real CTA: -2 stands for several.
            reader[rows] = np.where((last_reader == NEVER) | (last_reader == mine), mine, -2)
            fresh = last_reader != mine
            recorded = np.where(fresh, NEVER, read_tag[rows])
            read_tag[rows] = recorded
            merge_reads(read_tag, rows, tags)
            return
        unchanged = (memory.image.reshape(-1, width)[rows] == data).all(1)[:, None]
        self.raise_global(after_write & ~unchanged, lanes, addresses, "store after another warp's store")
        self.conflict(
            foreign & ~unchanged, lanes, last_writer, "two CTAs store different values to one place"
        )
        last_reader = reader[rows]
        # Redundant copies of a value are often loaded and dropped, so this order is noted but no fault.
        after_read = (last_reader == mine) & same_epoch_other_warp(read_tag[rows], tag) & ~unchanged
        self.conflict(
            after_read, lanes, last_reader, "a warp stores where another warp of its CTA has just loaded"
        )
        foreign = (last_reader != NEVER) & (last_reader != mine) & ~unchanged
        self.conflict(foreign, lanes, last_reader, "a CTA stores where another CTA has loaded")
        writer[rows] = mine
        write_tag[rows] = tag
        clash = writer[rows] != mine
        if clash.any():  # several CTAs in this very instruction
            for position in np.flatnonzero(clash.any(1)):
                winner = int(writer[rows[position]][0])
                row = int(rows[position])
                winners = data[(rows == row) & (cta == winner)]
                if len(winners) and (winners[-1] != data[position]).any():
                    self.note_conflict(
                        "two CTAs store different values to one place", int(lanes[position]), winner
                    )

    def raise_global(self, race: np.ndarray, lanes: np.ndarray, addresses: np.ndarray, what: str) -> None:
        bad = race.any(1)
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            self.fault(
                GlobalRace,
                f"global {what} of the same CTA with no barrier between, at "
                f"{self.memory.describe(int(addresses[first]))}",
                int(lanes[first]),
            )

    def conflict(self, foreign: np.ndarray, lanes: np.ndarray, others: np.ndarray, what: str) -> None:
        if foreign.any():
            first = np.argwhere(foreign)[0]
            self.note_conflict(what, int(lanes[first[0]]), int(others[tuple(first)]))

    def shared_rows(self, addresses: np.ndarray, width: int, lanes: np.ndarray, what: str) -> np.ndarray:
        wrong = (addresses < 0) | (addresses + width > self.shared_bytes)
        if wrong.any():
            bad = int(np.flatnonzero(wrong)[0])
            self.fault(
                OutOfBounds,
                f"out-of-bounds shared {what} of {width} bytes at {int(addresses[bad]):#x}, "
                f"the CTA has {self.shared_bytes} bytes",
                int(lanes[bad]),
            )
        misaligned = addresses % width != 0
        if misaligned.any():
            bad = int(np.flatnonzero(misaligned)[0])
            self.fault(
                Misaligned,
                f"misaligned shared {what} of {width} bytes at {int(addresses[bad]):#x}",
                int(lanes[bad]),
            )
        return (self.slot[lanes] * self.shared.stride + addresses) // width

    def visit_shared(
        self, addresses: np.ndarray, width: int, lanes: np.ndarray, what: str, data: np.ndarray | None = None
    ) -> np.ndarray:
        rows = self.shared_rows(addresses, width, lanes, what)
        if self.profile:
            self.count_wavefronts(addresses, width, lanes)
        shared, per_row = self.shared, width // self.shared.granule
        write_tag, read_tag = shared.write_tag.reshape(-1, per_row), shared.read_tag.reshape(-1, per_row)
        tags = make_tags(self.epoch[lanes], self.warp[lanes])
        recorded = write_tag[rows]
        race = same_epoch_other_warp(recorded, tags[:, None])
        if shared.tracks_async:
            pending = (shared.pending_group.reshape(-1, per_row)[rows] >= 0).any(1)
            if pending.any():
                bad = int(np.flatnonzero(pending)[0])
                self.fault(
                    SharedRace,
                    f"shared {what} at {int(addresses[bad]):#x} while a cp.async to it has not "
                    "been waited for",
                    int(lanes[bad]),
                )
        if what != "load" and self.tracks_wgmma:
            held = (shared.read_group.reshape(-1, per_row)[rows] >= 0).any(1)
            if held.any():
                bad = int(np.flatnonzero(held)[0])
                place = f"{int(addresses[bad]):#x}"
                self.fault(
                    SharedRace, f"shared {what} at {place} while a wgmma may still read it", int(lanes[bad])
                )
        if what == "atomic":
            race &= recorded != atomic_tags(tags[:, None])
            self.raise_shared(race, lanes, addresses, recorded, "atomic after a store")
            readers = read_tag[rows]
            self.raise_shared(
                same_epoch_other_warp(readers, tags[:, None]),
                lanes,
                addresses,
                readers,
                "atomic after a load",
            )
            write_tag[rows] = atomic_tags(tags[:, None])
        elif what == "load":
            self.raise_shared(race, lanes, addresses, recorded, "load after a store")
            if self.profile:
                self.uninitialised_reads += int((recorded == NEVER).any(1).sum())
            merge_reads(read_tag, rows, tags)
        else:
            if race.any():  # several warps may store one and the same value
                changed = (shared.image.reshape(-1, width)[rows] != data).any(1)
                self.raise_shared(race & changed[:, None], lanes, addresses, recorded, "store after a store")
            readers = read_tag[rows]
            self.raise_shared(
                same_epoch_other_warp(readers, tags[:, None]), lanes, addresses, readers, "store after a load"
            )
            write_tag[rows] = tags[:, None]
        return rows

    def raise_shared(
        self, race: np.ndarray, lanes: np.ndarray, addresses: np.ndarray, recorded: np.ndarray, what: str
    ) -> None:
        if race.any():
            first = np.argwhere(race)[0]
            other = int(recorded[tuple(first)]) & 63
            by = {MANY: "several warps", ATOMIC: "an atomic"}.get(other, f"warp {other}")
            self.fault(
                SharedRace,
                f"shared {what} by {by} with no barrier between, at address {int(addresses[first[0]]):#x}",
                int(lanes[first[0]]),
            )

    def count_wavefronts(self, addresses: np.ndarray, width: int, lanes: np.ndarray) -> None:
        """Shared-memory cycles: per warp and phase, the most distinct 4-byte words that fall into one bank.

        A 16-byte access is served a quarter warp at a time, an 8-byte one half a warp at a time.
        """
        words = max(1, width // 4)
        phase = (lanes % WARP) * words // WARP
        first = addresses // 4
        request = (lanes // WARP) * 4 + phase
        word = first[:, None] + np.arange(words)
        keys = np.unique((request[:, None].astype(np.int64) << 32) | ((word % 32) << 24) | (word // 32))
        banks, per_bank = np.unique(keys >> 24, return_counts=True)
        starts = np.flatnonzero(np.diff(banks >> 8, prepend=-1))
        self.shared_wavefronts += int(np.maximum.reduceat(per_bank, starts).sum())
        self.shared_requests += len(starts)

    def start_async_copy(self, addresses: np.ndarray, width: int, active: np.ndarray) -> None:
        """Mark bytes as owed by the issuing thread's current cp.async group."""
        lanes = np.flatnonzero(active)
        per_row = width // self.shared.granule
        rows = (self.slot[lanes] * self.shared.stride + addresses[lanes]) // width
        self.shared.pending_group.reshape(-1, per_row)[rows] = self.groups_committed[lanes][:, None]
        self.shared.pending_owner.reshape(-1, per_row)[rows] = lanes[:, None]

    def finish_async_copies(self, still_running: int, everything: bool) -> None:
        """cp.async.wait_group / wait_all: from now on the copies count as stores of the waiting warp."""
        limit = self.groups_committed + 1 if everything else self.groups_committed - still_running
        finished = np.where(self.active, np.maximum(limit, self.groups_finished), self.groups_finished)
        shared = self.shared
        pending = np.flatnonzero(shared.pending_group >= 0)
        owner = shared.pending_owner[pending]
        done = shared.pending_group[pending] < finished[owner]
        pending, owner = pending[done], owner[done]
        shared.write_tag[pending] = make_tags(self.epoch[owner], self.warp[owner])
        shared.pending_group[pending] = NEVER
        self.groups_finished = np.minimum(finished, self.groups_committed).astype(np.int32)

    def start_wgmma(self, register: Register) -> None:
        """An accumulator belongs to the open wgmma group until the thread has waited for it."""
        old = self.wgmma_registers.get(register.slot, np.full(self.lanes, NEVER, np.int64))
        self.wgmma_registers[register.slot] = np.where(self.active, self.wgmma_committed, old)

    def check_accumulator(self, register: Register) -> None:
        early = self.active & (self.wgmma_registers[register.slot] >= self.wgmma_finished)
        if early.any():
            self.fault(SharedRace, f"{register.name} is read before its wgmma has been waited for", early)

    def hold_for_wgmma(self, addresses: np.ndarray, active: np.ndarray) -> None:
        """Mark 16-byte pieces of shared memory as being read by the open wgmma group."""
        lanes = np.flatnonzero(active)
        rows = (self.slot[lanes] * self.shared.stride + addresses[lanes]) // 16
        self.shared.read_group.reshape(-1, 16 // self.shared.granule)[rows] = self.wgmma_committed[lanes][
            :, None
        ]
        self.shared.read_owner.reshape(-1, 16 // self.shared.granule)[rows] = lanes[:, None]

    def finish_wgmma(self, still_running: int) -> None:
        """wgmma.wait_group: the older groups' reads of shared memory count as made at this moment."""
        limit = np.maximum(self.wgmma_committed - still_running, self.wgmma_finished)
        self.wgmma_finished = np.where(self.active, limit, self.wgmma_finished)
        shared = self.shared
        held = np.flatnonzero(shared.read_group >= 0)
        held = held[shared.read_group[held] < self.wgmma_finished[shared.read_owner[held]]]
        owner = shared.read_owner[held]
        shared.read_tag[held] = make_tags(self.epoch[owner], MANY)  # a warpgroup reads for all of its warps
        shared.read_group[held] = NEVER
