"""Which training images show a test image: exact copies, near copies, mirrored copies.

The test sets are small, so they are held in memory, as thumbnails and perceptual hashes in an
index; the training set is read once, past them, and nothing of it is kept.
`record_leaks` writes the pairs to a Parquet file, and `python -m data_pipeline.leaks` is its
command.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_pipeline.leaks.record import LeakSummary, record_leaks
    from data_pipeline.leaks.table import LEAKS_SCHEMA

__all__ = ["LEAKS_SCHEMA", "LeakSummary", "record_leaks"]

_MODULE_OF = {"LEAKS_SCHEMA": "table", "LeakSummary": "record", "record_leaks": "record"}


def __getattr__(name: str) -> Any:
    # Loaded when first used: `--help` must not wait for torch.
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
