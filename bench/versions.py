"""What every row of a report carries: the machine, the libraries, the commit."""

import os
import subprocess

import torch


def versions() -> dict[str, str]:
    """COMMIT in the environment names the commit where the sources have come without their history."""
    found = {"gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none"}
    found |= {"torch": torch.__version__, "commit": os.environ.get("COMMIT") or _head()}
    if torch.cuda.is_available():
        import triton

        found["triton"] = triton.__version__
    return found


def _head() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown commit"
