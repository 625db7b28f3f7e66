"""The steps that `profile` names."""

from __future__ import annotations

import re


def profile_steps(text: str) -> tuple[int, int]:
    """Updates made when a profile begins and when it ends, of "50:55".

    Raises:
        ValueError: The text is something else, or names no step.
    """
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None or int(found[1]) >= int(found[2]):
        raise ValueError(
            f"profile = {text}: give FIRST:LAST with FIRST below LAST, as 50:55, for the steps "
            "from 50 to 55"
        )
    return int(found[1]), int(found[2])
