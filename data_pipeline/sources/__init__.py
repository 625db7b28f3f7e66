"""One reader per dataset layout; each lists a split's images in the source's own order."""

from data_pipeline.sources.fractals import FractalOptions, FractalSource
from data_pipeline.sources.registry import SOURCES, SourceKind, open_source
from data_pipeline.sources.source import PendingImage, Source

__all__ = [
    "SOURCES",
    "FractalOptions",
    "FractalSource",
    "PendingImage",
    "Source",
    "SourceKind",
    "open_source",
]
