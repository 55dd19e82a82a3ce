#!/usr/bin/env bash
# Makes a base image out of Debian's packages alone, for machines that reach no image registry. Needs root and debootstrap.
set -euo pipefail

image=${1:-local/python-base:bookworm}
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

debootstrap --variant=minbase --include=python3,python3-pip,python3-venv,ca-certificates bookworm "$root" >"$root.log" 2>&1 ||
    { tail -n 20 "$root.log" >&2; exit 1; }
rm -f "$root.log"
tar -C "$root" -c . | docker import - "$image"
