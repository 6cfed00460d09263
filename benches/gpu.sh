#!/usr/bin/env bash
# Everything worth running on a GPU, from programs built elsewhere: where the GPU is, neither Rust nor nvcc nor a
# network is needed.
#
#   benches/gpu.sh pack DIR             where Rust and nvcc are: builds for x86-64 Linux; one archive, DIR/programs.tar.xz
#   benches/gpu.sh visit-a DIR OUT      where the GPU is, first: does it load, is it right, how fast; 200 seconds
#   benches/gpu.sh visit-b DIR OUT      where the GPU is, after what the first visit broke is mended: how fast in all, and does
#                                       anything hide from tests; 420 seconds
#   benches/gpu.sh plan                 anywhere: the steps of both visits, and what each is expected to take
#
# A visit leaves one archive, OUT/results.tar.gz, with each step's output and the tables; it is written again after each
# step, so that what was found is there if the rest is cut off. Tables are printed last. Beside the seconds of each step stand
# those expected, which add up to a visit's time; what kernels and passes are expected to take stands in their own tables.
#
# `--emulated` after OUT goes through a visit without a GPU, on the emulated device and on the processor: a test of this
# script and of the programs, whose times mean nothing. Steps that are nothing without a GPU are told as such. It also fails
# if a step of the plan was not come to.
#
# A step that tested or measured nothing has failed. So has one after a CUDA error that outlives its process's context:
# it ends the visit. Exit code 1 if a step failed.
#
# This script has to lie in a checkout of the same commit, from whose root DIR and OUT are counted: tests read
# tests/fixtures, models and cuda there, and the programs have no copies of them. Tests know these folders by the path of
# the checkout that they were built in; where that does not exist, a visit makes it a link to this checkout, and takes it
# away again.
#
# KERNEL_ARCHS (90a) is for which GPUs `pack` compiles, FEATURES the features it builds with. DEVICE (0) is the GPU's number,
# ONLY a pattern of steps' names (ONLY='bench*'), AGAIN one of visit A's steps that visit B begins with; SECONDS_IN_ALL (240
# and 480) is the time in which all has to be done; CHECKED (generation::bundled_model) says which of the tests in tests/cuda
# the sanitizers run.
set -euo pipefail
readonly SELF=$(realpath "$0")
cd "$(dirname "$0")/.."

# Seconds that the steps of a visit may be expected to take, together.
readonly VISIT_A=200 VISIT_B=420
# What can be carried to a machine with a GPU: the checkout and the archive.
readonly MOST_BYTES=$((62 << 20))
readonly PROGRAMS=(eesd-run lib-test kernels-test cuda-test gpu-bench)
# Errors after which the GPU answers nothing else to the process, and perhaps to no other.
readonly STICKY='CUDA_ERROR_(ILLEGAL_ADDRESS|ILLEGAL_INSTRUCTION|MISALIGNED_ADDRESS|INVALID_ADDRESS_SPACE|INVALID_PC|LAUNCH_FAILED|LAUNCH_TIMEOUT|HARDWARE_STACK_ERROR|ASSERT|ECC_UNCORRECTABLE|UNKNOWN)'
# What a program says that is content with having done nothing, or left something out.
readonly NOTHING='nothing measured|not tested:|running 0 tests|^test result: ok\. 0 passed'

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
    local build
    IFS=' ' read -ra build <<<"--message-format=json ${FEATURES:---no-default-features --features emulated-kernels}"
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

# Whether a step of that name is wanted. All are part of the plan.
wanted() {
    # shellcheck disable=SC2254 # ONLY is a pattern.
    case $1 in ${ONLY:-*}) ;; *) return 1 ;; esac
}

# plan_step NAME EXPECTED MOST: a row of the plan.
plan_step() {
    planned_seconds=$((planned_seconds + $2))
    planned+=("$1")
    [ -z "$planning" ] || echo "| $1 | $2 | $3 |"
}

# Writes a row of the summary, and the archive again, whole at each moment.
conclude() {
    local name=$1 verdict=$2 seconds=$3 expected=$4
    case $verdict in FAIL*) failed=1 ;; esac
    echo "| $name | $verdict | $seconds | $expected |" | tee -a "$WORK/summary.md"
    tar -C "$WORK" -czf "$WORK.tar.gz" . && mv "$WORK.tar.gz" "$OUT/results.tar.gz"
}

# attempt NAME EXPECTED MOST COMMAND...: runs a command for MOST seconds at most; its output goes into WORK/NAME.txt.
attempt() {
    local name=$1 expected=$2 most=$3 start=$SECONDS verdict code=0
    shift 3
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
        0) if grep -qE "$NOTHING" "$WORK/$name.txt"; then verdict='FAIL (something was not run)'
            elif grep -q 'left out: ' "$WORK/$name.txt"; then verdict='FAIL (something was left out)'
            else verdict=pass; fi ;;
        124 | 137) verdict="FAIL (more than $most s)" ;;
        *) verdict="FAIL (exit code $code)" ;;
        esac
        if grep -qE "$STICKY" "$WORK/$name.txt"; then
            verdict="FAIL ($(grep -oE "$STICKY" "$WORK/$name.txt" | head -1))"
            ended="$name left the GPU in error"
        fi
    fi
    conclude "$name" "$verdict" $((SECONDS - start)) "$expected"
}

# step NAME EXPECTED MOST COMMAND...: a step that is expected to take EXPECTED seconds.
step() {
    wanted "$1" || return 0
    plan_step "$@"
    [ -n "$planning" ] || attempt "$@"
}

# As `step`, for what is nothing without a GPU.
gpu_step() {
    wanted "$1" || return 0
    plan_step "$@"
    if [ -n "$planning" ]; then return; fi
    if [ -n "$emulated" ]; then conclude "$1" 'needs a GPU' 0 "$2"; else attempt "$@"; fi
}

# The visit ends unless the steps so far have passed.
must_have_passed() {
    [ "$failed" = 0 ] || ended=${ended:-$1}
}

# suite NAME EXPECTED MOST PROGRAM FILTER...: tests of one program in one process and one thread.
suite() {
    local name=$1 expected=$2 most=$3 program=$4
    shift 4
    step "$name" "$expected" "$most" "$DIR/$program" "$@" --test-threads 1 --show-output
}

# each NAME EXPECTED MOST PROGRAM FILTER...: every test in a process of its own, for MOST seconds: one that hangs or crashes
# leaves the others. EXPECTED is for all of them.
each() {
    local name=$1 expected=$2 most=$3 program=$4 tests test count
    wanted "$name" || return 0
    plan_step "$name" "$expected" "$most"
    if [ -n "$planning" ]; then return; fi
    shift 4
    tests=$("$DIR/$program" "$@" --list 2>/dev/null | sed -n 's/: test$//p')
    count=$(wc -w <<<"$tests")
    if [ "$count" = 0 ]; then
        conclude "$name" "FAIL (not run: $program has no such tests)" 0 "$expected"
        return
    fi
    expected=$(awk "BEGIN { printf \"%.1f\", $expected / $count }")
    for test in $tests; do
        attempt "$name-${test//:/_}" "$expected" "$most" "$DIR/$program" --exact "$test" --show-output
    done
}

# ids WAY COUNT FLAG...: a step in a process of its own: the same tokens on the device as on the processor; where they part, by how much the processor preferred its own.
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
    WORK=$(mktemp -d)
    DIR=$WORK.programs
    link=''
    mkdir "$DIR"
    trap 'rm -rf "$DIR" "$WORK" "$WORK.tar.gz"; [ -z "$link" ] || rm -f "$link"' EXIT
    [ -f "$1/programs.tar.xz" ] || { echo "$1/programs.tar.xz: not there (expected what \`pack\` made)" >&2; exit 1; }
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
    printf '| step | verdict | seconds | expected |\n|---|---|--:|--:|\n' | tee "$WORK/summary.md"
}

# Prints the tables, and says how it went.
finish() {
    local name
    for name in "$@"; do
        [ -e "$WORK/$name.txt" ] && { printf '\n# %s\n\n' "$name"; cat "$WORK/$name.txt"; }
    done
    echo
    cat "$WORK/summary.md"
    echo "| in all | | $SECONDS | $planned_seconds |"
    for name in "${planned[@]}"; do
        grep -q "^| $name[ -]" "$WORK/summary.md" || { echo "not come to: $name" >&2; failed=1; }
    done
    return "$failed"
}

# A CUDA error here must not keep the rest from being tried, so what has never run comes in an order of its own: what could
# crash a driver is last.
steps_of_a() {
    local family
    gpu_step gpu 1 5 nvidia-smi --format=csv --query-gpu=name,driver_version,memory.total,memory.used,clocks.max.sm,clocks.max.mem,power.limit
    # shellcheck disable=SC2016 # $1 is the inner shell's.
    step libraries 1 5 bash -c 'ldd "$1" && ! ldd "$1" | grep -q "not found"' libraries "$DIR/eesd-run"
    step doctor 4 15 "$DIR/eesd-run" doctor
    must_have_passed "there is no GPU to visit"
    # What opens a GPU and launches a kernel on it; each kernel's module is loaded there.
    gpu_step modules 3 20 "$DIR/lib-test" gpu::tests::a_kernel_runs_on_a_gpu --test-threads 1 --show-output
    must_have_passed "the kernels do not load"
    gpu_step opening 5 20 "$DIR/lib-test" gpu:: --skip a_loop_runs --test-threads 1 --show-output
    suite wrappers 10 20 kernels-test emulator::
    step bench-kernels 20 25 "${bench[@]}" --only kernels,sampler --geometry 13b --no-loops
    # No graphs; then graphs; loops are last.
    step ids-launched 6 15 "$SELF" ids launched 64 --no-graphs
    step ids-graphs 6 15 "$SELF" ids graphs 64 --no-draft-loops
    for family in projection attention sampling; do suite "kernels-$family" 13 20 kernels-test "$family::"; done
    each engine 40 15 cuda-test passes:: generation:: sources::
    step bench-steps 35 40 "${bench[@]}" --only steps --geometry 13b --no-loops
    # As a probe does it; then tests whose loops are plain, and the same with kernels that overlap.
    gpu_step loop 5 15 "$DIR/lib-test" gpu::tests::a_loop_runs_on_a_gpu --test-threads 1 --show-output
    EESD_TEST_LOOPS=in-order each loops-in-order 12 15 cuda-test loops::loops_change recurrent::answers
    EESD_TEST_LOOPS=overlapping each loops-overlapping 12 15 cuda-test loops::loops_change recurrent::answers
}

steps_of_b() {
    local model=(-m models/pycode-4m --exit 2 --device "$DEVICE_NAME") prompts=(--input models/pycode-4m/prompts.jsonl) tool
    step bench-passes 75 100 "${bench[@]}" --only kernels,steps,prefill --geometry 7b,13b
    step bench-sources 20 40 "${bench[@]}" --only sources --geometry 13b
    # Which of its limits each kernel is at.
    gpu_step ncu 40 60 ncu --kernel-name 'regex:gate_up|attention|sample' --launch-count 24 --set basic \
        "$DIR/gpu-bench" --device "${DEVICE:-0}" --only kernels,sampler --geometry 13b --no-loops
    step bench-speculation 60 80 "${bench[@]}" --only speculation --speculation-geometry 13b --acceptance 0.8 \
        --controllers 'fixed:4;goodput-ts' --repetitions 2
    step verify 25 40 "$DIR/eesd-run" verify "${model[@]}" "${prompts[@]}"
    # Three controllers, greedily and sampled: does any of many tokens differ?
    step ids 35 60 "$DIR/eesd-run" verify "${model[@]}" "${prompts[@]}" --quiet --prompts 16 -n 400 --samples 100 \
        --controllers fixed:4,beta-ts,goodput-ts
    step bench-quantised 60 80 "${bench[@]}" --only quantised
    suite training 40 60 cuda-test training::
    for tool in memcheck racecheck; do
        gpu_step "$tool" 30 60 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            "$DIR/cuda-test" --test-threads 1 "${CHECKED:-generation::bundled_model}"
    done
}

visit_a() {
    ALL=${SECONDS_IN_ALL:-240}
    begin "$@"
    steps_of_a
    finish bench-kernels ids-launched ids-graphs bench-steps
}

visit_b() {
    ALL=${SECONDS_IN_ALL:-480}
    begin "$@"
    if [ -z "$emulated" ]; then
        # cuBLASLt, for fast prefill: a toolkit's, or that of a Python package.
        local library
        library=$({ timeout 5 find /usr /opt "$HOME" -name 'libcublasLt.so.1[23]' -print -quit || true; } 2>/dev/null)
        [ -z "$library" ] || export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$(dirname "$library")
    fi
    [ -z "${AGAIN:-}" ] || ONLY=$AGAIN steps_of_a
    steps_of_b
    finish bench-passes bench-sources ncu bench-speculation verify ids bench-quantised
}

# Both visits' steps, and that they are expected to fit.
plan() {
    local name most too_long=0
    planning=1 DIR=programs bench=(gpu-bench)
    for name in a b; do
        [ $name = a ] && most=$VISIT_A || most=$VISIT_B
        planned_seconds=0
        printf '| visit %s | expected, s | at most, s |\n|---|--:|--:|\n' "${name^^}"
        "steps_of_$name"
        printf '| **in all** | **%d** of %d | |\n\n' $planned_seconds $most
        [ $planned_seconds -le $most ] || too_long=1
    done
    [ $too_long = 0 ] || { echo "a visit is expected to take longer than it may" >&2; exit 1; }
}

planning='' planned=() planned_seconds=0 failed=0 ended='' slower=1
# A step that is this script again has it from its visit.
DEVICE_NAME=${DEVICE_NAME:-cuda:${DEVICE:-0}}
emulated=${4:-}
case ${1:-} in visit-*) [ -z "$emulated" ] || [ "$emulated" = --emulated ] || usage ;; esac
case ${1:-} in
pack) [ $# -eq 2 ] || usage; pack "$2" ;;
visit-a) [ $# -ge 3 ] && [ $# -le 4 ] || usage; visit_a "${@:2}" ;;
visit-b) [ $# -ge 3 ] && [ $# -le 4 ] || usage; visit_b "${@:2}" ;;
plan) [ $# -eq 1 ] || usage; plan ;;
ids) [ -n "${WORK:-}" ] && [ $# -ge 3 ] || usage; ids "${@:2}" ;;
*) usage ;;
esac
