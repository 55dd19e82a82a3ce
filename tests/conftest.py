"""Settings that must stand before anything is imported."""

import os

import torch

if not torch.cuda.is_available():
    # Kernels run in Triton's interpreter. It reads this when it is first imported, by whomever.
    os.environ.setdefault("TRITON_INTERPRET", "1")
