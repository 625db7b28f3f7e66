"""Files that are the old one or the new one, even after a crash or a power cut.

In the lowest row of the architecture because every package writes such files.
"""

import os
import threading
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by a file of this text: a reader sees the old one or the new one."""
    writer = f"{os.getpid()}-{threading.get_ident()}"
    temporary = path.with_name(f".{path.name}.{writer}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def flush_to_disk(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
