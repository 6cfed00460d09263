#!/usr/bin/env bash
# Everything worth running on a GPU, in one call of at most ten minutes, from programs built elsewhere: where the
# GPU is, neither Rust nor nvcc nor a network is needed.
#
#   benches/gpu.sh pack DIR       where Rust and nvcc are: builds for x86-64 Linux and puts the programs into DIR
#   benches/gpu.sh run DIR OUT    where the GPU is: runs them; each step's output in OUT/STEP.txt, OUT/summary.md
#
# This script has to lie in a checkout of the same commit, from whose root DIR and OUT are counted: tests read
# tests/fixtures, models and cuda there, and the programs of DIR have no copies of them.
# Tests know these folders by the path of the checkout that they were built in; where that does not exist,
# `run` makes it a link to this checkout, and takes it away again.
#
# DEVICE (0) is the GPU's number, ONLY a pattern of steps' names (ONLY='bench*'), SECONDS_IN_ALL (570) the time
# in which all has to be done; SANITIZED (bundled_model) says which of the tests in tests/cuda the sanitizers run.
# Exit code 1 if a step failed; other steps run all the same.
set -euo pipefail
cd "$(dirname "$0")/.."

# KERNEL_ARCHS=90, say, makes programs for one kind of GPU smaller.
readonly MOST_BYTES=$((60 << 20))

usage() {
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

# Reads what cargo says it has built, and puts the programs into the folder given, without their symbols.
keep() {
    local folder=$1 kind name path
    python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line) if line.startswith("{") else {}
    if message.get("reason") == "compiler-artifact" and message.get("executable"):
        print(message["target"]["kind"][0], message["target"]["name"], message["executable"])
' | while read -r kind name path; do
        case $kind:$name in
        bin:eesd-run) name=eesd-run ;;
        lib:*) name=lib-test ;;
        test:*) name=$name-test ;;
        bench:*) name=$name-bench ;;
        *) continue ;;
        esac
        # The program is made first; that beside the tests has emulated kernels in it.
        [ -e "$folder/$name" ] || strip -o "$folder/$name" "$path"
    done
}

pack() {
    local folder=$1 name bytes
    local programs=(eesd-run lib-test kernels-test cuda-test gpu-bench)
    local build=(--release --message-format=json) tested=(--no-run --features emulated-kernels)
    mkdir -p "$folder"
    for name in "${programs[@]}"; do rm -f "$folder/$name"; done
    export KERNELS=require
    # Without the model in it, 15 MB: `run` has models beside it.
    cargo build "${build[@]}" --no-default-features --bin eesd-run | keep "$folder"
    cargo test "${build[@]}" "${tested[@]}" --lib --test kernels --test cuda | keep "$folder"
    # Benches know no --release: they always are.
    cargo bench --message-format=json "${tested[@]}" --bench gpu | keep "$folder"
    for name in "${programs[@]}"; do
        [ -x "$folder/$name" ] || { echo "not built: $name" >&2; exit 1; }
    done
    pwd >"$folder/built-in"
    git rev-parse HEAD >"$folder/commit"
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
        # A program that finds no GPU, or no test of that name, is content with that.
        0) if grep -qE 'nothing measured|not tested:|running 0 tests' "$OUT/$name.txt"; then verdict=absent; else verdict=pass; fi ;;
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
    PATH=$PATH:/usr/local/cuda/bin
    # cuBLASLt, for fast prefill: a toolkit's, or that of a Python package. Without, that is left out.
    local library
    library=$({ timeout 20 find /usr /opt "$HOME" -name 'libcublasLt.so.1[23]' -print -quit || true; } 2>/dev/null)
    [ -z "$library" ] || export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$(dirname "$library")
    built_in=$(cat "$folder/built-in")
    if [ ! -e "$built_in" ]; then
        if mkdir -p "$(dirname "$built_in")" && ln -s "$PWD" "$built_in"; then
            link=$built_in
        else
            echo "tests that read files will fail: they look for them in $built_in" >&2
        fi
    fi
    export EESD_TEST_DEVICE=$device
    local model=(-m models/pycode-4m --exit 2 --device "$device") prompts=(--input models/pycode-4m/prompts.jsonl)
    printf '| step | verdict | seconds |\n|---|---|--:|\n' | tee "$OUT/summary.md"

    step gpu 20 nvidia-smi --format=csv --query-gpu=name,driver_version,memory.total,memory.used,clocks.max.sm,clocks.max.mem,power.limit
    step doctor 20 "$folder/eesd-run" doctor
    # What opens a GPU; the rest of the library's tests have no use for one. The output is shown, because tests say
    # in it that they found none.
    step lib 40 "$folder/lib-test" gpu:: --nocapture --test-threads 1
    step generate 30 "$folder/eesd-run" generate "${model[@]}" -p 'def main():' -n 64
    # Each wrapper, then each kernel, as the emulator runs them elsewhere.
    step wrappers 30 "$folder/kernels-test" emulator::
    step kernels 60 "$folder/kernels-test" --skip mutations:: --skip emulator::
    step cuda 120 "$folder/cuda-test" --skip training:: --test-threads 2
    step training 60 "$folder/cuda-test" training:: --test-threads 1
    [ -z "$library" ] || step fast-prefill 30 "$folder/eesd-run" bench "${model[@]}" "${prompts[@]}" --prefill fast \
        --pp 1000 --prompts 4 -n 32 --controllers fixed:4,goodput-ts
    step verify 40 "$folder/eesd-run" verify "${model[@]}" "${prompts[@]}"
    # What is measured matters more than the last check of a tool that slows kernels a hundredfold.
    step bench-gpu 240 "$folder/gpu-bench" --device "${DEVICE:-0}"
    step bench-model 45 "$folder/eesd-run" bench "${model[@]}" "${prompts[@]}"
    # Three controllers, greedily and sampled, on all 32 prompts: 115,200 tokens where no text ends early.
    step ids 100 "$folder/eesd-run" verify "${model[@]}" "${prompts[@]}" --quiet --prompts 32 -n 600 --samples 200 \
        --controllers fixed:4,beta-ts,goodput-ts
    for tool in memcheck racecheck initcheck synccheck; do
        step "$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            "$folder/cuda-test" --test-threads 1 "${SANITIZED:-bundled_model}"
    done

    [ -z "$link" ] || rm -f "$link"
    return "$failed"
}

case ${1:-} in
pack) [ $# -eq 2 ] || usage; pack "$2" ;;
run) [ $# -eq 3 ] || usage; run "$2" "$3" ;;
*) usage ;;
esac
