"""Slurm's commands, played by scripts that note what they were asked for."""

import os
from collections.abc import Mapping
from pathlib import Path


def play(folder: Path, programs: Mapping[str, str]) -> Path:
    """Write bash programs into a folder, which then comes first on PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in programs.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    return folder


def path_with(folder: Path) -> str:
    """PATH with a folder in front."""
    return f"{folder}:{os.environ['PATH']}"
