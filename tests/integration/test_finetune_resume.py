"""Stopped, killed and started again, alone or as two: the weights of the undisturbed run."""

import json
from pathlib import Path

import pytest

from tests.integration.finetune_processes import options, run_ranks
from tests.integration.pretrain_processes import read_json

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

RATES = (0.3, 0.1)  # the first wins: its weights must survive the stop in the second's training


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize("world_size", [1, 2])
def test_resumed_runs_end_with_the_same_result(world_size, data_dir, tmp_path):
    base = {"data-dir": data_dir, "learning-rates": RATES}
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"

    ended = run_ranks(world_size, options({**base, "run-dir": undisturbed}))
    assert ended.codes == [0] * world_size, ended.texts
    expected = read_json(undisturbed / "result.json")

    # The last process alone is told to stop, in the first learning rate: all save and leave.
    again = options({**base, "run-dir": run})
    drive = {"signal": "SIGTERM", "after_step": 5, "on_rank": world_size - 1}
    ended = run_ranks(world_size, again, drive=drive)
    assert ended.codes == [85] * world_size, ended.texts
    assert read_json(run / "status.json")["state"] == "saved"
    assert read_json(run / "status.json")["step"] == 5

    if world_size == 2:  # killed in the second learning rate, two steps after a checkpoint
        drive = {"signal": "SIGKILL", "after_step": 13, "on_rank": 1}
        ended = run_ranks(world_size, again, drive=drive)
        assert ended.codes[1] == -9 and ended.codes[0] not in (0, 85), ended.texts

    ended = run_ranks(world_size, again)
    assert ended.codes == [0] * world_size, ended.texts
    result = read_json(run / "result.json")
    assert result["resumed_from_steps"] == ([5] if world_size == 1 else [5, 11])
    assert expected["resumed_from_steps"] == []
    for name in ("weights_sha256", "test", "per_class", "validation", "learning_rate"):
        assert result[name] == expected[name], name
    assert set(result["validation"]) == {"0.3", "0.1"}

    ended = run_ranks(world_size, again)
    assert ended.codes == [0] * world_size
    assert "this run is finished" in ended.texts[0]


def test_two_processes_see_what_one_sees(data_dir, tmp_path):
    seen, losses, tops = [], [], []
    for world_size in (1, 2):
        record = tmp_path / f"seen-{world_size}"
        record.mkdir()
        run = tmp_path / f"run-{world_size}"
        arguments = options({"data-dir": data_dir, "run-dir": run, "model.dropout": 0.0})
        ended = run_ranks(world_size, arguments, drive={"record": str(record)})
        assert ended.codes == [0] * world_size, ended.texts
        lines = [line for file in record.iterdir() for line in file.read_text().splitlines()]
        seen.append(sorted(json.loads(line) for line in lines))
        rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        losses.append([r["values"]["train/loss"] for r in rows if "train/loss" in r["values"]])
        tops.append(read_json(run / "result.json")["test"])
    assert seen[0] == seen[1] and len(seen[0]) == 8 * 16
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(losses[0]) == 8
    assert tops[0]["images"] == tops[1]["images"] == 797
