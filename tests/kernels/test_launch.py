"""Which launches share compiled code."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import triton

from kernels.launch import Quick, Variant
from tests.support.waiting import WAIT_SECONDS


class Parameter:
    def __init__(self, name: str, *, is_constexpr: bool = False, do_not_specialize: bool = False) -> None:
        self.name = name
        self.is_constexpr = is_constexpr
        self.do_not_specialize = do_not_specialize


class Kernel:
    """Stands for Triton's: counts how often it is asked, and remembers what its compiled code is run with."""

    __name__ = "kernel"
    function = 1
    packed_metadata = (4, 1, 0)

    def __init__(self, *params: Parameter) -> None:
        self.params = params
        self.compiled = 0
        self.launches: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **named: Any) -> "Kernel":
            self.compiled += 1
            return self

        return launch

    def run(self, x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
        self.launches.append(((x, y, z), rest[4:]))


class Driver:
    @staticmethod
    def get_current_device() -> int:
        return 0

    @staticmethod
    def get_current_stream(device: int) -> int:
        return 7


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(triton.runtime.driver), "active", Driver())


def make() -> tuple[Kernel, Quick]:
    kernel = Kernel(
        Parameter("x_ptr"),
        Parameter("count"),
        Parameter("tiles", do_not_specialize=True),
        Parameter("scale"),
        Parameter("SIZE", is_constexpr=True),
        Parameter("FLAG", is_constexpr=True),
    )
    return kernel, Quick(kernel)  # pyright: ignore[reportArgumentType]


def test_the_same_code_again() -> None:
    kernel, quick = make()
    x = torch.zeros(64)
    for count, tiles, scale in ((32, 5, 0.5), (48, 1, 1.0), (16, 16, 2.0)):
        quick[(count,)](x[:4], count, tiles, scale, SIZE=8, num_warps=4, FLAG=True)
    assert kernel.compiled == 1
    grids = [grid for grid, _ in kernel.launches]
    assert grids == [(48, 1, 1), (16, 1, 1)]
    assert kernel.launches[0][1] == (x.data_ptr(), 48, 1, 1.0, 8, True)


def test_other_code() -> None:
    kernel, quick = make()
    x = torch.zeros(64)
    named = {"SIZE": 8, "num_warps": 4, "FLAG": True}
    quick[(1,)](x, 32, 5, 0.5, **named)
    for different in (
        (x[1:], 32, 5, 0.5),  # not aligned
        (x.int(), 32, 5, 0.5),
        (x, 33, 5, 0.5),
        (x, 32.0, 5, 0.5),
        (x, 1, 5, 0.5),
        (x, 1 << 40, 5, 0.5),
        (x, 32, 1 << 40, 0.5),
    ):
        before = kernel.compiled
        quick[(1,)](*different, **named)
        assert kernel.compiled == before + 1, different
    for option in ({"SIZE": 16}, {"num_warps": 8}, {"FLAG": False}):
        before = kernel.compiled
        quick[(1,)](x, 32, 5, 0.5, **named | option)
        assert kernel.compiled == before + 1, option
    assert kernel.launches == []


def test_no_launch_while_another_thread_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, quick = make()
    x, named = torch.zeros(64), {"SIZE": 8, "FLAG": True}
    loading, loaded, events = threading.Event(), threading.Event(), []

    def prepare(variant: Variant) -> Kernel:
        loading.set()
        assert loaded.wait(WAIT_SECONDS)
        events.append("loaded")
        return kernel

    monkeypatch.setattr(quick, "prepare", prepare)
    variant = Variant("module", "kernel", (x.dtype,), (True,), (32, 5, 0.5), tuple(named.items()))
    loader = threading.Thread(target=quick.load, args=(variant,))
    loader.start()
    assert loading.wait(WAIT_SECONDS)
    threading.Timer(0.05, loaded.set).start()
    quick[(1,)](x, 32, 5, 0.5, **named)
    events.append("launched")
    loader.join()
    assert events == ["loaded", "launched"]


@pytest.mark.parametrize(
    "params",
    [
        (Parameter("SIZE", is_constexpr=True), Parameter("x_ptr")),
        (Parameter("x_ptr"), Parameter("count"), Parameter("y_ptr")),
    ],
)
def test_tensors_come_first_and_constants_last(params: tuple[Parameter, ...]) -> None:
    with pytest.raises(ValueError, match="tensors must come first and constants last"):
        Quick(Kernel(*params))  # pyright: ignore[reportArgumentType]


def run_without_the_interpreter(module: str, cache: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", module],
        env=environment | {"TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_every_kernel_of_a_step_is_launched_as_it_wants(tmp_path: Path) -> None:
    missing = run_without_the_interpreter("tests.support.kernel_launches", tmp_path)
    assert missing.split() == [], "kernels that no step had"


def test_a_rehearsal_foresees_what_traffic_launches(tmp_path: Path) -> None:
    missed = run_without_the_interpreter("tests.support.rehearsed_traffic", tmp_path)
    assert missed.splitlines() == []
