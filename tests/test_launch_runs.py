"""What can be run of launching without a cloud: the command line, the researcher's script, jobs on this machine."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from launch import queued_resources, slurm
from launch.__main__ import EPILOG, main
from launch.spec import LaunchSpec

ROOT = Path(__file__).parent.parent
README = (ROOT / "launch" / "README.md").read_text()
SPEC = LaunchSpec(
    "experiments/quickstart.py",
    "v6e",
    "4x4",
    "gs://bucket/runs",
    "study",
    setup=(". ./install.sh",),
    project="my-project",
    zone="us-east5-b",
)
ASKED = ["experiments/quickstart.py", "--accelerator", "v6e", "--topology", "4x4", "--bucket", "gs://bucket/runs"]
PLACE = ["--project", "my-project", "--zone", "us-east5-b"]
QUEUED = ["queued-resources", *ASKED, *PLACE, "--setup", ". ./install.sh"]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_printing_is_the_default(capsys):
    assert main([*QUEUED, "--name", "study"]) == 0
    printed = capsys.readouterr()
    assert queued_resources.script(SPEC) in printed.out
    assert printed.out.endswith("\nsh runs/launched/study.sh\n")
    assert "16 v6e on 4 hosts (v6e-16), about 43.20 dollars an hour" in printed.err
    assert "Nothing was submitted" in printed.err


def test_what_follows_two_hyphens_is_for_the_training(capsys):
    assert main([*QUEUED, "--", "--seed", "3", "--set", "optimizer.learning_rate=2e-6"]) == 0
    assert "quickstart.py --seed 3 --set optimizer.learning_rate=2e-6 --out" in capsys.readouterr().out


def test_the_name_comes_from_the_experiment(capsys):
    assert main([*(word.replace("quickstart.py", "recipes.py:GRPO_KL") for word in QUEUED)]) == 0
    printed = capsys.readouterr()
    assert "--out /bucket/runs/recipes-grpo-kl --resume" in printed.out
    assert "Run folder: gs://bucket/runs/recipes-grpo-kl" in printed.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*QUEUED, "--topology", "5x5"], "5x5"),
        ([*QUEUED, "--image", "i"], "--image has no effect under queued-resources"),
        ([QUEUED[0], "experiments/nothing.py", *QUEUED[2:]], "experiments/nothing.py"),
    ],
)
def test_wrong_usage_is_said_and_prints_nothing_to_run(arguments, words, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.out == ""


def test_without_its_tool_nothing_is_submitted(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*QUEUED, "--submit"]) == 2
    printed = capsys.readouterr()
    assert "nothing was submitted: git is not on PATH" in printed.err
    assert printed.out != ""


def test_without_credentials_nothing_is_submitted(capsys, monkeypatch, tmp_path):
    for tool in ("git", "gcloud"):
        put_tool(tmp_path, tool, "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*QUEUED, "--submit"]) == 2
    assert "run `gcloud auth login`" in capsys.readouterr().err


def test_submitting_runs_what_was_printed(capsys, monkeypatch, tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "quickstart.py").touch()
    put_tool(tmp_path, "sky", f'echo "$@" > {tmp_path / "asked"}; exit 1')
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["skypilot", *ASKED, "--setup", "x", "--submit"]) == 1
    task = "runs/launched/quickstart.sky.yaml"
    assert (tmp_path / "asked").read_text() == f"jobs launch --yes --detach-run --name=quickstart {task}\n"
    assert (tmp_path / task).read_text() in capsys.readouterr().out


def test_slurm_is_given_a_job_for_all_nodes(capsys, monkeypatch, tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "quickstart.py").touch()
    put_tool(tmp_path, "srun", "")
    put_tool(tmp_path, "sbatch", f'cp "$1" {tmp_path / "job.sh"}; echo Submitted batch job 7')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.chdir(tmp_path)
    gpus = ["experiments/quickstart.py", "--accelerator", "h100", "--topology", "2x8", "--bucket", str(tmp_path)]
    assert main(["slurm", *gpus, "--hours", "3", "--cluster", "long", "--setup", ". env.sh", "--submit"]) == 0
    assert "job 7" in capsys.readouterr().out
    job = (tmp_path / "job.sh").read_text()
    for option in ("nodes=2", "ntasks-per-node=8", "gpus-per-node=8", "time=180", "partition=long", "signal=USR2@300"):
        assert f"#SBATCH --{option}\n" in job
    assert "#SBATCH --exclusive\n#SBATCH --gpus-per-node=8\n" in job
    assert "#SBATCH --mem=0\n" in job
    assert re.search("^srun .*--cpu-bind=none ", job, re.MULTILINE)
    assert "set -e\n. env.sh\nexport JAX_PLATFORMS=cuda,cpu" in job


@pytest.mark.parametrize("text", [EPILOG, README], ids=["help", "README"])
def test_the_commands_that_are_shown_work(text, capsys, monkeypatch, tmp_path):
    commands = re.findall(r"^ *python -m launch (.*)$", text.replace("\\\n", " "), re.MULTILINE)
    assert commands
    monkeypatch.chdir(tmp_path)
    for command in commands:
        arguments = shlex.split(command)
        experiment = tmp_path / arguments[1].partition(":")[0]
        experiment.parent.mkdir(exist_ok=True)
        experiment.touch()
        assert main([argument for argument in arguments if argument != "--submit"]) == 0, command


# A stand-in for gcloud: one slice, whose trainings end as the file `codes` says; `gone` takes the slice away.
GCLOUD = """
echo "$4" >> calls
case "$4" in
    create) echo ACTIVE > state ;;
    describe) cat state ;;
    delete) rm state ;;
    ssh)
        code=$(head -n 1 codes)
        sed -i 1d codes
        case "$code" in
            gone) echo SUSPENDED > state; exit 255 ;;
            *) exit "$code" ;;
        esac ;;
esac
"""


@pytest.mark.parametrize(
    ("codes", "exit_code", "calls"),
    [
        ([0], 0, "create scp ssh delete"),
        ([1], 1, "create scp ssh delete"),
        ([2], 2, "create scp ssh delete"),
        ([137], 137, "create scp ssh delete"),
        ([143, 0], 0, "create scp ssh scp ssh delete"),
        ([255, 0], 0, "create scp ssh scp ssh delete"),  # the connection was lost
        ([134, 0], 0, "create scp ssh scp ssh delete"),  # another host was
        (["gone", 0], 0, "create scp ssh delete create scp ssh delete"),
        ([143, 143, 143, 0], 1, "create scp ssh scp ssh scp ssh"),
    ],
)
def test_the_script_goes_on_or_gives_the_slice_back(codes, exit_code, calls, monkeypatch, tmp_path):
    for tool, script in (("gcloud", GCLOUD), ("git", ""), ("sleep", "")):
        put_tool(tmp_path, tool, script)
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    script = queued_resources.script(replace(SPEC, restarts=2))
    ended = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == exit_code, ended.stderr
    assert [call for call in (tmp_path / "calls").read_text().split() if call != "describe"] == calls.split()


def test_a_request_that_failed_before_is_made_anew(monkeypatch, tmp_path):
    for tool, script in (("gcloud", GCLOUD), ("git", ""), ("sleep", "")):
        put_tool(tmp_path, tool, script)
    (tmp_path / "codes").write_text("0\n")
    (tmp_path / "state").write_text("FAILED\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    ended = subprocess.run(["sh", "-c", queued_resources.script(SPEC)], cwd=tmp_path, capture_output=True, check=False)
    assert ended.returncode == 0
    assert [call for call in (tmp_path / "calls").read_text().split() if call != "describe"][:2] == ["delete", "create"]


def test_a_request_that_is_gone_is_not_waited_for(monkeypatch, tmp_path):
    for tool, script in (("gcloud", GCLOUD.replace("echo ACTIVE > state", ":")), ("git", ""), ("sleep", "")):
        put_tool(tmp_path, tool, script)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    script = queued_resources.script(SPEC)
    ended = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (1, "no request for study any more, or no connection\n")


def test_a_connection_that_stays_lost_for_a_while_does_not_leave_the_slice_behind(monkeypatch, tmp_path):
    """Neither a look nor a request gets through then, and after it the slice is there as before."""
    away = "if [ -e away ]; then sed -i 1d away; [ -s away ] || rm away; exit 1; fi\n"
    lost = GCLOUD.replace('case "$code" in', 'case "$code" in\n lost) printf "1\\n2\\n3\\n" > away; exit 255 ;;')
    for tool, script in (("gcloud", away + lost), ("git", ""), ("sleep", "")):
        put_tool(tmp_path, tool, script)
    (tmp_path / "codes").write_text("lost\n0\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    script = queued_resources.script(replace(SPEC, restarts=2))
    ended = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stderr
    calls = [call for call in (tmp_path / "calls").read_text().split() if call != "describe"]
    assert calls == ["create", "scp", "ssh", "scp", "ssh", "delete"]


# Stand-in for a TPU VM that has no gcsfuse yet: sudo with an apt that is busy at first, and then installs it.
SUDO = """
echo "$@" >> calls
case "$1" in
    tee) cat > "${2##*/}" ;;
    mkdir) "$@" ;;
    apt-get)
        if [ ! -e was_busy ]; then touch was_busy; exit 100; fi
        printf '#!/bin/sh\necho gcsfuse "$@" >> calls\n' > gcsfuse
        chmod +x gcsfuse ;;
esac
"""


@pytest.mark.parametrize("mounted", [False, True])
def test_a_bucket_is_mounted_afresh(mounted, monkeypatch, tmp_path):
    for tool in ("sh", "cat", "chmod", "id", "mkdir", "touch"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    tools = {
        "sudo": SUDO,
        "curl": "echo key",
        "lsb_release": "echo jammy",
        "sleep": "",
        "findmnt": f"exit {1 - mounted}",
    }
    for tool, script in tools.items():
        put_tool(tmp_path, tool, script)
    monkeypatch.setenv("PATH", str(tmp_path))
    script, folder = ROOT / "launch" / "mount_bucket.sh", tmp_path / "bucket"
    subprocess.run(["sh", str(script), "my-bucket", str(folder)], cwd=tmp_path, check=True)
    assert "/apt gcsfuse-jammy main" in (tmp_path / "gcsfuse.list").read_text()
    assert (tmp_path / "cloud.google.asc").read_text() == "key\n"
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[-1].startswith("gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 ")
    assert calls[-1].endswith(f" my-bucket {folder}")
    assert (f"umount --lazy {folder}" in calls) == mounted


def gcloud_lines() -> list[str]:
    """Every gcloud command of the researcher's script and of the README."""
    script = [shlex.join(command) for command in queued_resources.gcloud_commands(replace(SPEC, spot=True)).values()]
    return [*script, *re.findall(r"^gcloud .*$", README.replace("\\\n", " "), re.MULTILINE)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not on PATH")
def test_gcloud_itself_finds_no_fault(tmp_path):
    lines = gcloud_lines()
    (tmp_path / "lines.json").write_text(json.dumps([{"command_string": line} for line in lines]))
    lint = ["gcloud", "meta", "lint-gcloud-commands", "--commands-file", str(tmp_path / "lines.json")]
    verdicts = json.loads(subprocess.run(lint, capture_output=True, text=True, check=True).stdout)
    assert len(verdicts) == len(set(lines)) > 10
    assert {verdict["command_string"]: verdict["error_message"] for verdict in verdicts if not verdict["success"]} == {}


# What a training looks like from outside: it saves at SIGTERM and exits with 143; started again, it finishes.
TRAINING = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
if (folder / "saved").exists():
    sys.exit(0)
def save(*_):
    (folder / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
(folder / "writing").write_text(f"{os.getpid()} {os.getppid()}")
(folder / "writing").rename(folder / "started")
time.sleep(60)
"""


def queue_here(folder: Path, *command: str):
    parameters = {"nodes": 1, "tasks_per_node": 1, "timeout_min": 1}
    return slurm.SlurmJob(slurm.Train(command), parameters, restarts=1).queue("local", folder)


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("pass", 0),
        ("raise SystemExit(143)", 143),
        ("import os; os.kill(os.getpid(), 15)", 143),  # before it could be told how to save
    ],
)
def test_a_job_ends_with_its_training(program, code, tmp_path):
    assert queue_here(tmp_path, sys.executable, "-c", program).result() == code


def test_a_job_whose_training_fails_fails(tmp_path):
    job = queue_here(tmp_path, sys.executable, "-c", "raise SystemExit(2)")
    assert "ended with exit code 2" in str(job.exception())


def test_a_job_that_is_signalled_saves_and_is_queued_again(tmp_path):
    job = queue_here(tmp_path / "jobs", sys.executable, "-c", TRAINING, str(tmp_path))
    while not (tmp_path / "started").exists():
        assert not job.done()
        time.sleep(0.1)
    for process in map(int, (tmp_path / "started").read_text().split()):  # as Slurm: every process of the job
        os.kill(process, signal.SIGUSR2)
    assert job.result() == 0
    assert (tmp_path / "saved").exists()


def put_tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
