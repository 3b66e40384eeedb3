"""Runs tests against a build with sanitizers:   python fuzz/sanitize.py BUILD PYTEST_ARGUMENT...

The programs and the engine library come from BUILD/bin. Every report of a sanitizer, of any process, is printed at
the end and makes the run fail.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUPPRESSIONS = ROOT / "fuzz" / "suppressions"

# Loaded into Python for the engine library; the programs have the sanitizer's runtime in themselves.
INSIDE = "import os, sys, pytest; os.environ.pop('LD_PRELOAD', None); sys.exit(pytest.main(sys.argv[1:]))"


def options(build: Path, reports: Path | None = None) -> dict[str, str]:
    """Environment for what was built with sanitizers."""
    common = f":log_path={reports}" if reports else ""
    return {
        "PYAIRCACHE_BIN": str(build / "bin"),
        # Python and torch keep memory until the end; huge sizes give the error that they give without ASan
        "ASAN_OPTIONS": f"detect_leaks=0:allocator_may_return_null=1:handle_abort=1{common}",
        "UBSAN_OPTIONS": f"halt_on_error=1:print_stacktrace=1:suppressions={SUPPRESSIONS / 'ubsan.txt'}{common}",
        "TSAN_OPTIONS": f"suppressions={SUPPRESSIONS / 'tsan.txt'}:second_deadlock_stack=1{common}",
    }


def runtime(build: Path) -> str:
    """The shared library of AddressSanitizer that belongs to the build's compiler."""
    cache = (build / "CMakeCache.txt").read_text(encoding="utf-8")
    if "PYAIRCACHE_SANITIZE:STRING=address" not in cache:
        return ""
    compiler = cache.split("CMAKE_CXX_COMPILER:")[1].splitlines()[0].split("=")[1]
    names = ["libclang_rt.asan-x86_64.so", "libclang_rt.asan-aarch64.so", "libclang_rt.asan.so", "libasan.so"]
    for name in names:
        found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        if os.path.isabs(found):
            return found
    raise SystemExit(
        f"{compiler} has no shared runtime of AddressSanitizer (Debian: apt-get install libclang-rt-14-dev)"
    )


def main() -> int:
    """The tests' exit code, or 1 when a sanitizer reported something."""
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    build = Path(sys.argv[1]).resolve()
    folder = build / "reports"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    env = {**os.environ, **options(build, folder / "report")}
    if preload := runtime(build):
        env |= {"LD_PRELOAD": preload, "PYAIRCACHE_LIB": str(build / "bin")}
    code = subprocess.run(
        [sys.executable, "-c", INSIDE, "-p", "no:cacheprovider", *sys.argv[2:]], env=env, cwd=ROOT
    ).returncode
    reports = sorted(folder.iterdir())
    for report in reports[:10]:
        print(f"--- {report.name}\n{report.read_text(errors='replace')[:6000]}")
    print(f"{build.name}: {len(reports)} reports of sanitizers, tests ended with {code}")
    return 1 if reports else code


if __name__ == "__main__":
    sys.exit(main())
