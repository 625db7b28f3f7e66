"""Pretraining on a real Slurm cluster: to the end, and through all that clusters do to jobs."""

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.integration.pretrain_processes import ROOT, options, read_json, tiny_shards
from tests.slurm.cluster import SlurmCluster, wait_until
from tests.slurm.pretraining_job import START_SECONDS, PretrainingJob

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

RUN = {
    "schedule.total-steps": 200,
    "checkpoint.every-steps": 25,
    "logging.every-steps": 5,
    "evaluation.every-steps": 100,
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("shards"), (40, 37), seed=0)


@pytest.fixture(scope="module")
def task_data(tmp_path_factory) -> Path:
    """Shards that any finetuning task takes for its own."""
    folder = tmp_path_factory.mktemp("task")
    tiny_shards(folder / "train", (40,), seed=1)
    tiny_shards(folder / "test", (20,), seed=2)
    return folder


@pytest.fixture
def submit(cluster: SlurmCluster, shards, tmp_path):
    """Submits a tiny pretraining on both nodes; what is left of it afterwards is cancelled."""
    submitted: list[PretrainingJob] = []

    def submit(*words: str) -> PretrainingJob:
        job = submit_pretraining(cluster, shards, tmp_path, words)
        submitted.append(job)
        return job

    yield submit
    for job in submitted:
        job.end()
    cluster.heal()
    cluster.command("scontrol", "update", "PartitionName=main", "GraceTime=0")


@pytest.fixture(scope="module")
def undisturbed(cluster: SlurmCluster, shards, task_data, tmp_path_factory):
    """A run to the end, and finetuning after it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    job = submit_pretraining(cluster, shards, folder, then_finetune(task_data))
    try:
        job.wait_for("COMPLETED")
        yield job
    finally:
        job.end()


def submit_pretraining(
    cluster: SlurmCluster, shards: Path, folder: Path, words: Sequence[str]
) -> PretrainingJob:
    """With the command that people use."""
    run, config, site = (folder / name for name in ("run", "tiny.yaml", "site.yaml"))
    config.write_text("stage: pretrain\n")
    site.write_text("environment: {OMP_NUM_THREADS: 1}\nsrun: [--wait=5]\n")
    said = cluster.command(
        *[sys.executable, "-m", "launch.submit", "--config", config, "--site", site],
        *["--nodes", "2", "--gpus-per-node", "0", "--time", "30", "--skip", "disk,memory"],
        *options({**RUN, "data.train": shards, "run-dir": run}),
        *words,
        cwd=ROOT,
    )
    jobs = dict(re.findall(r"submitted job (\d+): (\w+)", said))
    ids = {stage: job for job, stage in jobs.items()}
    return PretrainingJob(cluster, ids["pretraining"], run, ids.get("finetuning"))


def then_finetune(task_data: Path) -> list[str]:
    """Two tasks, of a few steps each."""
    values = "--resolution 16 --steps 4 --warmup-steps 1 --learning-rates 0.1 --precision fp32"
    values += " --batch.global-images 16 --evaluation.batch-images 20 --evaluation.every-steps 4"
    values += f" --tracking.no-enabled --data-dir {task_data}"
    return ["--then", "finetune", "--tasks", "digits,pets", "--finetune-options", values]


def test_two_nodes_to_the_end(undisturbed):
    result, facts = undisturbed.result(), undisturbed.facts()
    assert (result["steps"], result["resumed_from_steps"]) == (200, [])
    assert (facts["NumNodes"], facts["Restarts"], facts["ExitCode"]) == ("2", "0", "0:0")
    assert undisturbed.status()["state"] == "finished"
    assert "2 ranks" in (undisturbed.run / "train.log").read_text()


def test_finetuning_follows_a_pretraining_that_ended_well(undisturbed):
    def has_ended() -> bool:
        states = undisturbed.finetuning_states()
        assert not {"FAILED", "CANCELLED"} & set(states), undisturbed.told()
        return set(states) == {"COMPLETED"}

    wait_until(has_ended, START_SECONDS, undisturbed.told)
    for task in ("digits", "pets"):
        result = read_json(undisturbed.run.with_name(f"finetune-{task}-run") / "result.json")
        assert result["task"] == task and result["test"]["images"] == 20
        assert result["pretrained"]["reference"] == str(undisturbed.run)


def test_finetuning_is_cancelled_when_pretraining_fails(
    submit, cluster, shards, task_data, tmp_path
):
    cluster.command("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        mine = shutil.copytree(shards, tmp_path / "shards")
        job = submit(*then_finetune(task_data), "--data.train", str(mine))
        # What was there when the job was submitted, and is not when it starts.
        shutil.rmtree(mine)
    finally:
        cluster.command("scontrol", "update", "PartitionName=main", "State=UP")
    job.wait_for("FAILED")
    assert job.facts()["ExitCode"] == "2:0"
    wait_until(lambda: set(job.finetuning_states()) == {"CANCELLED"}, 60, job.told)


def test_at_the_time_limit_a_run_saves_and_goes_on(submit, undisturbed):
    job = submit()
    job.wait_for_step(5)
    with job.held():
        # Slurm looks at limits every 30 seconds, and signals 300 seconds before the new one.
        minutes = job.minutes_since_start() + 3
        job.cluster.command("scontrol", "update", f"JobId={job.id}", f"TimeLimit={minutes}")
        wait_until(lambda: job.status()["state"] == "saved", 120, job.told)
    job.start_now("TimeLimit=30")
    saved = job.status()
    assert saved["state"] == "saved" and saved["reason"].endswith("SIGUSR1")
    job.wait_for("COMPLETED")
    assert_same_weights(job, undisturbed, resumed_from=[saved["step"]])


@pytest.mark.parametrize("grace_seconds", [0, 60])
def test_a_job_of_a_higher_partition_goes_first(grace_seconds, submit, cluster, undisturbed):
    """Without grace Slurm requeues the job, with it the batch script does."""
    job = submit()
    job.wait_for_step(5)
    grace = f"GraceTime={grace_seconds}"
    cluster.command("scontrol", "update", "PartitionName=main", grace)
    with job.held():
        urgent = "sbatch --partition=urgent --nodes=3 --wrap=true --output=/dev/null"
        cluster.command(*urgent.split())
        wait_until(lambda: job.status()["state"] == "saved", 60, job.told)
    job.start_now()
    saved = job.status()
    assert saved["reason"].endswith("SIGTERM")
    assert ("exit code 85, requeued" in job.log()) == (grace_seconds > 0)
    job.wait_for("COMPLETED")
    assert_same_weights(job, undisturbed, resumed_from=[saved["step"]])


def test_a_cancelled_job_saves_and_does_not_come_back(submit, task_data):
    job = submit(*then_finetune(task_data))
    job.wait_for_step(5)
    with job.held():
        job.cluster.command("scancel", job.id)
    job.wait_for("CANCELLED")
    assert job.status()["state"] == "saved"
    assert job.facts()["Restarts"] == "0" and not job.ranks()
    wait_until(lambda: set(job.finetuning_states()) == {"CANCELLED"}, 60, job.told)


def test_a_job_whose_node_is_lost_goes_on_with_another(submit, cluster, undisturbed):
    job = submit()
    with job.held_after_a_checkpoint():
        cluster.lose("n1")
    # The other rank fails, and srun gives up, long before Slurm notices.
    wait_until(lambda: "a node does not answer" in job.log(), 120, job.told)
    check_goes_on_without("n1", "n[0,2]", job, undisturbed)


def test_a_job_whose_first_node_is_lost_goes_on_with_another(submit, cluster, undisturbed):
    """With it the batch script is lost."""
    job = submit()
    with job.held_after_a_checkpoint():
        cluster.lose("n0")
    check_goes_on_without("n0", "n[1-2]", job, undisturbed)


def check_goes_on_without(
    node: str, nodes: str, job: PretrainingJob, undisturbed: PretrainingJob
) -> None:
    job.cluster.notice_loss(node)
    job.start_now()
    job.wait_for("COMPLETED")
    assert job.facts()["NodeList"] == nodes
    resumed_from = job.result()["resumed_from_steps"]
    assert len(resumed_from) == 1 and resumed_from[0] % 25 == 0
    assert_same_weights(job, undisturbed, resumed_from)


def assert_same_weights(
    job: PretrainingJob, undisturbed: PretrainingJob, resumed_from: list[int]
) -> None:
    result, expected = job.result(), undisturbed.result()
    assert result["weights_sha256"] == expected["weights_sha256"]
    assert result["metrics"] == expected["metrics"]
    assert result["resumed_from_steps"] == resumed_from
    assert job.facts()["Restarts"] == "1"
