#!/usr/bin/env bash
# What a card does with this crate, in one table: where a step's time goes, whether the results are right, and how long
# PyTorch takes for the same step.
#
#     benches/gpu.sh build [cuda|wgpu]                where there is a compiler: `cuda` by default
#     benches/gpu.sh run [cuda:0|wgpu] [FOLDER]       on the card, from the same checkout, with what was built
#
# Each part has a time limit; a part that fails or takes too long says so in the table and the next one starts.
# FOLDER [target/gpu] keeps the output of every part. BATCH, LATENTS_BATCH, RUNS and LIMIT (seconds for a part) make it
# smaller, for a software driver.
set -uo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
tests=(conformance kernel self_check)

build() {
    local device=${1:-cuda}
    local options=(--release --features "$device,fused")
    set -e
    cargo build "${options[@]}" --example step_cost
    mkdir -p "$target/gpu-tests"
    for test in "${tests[@]}"; do
        cargo test "${options[@]}" --test "$test" --no-run --message-format=json |
            python3 -c 'import json, sys
for line in sys.stdin:
    built = json.loads(line)
    if built.get("executable") and built.get("target", {}).get("kind") == ["test"]:
        print(built["executable"])' > "$target/gpu-tests/path"
        cp "$(tail -n 1 "$target/gpu-tests/path")" "$target/gpu-tests/$test"
    done
    rm "$target/gpu-tests/path"
}

run() {
    device=${1:-cuda:0}
    out=$(mkdir -p "${2:-target/gpu}" && cd "${2:-target/gpu}" && pwd)
    program=$(cd "$target" && pwd)/release/examples/step_cost
    built_tests=$(cd "$target/gpu-tests" && pwd)
    batch=${BATCH:-64} latents=${LATENTS_BATCH:-16} runs=${RUNS:-3} limit=${LIMIT:-60}
    facts > "$out/facts"
    : > "$out/parts"

    part profile-digits profiled "$program" --workload digits --batch "$batch" --device "$device" --variant plain --runs "$runs"
    part profile-latents profiled "$program" --workload latents --batch "$latents" --device "$device" --variant plain --runs "$runs"
    for rows in "$batch" $((batch / 4)) $((batch / 16)); do
        [ "$rows" -gt 0 ] || continue
        part "digits-batch-$rows" "$program" --workload digits --batch "$rows" --device "$device" --runs "$runs"
    done
    for test in "${tests[@]}"; do
        part "test-$test" env SISS_TEST_DEVICE="$device" "$built_tests/$test"
    done
    if python3 -c 'import torch, diffusers' 2> /dev/null; then
        local torch=(python3 benches/against_torch.py --program "$program" --device "$device" --rounds 2 --runs "$runs")
        part torch-digits "${torch[@]}" --workload digits --batch "$batch"
        part torch-digits-tf32 "${torch[@]}" --workload digits --batch "$batch" --tf32
        part torch-digits-bf16 "${torch[@]}" --workload digits --batch "$batch" --bf16
        part torch-latents "${torch[@]}" --workload latents --batch "$latents"
        part torch-latents-bf16 "${torch[@]}" --workload latents --batch "$latents" --bf16
    else
        echo "torch-* 0 skipped: python3 has no torch and diffusers" >> "$out/parts"
    fi
    part one-stream configured '[streaming]
policy = "single"' "$program" --workload digits --batch "$batch" --device "$device" --runs "$runs"
    table | tee "$out/table.md"
}

# Card, driver and build.
facts() {
    echo "- device: $device"
    if command -v nvidia-smi > /dev/null; then
        nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | sed 's/^/- card, driver: /'
    fi
    echo "- commit: $(git rev-parse --short HEAD 2> /dev/null || echo unknown)"
    python3 -c 'import torch; print("- torch:", torch.__version__)' 2> /dev/null
}

# part NAME COMMAND...: runs it within the limit and notes how it ended.
part() {
    local name=$1 started=$SECONDS code=0
    shift
    export -f profiled configured
    timeout "$limit" bash -c '"$@"' bash "$@" > "$out/$name.out" 2> "$out/$name.err" || code=$?
    local ended=passed
    [ $code -eq 0 ] || ended="failed with code $code"
    [ $code -eq 124 ] && ended="not finished within $limit s"
    echo "$name $((SECONDS - started)) $ended" >> "$out/parts"
}

# configured CONFIGURATION COMMAND...: runs it where cubecl finds this `cubecl.toml`.
configured() {
    local folder
    folder=$(mktemp -d)
    echo "$1" > "$folder/cubecl.toml"
    shift
    (cd "$folder" && "$@")
    local code=$?
    [ -f "$folder/profile" ] && cat "$folder/profile"
    rm -r "$folder"
    return $code
}

# The same with the time of each kernel.
profiled() {
    configured '[profiling]
logger = { file = "profile", level = "medium" }' "$@"
}

table() {
    python3 - "$out" << 'PYTHON'
import json, pathlib, re, sys

out = pathlib.Path(sys.argv[1])
print((out / "facts").read_text())
print("| part | seconds | result |\n|---|---|---|")
ratios = ("siss_over_plain", "plain_over_torch", "siss_over_torch", "torch_siss_over_plain", "plain", "siss")
UNITS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


def figures(text):
    for line in reversed(text.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return ", ".join(f"{name} {found[name]:.3g}" for name in ratios if name in found)
    return ""


def by_kernel(text):
    """The kernels that take most of the time, from lines like `| 43.675µs | PrngKernel | … |`."""
    seconds = {}
    for time, unit, name in re.findall(r"^\| ([\d.]+)(ns|µs|ms|s) +\| ([A-Za-z]\w*?)(?:_[0-9a-f]{8})?(?: |$)", text, re.M):
        seconds[name] = seconds.get(name, 0.0) + float(time) * UNITS[unit]
    total = sum(seconds.values())
    most = sorted(seconds, key=seconds.get, reverse=True)[:12]
    return f"{total:.3g} s in kernels: " + ", ".join(f"{name} {100 * seconds[name] / total:.0f} %" for name in most) if total else ""


for line in (out / "parts").read_text().splitlines():
    name, seconds, ended = line.split(" ", 2)
    path = out / f"{name}.out"
    text = path.read_text(errors="replace") if path.exists() else ""
    if name.startswith("profile"):
        result = by_kernel(text)
    elif name.startswith("test"):
        result = "; ".join(re.findall(r"test result: (.*?); 0 ignored", text)) or figures(text)
    else:
        result = figures(text)
    print(f"| {name} | {seconds} | {ended}{': ' if result else ''}{result} |")
PYTHON
}

case ${1:-} in
    build | run)
        "$@"
        ;;
    *)
        sed -n '2,10s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
esac
