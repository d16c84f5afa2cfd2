"""Whether there is memory for a second engine beside the first, as a swap without a gap needs."""

from __future__ import annotations

from pathlib import Path

MARGIN = 1.2  # on the file's size: context, buffers, the process itself


def shortage(model: Path, free: int | None) -> str | None:
    """Why an engine for this file or folder does not fit, in words; None when it does or when nothing is known."""
    size = sum(each.stat().st_size for each in model.rglob("*") if each.is_file()) if model.is_dir() else _size(model)
    need = int(size * MARGIN)
    if free is None or free >= need:
        return None
    return f"needs about {need / 2**20:,.0f} MiB beside the engine that runs, {free / 2**20:,.0f} MiB are free"


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
