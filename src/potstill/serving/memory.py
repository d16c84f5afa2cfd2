"""Whether there is memory for a second engine beside the first, as a swap without a gap needs."""

from __future__ import annotations

from pathlib import Path

MARGIN = 1.2  # on the file's size: context, buffers, the process itself
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> int | None:
    """What a new process can have: the machine's available memory or the container's rest; None where unknown."""
    found: list[int] = []
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError, IndexError):
        pass
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit) - int((cgroup / "memory.current").read_text()) + _inactive(cgroup))
    except (OSError, ValueError):
        pass
    return min(found) if found else None


def _inactive(cgroup: Path) -> int:
    """Cached file pages, which the kernel gives up before it kills anybody."""
    for line in (cgroup / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0


def shortage(model: Path, free: int | None) -> str | None:
    """Why an engine for this file or folder does not fit, in words; None when it does or when nothing is known."""
    size = sum(each.stat().st_size for each in model.rglob("*") if each.is_file()) if model.is_dir() else _size(model)
    need = int(size * MARGIN)
    if free is None or free >= need:
        return None
    return f"needs about {need / 2**20:,.0f} MiB beside the engine that runs, {free / 2**20:,.0f} MiB are free"


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
