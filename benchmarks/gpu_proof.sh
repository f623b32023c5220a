#!/usr/bin/env bash
# What the GPU code does on a GPU, in three stages of at most nine minutes each, unattended:
#
#     benchmarks/gpu_proof.sh A    correctness and a baseline
#     benchmarks/gpu_proof.sh B    tuning: commit the lines that it prints to kernels/hyena_kernels/tuned.py
#     benchmarks/gpu_proof.sh C    claims: speed beside bounds and peers
#     python benchmarks/gpu_report.py out/gpu    makes docs/benchmarks/gpu.md of all three
#
# It needs torch, Triton, NumPy and pytest. Every line of a stage has its own time limit; a line that fails or is cut off
# stops no other. Results go to $OUT (default out/gpu) as STAGE.jsonl the moment they exist, what the lines print to
# STAGE.log. With --dry-run the same scripts run at toy size on the CPU, which proves the scripts and nothing else.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dry=
[ "${1:-}" = --dry-run ] && { dry=1; shift; }
stage=${1:-}
case $stage in A | B | C) ;; *) sed -n '2,12s/^# \{0,1\}//p' benchmarks/gpu_proof.sh >&2; exit 2 ;; esac

OUT=${OUT:-out/gpu}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
json=$OUT/$stage.jsonl log=$OUT/$stage.log
: >"$json" >"$log"
export PYTHONPATH=$PWD:$PWD/kernels:$PWD/model${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
limit_of_stage=535
SECONDS=0

# line NAME LIMIT COMMAND...: run it for at most LIMIT seconds of those that the stage has left, and write how it ended
line() {
    local name=$1 limit=$2 left=$((limit_of_stage - SECONDS)) begun=$SECONDS status
    shift 2
    [ "$limit" -gt "$left" ] && limit=$left
    echo "== $name (at most $limit s)" | tee -a "$log"
    if [ "$limit" -lt 5 ]; then
        status=skipped
    else
        GPU_PROOF_LINE=$name timeout --kill-after=5 "$limit" "$@" >>"$log" 2>&1
        status=$?
    fi
    case $status in 0) status=passed ;; 124 | 137) status="cut off" ;; skipped) ;; *) status="failed ($status)" ;; esac
    printf '{"kind": "line", "line": "%s", "status": "%s", "seconds": %d, "limit": %d}\n' \
        "$name" "$status" $((SECONDS - begun)) "$limit" >>"$json"
    echo "   $status after $((SECONDS - begun)) s"
}

# script FILE ARGUMENTS...: the rest of a line that runs one of the scripts beside this one
script() { local file=$1; shift; echo "$python benchmarks/$file --json $json $*"; }

kernel_tests="tests/kernels/test_triton_fir.py tests/kernels/test_triton_modal.py tests/kernels/test_triton_swr.py"
interpreted="env TRITON_INTERPRET=1 HYENA_KERNELS_BACKEND=triton"

# shellcheck disable=SC2046  # commands are split into words on purpose
stage_A() {
    line facts 60 $(script gpu_facts.py)
    line "kernel table" 150 $(script kernels.py --device cuda --lengths 2048 8192 131072)
    line offsets 90 $(script gpu_offsets.py)
    line sanitizer 100 $(script gpu_cores.py --under sanitizer --length 300 --width 256)
    line tests 250 $(script gpu_tests.py --seconds 240 $kernel_tests tests/inference/test_decoding.py)
}

# shellcheck disable=SC2046
stage_B() {
    line tune 525 $python -m hyena_kernels.tune --dtype bfloat16 --budget 490 --json "$json"
}

# shellcheck disable=SC2046
stage_C() {
    line facts 40 $(script gpu_facts.py)
    line decode 80 $(script gpu_model.py decode)
    line layers 80 $(script layers.py --device cuda --lengths 2048 4096 8192 32768 131072 1048576)
    line "kernel table" 90 $(script kernels.py --device cuda --lengths 8192 131072 1048576)
    line prefill 70 $(script gpu_model.py prefill --lengths 8192 131072)
    line training 45 $(script gpu_model.py training)
    line counters 60 $(script gpu_cores.py --under ncu)
    line "prefill of 1 M" 180 $(script gpu_model.py prefill --lengths 1048576)
}

# shellcheck disable=SC2046
dry_A() {
    line facts 60 $(script gpu_facts.py --device cpu)
    line "kernel table" 60 $(script kernels.py --lengths 32 64 --width 64 --group 16 --repeats 1)
    line offsets 60 $(script gpu_offsets.py --device cpu --width 32 --length 1600)
    line sanitizer 60 $(script gpu_cores.py --under sanitizer --device cpu)
    line cores 90 $interpreted $(script gpu_cores.py --device cpu --length 3 --width 16)
    line tests 90 env TRITON_INTERPRET=1 $(script gpu_tests.py tests/kernels/test_triton_swr.py --select registered)
}

dry_B() {
    line compile 60 $python -m hyena_kernels.tune --compile-only 90 short_forward --budget 30 --processes 1 --json "$json"
    line tune 60 env TRITON_INTERPRET=1 $python -m hyena_kernels.tune --length 32 --width 32 --groups 2 --budget 4 \
        --json "$json" short_forward swr_forward
}

# shellcheck disable=SC2046
dry_C() {
    line facts 60 $(script gpu_facts.py --device cpu)
    line decode 60 $(script gpu_model.py decode --device cpu --preset prok-mini --tokens 2 --batch-sizes 1 2)
    line layers 60 $(script layers.py --lengths 32 --width 64 --repeats 1)
    line "kernel table" 60 $(script kernels.py --lengths 64 --width 64 --group 16 --repeats 1)
    line prefill 60 $(script gpu_model.py prefill --device cpu --preset prok-mini --lengths 32 64)
    line training 60 $(script gpu_model.py training --device cpu --preset prok-mini --length 32)
    line counters 60 $(script gpu_cores.py --under ncu --device cpu)
}

if [ -n "$dry" ]; then "dry_$stage"; else "stage_$stage"; fi
$python benchmarks/gpu_report.py --summary "$json" | tee -a "$log"
