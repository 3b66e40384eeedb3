#!/usr/bin/env bash
# The benchmarks on a GPU machine that has nvcc but no network. Three steps, each well inside ten minutes:
#
#   bench/device.sh pack    here, with network: what the machine lacks, into bench/.deps (14 MB; git-ignored)
#   bench/device.sh build   there: the engine with CUDA, for the GPU at hand; goes on where a stopped build ended
#   bench/device.sh run     there: overhead.py and pyaircache bench; JSON and log into $OUT (default: out)
#
# Environment:
#   OUT                   folder of the results
#   PYTHON                interpreter (default python3); for `pack` also PYTHON_TARGET, the version there (default 3.12)
#   PYAIRCACHE_LLAMA_SRC  the pinned llama.cpp, unpatched: the sdist or a source tree. Default: what `pack` made
#   PRESET, ROUNDS        of overhead.py; default qwen2-7b, 5
#   SHAPE, BENCH_ARGS     of pyaircache bench; default qwen2-vl-7b, and "--batch 1,8,16 --prompt 2k,8k,16k --rounds 2"
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
DEPS=bench/.deps
BUILD=build/cuda
OUT=${OUT:-out}
PRESET=${PRESET:-qwen2-7b}
ROUNDS=${ROUNDS:-5}
SHAPE=${SHAPE:-qwen2-vl-7b}
BENCH_ARGS=${BENCH_ARGS:---batch 1,8,16 --prompt 2k,8k,16k --rounds 2}
export PYTHONPATH="$PWD:$PWD/$DEPS/python${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

pack() {
    rm -rf "$DEPS" && mkdir -p "$DEPS"
    "$PYTHON" -m pip install -q --no-deps --only-binary :all: --python-version "${PYTHON_TARGET:-3.12}" \
        --platform manylinux_2_17_x86_64 --target "$DEPS/python" cffi pycparser gguf
    "$PYTHON" cmake/fetch_llama.py --no-patches --dest "$DEPS/src/llama.cpp"
    tar -C "$DEPS/src" -czf "$DEPS/llama.cpp.tar.gz" \
        --exclude=llama.cpp/{docs,models,media,tests,examples,benches} llama.cpp
    rm -rf "$DEPS/src"
    du -sh "$DEPS"
}

build() {
    if [ -z "${PYAIRCACHE_LLAMA_SRC:-}" ] && [ -f "$DEPS/llama.cpp.tar.gz" ]; then
        [ -d build/src/llama.cpp ] || { mkdir -p build/src && tar -C build/src -xzf "$DEPS/llama.cpp.tar.gz"; }
        export PYAIRCACHE_LLAMA_SRC=$PWD/build/src/llama.cpp
    fi
    command -v nvcc > /dev/null || export PATH="$PATH:/usr/local/cuda/bin"
    local generator=()
    if command -v ninja > /dev/null; then generator=(-G Ninja); fi
    cmake -S . -B "$BUILD" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release -DPython3_EXECUTABLE="$(command -v "$PYTHON")" \
        -DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="${CUDA_ARCH:-native}"
    cmake --build "$BUILD" --target pyaircache_engine -j "$(nproc)"
}

run() {
    "$PYTHON" -c "import numpy, PIL, cffi, gguf, click, tqdm" || {
        echo "device.sh: a Python package is missing (see above); run 'bench/device.sh pack' where there is a network" \
            "and bring bench/.deps along" >&2
        exit 1
    }
    export PYAIRCACHE_LIB=$PWD/$BUILD/bin
    mkdir -p "$OUT"
    {
        nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv || true
        "$PYTHON" bench/overhead.py --preset "$PRESET" --visual 4096 --rounds "$ROUNDS" --json "$OUT/overhead.json"
        echo
        rm -f "$OUT/bench.jsonl"
        # shellcheck disable=SC2086 # several words
        "$PYTHON" -m pyaircache bench --model "$SHAPE" --made bench/.cache -o "$OUT/bench.jsonl" $BENCH_ARGS
    } 2>&1 | tee "$OUT/bench.log"
}

case "${1:-}" in
    pack | build | run) "$1" ;;
    *) sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
