"""Fills packs: all tensors of a plan, in groups that several threads take, at once or as their file comes.

A pack that was filled without an error may be served.
"""

from collections.abc import Callable, Iterator, Sequence

from adapter_store.concurrency.crew import ALONE, Crew, Urgency
from adapter_store.formats.safetensors_files import TensorFiles
from adapter_store.packs.identity import TensorScan
from adapter_store.packs.packing import lies_in_place, pack_group, pack_stack
from adapter_store.packs.plan import PackPlan, PlacedTensor
from adapter_store.packs.scanning import Look

# What one thread takes at a time: long enough to pay for taking it, short enough that all end together, and
# still in a core's cache when it is checked.
_GROUP_BYTES = 1 << 20
# The same where processes look at what was read, each of which is asked once a group.
_LOOK_BYTES = 8 << 20
# Fewer than a system call takes.
_GROUP_TENSORS = 512
# From so many tensors on the interpreter is what takes the time, and processes with one of their own pay.
_MANY_TENSORS = 4096

_Group = list[PlacedTensor]


class PackFiller:
    """Reads, hashes and checks every tensor of a plan, and writes its pack. One call at a time, any thread.

    Args:
        crew: helps the thread that calls, once `urgency` says that somebody waits.
    """

    def __init__(
        self, plan: PackPlan, files: TensorFiles, *, crew: Crew = ALONE, urgency: Urgency | None = None
    ) -> None:
        self.scans: dict[str, TensorScan] = {}
        """By the name of the tensor's entry, of those that were read."""
        self._plan = plan
        self._files = files
        self._crew = crew
        self._urgency = urgency
        # Worked out by whoever fills first: of thousands of tensors that takes its time.
        self._waiting: list[_Group] | None = None
        self._total = self._done = 0

    def fill(
        self,
        target: memoryview | None,
        *,
        ready: int | None = None,
        look: Look | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Fills what has not been filled, or what is there of it.

        Args:
            target: the pack's bytes, the same with each call, all of which are written in the end; None only
                scans.
            ready: how many bytes are there of the only file with tensors; None: all.
            look: how to look at what is in the target, where there are very many tensors.
            progress: called with bytes done and bytes in all, from any thread.

        Raises:
            LorikeetError: INVALID_ARGUMENT, naming the tensor, for NaN, infinity, or a value that does not
                fit the pack's dtype. The pack is worth nothing then.
        """
        assert target is None or len(target) == self._plan.manifest.total_bytes

        look = look if len(self._plan.tensors) >= _MANY_TENSORS else None

        def work(group: _Group) -> None:
            if group[0].cut is None:
                self.scans.update(pack_group(group, self._files, target, look))
            else:
                self.scans.update(pack_stack(group, self._files, target))
            self._done += _read_bytes(group)
            progress(min(self._done, self._total), self._total)

        waiting = self._waiting
        if waiting is None:
            plan = self._plan
            waiting = _groups(plan, _LOOK_BYTES) if look else plan.once(groups_of)
            self._total = sum(map(_read_bytes, waiting))
            if target is not None:
                for begin, end in plan.once(gaps_of):
                    target[begin:end] = bytes(end - begin)
        groups = [group for group in waiting if ready is None or _end(group) <= ready]
        self._waiting = [group for group in waiting if ready is not None and _end(group) > ready]
        self._crew.run(work, groups, self._urgency)


def groups_of(plan: PackPlan) -> list[_Group]:
    """Tensors that one thread takes at a time: what lies behind each other in a file, or the cuts of one."""
    return _groups(plan, _GROUP_BYTES)


def _groups(plan: PackPlan, most_bytes: int) -> list[_Group]:
    groups = list(_runs([placed for placed in plan.tensors if placed.cut is None], most_bytes))
    return groups + _stacks([placed for placed in plan.tensors if placed.cut is not None])


def _runs(tensors: Sequence[PlacedTensor], most_bytes: int) -> Iterator[_Group]:
    """Tensors that lie behind each other in one file, about `most_bytes` of them at a time."""
    group: _Group = []
    size, following = 0, ("", 0)
    for placed in sorted(tensors, key=lambda placed: (placed.entry.file, placed.entry.begin)):
        entry = placed.entry
        is_full = size + entry.nbytes > most_bytes or len(group) == _GROUP_TENSORS
        if group and (is_full or following != (entry.file, entry.begin)):
            yield group
            group, size = [], 0
        group.append(placed)
        size += entry.nbytes
        following = (entry.file, entry.begin + entry.nbytes)
    if group:
        yield group


def _stacks(tensors: Sequence[PlacedTensor]) -> list[_Group]:
    """The cuts of each tensor."""
    stacks: dict[str, list[PlacedTensor]] = {}
    for placed in tensors:
        stacks.setdefault(placed.entry.name, []).append(placed)
    return list(stacks.values())


def _end(group: Sequence[PlacedTensor]) -> int:
    """Where a group ends in its file."""
    last = group[-1].entry
    return last.begin + last.nbytes


def _read_bytes(group: Sequence[PlacedTensor]) -> int:
    if group[0].cut is not None:
        return group[0].entry.nbytes
    return sum(placed.entry.nbytes for placed in group)


def gaps_of(plan: PackPlan) -> list[tuple[int, int]]:
    """(begin, end) of what belongs to no tensor, or is the padding of one that is read to its place."""
    gaps: list[tuple[int, int]] = []
    position = 0
    for placed in plan.tensors:
        if placed.offset > position:
            gaps.append((position, placed.offset))
        nbytes = placed.entry.nbytes if placed.cut is None and lies_in_place(placed) else placed.nbytes
        position = placed.offset + nbytes
    if position < plan.manifest.total_bytes:
        gaps.append((position, plan.manifest.total_bytes))
    return gaps
