"""A small kernel around a few lines of PTX, for tests of the interpreter."""

import struct

import numpy as np

from .launch import run
from .memory import Memory
from .program import programs

HEAD = """.version 8.0
.target sm_90
.address_size 64
.extern .shared .align 16 .b8 smem[];
.visible .entry k(.param .u64 k_0, .param .u64 k_1)
.maxntid 128, 1, 1
{
.reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<20>; .reg .f32 %f<20>; .reg .b64 %rd<20>;
ld.param.u64 %rd1, [k_0];
ld.param.u64 %rd2, [k_1];
mov.u32 %r1, %tid.x;
mov.u32 %r2, %ctaid.x;
mul.wide.u32 %rd3, %r1, 4;
mul.wide.u32 %rd4, %r2, 512;
add.s64 %rd5, %rd3, %rd4;
add.s64 %rd6, %rd1, %rd5;  // address of the thread's number in a
add.s64 %rd7, %rd2, %rd5;  // and in b
"""


A, B = 0x7FFF_1234_0000, 0x1_0000_0000


def kernel(body):
    return programs(HEAD + body + "\nret;\n}\n")["k"]


def launch(body, *, grid=1, threads=128, writable=(True, True), shared_bytes=1024, **options):
    """Run a kernel on arrays a and b that hold their own indices; returns b."""
    memory = Memory()
    numbers = np.arange(128 * grid, dtype=np.uint32)
    memory.allocate("a", A, numbers, writable[0])
    b = memory.allocate("b", B, numbers, writable[1])
    options |= {"threads": threads, "shared_bytes": shared_bytes}
    run(kernel(body), grid, struct.pack("QQ", A, B), memory, **options)
    return memory.read(b, np.uint32)
