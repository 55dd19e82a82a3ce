import random

import pytest

from adapter_store.tiers.allocator import RangeAllocator


def test_first_fit_and_coalescing():
    allocator = RangeAllocator(0, 1280)
    first, second, third = (allocator.allocate(size) for size in (100, 256, 200))
    assert (first, second, third) == (0, 128, 384)
    allocator.free(128)
    assert list(allocator.holes()) == [(128, 384), (640, 1280)]
    assert allocator.allocate(257) == 640
    assert allocator.allocate(256) == 128
    allocator.free(128)
    allocator.free(0)
    allocator.free(384)
    assert list(allocator.holes()) == [(0, 640), (1024, 1280)]
    allocator.check_integrity()


def test_a_full_range_answers_none():
    allocator = RangeAllocator(0, 256)
    assert allocator.allocate(257) is None
    assert allocator.allocate(256) == 0
    assert allocator.allocate(1) is None
    allocator.free(0)
    assert allocator.used_bytes == 0
    assert list(allocator.holes()) == [(0, 256)]


def test_bounds_are_aligned_inwards():
    allocator = RangeAllocator(100, 700)
    assert (allocator.allocate(512), allocator.capacity) == (128, 512)
    with pytest.raises(ValueError):
        RangeAllocator(1, 255)


def test_freeing_twice_is_an_error():
    allocator = RangeAllocator(0, 256)
    allocator.allocate(128)
    allocator.free(0)
    with pytest.raises(KeyError):
        allocator.free(0)


def test_reserving_takes_exactly_what_is_free():
    allocator = RangeAllocator(0, 1024)
    assert allocator.reserve(256, 256)
    assert not allocator.reserve(384, 128)
    assert not allocator.reserve(128, 256)
    assert not allocator.reserve(64, 64)
    assert not allocator.reserve(896, 256)
    assert not allocator.reserve(2048, 128)
    assert allocator.reserve(128, 128)
    assert allocator.reserve(0, 1)
    assert allocator.reserve(512, 512)
    assert list(allocator.holes()) == []
    allocator.check_integrity()


@pytest.mark.parametrize("seed", range(5))
def test_random_traffic_keeps_its_books(seed):
    generator = random.Random(seed)
    allocator = RangeAllocator(640, 640 + 64 * 128)
    live: dict[int, int] = {}
    refused = 0
    for _ in range(3_000):
        if live and generator.random() < 0.45:
            start = generator.choice(list(live))
            allocator.free(start)
            del live[start]
        elif generator.random() < 0.2:
            start, size = 640 + 128 * generator.randrange(64), 128 * generator.randint(1, 8)
            clear = start + size <= 640 + 64 * 128 and all(
                start + size <= other or other + taken <= start for other, taken in live.items()
            )
            assert allocator.reserve(start, size) == clear
            if clear:
                live[start] = size
        else:
            size = generator.randint(1, 1500)
            largest = max((end - start for start, end in allocator.holes()), default=0)
            start = allocator.allocate(size)
            assert (start is None) == (largest < allocator.rounded(size))
            refused += start is None
            if start is not None:
                live[start] = allocator.rounded(size)
        allocator.check_integrity()
        assert allocator.used_bytes == sum(live.values())
    assert refused > 10
