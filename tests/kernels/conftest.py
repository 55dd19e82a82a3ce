"""What tests of kernels share."""

from typing import Any

import numpy as np
import pytest


@pytest.fixture
def exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """For comparing bits. Triton's interpreter leaves a tile's product to a library whose sums depend on a
    tile's width and on where in it a column stands, as those of tensor cores do not: here they are taken in
    float64, and rounded.
    """

    interpreter: Any = pytest.importorskip("triton.runtime.interpreter")

    def dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
        product = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64)) + d.data
        return interpreter.TensorHandle(product.astype(d.data.dtype), d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
