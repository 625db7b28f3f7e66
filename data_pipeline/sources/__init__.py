"""One reader per dataset layout; each gives a split's images in the source's own order.

A `Source` lists them and reads any of them when asked; a `StreamSource` can only be read from front
to back.
"""

from data_pipeline.sources.fractals import FractalOptions, FractalSource
from data_pipeline.sources.registry import READER_OPTIONS, SOURCES, SourceKind, open_source
from data_pipeline.sources.source import PendingImage, Source
from data_pipeline.sources.stream_source import StreamedImage, StreamSource

__all__ = [
    "READER_OPTIONS",
    "SOURCES",
    "FractalOptions",
    "FractalSource",
    "PendingImage",
    "Source",
    "SourceKind",
    "StreamSource",
    "StreamedImage",
    "open_source",
]
