"""Difficult data for a kernel: special numbers, many magnitudes, misaligned addresses."""

import torch

_EXPONENTS = {torch.float64: 252, torch.float32: 126, torch.bfloat16: 126, torch.float16: 27}


def special(dtype):
    """Zeros, infinities, NaN, subnormals and numbers near the limits of a dtype."""
    info = torch.finfo(dtype)
    tiny, least = info.smallest_normal, info.smallest_normal * info.eps
    numbers = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), least, -least, tiny, -tiny]
    numbers += [tiny - least, tiny * 1.5, 3 * least, info.max, info.min, info.max / 2]
    numbers += [1.0, -1.0, 1.0 + info.eps]
    return torch.tensor(numbers, dtype=torch.float64).to(dtype)


def values(n, dtype, draw, odd=0.0, positive=False):
    """`n` normal numbers; a fraction `odd` of them is special, and then magnitudes vary."""
    generator = torch.Generator().manual_seed(draw.getrandbits(40))
    if dtype == torch.int16:
        return torch.randint(-(2**15), 2**15, (n,), generator=generator).to(dtype)
    x = torch.randn(n, dtype=torch.float64, generator=generator)
    if odd:
        most = _EXPONENTS[dtype]
        exponents = (2 * torch.rand(n, generator=generator).double() - 1) * most
        x = torch.where(torch.rand(n, generator=generator) < 0.5, x * torch.exp2(exponents), x)
        picked = special(dtype)[torch.randint(len(special(dtype)), (n,), generator=generator)]
        x = torch.where(torch.rand(n, generator=generator) < odd, picked, x.to(dtype))
    x = x.to(dtype)
    return x.abs() if positive else x


def placed(data, draw, misaligned):
    """A copy within a larger tensor, at an address that is aligned to 16 bytes or misaligned."""
    size = data.element_size()
    room = torch.zeros(data.numel() + 64 // size, dtype=data.dtype)
    first = (-room.data_ptr() // size) % (16 // size)
    if misaligned:
        first += draw.randrange(1, 16 // size)
    return room[first : first + data.numel()].copy_(data)
