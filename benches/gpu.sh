#!/usr/bin/env bash
# Everything worth running on a GPU, from programs built elsewhere: where the GPU is, neither Rust nor nvcc nor a
# network is needed.
#
#   benches/gpu.sh pack DIR             where Rust and nvcc are: builds for x86-64 Linux; one archive, DIR/programs.tar.xz
#   benches/gpu.sh visit-a DIR OUT      where the GPU is: the first visit, four minutes: does it load, is it right, how fast
#   benches/gpu.sh run DIR OUT          where the GPU is: all tests, sanitizers and measurements, ten minutes
#
# A run leaves one archive, OUT/results.tar.gz, with each step's output and the tables; it is written again after each
# step, so that what was found is there if the rest is cut off. Tables are printed last.
#
# `--emulated` after OUT goes through a run without a GPU, on the emulated device and on the processor: a test of this
# script and of the programs, whose times mean nothing. Steps that are nothing without a GPU are told as such.
#
# A step that tested or measured nothing has failed. So has one after a CUDA error that outlives its process's context:
# it ends the run. Exit code 1 if a step failed.
#
# This script has to lie in a checkout of the same commit, from whose root DIR and OUT are counted: tests read
# tests/fixtures, models and cuda there, and the programs have no copies of them. Tests know these folders by the path of
# the checkout that they were built in; where that does not exist, a run makes it a link to this checkout, and takes it
# away again.
#
# KERNEL_ARCHS (90a) is for which GPUs `pack` compiles. DEVICE (0) is the GPU's number, ONLY a pattern of steps' names
# (ONLY='bench*'), SECONDS_IN_ALL (240 and 570) the time in which all has to be done; SANITIZED (generation::bundled_model)
# says which of the tests in tests/cuda the sanitizers run.
set -euo pipefail
readonly SELF=$(realpath "$0")
cd "$(dirname "$0")/.."

# What can be carried to a machine with a GPU: the checkout and the archive.
readonly MOST_BYTES=$((62 << 20))
readonly PROGRAMS=(eesd-run lib-test kernels-test cuda-test gpu-bench)
# Errors after which the GPU answers nothing else to the process, and perhaps to no other.
readonly STICKY='CUDA_ERROR_(ILLEGAL_ADDRESS|ILLEGAL_INSTRUCTION|MISALIGNED_ADDRESS|INVALID_ADDRESS_SPACE|INVALID_PC|LAUNCH_FAILED|LAUNCH_TIMEOUT|HARDWARE_STACK_ERROR|ASSERT|ECC_UNCORRECTABLE|UNKNOWN)'
# What a program says that is content with having done nothing, or left something out.
readonly NOTHING='nothing measured|not tested:|left out: |running 0 tests|^test result: ok\. 0 passed'

usage() {
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | head -n -1 >&2
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
        print(message["target"]["kind"][0], message["profile"]["test"], message["target"]["name"], message["executable"])
' | while read -r kind test name path; do
        case $kind:$test:$name in
        bin:False:eesd-run) name=eesd-run ;;
        lib:True:* | rlib:True:*) name=lib-test ;;
        test:*) name=$name-test ;;
        bench:*) name=$name-bench ;;
        *) continue ;;
        esac
        strip -o "$folder/$name" "$path"
    done
}

pack() {
    local folder=$1 name archive tracked
    mkdir -p "$folder"
    programs=$(mktemp -d) # known to the trap, so not local
    trap 'rm -rf "$programs"' EXIT
    export KERNELS=require KERNEL_ARCHS=${KERNEL_ARCHS:-90a}
    # One set of features, so that one library is compiled; without the bundled model, which lies beside it in the checkout.
    local build=(--message-format=json --no-default-features --features emulated-kernels)
    cargo test --release --no-run "${build[@]}" --lib --test kernels --test cuda | keep "$programs"
    # Benches know no --release: they always are.
    cargo bench --no-run "${build[@]}" --bench gpu | keep "$programs"
    for name in "${PROGRAMS[@]}"; do
        [ -x "$programs/$name" ] || { echo "not built: $name" >&2; exit 1; }
        printf '%9d  %s\n' "$(stat -c %s "$programs/$name")" "$name"
    done
    pwd >"$programs/built-in"
    git rev-parse HEAD >"$programs/commit"
    # A dictionary of all of it: the programs have most of their code in common.
    tar -C "$programs" -cf - . | xz --lzma2=preset=9,dict=128MiB >"$folder/programs.tar.xz.new"
    mv "$folder/programs.tar.xz.new" "$folder/programs.tar.xz"
    archive=$(stat -c %s "$folder/programs.tar.xz")
    tracked=$(git ls-files -z | xargs -0 cat | wc -c)
    printf '%9d  %s\n%9d  tracked files\n%9d  in all, %d at most\n' \
        "$archive" "$folder/programs.tar.xz" "$tracked" $((archive + tracked)) $MOST_BYTES
    [ $((archive + tracked)) -lt $MOST_BYTES ] || { echo "too much to carry" >&2; exit 1; }
}

# Writes a row of the summary, and the archive again, whole at each moment.
conclude() {
    local name=$1 verdict=$2 seconds=$3
    case $verdict in FAIL*) failed=1 ;; esac
    echo "| $name | $verdict | $seconds |" | tee -a "$WORK/summary.md"
    tar -C "$WORK" -czf "$WORK.tar.gz" . && mv "$WORK.tar.gz" "$OUT/results.tar.gz"
}

# step NAME SECONDS COMMAND...: runs one step; its output goes into WORK/NAME.txt.
step() {
    local name=$1 most=$2 start=$SECONDS verdict code=0
    shift 2
    # shellcheck disable=SC2254 # ONLY is a pattern.
    case $name in ${ONLY:-*}) ;; *) return 0 ;; esac
    local left=$((ALL - SECONDS))
    most=$((most * slower))
    if [ -n "$ended" ]; then
        verdict="FAIL (not run: $ended)"
    elif [ "$left" -lt 2 ]; then
        verdict='FAIL (not run: no time left)'
    elif ! command -v "$1" >/dev/null; then
        verdict="FAIL (not run: there is no $1)"
    else
        [ "$most" -le "$left" ] || most=$left
        timeout --kill-after=5 "$most" "$@" >"$WORK/$name.txt" 2>&1 </dev/null || code=$?
        case $code in
        0) if grep -qE "$NOTHING" "$WORK/$name.txt"; then verdict='FAIL (something was not run)'; else verdict=pass; fi ;;
        124 | 137) verdict="FAIL (more than $most s)" ;;
        *) verdict="FAIL (exit code $code)" ;;
        esac
        if grep -qE "$STICKY" "$WORK/$name.txt"; then
            verdict="FAIL ($(grep -oE "$STICKY" "$WORK/$name.txt" | head -1))"
            ended="$name left the GPU in error"
        fi
    fi
    conclude "$name" "$verdict" $((SECONDS - start))
}

# As `step`, for what is nothing without a GPU.
gpu_step() {
    # shellcheck disable=SC2254 # ONLY is a pattern.
    case $1 in ${ONLY:-*}) ;; *) return 0 ;; esac
    if [ -n "$emulated" ]; then conclude "$1" 'needs a GPU' 0; else step "$@"; fi
}

# The run ends unless the steps so far have passed.
must_have_passed() {
    [ "$failed" = 0 ] || ended=${ended:-$1}
}

# suite NAME SECONDS PROGRAM FILTER...: tests of one program in one process and one thread.
suite() {
    local name=$1 most=$2 program=$3
    shift 3
    step "$name" "$most" "$DIR/$program" "$@" --test-threads 1 --show-output
}

# each NAME SECONDS PROGRAM FILTER...: every test in a process of its own: one that hangs or crashes leaves the others.
each() {
    local name=$1 most=$2 program=$3 tests test
    shift 3
    # shellcheck disable=SC2254 # ONLY is a pattern.
    case $name in ${ONLY:-*}) ;; *) return 0 ;; esac
    tests=$("$DIR/$program" "$@" --list 2>/dev/null | sed -n 's/: test$//p')
    if [ -z "$tests" ]; then
        conclude "$name" "FAIL (not run: $program has no such tests)" 0
        return
    fi
    for test in $tests; do
        ONLY='' step "$name-${test//:/_}" "$most" "$DIR/$program" --exact "$test" --show-output
    done
}

# A step of visit A, in a process of its own: the same tokens on the device as on the processor; where they part, by how much the processor preferred its own.
ids() {
    local way=$1 most=$2 here
    shift 2
    for here in cpu "$DEVICE_NAME"; do
        "$DIR/eesd-run" generate -m models/pycode-4m --exit 2 --device "$here" -q --json --logprobs 2 \
            -p 'def main():' -n "$most" "$@" >"$WORK/ids-$way-${here%%:*}.json" || return 1
    done
    local cpu=$WORK/ids-$way-cpu.json device=$WORK/ids-$way-${DEVICE_NAME%%:*}.json
    tokens() { grep -o '"tokens":\[[0-9,]*\]' "$1" | tr -dc '0-9,\n' | tr , '\n'; }
    [ "$(tokens "$cpu" | wc -l)" -gt 1 ] || { echo "no tokens"; return 1; }
    if cmp -s <(tokens "$cpu") <(tokens "$device"); then
        echo "$most tokens, equal to the processor's"
        return
    fi
    # Each token has three: its own, and those of the two most probable ones.
    paste <(tokens "$cpu") <(tokens "$device") <(grep -o '"logprob":[-0-9.e]*' "$cpu" | cut -d: -f2 | paste - - -) |
        awk '$1 != $2 { printf "token %d is %s, on the processor %s: there it is ahead by %.4f nats\n", NR, $2, $1, $4 - $5; exit }'
    return 1
}

begin() {
    mkdir -p "$2"
    OUT=$(realpath "$2")
    emulated=${3:-}
    [ -z "$emulated" ] || [ "$emulated" = --emulated ] || usage
    failed=0 ended='' slower=1
    DEVICE_NAME=cuda:${DEVICE:-0}
    WORK=$(mktemp -d)
    DIR=$WORK.programs
    link=''
    mkdir "$DIR"
    trap 'rm -rf "$DIR" "$WORK" "$WORK.tar.gz"; [ -z "$link" ] || rm -f "$link"' EXIT
    tar -C "$DIR" -xJf "$1/programs.tar.xz" ||
        python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$1/programs.tar.xz" "$DIR"
    [ "$(git rev-parse HEAD 2>/dev/null || cat "$DIR/commit")" = "$(cat "$DIR/commit")" ] ||
        echo "these programs are of another commit: $(cat "$DIR/commit")" | tee "$WORK/commit.txt" >&2
    PATH=$PATH:/usr/local/cuda/bin
    local built_in
    built_in=$(cat "$DIR/built-in")
    if [ ! -e "$built_in" ]; then
        if mkdir -p "$(dirname "$built_in")" && ln -s "$PWD" "$built_in"; then
            link=$built_in
        else
            echo "tests that read files will fail: they look for them in $built_in" >&2
        fi
    fi
    export DIR WORK DEVICE_NAME EESD_TEST_DEVICE=$DEVICE_NAME
    bench=("$DIR/gpu-bench" --device "${DEVICE:-0}")
    if [ -n "$emulated" ]; then
        EESD_TEST_DEVICE=emulated DEVICE_NAME=cpu slower=20 ALL=$((ALL * slower)) bench=("$DIR/gpu-bench" --emulated)
    fi
    printf '| step | verdict | seconds |\n|---|---|--:|\n' | tee "$WORK/summary.md"
}

# Prints the tables, and says how it went.
finish() {
    local name
    for name in "$@"; do
        [ -e "$WORK/$name.txt" ] && { printf '\n# %s\n\n' "$name"; cat "$WORK/$name.txt"; }
    done
    echo
    cat "$WORK/summary.md"
    return "$failed"
}

visit_a() {
    ALL=${SECONDS_IN_ALL:-240}
    begin "$@"
    gpu_step gpu 5 nvidia-smi --format=csv --query-gpu=name,driver_version,memory.total,memory.used,clocks.max.sm,clocks.max.mem,power.limit
    # shellcheck disable=SC2016 # $1 is the inner shell's.
    step libraries 5 bash -c 'ldd "$1" && ! ldd "$1" | grep -q "not found"' libraries "$DIR/eesd-run"
    step doctor 15 "$DIR/eesd-run" doctor
    must_have_passed "there is no GPU to visit"
    # What opens a GPU and launches a kernel on it; each kernel's module is loaded there.
    gpu_step modules 20 "$DIR/lib-test" gpu::tests::a_kernel_runs_on_a_gpu --test-threads 1 --show-output
    must_have_passed "the kernels do not load"
    gpu_step opening 20 "$DIR/lib-test" gpu:: --skip a_loop_runs --test-threads 1 --show-output
    suite wrappers 20 kernels-test emulator::
    step bench-kernels 25 "${bench[@]}" --only kernels,sampler --geometry 13b
    # No graphs; then graphs without loops: those are last.
    step ids-launched 15 "$SELF" ids launched 64 --no-graphs
    step ids-graphs 15 "$SELF" ids graphs 64 --controller calibration-ts
    local family
    for family in projection attention sampling; do suite "kernels-$family" 20 kernels-test "$family::"; done
    each engine 15 cuda-test passes:: generation::
    step bench-steps 35 "${bench[@]}" --only steps --geometry 13b --no-loops
    gpu_step loop 15 "$DIR/lib-test" gpu::tests::a_loop_runs_on_a_gpu --test-threads 1 --show-output
    each loops 15 cuda-test loops::
    finish bench-kernels ids-launched ids-graphs bench-steps
}

run() {
    ALL=${SECONDS_IN_ALL:-570}
    begin "$@"
    local model=(-m models/pycode-4m --exit 2 --device "$DEVICE_NAME") prompts=(--input models/pycode-4m/prompts.jsonl) tool
    local measured=(bench-gpu bench-model fast-prefill) family
    # cuBLASLt, for fast prefill: a toolkit's, or that of a Python package.
    local library
    library=$({ timeout 20 find /usr /opt "$HOME" -name 'libcublasLt.so.1[23]' -print -quit || true; } 2>/dev/null)
    [ -z "$library" ] || export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$(dirname "$library")

    gpu_step gpu 20 nvidia-smi --format=csv --query-gpu=name,driver_version,memory.total,memory.used,clocks.max.sm,clocks.max.mem,power.limit
    step doctor 20 "$DIR/eesd-run" doctor
    gpu_step lib 40 "$DIR/lib-test" gpu:: --test-threads 1 --show-output
    step generate 30 "$DIR/eesd-run" generate "${model[@]}" -p 'def main():' -n 64
    # Each wrapper, then each kernel, then the engine, as the emulator runs them elsewhere.
    suite wrappers 30 kernels-test emulator::
    suite kernels 60 kernels-test --skip mutations:: --skip emulator::
    for family in passes generation sampling draft_vocab memory swap prefill products loops; do
        suite "cuda-$family" 40 cuda-test "$family::"
    done
    suite training 60 cuda-test training::
    gpu_step fast-prefill 30 "$DIR/eesd-run" bench "${model[@]}" "${prompts[@]}" --prefill fast \
        --pp 1000 --prompts 4 -n 32 --controllers fixed:4,goodput-ts
    step verify 40 "$DIR/eesd-run" verify "${model[@]}" "${prompts[@]}"
    # What is measured matters more than the last check of a tool that slows kernels a hundredfold.
    step bench-gpu 240 "${bench[@]}"
    step bench-model 45 "$DIR/eesd-run" bench "${model[@]}" "${prompts[@]}"
    # Three controllers, greedily and sampled, on all 32 prompts: 115,200 tokens where no text ends early.
    step ids 100 "$DIR/eesd-run" verify "${model[@]}" "${prompts[@]}" --quiet --prompts 32 -n 600 --samples 200 \
        --controllers fixed:4,beta-ts,goodput-ts
    for tool in memcheck racecheck initcheck synccheck; do
        gpu_step "$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            "$DIR/cuda-test" --test-threads 1 "${SANITIZED:-generation::bundled_model}"
    done
    finish "${measured[@]}"
}

case ${1:-} in
pack) [ $# -eq 2 ] || usage; pack "$2" ;;
visit-a) [ $# -ge 3 ] && [ $# -le 4 ] || usage; visit_a "${@:2}" ;;
run) [ $# -ge 3 ] && [ $# -le 4 ] || usage; run "${@:2}" ;;
ids) [ -n "${WORK:-}" ] && [ $# -ge 3 ] || usage; ids "${@:2}" ;;
*) usage ;;
esac
