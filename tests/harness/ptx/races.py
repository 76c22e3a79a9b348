"""Finds races: two threads access an element, one writes, and no barrier is between."""

import numpy as np

from .machine import WARP, PtxError


def check_races(region, block):
    """Raise for a race in a region; `block` is the number of threads per block.

    Returns the number of places that a thread writes after its warp has read them, which is
    correct only while the warp runs in step.
    """
    places = [access.places() for access in region.accesses]
    owner = np.zeros(region.data.size // 2, np.int64)
    for access, at in zip(region.accesses, places, strict=True):
        if access.writes:
            owner[at] = access.thread[:, None]
    if not owner.any():
        return 0
    contested = np.zeros(owner.size, bool)
    for access, at in zip(region.accesses, places, strict=True):
        writer = owner[at]
        contested[at[(writer != 0) & (writer != access.thread[:, None])]] = True
    return _check_contested(region, places, contested, block) if contested.any() else 0


def _check_contested(region, places, contested, block):
    rows = [[], [], [], [], []]
    for time, (access, at) in enumerate(zip(region.accesses, places, strict=True)):
        held = contested[at]
        each = at[held], access.interval[:, None], access.thread[:, None], access.writes, time
        for row, values in zip(rows, each, strict=True):
            row.append(values if np.ndim(values) == 1 else np.broadcast_to(values, at.shape)[held])
    rows = [np.concatenate(row) for row in rows]
    order = np.lexsort((rows[4], rows[1], rows[0]))
    place, interval, thread, writes, time = (row[order] for row in rows)

    def fail(what, end):
        raise PtxError(f"{region.name}: {what}; {region.accesses[time[end - 1]].instruction}")

    # There is no barrier between two blocks.
    starts, ends = _runs(place[1:] != place[:-1])
    low, high = _extent((thread - 1) // block, starts)
    if (low != high).any():
        fail("two blocks access a place that one of them writes", ends[low != high][0])

    # The accesses of a block to an element between two barriers.
    starts, ends = _runs((place[1:] != place[:-1]) | (interval[1:] != interval[:-1]))
    _, last_writer = _extent(np.where(writes, thread, 0), starts)
    first_writer, _ = _extent(np.where(writes, thread, np.iinfo(np.int64).max), starts)
    several = first_writer < last_writer
    if several.any():
        fail("two threads write the same place with no barrier between", ends[several][0])
    first, last = _extent(thread, starts)
    shared = (first != last) & (last_writer != 0)
    foreign = ~writes & (thread != np.repeat(last_writer, ends - starts))
    _, last_read = _extent(np.where(foreign, time, -1), starts)
    first_write, _ = _extent(np.where(writes, time, time.max() + 1), starts)
    in_step = (first - 1) // WARP == (last - 1) // WARP
    in_step &= (last_read < first_write) & (region.space != "shared")
    if (shared & ~in_step).any():
        end = ends[shared & ~in_step][0]
        fail("one thread reads what another thread writes with no barrier between", end)
    return int(shared.sum())


def _runs(changes):
    """The starts and ends of runs of equal values."""
    starts = np.flatnonzero(np.append(True, changes))
    return starts, np.append(starts[1:], changes.size + 1)


def _extent(values, starts):
    return np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
