"""Memory as the system counts it: from outside of the engine."""

from __future__ import annotations

from pathlib import Path

_STATUS = Path("/proc/self/status")


def process_memory(status: Path = _STATUS) -> tuple[int, int]:
    """Bytes of this process in RAM, now and at most since it began: VmRSS and VmHWM of ``/proc``; 0, 0 without it."""
    try:
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0, 0
    found = {name: 1024 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)
             if name in ("VmRSS", "VmHWM")}  # fmt: skip
    return found.get("VmRSS", 0), found.get("VmHWM", 0)
