"""The planner: its command line, its arithmetic against closed forms, and what it refuses."""

import json
import subprocess
import sys

import pytest

from configs.command_line import run_command
from configs.errors import RefusedInput
from launch.plan import main
from tests.integration.pretrain_processes import ROOT, tiny_shards

B16 = "configs/pretrain/vit_b16_in21k.yaml"
H14 = "configs/pretrain/vit_h14_in21k.yaml"
GIB = 2**30


@pytest.fixture
def plan_of(monkeypatch, capsys):
    """Plans in this process; gives back the JSON object."""
    monkeypatch.chdir(ROOT)

    def run(config, *words, gpus=8, gpu="a100-80gb"):
        argv = ["--config", config, "--gpus", str(gpus), "--gpu", gpu, "--json", *words]
        assert main(argv) == 0
        return json.loads(capsys.readouterr().out)

    return run


def started(*words):
    return subprocess.run(
        [sys.executable, "-m", "launch.plan", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_prints_one_json_object():
    done = started("--config", H14, "--gpus", "32", "--gpu", "h100-80gb", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["model"]["parameters"] == 632_045_800 + (21_841 - 1000) * 1281
    assert {"memory", "throughput", "schedule"} <= plan.keys()
    assert plan["memory"]["configured"]["fits"] is True


def test_help_and_refusals_need_no_torch():
    """Imports decide how long an answer takes, whatever the machine is doing meanwhile."""
    for words, code in ((["--help"], 0), (["--config", B16, "--gpus", "8", "--gpu", "x"], 2)):
        program = (
            f"import sys, runpy; sys.argv = ['plan', *{words!r}]\n"
            "try: runpy.run_module('launch.plan', run_name='__main__', alter_sys=False)\n"
            "except SystemExit as end: print('code', end.code)\n"
            "print('imported', sorted({'torch', 'deepspeed', 'timm'} & set(sys.modules)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert f"code {code}" in done.stdout and "imported []" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--gpu", "h10"], "did you mean"),
        (["--gpus", "12"], "not whole nodes of 8"),
        (["--gpus", "0"], "at least 1"),
        (["--gpus", "x"], "--gpus: x: give a whole number"),
        (["--mfu", "1.5"], "at most 1"),
        (["--mfu", "high"], "--mfu: high: give a number"),
        (["--fragmentation", "1"], "below 1"),
        (["--gpu-memory", "80"], "did you mean --gpu-memory-gib"),
        (["--gpu", "v100-32gb"], "does not multiply bf16"),
        (["--gpu", "t4"], "give --precision fp16 or fp32"),
        (["--data.train", "elsewhere"], "give --images N and --classes N"),
        (["--gpus", "24"], "batch.global_images = 4096 does not divide"),
        (["--batch.micro-images", "100"], "batch.micro_images = 100 does not divide"),
        (["--model.sise", "b"], "--model.size"),
    ],
)
def test_refused_with_exit_code_2_and_what_to_do(words, told, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    argv = ["plan", "--config", B16, "--gpus", "8", "--gpu", "a100-80gb", *words]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_memory_by_part_and_stage(plan_of):
    plan = plan_of(B16, gpus=8)
    number = plan["model"]["parameters"]
    rows = {
        row["zero_stage"]: row
        for row in plan["memory"]["settings"]
        if not row["activation_checkpointing"]
    }
    assert set(rows) == {1, 2, 3}  # bf16 is refused at stage 0
    assert rows[1]["weights_bytes"] == 2 * number
    assert rows[1]["gradients_bytes"] == 6 * number
    for stage in (1, 2, 3):
        assert rows[stage]["optimizer_bytes"] == pytest.approx(12 * number / 8, rel=1e-6)
    assert rows[3]["weights_bytes"] < rows[2]["weights_bytes"] / 4
    recomputed = [row for row in plan["memory"]["settings"] if row["activation_checkpointing"]]
    assert len(recomputed) == 3
    assert recomputed[0]["activation_bytes_per_image"] < rows[1]["activation_bytes_per_image"] / 4


def test_the_largest_micro_batch_fits_and_the_next_does_not(plan_of):
    batch = ("--batch.global-images", "64", "--batch.micro-images", "8")
    found = plan_of(B16, *batch)["memory"]
    row = found["settings"][0]
    state = sum(row[f"{part}_bytes"] for part in ("weights", "gradients", "optimizer", "buffers"))
    room = found["usable_bytes"] - state
    assert row["largest_micro_images"] * row["activation_bytes_per_image"] <= room
    assert (row["largest_micro_images"] + 2) * row["activation_bytes_per_image"] > room
    assert row["best_micro_images"] == 8  # a GPU's whole share of the batch
    assert found["recommended"]["micro_images"] == 8
    assert found["recommended"]["accumulation_steps"] == 1


def test_what_is_recommended_fits_and_uses_the_lowest_stage_that_does(plan_of):
    large = plan_of(H14, gpus=32)["memory"]["recommended"]
    assert (large["zero_stage"], large["fits"]) == (1, True)
    small = plan_of(H14, "--gpu-memory-gib", "10", gpus=32)["memory"]
    assert small["recommended"]["zero_stage"] > 1 and small["recommended"]["fits"]
    assert small["configured"]["fits"] is False


def test_checkpointing_is_recommended_only_where_nothing_fits_without(plan_of, capsys):
    words = (*("--gpu-memory-gib", "3.6"), *("--batch.global-images", "4096"))
    words += ("--model.image-px", "1008", "--batch.micro-images", "1", "--model.depth", "4")
    plan = plan_of(H14, *words, gpus=32)
    recommended = plan["memory"]["recommended"]
    without = [row for row in plan["memory"]["settings"] if not row["checkpoint_blocks"]]
    assert not any(row["best_micro_images"] for row in without)
    assert (recommended["checkpoint_blocks"], recommended["fits"]) == (1, True)
    main(["--config", H14, "--gpus", "32", "--gpu", "h100", *words])
    text = capsys.readouterr().out
    assert "--model.checkpoint-blocks 1)" in text and "nothing fits without checkpointing" in text


def test_every_second_block_is_a_row_of_its_own_and_half_the_cost(plan_of):
    plain, half = (
        plan_of(B16, "--model.depth", "4", "--model.checkpoint-blocks", str(k)) for k in (0, 2)
    )
    rows = [row for row in half["memory"]["settings"] if row["zero_stage"] == 1]
    bytes_per_image = [row["activation_bytes_per_image"] for row in rows]
    assert [row["checkpoint_blocks"] for row in rows] == [0, 1, 2]
    assert bytes_per_image[1] < bytes_per_image[2] < bytes_per_image[0]
    assert half["memory"]["configured"]["checkpoint_blocks"] == 2
    speeds = [plan["throughput"]["images_per_second"] for plan in (plain, half)]
    assert speeds[0] / speeds[1] == pytest.approx(1 + 0.5 / 3)


def test_average_and_offloading_move_the_state(plan_of):
    plain, moved = (
        plan_of(B16, "--model.depth", "2", *words)
        for words in ((), ("--optim.ema-decay", "0.999", "--zero.offload-optimizer"))
    )
    number = plain["model"]["parameters"]
    before, after = (plan["memory"]["settings"][0] for plan in (plain, moved))
    assert (before["average_bytes"], before["host_bytes"]) == (0, 0)
    assert (after["optimizer_bytes"], after["average_bytes"]) == (0, 0)
    assert after["host_bytes"] > (12 + 4) * number / 8
    assert moved["checkpoint"]["bytes"] == 16 * number


def test_fp16_where_there_is_no_bf16(plan_of):
    """auto is fp32 there, as in training; fp16 has to be asked for."""
    by_precision = {
        name: plan_of(B16, "--precision", name, "--model.depth", "2", gpu="v100-32gb")
        for name in ("auto", "fp16")
    }
    assert by_precision["auto"]["gpus"]["precision"] == "fp32"
    assert by_precision["fp16"]["gpus"]["peak_tflops"] == 125.0
    rows = by_precision["fp16"]["memory"]["settings"]
    assert rows[0]["zero_stage"] == 1
    assert rows[0]["weights_bytes"] == 2 * by_precision["fp16"]["model"]["parameters"]


def test_where_nothing_fits_the_plan_says_so(plan_of, capsys):
    assert plan_of(H14, "--gpu-memory-gib", "4", gpus=32)["memory"]["recommended"] is None
    main(["--config", H14, "--gpus", "32", "--gpu", "h100", "--gpu-memory-gib", "4"])
    text = capsys.readouterr().out
    assert "DOES NOT FIT" in text and "nothing fits" in text


def test_speed_length_data_checkpoints_and_energy(plan_of):
    plan = plan_of(
        B16,
        *("--mfu", "0.5", "--images", "1000000", "--schedule.epochs", "90"),
        *("--bytes-per-image", "100000", "--decode-images-per-core", "500"),
        *("--storage-gb-per-second", "1", "--copy-gb-per-second", "10"),
        *("--checkpoint.every-steps", "1000"),
        *("--power-fraction", "0.5", "--host-watts-per-gpu", "100", "--pue", "1.2"),
        *("--grid-kg-per-kwh", "0.1"),
        gpus=16,
    )
    flops = plan["model"]["forward_flops_per_image"]
    assert flops == pytest.approx(2 * 17.58e9, rel=0.01)  # timm's table, with a larger head
    rate = plan["throughput"]["images_per_second"]
    assert rate == pytest.approx(16 * 312e12 * 0.5 / (3 * flops))
    length, saving = plan["schedule"], plan["checkpoint"]
    assert length["total_steps"] == 21_973  # 90 million images in batches of 4096, rounded up
    assert saving["bytes"] == 12 * plan["model"]["parameters"]
    assert saving["write_seconds"] == pytest.approx(saving["bytes"] / 1e9)
    assert saving["stall_seconds"] == pytest.approx(saving["bytes"] / 16 / 10e9)
    assert saving["number"] == 22
    seconds = 21_973 * 4096 / rate + 22 * saving["stall_seconds"]
    assert length["days"] == pytest.approx(seconds / 86_400)
    assert length["gpu_hours"] == pytest.approx(16 * seconds / 3600)
    data = plan["data"]
    assert data["images_per_second_per_node"] == pytest.approx(rate / 2)
    assert data["megabytes_per_second_per_node"] == pytest.approx(rate / 2 * 0.1)
    assert data["decode_cores_per_node"] == pytest.approx(rate / 2 / 500)
    kilowatt_hours = 16 * (400 * 0.5 + 100) * 1.2 / 1000 * seconds / 3600
    assert plan["energy"]["kilowatt_hours"] == pytest.approx(kilowatt_hours)
    assert plan["energy"]["co2_kg"] == pytest.approx(kilowatt_hours * 0.1)


def test_training_waits_for_writes_that_are_slower_than_the_steps_between(plan_of):
    slow = ("--storage-gb-per-second", "0.001", "--checkpoint.every-steps", "10")
    background = plan_of(B16, *slow)
    steps = 10 * background["throughput"]["step_seconds"]
    saving = background["checkpoint"]
    copying = saving["bytes"] / 8 / 12e9
    assert saving["stall_seconds"] == pytest.approx(copying + saving["write_seconds"] - steps)
    waiting = plan_of(B16, *slow, "--checkpoint.no-in-background")["checkpoint"]
    assert waiting["stall_seconds"] == pytest.approx(copying + saving["write_seconds"])


def test_every_assumption_is_printed_with_its_option(capsys):
    words = ["--config", B16, "--gpus", "8", "--gpu", "h100", "--pue", "1.1"]
    assert main(words) == 0
    text = capsys.readouterr().out
    helped = started("--help").stdout
    names = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
    assert len(names) == 14
    assert all(f"{name} " in helped for name in names)
    pue = text[text.index("--pue 1.1") :].splitlines()
    assert pue[1].strip() == "(given)"


def test_shards_that_are_there_are_read(plan_of, tmp_path):
    folder = tiny_shards(tmp_path / "train", (33, 27), seed=0)
    plan = plan_of(B16, "--data.train", str(folder), "--schedule.epochs", "1", gpus=4)
    assert plan["assumptions"]["images"]["value"] == 60
    assert plan["model"]["num_classes"] == 4
    stored = sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert plan["assumptions"]["bytes_per_image"]["value"] == pytest.approx(stored / 60)


def test_fp32_takes_the_fp32_peak_and_has_stage_0(plan_of):
    plan = plan_of(B16, "--precision", "fp32", gpu="V100")
    assert plan["gpus"]["peak_tflops"] == 15.7
    assert plan["memory"]["settings"][0]["zero_stage"] == 0


def test_offloading_weights_is_refused_not_ignored(tmp_path, plan_of):
    file = tmp_path / "offload.yaml"
    block = "deepspeed: {zero_optimization: {offload_param: {device: cpu}}}"
    file.write_text((ROOT / B16).read_text() + block + "\n")
    with pytest.raises(RefusedInput, match="offload_param"):
        plan_of(str(file))
