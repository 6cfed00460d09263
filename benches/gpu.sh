#!/usr/bin/env bash
# Everything worth running on a GPU, in one call of at most ten minutes, from programs built elsewhere: where the
# GPU is, neither Rust nor nvcc nor a network is needed.
#
#   benches/gpu.sh pack DIR       where Rust and nvcc are: builds for x86-64 Linux and puts the programs into DIR
#   benches/gpu.sh run DIR OUT    where the GPU is: runs them; each step's output in OUT/STEP.txt, OUT/summary.md
#
# `run` has to be started from a checkout of the same commit: tests read tests/fixtures, models and cuda there.
# Tests know these folders by the path of the checkout that they were built in; where that does not exist,
# `run` makes it a link to this checkout, and takes it away again.
#
# DEVICE (0) is the GPU's number, ONLY a pattern of steps' names (ONLY='bench*'), SECONDS_IN_ALL (570) the time
# after which no further step begins. CPU_TARGET (x86-64-v2) is what the host's code is compiled for; kernels of the
# CPU backend choose their instructions at run time. Exit code 1 if a step failed; other steps run all the same.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly MOST_BYTES=$((60 << 20))

usage() {
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

# The test and bench programs that cargo has built: a line of target kind, name and path each.
programs() {
    python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line) if line.startswith("{") else {}
    if message.get("reason") == "compiler-artifact" and message.get("executable"):
        print(message["target"]["kind"][0], message["target"]["name"], message["executable"])
'
}

pack() {
    local folder=$1 built kind name path bytes
    mkdir -p "$folder"
    export KERNELS=require RUSTFLAGS="${RUSTFLAGS:-} -C target-cpu=${CPU_TARGET:-x86-64-v2}"
    local features=(--features emulated-kernels)
    built=$(
        cargo build --release --bin eesd-run --message-format=json | programs
        cargo test --release --no-run --message-format=json "${features[@]}" \
            --lib --test emulator --test kernels --test cuda | programs
        cargo bench --no-run --message-format=json "${features[@]}" --bench gpu | programs
    )
    # The program itself is the one without emulated kernels: that which users have. It comes first.
    rm -f "$folder"/{eesd-run,lib-test,emulator-test,kernels-test,cuda-test,gpu-bench}
    while read -r kind name path; do
        case $kind:$name in
        bin:eesd-run) name=eesd-run ;;
        lib:*) name=lib-test ;;
        test:*) name=$name-test ;;
        bench:*) name=$name-bench ;;
        *) continue ;;
        esac
        [ -e "$folder/$name" ] || strip -o "$folder/$name" "$path"
    done <<<"$built"
    pwd >"$folder/built-in"
    git rev-parse HEAD >"$folder/commit" 2>/dev/null || echo unknown >"$folder/commit"
    for name in eesd-run lib-test emulator-test kernels-test cuda-test gpu-bench; do
        [ -x "$folder/$name" ] || { echo "not built: $name" >&2; exit 1; }
    done
    bytes=$(du -sb "$folder" | cut -f1)
    echo "$folder: $((bytes >> 20)) MiB"
    if [ "$bytes" -ge "$MOST_BYTES" ]; then
        echo "more than $((MOST_BYTES >> 20)) MiB" >&2
        exit 1
    fi
}

# step NAME SECONDS COMMAND...: runs one step; its output goes to OUT/NAME.txt.
step() {
    local name=$1 most=$2 start=$SECONDS verdict code=0
    shift 2
    # shellcheck disable=SC2254 # ONLY is a pattern.
    case $name in ${ONLY:-*}) ;; *) return 0 ;; esac
    local left=$((ALL - SECONDS))
    if [ "$left" -lt 5 ]; then
        verdict='FAIL (no time left)'
    elif ! command -v "$1" >/dev/null; then
        verdict=absent
    else
        [ "$most" -le "$left" ] || most=$left
        timeout --kill-after=10 "$most" "$@" >"$OUT/$name.txt" 2>&1 </dev/null || code=$?
        case $code in
        0) verdict=pass ;;
        124 | 137) verdict="FAIL (more than $most s)" ;;
        *) verdict="FAIL (exit code $code)" ;;
        esac
    fi
    case $verdict in FAIL*) failed=1 ;; esac
    echo "| $name | $verdict | $((SECONDS - start)) |" | tee -a "$OUT/summary.md"
}

run() {
    local folder device=cuda:${DEVICE:-0} link='' built_in tool
    folder=$(realpath "$1")
    mkdir -p "$2"
    OUT=$(realpath "$2")
    ALL=${SECONDS_IN_ALL:-570}
    failed=0
    chmod +x "$folder"/{eesd-run,*-test,*-bench}
    built_in=$(cat "$folder/built-in")
    if [ ! -e "$built_in" ]; then
        mkdir -p "$(dirname "$built_in")"
        ln -s "$PWD" "$built_in"
        link=$built_in
    fi
    printf '| step | verdict | seconds |\n|---|---|--:|\n' | tee "$OUT/summary.md"

    step gpu 20 nvidia-smi --query-gpu=name,driver_version,memory.total,memory.used,clocks.max.sm,clocks.max.mem,power.limit,ecc.mode.current,mig.mode.current --format=csv
    step doctor 60 "$folder/eesd-run" doctor
    # What opens a GPU; the rest of the library's tests have no use for one.
    step lib 60 "$folder/lib-test" gpu::
    step generate 60 "$folder/eesd-run" generate --device "$device" -p 'def main():' -n 64
    # Two programs on one GPU at a time are enough, and each test allocates its own memory.
    step cuda 150 env EESD_TEST_DEVICE="$device" "$folder/cuda-test" --test-threads 2
    step kernels 90 env EESD_TEST_DEVICE="$device" "$folder/kernels-test" --test-threads 2 gpu
    step verify 60 "$folder/eesd-run" verify --device "$device"
    # 100,000 tokens: every controller against plain decoding, greedily and sampled, 64 prompts of 256 tokens.
    step ids 100 "$folder/eesd-run" verify --device "$device" --quiet --prompts 64 -n 256 --controllers off,fixed:2,fixed:8,goodput-ts --samples 200

    # Cheap ones first: what is measured matters more than the last check of a tool that slows kernels a hundredfold.
    step bench-gpu 240 "$folder/gpu-bench" --device "${DEVICE:-0}"
    step bench-model 45 "$folder/eesd-run" bench --device "$device"
    for tool in memcheck racecheck initcheck synccheck; do
        step "$tool" 45 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            env EESD_TEST_DEVICE="$device" "$folder/cuda-test" --test-threads 1 "${SANITIZED:-bundled_model}"
    done

    [ -z "$link" ] || rm -f "$link"
    return "$failed"
}

case ${1:-} in
pack) [ $# -eq 2 ] || usage; pack "$2" ;;
run) [ $# -eq 3 ] || usage; run "$2" "$3" ;;
*) usage ;;
esac
