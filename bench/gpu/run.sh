#!/usr/bin/env bash
# Measures the mesh on a bare CUDA machine without a network: bash bench/gpu/run.sh [--device cpu --small]
# Installs the wheels of `make gpu-wheels` beside what the machine's Python has, and writes each part's result to
# out/gpu/ as soon as it is known, the most important first. A part that fails does not stop the next one.
set -uo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-python3}"
wheels="${WHEELS:-build/gpu-wheels}"
device=cuda small=""
while [ $# -gt 0 ]; do
  case "$1" in
    --device) device="$2"; shift 2 ;;
    --small) small="--small"; shift ;;
    *) echo "usage: $0 [--device cuda|cpu] [--small]" >&2; exit 2 ;;
  esac
done
mkdir -p out/gpu
site="$(mktemp -d)"
trap 'rm -rf "$site"' EXIT
"$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl || exit 1
export PYTHONPATH="$site:.:protos/python" PYTHONUNBUFFERED=1

failed=0
part() { # name, seconds, command
  local name="$1" limit="$2" began=$SECONDS state=ok
  shift 2
  timeout "$limit" "$@" >"out/gpu/$name.log" 2>&1 || { state=failed failed=1; tail -5 "out/gpu/$name.log"; }
  echo "{\"part\": \"$name\", \"state\": \"$state\", \"seconds\": $((SECONDS - began))}" | tee -a out/gpu/parts.jsonl
}

rm -f out/gpu/parts.jsonl
part attention 120 "$python" -m tests.lm.attention_cases "$device"
part parts 300 "$python" -m bench.gpu.parts --device "$device" $small --out out/gpu
exit "$failed"
