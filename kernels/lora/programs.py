"""What programs of one launch do for one another: some compute what others wait for.

Programs that wait have higher numbers than those that they wait for, which wait for nobody: a GPU starts
programs in their order.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# A checker does not know what becomes of Python in a kernel.

import triton
import triton.language as tl


@triton.jit
def arrive(arrived_ptr):
    tl.debug_barrier()
    tl.atomic_add(arrived_ptr, 1, sem="release")


@triton.jit
def wait_for(arrived_ptr, expected, PDL: tl.constexpr):
    """Every thread looks by itself, seldom, and acquires once: that empties a processor's first cache."""
    if PDL:
        arrived = _look(arrived_ptr, "ld.relaxed.gpu.global.u32 $0, [$1];")
        while arrived < expected:
            arrived = _look(arrived_ptr, "nanosleep.u32 100; ld.relaxed.gpu.global.u32 $0, [$1];")
        arrived = _look(arrived_ptr, "ld.acquire.gpu.global.u32 $0, [$1];")
    else:
        arrived = tl.atomic_add(arrived_ptr, 0, sem="acquire")
        while arrived < expected:
            arrived = tl.atomic_add(arrived_ptr, 0, sem="acquire")


@triton.jit
def _look(arrived_ptr, INSTRUCTIONS: tl.constexpr):
    address = arrived_ptr.to(tl.int64)
    return tl.inline_asm_elementwise(INSTRUCTIONS, "=r,l", [address], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def distance(to_ptr, from_ptr, GRAIN: tl.constexpr):
    """In GRAIN elements, so that one address serves two tensors; both are aligned to 16 bytes at least."""
    size: tl.constexpr = from_ptr.dtype.element_ty.primitive_bitwidth // 8
    return (to_ptr.to(tl.int64) - from_ptr.to(tl.int64)) // (size * GRAIN)


@triton.jit
def slice_of(block, stop_0, stop_1, stop_2, SPAN: tl.constexpr, SLICES: tl.constexpr):
    """Of a block of SPAN columns, which no two slices share: its number in its slice, that, its columns."""
    index, start, stop = 0, 0, stop_0
    if SLICES > 1:
        blocks = tl.cdiv(stop_0, SPAN)
        if block >= blocks:
            index, start, stop = 1, stop_0, stop_1
            block -= blocks
            if SLICES > 2:
                blocks = tl.cdiv(stop_1 - stop_0, SPAN)
                if block >= blocks:
                    index, start, stop = 2, stop_1, stop_2
                    block -= blocks
    return block, index, start, stop
