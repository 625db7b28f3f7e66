"""Real `data_pipeline.build` processes, which tests kill."""

import subprocess
import sys

BUILD_SECONDS = 300


def start_build(*words: object) -> subprocess.Popen:
    """Begin a build with these options."""
    return subprocess.Popen(
        [sys.executable, "-m", "data_pipeline.build", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that its workers can be killed with it
    )


def finish(process: subprocess.Popen) -> str:
    """What it wrote until it ended well."""
    text, _ = process.communicate(timeout=BUILD_SECONDS)
    assert process.returncode == 0, text
    return text
