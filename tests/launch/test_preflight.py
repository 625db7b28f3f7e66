"""What `python -m launch.submit` looks at before it submits: each kind of trouble is refused."""

import shutil
from pathlib import Path

import pytest

from configs.errors import RefusedInput
from launch.submission import capacity
from launch.submit import main
from tests.integration.pretrain_processes import ROOT
from training.run_folder import RunFolder

THEN = ("--then", "finetune", "--tasks")


@pytest.fixture
def refused(submit):
    """The message that submitting ends with."""

    def refused(*words: str, checks=("--skip", "disk,memory")) -> str:
        with pytest.raises(RefusedInput) as told:
            submit(*words, checks=checks)
        assert "nothing was submitted" in str(told.value)
        assert submit.asked() == []
        return str(told.value)

    return refused


def test_everything_that_is_wrong_is_told_at_once(refused):
    told = refused("--data.train", "/nowhere", "--batch.global-images", "15", "--time", "4")
    assert "paths: --time 4 (240 s) ends before the signal" in told
    assert "batch: batch.global_images = 15 does not divide by the world size 2" in told
    assert "--skip CHECK" in told


def test_data_that_is_not_there_is_told_once(refused):
    assert refused("--data.train", "/nowhere").count("/nowhere does not exist") == 1


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_shard_that_cannot_be_read(damage, refused, tiny_train, tmp_path):
    folder = shutil.copytree(tiny_train, tmp_path / "train")
    shard = sorted(folder.glob("*.tar"))[-1]
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:600])
    else:
        shard.unlink()
    told = refused("--data.train", str(folder))
    assert f"shards: {folder}: shard {shard.name} cannot be read" in told


def test_a_full_disk(refused, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(capacity.shutil, "disk_usage", lambda _: usage)
    told = refused(checks=())
    assert "disk: checkpoints take 0.0 GB" in told and "lower checkpoint.keep" in told


def test_a_step_that_does_not_fit_the_gpu(submit, capsys, monkeypatch):
    config = ROOT / "configs" / "pretrain" / "vit_b16_in21k.yaml"
    argv = ["--config", str(config), "--nodes", "1", "--gpus-per-node", "1", "--time", "60"]
    argv += ["--skip", "data,shards,disk", "--dry-run"]
    main([*argv, "--gpu", "a10-24gb", "--batch.micro-images", "2048"])
    told = capsys.readouterr().err
    assert "would be refused: memory: on a10-24gb, ZeRO 1 with micro batches of 2048" in told
    assert "--zero.stage 1 --batch.micro-images" in told.partition("GiB;")[2]
    main([*argv, "--gpu", "a10-24gb"])
    assert "ok: memory: ZeRO 1 with micro batches of 128 takes" in capsys.readouterr().err
    main(argv)
    assert "ok: memory: not looked at" in capsys.readouterr().err
    main([*argv, "--gpu", "h1000"])
    assert "--gpu h1000: not in the table" in capsys.readouterr().err


def test_run_folder_python_and_container(refused, submit, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file cannot be written to" in refused("--run-dir", "file/b16")
    Path("site.yaml").write_text("python: /opt/none/python\n")
    assert "/opt/none/python is no program" in refused("--site", "site.yaml")
    Path("site.yaml").write_text("container: [apptainer, exec, none.sif]\n")
    assert "there is no file none.sif" in refused("--site", "site.yaml")
    Path("site.yaml").write_text("srun: [--container-image=vitrain]\npython: /only/inside/python\n")
    submit("--site", "site.yaml")


def test_a_finished_run_and_one_that_must_be_there(refused, submit):
    assert "resume = must" in refused("--resume", "must")
    folder = Path("my runs/b16")
    folder.mkdir(parents=True)
    RunFolder(folder).write_status("finished", 12)
    assert "is finished (step 12), nothing to do" in refused()
    assert "resume = never, but" in refused("--resume", "never")
    submit(*THEN, "digits")  # its finetuning can still be asked for


def test_finetuning_that_would_be_refused_a_month_later(refused, submit, capsys):
    told = refused(*THEN, "cifar10", "--finetune-options", "--resolution 31")
    assert "finetune: task cifar10: --resolution 31 is not a multiple" in told
    batch = "--batch.global-images 6"
    told = refused(*THEN, "digits", "--finetune-gpus", "4", "--finetune-options", batch)
    assert "batch.global_images = 6 does not divide" in told
    assert "must hold train/ and test/" in refused(*THEN, "shards")
    submit(*THEN, "digits,cifar10")
    assert "will be downloaded by their jobs: cifar10" in capsys.readouterr().out


def test_checks_can_be_left_out(submit):
    assert submit("--data.train", "/nowhere", checks=("--skip", "data,shards,disk"))
