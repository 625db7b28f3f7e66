import errno
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking.journal import (
    Journal,
    count_rows,
    encode_number,
    read_json,
    read_rows,
    write_json,
)


def rows_of(path, offset=0):
    return [row for row, _ in read_rows(path, offset)]


def test_rows_come_back_in_order_with_the_offset_after_each(tmp_path):
    journal = Journal(tmp_path / "folder" / "j.jsonl")
    for number in range(5):
        journal.append({"step": number, "text": "ä\n"})
    found = list(read_rows(journal.path))
    assert [row["step"] for row, _ in found] == [0, 1, 2, 3, 4]
    assert found[-1][1] == journal.path.stat().st_size
    assert rows_of(journal.path, found[2][1]) == [found[3][0], found[4][0]]
    assert count_rows(journal.path, found[2][1]) == 2


def test_a_missing_journal_has_no_rows(tmp_path):
    assert rows_of(tmp_path / "none.jsonl") == []
    assert count_rows(tmp_path / "none.jsonl") == 0


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cut=st.integers(min_value=0, max_value=200), num_rows=st.integers(0, 6))
def test_any_torn_end_costs_the_torn_row_only(tmp_path_factory, cut, num_rows):
    path = tmp_path_factory.mktemp("torn") / "j.jsonl"
    journal = Journal(path)
    ends = [0]
    for number in range(num_rows):
        journal.append({"step": number})
        ends.append(path.stat().st_size)
    journal.close()
    kept_bytes = max(0, ends[-1] - cut)
    os.truncate(path, kept_bytes)
    num_kept = sum(end <= kept_bytes for end in ends[1:])

    assert len(rows_of(path)) == num_kept
    after = Journal(path)
    after.append({"step": 99})
    after.close()
    assert [row["step"] for row in rows_of(path)] == [*range(num_kept), 99]


def test_a_damaged_line_is_reported_and_passed_over(tmp_path, caplog):
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\0\n[1]\n{"step": 2}\n')
    assert [row["step"] for row in rows_of(path)] == [1, 2]
    assert len(caplog.records) == 2


def test_a_full_disk_raises_nothing_and_loses_nothing(tmp_path, monkeypatch, caplog):
    journal = Journal(tmp_path / "j.jsonl")
    journal.append({"step": 0})
    real_write = os.write

    def half_then_full(descriptor, data):
        if len(data) > 4:
            return real_write(descriptor, data[:4])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half_then_full)
        journal.append({"step": 1})
        journal.append({"step": 2})
        assert [row["step"] for row in rows_of(journal.path)] == [0]
        assert journal.path.read_bytes().endswith(b"\n")
    journal.append({"step": 3})
    assert [row["step"] for row in rows_of(journal.path)] == [0, 1, 2, 3]
    assert len(caplog.records) == 1


def test_rows_are_plain_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        Journal(tmp_path / "j.jsonl").append({"value": float("nan")})
    assert [encode_number(v) for v in (1, float("nan"), float("-inf"))] == [1.0, "nan", "-inf"]
    assert float(encode_number(float("inf"))) == float("inf")


def test_json_files_are_replaced_whole_and_read_tolerantly(tmp_path):
    path = tmp_path / "state.json"
    assert read_json(path) == {}
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2}
    assert list(tmp_path.iterdir()) == [path]
    path.write_text('{"a": ')
    assert read_json(path) == {}
