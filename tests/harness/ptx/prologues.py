"""Prologues over drawn tables, compared with the coefficients of the host."""

import numpy as np

from radam_fused.options import OPTION_NAMES
from radam_fused.rectification import coefficients
from radam_fused.rounding import step_key

from ...test_graphs import drawn_options
from .memory import Memory
from .tables import CLIP, COEFFICIENTS, DRAW, OPTIONS, SEGMENT, TABLES

_COUNTERS, _NUMBERS = 0x1_0000_0000, 0x2_0000_0000
_POISON = 777.25
_SKIPPED = 3
_CLIP = {"norm": 3.5, "coefficient": 0.37}


class _Numbers:
    """Single numbers in device memory, in separate regions."""

    def __init__(self, memory):
        self._memory, self._count = memory, 0

    def add(self, name, value, dtype):
        """The address of a number, and its value rounded to the dtype."""
        self._count += 1
        number = np.array([value], dtype)
        address = _NUMBERS + 0x100 * self._count + number.itemsize  # not of a larger word
        self._memory.allocate(name, address, number, False)
        return address, float(number[0])


def _drawn_group(draw, numbers, found_inf, clip, row):
    """Fill a row of DeviceOptions; returns the arguments for the function of the host."""
    values, flags = drawn_options(draw)
    if draw.random() < 0.3:  # so that every term of the exact variance matters
        values |= {"betas": (0.9, draw.uniform(0.5, 0.9)), "rectify_threshold": 2.0}
        flags |= {"rectify": True, "exact_rectification": True}
    lr, scale = values["lr"], values.pop("grad_scale")
    values["beta1"], values["beta2"] = values.pop("betas")
    for name in OPTION_NAMES:
        row[name] = {**values, **flags}[name]
    if kind := draw.choice([None, "f4", "f8"]):
        row["lr"], row["lr_is_float64"] = 0.123, kind == "f8"
        row["lr_at"], lr = numbers.add("lr", lr, kind)
    if draw.random() < 0.7:
        row["grad_scale_at"], scale = numbers.add("grad_scale", scale, "f4")
    else:
        scale = 1.0
    if found_inf is not None:
        row["found_inf_at"], _ = numbers.add("found_inf", found_inf, "f4")
    given = {**values, **flags, "lr": lr, "grad_scale": scale}
    if clip is not None:
        row["clip_at"] = clip
        given["clip_coefficient"] = _CLIP["coefficient"]
    given["betas"] = given.pop("beta1"), given.pop("beta2")
    return given


def assert_same_prologue(
    backend, draw, counts, counter, dtype, found_inf=None, skips=None, draws=False
):
    """Assert that a prologue counts, and gives the coefficients of the host bit for bit.

    Args:
        counts: The counts of the segments, this step included. A segment whose counter is not a
            count (negative, infinite or NaN) must stay as it is.
        counter: The dtype of the counters.
        dtype: The dtype of the coefficients.
        found_inf: Whether a gradient overflowed, as a number; None: nobody asked.
        skips: Whether the norm of the gradients skips the step; None: no norm was taken.
        draws: Whether random bits are drawn.
    """
    memory = Memory()
    numbers = _Numbers(memory)
    options = np.zeros(draw.randrange(1, 9), OPTIONS)
    clip = None
    if skips is not None:
        clip, given = 0x3_0000_0008, np.array([(*_CLIP.values(), skips)], CLIP)
        memory.allocate("clip", clip, given, False)
    groups = [_drawn_group(draw, numbers, found_inf, clip, row) for row in options]
    before = np.array(counts, str(counter).removeprefix("torch.")) - 1
    at = _COUNTERS + before.itemsize
    counters = memory.allocate("counters", at, before, True)
    rows = draw.sample(range(len(counts) + 3), len(counts))  # three belong to no segment
    segments = np.zeros(len(counts), SEGMENT)
    segments["step"] = at + before.itemsize * np.arange(len(counts))
    segments["coefficients"] = rows
    segments["options"] = [draw.randrange(len(groups)) for _ in counts]
    row_type = COEFFICIENTS[dtype]
    poison = np.full((len(counts) + 3) * row_type.itemsize // 8, _POISON)
    memory.allocate("segments", TABLES["segments"], segments, False)
    memory.allocate("options", TABLES["options"], options, False)
    table = memory.allocate("coefficients", TABLES["coefficients"], poison, True)

    names = ["segments", "options", "coefficients"]
    keys = np.zeros(len(counts), DRAW)
    keys["key"] = [draw.getrandbits(64) for _ in counts]
    keys["step_key"] = keys["key"] ^ np.uint64(5)
    if draws:
        names.append("draws")
        random = memory.allocate("draws", TABLES["draws"], keys, True)
    tables = (TABLES[name] for name in names)
    backend.run_prologue(memory, len(counts), counter, dtype, *tables)
    if draws:
        drawn = memory.read(random, DRAW)

    after = memory.read(counters, before.dtype)
    results = memory.read(table, row_type)
    overflows = found_inf is not None and found_inf != 0
    skipped = ~(np.isfinite(before) & (before >= 0)) | overflows | bool(skips)
    np.testing.assert_array_equal(after, np.where(skipped, before, before + 1))
    unchanged = poison.view(row_type)[0]
    used = row_type.fields["update"][1] + 4  # bytes of a row
    for row in set(range(len(results))) - set(rows):
        assert results[row] == unchanged, "a row of no segment"
    for row, segment, count, is_skipped in zip(rows, segments, after, skipped, strict=True):
        expected = unchanged.copy()
        if is_skipped:
            expected["update"] = _SKIPPED
        else:
            given = groups[segment["options"]]
            for name, number in coefficients(float(count), **given)._asdict().items():
                expected[name] = number
        same = results[row].tobytes()[:used] == expected.tobytes()[:used]
        assert same, f"step {count}: {results[row]}, expected {expected}"
    if draws:
        for i, (count, is_skipped) in enumerate(zip(after, skipped, strict=True)):
            if not is_skipped:
                keys["step_key"][i] = step_key(int(keys["key"][i]), float(count))
        np.testing.assert_array_equal(drawn, keys)
