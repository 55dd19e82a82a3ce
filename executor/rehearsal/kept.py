"""Where Triton keeps what it compiles."""

import atexit
import logging
import os
import shutil
import tempfile
from pathlib import Path

from triton import knobs

log = logging.getLogger(__name__)


def keep_what_is_compiled() -> None:
    """Finds a folder for it where Triton's own cannot be written to, which would fail each kernel's launch.

    For this process and those that it starts; such a folder goes with the process.

    Raises OSError when nothing can be written anywhere.
    """
    folder = Path(knobs.cache.dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        substitute = tempfile.mkdtemp(prefix="lorikeet-kernels-")
        log.warning(
            "kernels are compiled anew at each start: %s cannot be written to (%s); name another folder with "
            "TRITON_CACHE_DIR",
            folder,
            error.strerror,
        )
    atexit.register(shutil.rmtree, substitute, ignore_errors=True)
    os.environ["TRITON_CACHE_DIR"] = substitute
