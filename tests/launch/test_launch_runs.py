"""Launching without a cloud: the command line, the queued-resources script, and jobs on this machine."""

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

ROOT = Path(__file__).parents[2]
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


def test_arguments_after_two_hyphens_go_to_the_training(capsys):
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
def test_wrong_usage_is_reported_and_prints_no_job(arguments, words, capsys):
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


def test_slurm_gets_a_job_for_all_nodes(capsys, monkeypatch, tmp_path):
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


def test_the_commands_of_the_help_work(monkeypatch, tmp_path):
    """Those of launch/README.md: tests/docs/test_documents.py."""
    commands = re.findall(r"^ *python -m launch (.*)$", EPILOG.replace("\\\n", " "), re.MULTILINE)
    assert commands
    monkeypatch.chdir(tmp_path)
    for command in commands:
        arguments = shlex.split(command)
        experiment = tmp_path / arguments[1].partition(":")[0]
        experiment.parent.mkdir(exist_ok=True)
        experiment.touch()
        assert main([argument for argument in arguments if argument != "--submit"]) == 0, command


# A fake gcloud with one request. Trainings end with the exit codes in the file `codes`; `gone` removes the slice. Polls
# read `state` line by line and repeat the last line. For as many calls as `away` has lines there is no connection.
GCLOUD = """
if [ -s away ]; then sed -i 1d away; exit 1; fi
[ "$4" = list ] || echo "$4" >> calls
case "$4" in
    list)
        if [ -e state ]; then
            head -n 1 state
            [ "$(wc -l < state)" = 1 ] || sed -i 1d state
        fi ;;
    create) cat created > state ;;
    delete) rm state ;;
    ssh)
        code=$(head -n 1 codes)
        sed -i 1d codes
        case "$code" in
            gone) echo SUSPENDED > state; exit 255 ;;
            taken) printf "SUSPENDING\\nSUSPENDED\\n" > state; exit 1 ;;
            deleted) rm state; exit 143 ;;
            lost) seq 9 > away; exit 255 ;;
            blind) seq 9 > away; exit 1 ;;
            *) exit "$code" ;;
        esac ;;
esac
"""


def run_script(folder: Path, monkeypatch, codes=(0,), state=(), created=("ACTIVE",), away=0):
    """Run the script; returns its end and its gcloud calls other than polls. The first poll tests the connection."""
    for tool, script in (("gcloud", GCLOUD), ("git", ""), ("sleep", "")):
        put_tool(folder, tool, script)
    for name, lines in (("codes", codes), ("state", [*state[:1], *state]), ("created", created), ("away", range(away))):
        if lines or name == "created":
            (folder / name).write_text("".join(f"{line}\n" for line in lines))
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    script = queued_resources.script(replace(SPEC, restarts=2))
    ended = subprocess.run(["sh", "-c", script], cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    calls = folder / "calls"
    return ended, calls.read_text().split() if calls.exists() else []


@pytest.mark.parametrize(
    ("codes", "exit_code", "calls"),
    [
        ([0], 0, "create scp ssh delete"),
        ([1], 1, "create scp ssh delete"),
        ([2], 2, "create scp ssh delete"),
        ([137], 137, "create scp ssh delete"),
        ([143, 0], 0, "create scp ssh scp ssh delete"),
        ([255, 0], 0, "create scp ssh scp ssh delete"),  # the connection was lost
        (["lost", 0], 0, "create scp ssh scp ssh delete"),  # for longer: polls fail, too
        ([134, 0], 0, "create scp ssh scp ssh delete"),  # a peer host was lost
        (["gone", 0], 0, "create scp ssh delete create scp ssh delete"),
        (["taken", 0], 0, "create scp ssh delete create scp ssh delete"),
        (["blind", 0], 1, "create scp ssh delete"),  # failed; the slice is deleted when the connection is back
        (["deleted", 0], 1, "create scp ssh"),  # the user deleted it and wants no new one
        ([143, 143, 143, 0], 1, "create scp ssh scp ssh scp ssh delete"),
    ],
)
def test_the_script_resumes_or_deletes_the_slice(codes, exit_code, calls, monkeypatch, tmp_path):
    ended, called = run_script(tmp_path, monkeypatch, codes)
    assert ended.returncode == exit_code, ended.stderr
    assert called == calls.split()


@pytest.mark.parametrize(
    ("state", "calls"),
    [
        (["ACTIVE"], "scp ssh delete"),
        (["PROVISIONING", "ACTIVE"], "scp ssh delete"),
        (["FAILED"], "delete create scp ssh delete"),
        (["SUSPENDED"], "delete create scp ssh delete"),
        (["SUSPENDING", "SUSPENDED"], "delete create scp ssh delete"),
        ([*["DELETING"] * 50, ""], "create scp ssh delete"),
    ],
)
def test_an_existing_request_is_used_or_replaced(state, calls, monkeypatch, tmp_path):
    ended, called = run_script(tmp_path, monkeypatch, state=state)
    assert ended.returncode == 0, ended.stderr
    assert called == calls.split()
    assert (f"study: {state[0]}\n" in ended.stderr) == (state[0] != "ACTIVE")


@pytest.mark.parametrize(
    ("created", "words"),
    [
        ([], "there is no request: it was refused or deleted"),
        (["WAITING_FOR_RESOURCES", "FAILED"], "the request failed"),
        (["PROVISIONING", "DELETING", ""], "there is no request: it was refused or deleted"),
    ],
)
def test_a_failed_request_ends_the_script(created, words, monkeypatch, tmp_path):
    ended, called = run_script(tmp_path, monkeypatch, created=created)
    assert (ended.returncode, called) == (1, ["create"])
    assert ended.stderr.endswith(f"study: {words}\n")


@pytest.mark.parametrize(
    ("away", "codes", "words"),
    [
        (1, [0], ""),  # at the first poll, gcloud prints the reason
        (0, ["lost"], "study: no connection: check whether there is a slice, which is billed\n"),
        (0, ["blind"], "study: the slice was not deleted and is still billed: find and delete it\n"),
    ],
)
def test_the_script_ends_without_a_connection(away, codes, words, monkeypatch, tmp_path):
    monkeypatch.setattr(queued_resources, "SILENT_LOOKS", 2)
    ended, _ = run_script(tmp_path, monkeypatch, codes, away=away)
    assert ended.returncode == 1
    assert ended.stderr.endswith(words)


def test_a_leftover_training_on_a_host_ends_first(monkeypatch, tmp_path):
    """A host may notice a lost connection late; its training saves before the new one starts."""
    save = "trap 'sleep 1; echo saved >> log; exit 143' TERM"
    put_tool(tmp_path, "tar", "")
    put_tool(tmp_path, "rl-llm", f"{save}; echo started >> log; until [ -e done ]; do sleep 0.1; done")
    (tmp_path / "study" / "launch").mkdir(parents=True)
    (tmp_path / "study" / "launch" / "mount_bucket.sh").touch()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    log = tmp_path / "study" / "log"
    command = ["sh", "-c", queued_resources.remote(replace(SPEC, setup=(":",)))]
    with subprocess.Popen(command, cwd=tmp_path) as first:
        while not log.exists():
            time.sleep(0.1)
        with subprocess.Popen(command, cwd=tmp_path) as second:
            assert first.wait() == 143
            (tmp_path / "study" / "done").touch()
            assert second.wait() == 0
    assert log.read_text().split() == ["started", "saved", "started"]


# A fake Python of a host, which is only used for pip and uv.
PYTHON = """
echo "$@" >> calls
if [ "$3" = venv ]; then
    mkdir -p .venv/bin
    printf '#!/bin/sh\\necho 1.2.3\\n' > .venv/bin/python
    chmod +x .venv/bin/python
    echo "in_environment=yes" > .venv/bin/activate
fi
"""


@pytest.mark.parametrize(("before", "extra"), [("", "tpu"), ("JAX_EXTRA=cuda12 ", "cuda12")])
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_host_gets_the_jax_extra_of_its_accelerator(before, extra, shell, monkeypatch, tmp_path):
    put_tool(tmp_path, "python3", PYTHON)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    script = f'{before}. {ROOT / "launch" / "setup_host.sh"} && [ "$in_environment" ]'
    for _ in range(2):
        subprocess.run([shell, "-c", script], cwd=tmp_path, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.endswith(f"jax[{extra}]==1.2.3") for call in calls].count(True) == 2
    assert len([call for call in calls if " venv " in call]) == 1


# A fake TPU VM without gcsfuse: sudo with an apt that is busy at first and then installs it.
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
def test_a_bucket_is_remounted(mounted, monkeypatch, tmp_path):
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


def test_images_and_hosts_have_the_python_of_their_lock_file():
    for file, version in (("Dockerfile", r"FROM python:(\S+)-slim"), ("setup_host.sh", r"--python (3\S+)")):
        text = (ROOT / "launch" / file).read_text()
        (lock,) = re.findall(r"-r (requirements/\S+)", text)
        (python,) = re.findall(version, text)
        assert (ROOT / lock).exists()
        assert lock == f"requirements/py{python.replace('.', '')}.lock"


def gcloud_lines() -> list[str]:
    """All gcloud commands of the queued-resources script and of the README."""
    specs = [replace(SPEC, spot=True), replace(SPEC, accelerator="v5p", topology="4x4x16")]
    script = [shlex.join(command) for spec in specs for command in queued_resources.gcloud_commands(spec).values()]
    return [*dict.fromkeys(script), *re.findall(r"^gcloud .*$", README.replace("\\\n", " "), re.MULTILINE)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not on PATH")
def test_the_linter_of_gcloud_accepts_all_commands(tmp_path):
    lines = gcloud_lines()
    (tmp_path / "lines.json").write_text(json.dumps([{"command_string": line} for line in lines]))
    lint = ["gcloud", "meta", "lint-gcloud-commands", "--commands-file", str(tmp_path / "lines.json")]
    verdicts = json.loads(subprocess.run(lint, capture_output=True, text=True, check=True).stdout)
    assert len(verdicts) == len(set(lines)) > 10
    assert {verdict["command_string"]: verdict["error_message"] for verdict in verdicts if not verdict["success"]} == {}


# A fake training: it saves at SIGTERM and exits with 143; when it is started again, it finishes.
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
        ("import os; os.kill(os.getpid(), 15)", 143),  # before it handles signals
    ],
)
def test_a_job_ends_with_its_training(program, code, tmp_path):
    assert queue_here(tmp_path, sys.executable, "-c", program).result() == code


def test_a_job_fails_with_its_training(tmp_path):
    job = queue_here(tmp_path, sys.executable, "-c", "raise SystemExit(2)")
    assert "ended with exit code 2" in str(job.exception())


def test_a_signalled_job_saves_and_is_queued_again(tmp_path):
    job = queue_here(tmp_path / "jobs", sys.executable, "-c", TRAINING, str(tmp_path))
    while not (tmp_path / "started").exists():
        assert not job.done()
        time.sleep(0.1)
    for process in map(int, (tmp_path / "started").read_text().split()):  # like Slurm: every process of the job
        os.kill(process, signal.SIGUSR2)
    assert job.result() == 0
    assert (tmp_path / "saved").exists()


def put_tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
