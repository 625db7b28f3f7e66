"""Contestants that fail: all at once where all must run, told and passed over where some may."""

import pytest

from benchmarks.side_by_side import attempt, compare

SCRIPT = """
import json, sys, time
name = sys.argv[sys.argv.index("--only") + 1]
if name == "broken":
    raise ValueError("no such kernel")
if name == "slow":
    time.sleep(60)
print("something before")
print(json.dumps({"rate": 3.0}))
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return str(path)


def test_what_works_is_measured(script):
    assert attempt(script, "good", [], timeout_seconds=30) == {"rate": 3.0}
    assert compare(script, ["good"], [], runs=2, timeout_seconds=30) == {
        "good": [{"rate": 3.0}] * 2
    }


def test_what_fails_is_told_in_a_line(script, capsys):
    found = attempt(script, "broken", [], timeout_seconds=30)
    assert found == {"failed": "ValueError: no such kernel"}
    assert "broken failed: ValueError" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="ValueError: no such kernel"):
        compare(script, ["broken"], [], runs=1, timeout_seconds=30)


def test_what_takes_too_long_is_ended(script):
    found = attempt(script, "slow", [], timeout_seconds=1)
    assert found == {"failed": "took longer than 1 s"}
