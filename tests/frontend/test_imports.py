import subprocess
import sys

FORBIDDEN = {"torch", "transformers", "triton", "numpy", "executor", "adapter_store"}


def test_a_frontend_loads_neither_torch_nor_another_service():
    program = "import sys, frontend.__main__; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stdout.split())
    assert "frontend.app" in loaded
    assert not loaded & FORBIDDEN
