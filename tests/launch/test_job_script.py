"""The batch script: what it tells Slurm, and what it does, with `srun` and `scontrol` played."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.errors import RefusedInput
from configs.schema import PretrainConfig
from launch.submission.job import Job, Run
from launch.submission.script import TEMPLATE, render
from launch.submission.site import SiteConfig
from tests.launch.slurm_commands import path_with, play


def job_of(*folders: Path, **changes) -> Job[PretrainConfig]:
    values = {
        "kind": "pretrain",
        "name": "b16",
        "runs": tuple(Run(folder, PretrainConfig(run_dir=folder)) for folder in folders),
        "is_array": len(folders) > 1,
        "array_limit": None,
        "folder": folders[0] / "slurm",
        "nodes": 2,
        "gpus_per_node": 8,
        "ranks_per_node": 8,
        "time": "24:00:00",
    }
    return Job(**(values | changes))


DEFAULTS = SiteConfig()


def directives(job, site=DEFAULTS, work_dir=Path("/work dir")) -> list[str]:
    text = render(job, site, "abc", work_dir)
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH" in line]


def tells(run: Path, **status: str) -> str:
    """Bash that writes status.json as a run does, after the script's own files."""
    words = shlex.join([json.dumps(status, indent=2), str(run / "status.json")])
    return f'command -p sleep 0.05; set -- {words}; echo "$1" > "$2"'


@pytest.fixture
def start(tmp_path):
    """Starts a rendered script whose srun runs `body` while its job is in `state`."""
    run = tmp_path / "run, with 'marks'"
    (run / "slurm").mkdir(parents=True)

    def start(body="exit 0", state="RUNNING", site=DEFAULTS, commit="abc", **variables):
        play(
            tmp_path / "bin",
            {
                # The last word of the step that asks whether all nodes answer is "true".
                "srun": 'if [ "${@: -1}" = true ]; then exit "${SILENT:-0}"; fi\n'
                f'printf "%s\\n" "$MASTER_ADDR" "$@" > {tmp_path}/srun\n{body}',
                "scontrol": f'if [ "$1" = show ]; then echo "JobId=7 JobState={state} X=1"; fi\n'
                f'echo "$*" >> {tmp_path}/scontrol\n'
                'if [ "$2" = config ]; then echo "SlurmdTimeout           = 30 sec"; fi',
                "sleep": f"echo $1 >> {tmp_path}/slept",
                "git": "echo abc",
            },
        )
        script = tmp_path / "job.sbatch"
        script.write_text(render(job_of(run), site, commit, tmp_path))
        environment = {
            **os.environ,
            "PATH": path_with(tmp_path / "bin"),
            "SLURM_JOB_ID": "7",
            "SLURM_CPUS_PER_TASK": "4",
            "SLURM_NNODES": "2",
            **variables,
        }
        return subprocess.Popen(
            ["bash", script], env=environment, stdout=subprocess.PIPE, text=True
        )

    start.run = run

    def requeued() -> list[str]:
        asked = tmp_path / "scontrol"
        lines = asked.read_text().splitlines() if asked.exists() else []
        return [line for line in lines if line.startswith("requeue")]

    start.requeued = requeued
    return start


@pytest.mark.parametrize(
    ("code", "state", "restarts", "is_requeued"),
    [
        (85, "RUNNING", "0", True),
        (85, "CANCELLED", "0", False),  # scancel
        (85, "COMPLETING", "0", False),  # preempted: Slurm requeues it itself
        (85, "RUNNING", "100", False),
        (75, "RUNNING", "0", True),  # stalled
        (75, "CANCELLED", "0", False),
        (0, "RUNNING", "0", False),
        (1, "RUNNING", "0", False),
        (2, "RUNNING", "0", False),
        (137, "RUNNING", "0", False),
    ],
)
def test_a_saved_or_stalled_run_is_requeued_and_nothing_else(
    code, state, restarts, is_requeued, start, tmp_path
):
    process = start(f"exit {code}", state, SLURM_RESTART_COUNT=restarts)
    said = process.communicate(timeout=20)[0]
    assert process.returncode == code
    assert start.requeued() == (["requeue 7"] if is_requeued else [])
    assert ("--max-restarts" in said) == (restarts == "100")
    words = (tmp_path / "srun").read_text().splitlines()
    assert words[0] == os.uname().nodename
    assert words[-2:] == ["--config", f"{start.run}/slurm/config.yaml"]
    assert Path(words[-3]).name == "pretrain.py" and words[-5] == sys.executable


def test_a_second_stall_without_a_checkpoint_in_between_ends_the_job(start):
    stall = tells(start.run, state="failed", reason="stalled: rank 1") + "; exit 137"
    start(stall).communicate(timeout=20)
    assert start.requeued() == ["requeue 7"]
    said = start(stall).communicate(timeout=20)[0]
    assert start.requeued() == ["requeue 7"] and "stalled twice" in said
    (start.run / "checkpoints").mkdir()
    (start.run / "checkpoints" / "latest").write_text("step-00000010\n")
    start("exit 75").communicate(timeout=20)
    assert start.requeued() == ["requeue 7"] * 2


def test_what_the_run_told_before_a_rank_was_killed_counts(start):
    """srun's exit code is that of the killed rank."""
    start(tells(start.run, state="saved") + "; exit 143").communicate(timeout=20)
    assert start.requeued() == ["requeue 7"]
    # This start died before it could tell anything: what is there is of the one before.
    start("exit 137").communicate(timeout=20)
    assert start.requeued() == ["requeue 7"]


@pytest.mark.parametrize(
    ("code", "state", "silent", "waits"),
    [
        (1, "RUNNING", "1", True),
        (1, "RUNNING", "0", False),  # the run's own failure
        (137, "CANCELLED", "1", False),
        (2, "RUNNING", "1", False),
    ],
)
def test_a_failure_waits_for_slurm_where_a_node_does_not_answer(
    code, state, silent, waits, start, tmp_path
):
    process = start(f"exit {code}", state, SILENT=silent)
    said = process.communicate(timeout=20)[0]
    assert process.returncode == code and start.requeued() == []
    assert ("a node does not answer" in said) == waits
    slept = tmp_path / "slept"
    assert (slept.read_text() if slept.exists() else "") == ("150\n" if waits else "")


def test_a_task_of_an_array_requeues_itself_and_not_the_array(start):
    """The task that starts last has the array's own id."""
    process = start("exit 85", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="0")
    process.communicate(timeout=20)
    assert start.requeued() == ["requeue 7_0"]


def test_a_term_of_a_preemption_does_not_end_the_script_before_srun(start, tmp_path):
    process = start(f"touch {tmp_path}/up; command -p sleep 0.3; exit 85")
    deadline = time.monotonic() + 20
    while not (tmp_path / "up").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 85 and start.requeued() == ["requeue 7"]


def test_a_checkout_that_changed_since_is_told(start):
    assert "checkout is at" not in start().communicate(timeout=20)[0]
    said = start(commit="def").communicate(timeout=20)[0]
    assert "submitted at commit def, but the checkout is at abc now" in said


def test_what_the_site_file_adds_reaches_the_run(start, tmp_path):
    site = SiteConfig(
        environment={"NCCL_SOCKET_IFNAME": "ib0, $HOME 'x'", "COUNT": 3},
        setup=("export LOADED=yes",),
        srun=("--mpi=none",),
        container=("apptainer", "exec", "--bind", "/a b", "image.sif"),
    )
    body = f'echo "$NCCL_SOCKET_IFNAME|$COUNT|$LOADED" > {tmp_path}/seen'
    start(body, site=site).communicate(timeout=20)
    assert (tmp_path / "seen").read_text() == "ib0, $HOME 'x'|3|yes\n"
    words = (tmp_path / "srun").read_text().splitlines()
    assert words[3:10] == [*site.srun, *site.container, "python"]


def test_what_slurm_is_told():
    site = SiteConfig(partition="gpu", mem="0", signal_seconds=120, sbatch=("--exclusive",))
    assert directives(job_of(Path("runs/b16")), site) == [
        "--job-name=b16",
        "--nodes=2",
        "--ntasks-per-node=8",
        "--cpus-per-task=8",
        "--mem=0",
        "--time=24:00:00",
        "--partition=gpu",
        '--chdir="/work dir"',
        '--output="/work dir/runs/b16/slurm/pretrain-%j.log"',
        "--open-mode=append",
        "--signal=USR1@120",
        "--requeue",
        "--gpus-per-node=8",
        "--exclusive",
    ]


def test_arrays_gpu_requests_and_cpu_clusters():
    job = job_of(Path("/r/50%"), Path("/r/b"), array_limit=1)
    lines = directives(job, SiteConfig(gpu_request="--gres=gpu:a100:{gpus}"), Path("/w"))
    assert {"--array=0-1%1", "--gres=gpu:a100:8"} <= set(lines)
    # A percent sign in a folder's name is none of Slurm's patterns.
    assert "--output=/r/50%%/slurm/pretrain-%A_%a.log" in lines
    cpus = directives(job_of(Path("/r"), gpus_per_node=0, ranks_per_node=2))
    assert "--cpus-per-task=1" in cpus and not any("gpu" in line for line in cpus)


def test_names_that_slurm_cannot_take():
    with pytest.raises(RefusedInput, match="line break"):
        directives(job_of(Path("/a\nb")))
    quoted = directives(job_of(Path("/r"), name='a "b" \\c'))
    assert '--job-name="a \\"b\\" \\\\c"' in quoted


def test_finetuning_on_several_gpus_gets_its_ranks_from_srun():
    job = job_of(Path("/r"), kind="finetune", nodes=1)
    assert "launch/under_srun.py" in render(job, SiteConfig(), "abc", Path("/w"))
    alone = job_of(Path("/r"), kind="finetune", nodes=1, ranks_per_node=1)
    assert "under_srun" not in render(alone, SiteConfig(), "abc", Path("/w"))


def test_shellcheck_and_bash_find_nothing_wrong(tmp_path):
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert shellcheck is not None, "a development dependency"
    site = SiteConfig(environment={"A": "b c"}, setup=("module load cuda",))
    script = tmp_path / "job.sbatch"
    folders = (Path("/r/a b"), Path("/r/c"))
    script.write_text(render(job_of(*folders), site, "abc", tmp_path))
    shards = str(TEMPLATE.with_name("build_shards.sbatch"))
    for command in ([shellcheck, str(script), shards], ["bash", "-n", str(script)]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "@@" not in script.read_text()
