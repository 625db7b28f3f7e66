"""Whole transfers in this process, on the toy task."""

import json
from pathlib import Path

import pytest

from configs.errors import RefusedInput
from finetune.state import launched_in_vain
from finetune.transfer import transfer
from models.weights import load_weights, weights_sha256
from tests.finetune.toy_task import CLASSES, toy_config
from training.run_folder import RunFolder


def run(folder: Path, run_dir: Path, **changes) -> dict:
    config = toy_config(data_dir=folder, run_dir=run_dir, **changes)
    assert transfer(config) == 0
    return json.loads((run_dir / "result.json").read_text())


def test_a_transfer_writes_everything_it_promises(toy_folder, tmp_path):
    run_dir = tmp_path / "run"
    result = run(toy_folder, run_dir, learning_rates=(0.0001, 0.1), steps=12)
    assert result["validation"].keys() == {"0.0001", "0.1"}
    best = max(result["validation"], key=result["validation"].__getitem__)  # of equals the first
    assert result["learning_rate"] == float(best)
    assert result["test"]["top1"] > 0.9 and result["test"]["images"] == 15
    assert result["per_class"].keys() == set(CLASSES)
    assert result["test"]["top1"] == pytest.approx(sum(result["per_class"].values()) / 3)
    assert (result["steps"], result["images_seen"], result["seed"]) == (12, 96, 0)
    assert result["resumed_from_steps"] == []
    exported = load_weights(run_dir)
    assert weights_sha256(exported.state_dict) == result["weights_sha256"]
    assert exported.card.classes == CLASSES
    for name in ("plots/confusion.png", "plots/curves.png"):
        assert (run_dir / name).read_bytes().startswith(b"\x89PNG")
    assert RunFolder(run_dir).status()["state"] == "finished"
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "train/loss" in row["values"]]
    assert steps == list(range(1, 25))  # the second learning rate goes on counting
    assert sum("test/top1" in row["values"] for row in rows) == 1


def test_the_test_set_is_scored_by_second_labels_too(toy_folder, tmp_path, capsys):
    # In the order of the image folder: five images of each class; none counts for the last five.
    lists = [[number // 5, 2] for number in range(10)] + [[]] * 5
    (tmp_path / "real.json").write_text(json.dumps(lists))
    result = run(toy_folder, tmp_path / "run", steps=12, test_real_labels=tmp_path / "real.json")
    assert result["test"]["real_images"] == 10 and result["test"]["real_top1"] > 0.9
    out = capsys.readouterr().out
    assert f"; ReaL top-1 {100 * result['test']['real_top1']:.2f} % of 10 images" in out
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    logged = [row["values"] for row in rows if "test/real_top1" in row["values"]]
    assert [values["test/real_top1"] for values in logged] == [result["test"]["real_top1"]]
    assert "test/top1" in logged[0]
    assert not any("validation/real_top1" in row["values"] for row in rows)


def test_bf16_trains_on_after_it_was_scored(toy_folder, tmp_path):
    result = run(
        toy_folder, tmp_path / "run", precision="bf16", learning_rates=(0.01, 0.1), steps=12
    )
    assert result["test"]["top1"] > 0.9
    assert all(top1 > 0.9 for top1 in result["validation"].values())


def test_several_cpu_processes_that_accelerate_does_not_start_are_told(monkeypatch):
    for name in ("WORLD_SIZE", "MASTER_PORT", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    assert launched_in_vain() is None
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert "--multi_gpu --num_processes N" in str(launched_in_vain())
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched_in_vain() is None


def test_same_seed_same_weights_other_seed_others(toy_folder, tmp_path):
    digests = [
        run(toy_folder, tmp_path / str(number), seed=seed)["weights_sha256"]
        for number, seed in enumerate((0, 0, 1))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_learning_rate_that_diverges_is_left_out(toy_folder, tmp_path):
    result = run(toy_folder, tmp_path / "run", learning_rates=(1e38, 0.1), clip_norm=None, steps=12)
    assert result["validation"]["1e+38"] is None
    assert result["learning_rate"] == 0.1 and result["test"]["top1"] > 0.9


def test_all_learning_rates_diverged_is_a_failure(toy_folder, tmp_path, capsys):
    config = toy_config(
        data_dir=toy_folder, run_dir=tmp_path / "run", learning_rates=(1e38,), clip_norm=None
    )
    (tmp_path / "run").mkdir()
    assert transfer(config) == 1
    assert "every learning rate diverged (1e+38)" in capsys.readouterr().out
    status = RunFolder(tmp_path / "run").status()
    assert status["state"] == "failed" and "diverged" in status["error"]


def test_weights_of_one_transfer_start_the_next(toy_folder, tmp_path):
    run(toy_folder, tmp_path / "first", steps=12)
    source = str(tmp_path / "first")
    result = run(toy_folder, tmp_path / "second", pretrained=source, resolution=12)
    assert result["pretrained"]["reference"] == source
    assert result["resolution"] == [12, 12]


def test_a_resumed_run_must_find_the_same_images_and_weights(toy_folder, tmp_path, monkeypatch):
    from finetune import loop

    monkeypatch.setattr(loop, "stop_requested", lambda: "a test")
    config = toy_config(data_dir=toy_folder, run_dir=tmp_path / "run")
    (tmp_path / "run").mkdir()
    assert transfer(config) == 85
    assert RunFolder(tmp_path / "run").status()["state"] == "saved"
    with pytest.raises(RefusedInput, match="starting weights was"):
        transfer(config.model_copy(update={"seed": 1}))
    assert RunFolder(tmp_path / "run").status()["state"] == "saved"  # as it was
