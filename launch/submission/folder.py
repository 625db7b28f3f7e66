"""The files of a submission in a run's folder; nothing slow is imported, as for `launch.status`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = "slurm"
CONFIG_FILE = "config.yaml"
RECORD_FILE = "submission.json"


def read_record(folder: Path) -> dict[str, Any]:
    """What was last submitted for a run folder; empty if nothing was."""
    try:
        found = json.loads((folder / FOLDER / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
