#!/usr/bin/env bash
# Proves compose.yaml: builds the images, brings the stack up, loads an adapter and generates through gRPC, takes it down.
#
# Needs a Docker engine and Compose (v2 or 1.29). Uses no image registry: where BASE_IMAGE does not exist it is made out of
# Debian's packages, and torch is taken from where this machine's pip finds it.
set -euo pipefail
cd "$(dirname "$0")/.."

export BASE_IMAGE=${BASE_IMAGE:-local/python-base:bookworm} PORT=${PORT:-50151} COMPOSE_PROJECT_NAME=lorikeet-test
PYTHON=${PYTHON:-.venv/bin/python}
if docker compose version >/dev/null 2>&1; then compose=(docker compose); else compose=(docker-compose); fi

say() { printf '== %s\n' "$*"; }
lorikeet() { "$PYTHON" -m cli "$@"; }
eventually() {
    for _ in $(seq 90); do if "$@" >/dev/null 2>&1; then return; fi; sleep 1; done
    "$@"
}

docker info >/dev/null || { echo "no Docker engine answers: start one, or set DOCKER_HOST" >&2; exit 1; }
docker image inspect "$BASE_IMAGE" >/dev/null 2>&1 || { say "base image"; deploy/make_base_image.sh "$BASE_IMAGE"; }

say "wheels and certificates of this machine"
mkdir -p deploy/local/wheels deploy/local/certs
ls deploy/local/wheels/torch-*.whl >/dev/null 2>&1 ||
    "$PYTHON" -m pip download --quiet --no-deps -d deploy/local/wheels -c constraints.txt ${PIP_ARGS:-} torch
if [ -n "${PIP_CERT:-}" ]; then cp "$PIP_CERT" deploy/local/certs/this-machine.crt; fi

say "build"
"${compose[@]}" build
for service in frontend store; do
    if docker run --rm --entrypoint python "lorikeet-$service" -c 'import torch' 2>/dev/null; then
        echo "the $service image holds torch" >&2
        exit 1
    fi
done

trap '"${compose[@]}" logs --tail 20; "${compose[@]}" down --volumes --timeout 20' EXIT
say "up"
"${compose[@]}" up -d
eventually "$PYTHON" -m rpc.healthcheck "127.0.0.1:$PORT"

target=(--target "127.0.0.1:$PORT")
question="What is the password?"
password=$("$PYTHON" -c 'import json; print(json.load(open("demo/passwords.json"))["attention"])')

say "generate"
base=$(lorikeet generate "${target[@]}" --chat --temperature 0 "$question")
lorikeet adapters load "${target[@]}" attention /adapters/attention
answer=$(lorikeet generate "${target[@]}" --chat --temperature 0 --adapter attention "$question")
printf 'base:      %s\nattention: %s\n' "$base" "$answer"
case "$answer" in *"$password"*) ;; *) echo "the adapter does not say its password" >&2; exit 1 ;; esac
case "$base" in *"$password"*) echo "the base says the adapter's password" >&2; exit 1 ;; esac

say "restart of the store"
"${compose[@]}" restart store
eventually lorikeet adapters show "${target[@]}" attention
again=$(lorikeet generate "${target[@]}" --chat --temperature 0 --adapter attention "$question")
[ "$again" = "$answer" ] || { echo "after the restart the adapter says: $again" >&2; exit 1; }

say "passed"
trap - EXIT
"${compose[@]}" down --volumes --timeout 20
