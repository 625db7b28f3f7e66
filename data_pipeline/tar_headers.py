"""Headers of tar archives, read such that damage is not taken for the end."""

from __future__ import annotations

import tarfile
from tarfile import (  # type: ignore[attr-defined]
    EmptyHeaderError,
    EOFHeaderError,
    HeaderError,
    ReadError,
)
from typing import Any


class StrictHeader(tarfile.TarInfo):
    """Tells damage from the end of an archive, which tarfile takes for the same."""

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> StrictHeader:
        """Read the next header; a block of zeros ends an archive, anything else is damage."""
        try:
            return super().fromtarfile(tarfile)
        except EOFHeaderError:
            raise
        except EmptyHeaderError as error:
            raise ReadError("the blocks that end an archive are missing") from error
        except HeaderError as error:
            raise ReadError(f"no header at byte {tarfile.offset} ({error})") from error
