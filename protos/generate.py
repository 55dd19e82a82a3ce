"""Generates the Python stubs from the .proto files: `python protos/generate.py [OUT_DIR]`.

grpcio-tools is pinned in pyproject.toml: stubs carry the version that made them and refuse older runtimes.
"""

import sys
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent


def generate(out_dir: Path) -> None:
    """Writes `*_pb2.py`, `*_pb2.pyi` and `*_pb2_grpc.py` under `out_dir/lorikeet/v1`."""
    well_known = resources.files("grpc_tools") / "_proto"
    sources = sorted(str(path) for path in ROOT.glob("lorikeet/v1/*.proto"))
    args = [f"-I{ROOT}", f"-I{well_known}"]
    args += [f"--{kind}={out_dir}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    if protoc.main(["protoc", *args, *sources]) != 0:
        raise SystemExit("protoc failed")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
