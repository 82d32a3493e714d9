"""TPU VMs for a single researcher: a queued resource is asked for, trained on through ssh, and given back.

The rendering is a shell script that is left running in a terminal (in tmux, so that it outlives a closed window). It
copies the checked-out commit, so nothing has to be pushed anywhere. Started again, it takes the slice that is there.
Every host mounts the bucket before the setup commands run.
"""

from launch.gke import SIGNED_IN
from launch.rendering import FOLDER, Commands, shell_line
from launch.spec import MOUNT, LaunchError, LaunchSpec, bucket_to_mount, check, tpu_slice
from rl_llm.cli import PREEMPTED

PAUSE_SECONDS = 30  # between two looks at what has become of the request
SILENT_LOOKS = 20  # in a row, after which it is taken to be gone: deleted by someone else

SCRIPT = """\
#!/bin/sh
# {chips} {accelerator} chips on {hosts} hosts: ask, wait, train, go on after preemptions, give back.
set -u
state() {{
    {describe} 2>/dev/null
}}
give_back() {{
    {delete}
}}

git archive --output={archive} HEAD || exit 1
starts=0
while [ "$starts" -le {restarts} ]; do
    starts=$((starts + 1))
    case "$(state)" in
        # Not there, or not to be seen while the connection is lost: then it is looked for below, as it still costs.
        "") {create} || [ "$starts" -gt 1 ] || exit 1 ;;
        # What a preemption, or a request that failed before, leaves behind keeps the name.
        SUSPEND* | FAILED) give_back; {create} || exit 1 ;;
    esac
    silent=0
    until now=$(state); [ "$now" = ACTIVE ]; do
        case "$now" in
            FAILED) echo "the request for {name} failed" >&2; exit 1 ;;
            SUSPEND*) continue 2 ;;
            "") silent=$((silent + 1)) ;;
            *) silent=0 ;;
        esac
        [ "$silent" -lt {silent} ] || {{ echo "no request for {name} any more, or no connection" >&2; exit 1; }}
        sleep {pause}
    done
    {copy} || {{ sleep {pause}; continue; }}
    {train}
    code=$?
    case "$code" in
        # Saved; or a host left as it had lost another one; or the connection was lost, with or without the slice.
        {preempted} | 134 | 255) ;;
        *) if [ "$code" = 0 ] || [ "$(state)" = ACTIVE ]; then give_back; exit "$code"; fi ;;
    esac
    echo "exit code $code: going on" >&2
    sleep {pause}
done
echo "started {restarts} times again: giving up; the slice is still there" >&2
exit 1
"""


def render(spec: LaunchSpec) -> Commands:
    """The script. Its exit code is that of the training."""
    check(spec, "queued-resources", needs=("setup", "project", "zone"), takes=("spot", "restarts"))
    if not spec.in_one_zone:
        raise LaunchError(f"zone {spec.zone!r} is a region: a queued resource waits in one zone, as in {spec.zone}-b")
    file = f"{FOLDER}/{spec.name}.sh"
    return Commands(
        commands=(("sh", file),),
        file=file,
        file_text=script(spec),
        tools=("git", "gcloud"),
        install="install the Google Cloud CLI",
        login=SIGNED_IN,
        sign_in="run `gcloud auth login`",
    )


def script(spec: LaunchSpec) -> str:
    """The shell script: every gcloud command of it as one line."""
    lines = {name: shell_line(command) for name, command in gcloud_commands(spec).items()}
    return SCRIPT.format(
        **lines,
        name=spec.name,
        accelerator=spec.accelerator,
        chips=spec.hardware.chips,
        hosts=spec.hardware.hosts,
        archive=archive(spec),
        restarts=spec.restart_limit,
        preempted=PREEMPTED,
        pause=PAUSE_SECONDS,
        silent=SILENT_LOOKS,
    )


def archive(spec: LaunchSpec) -> str:
    """Where the script packs the commit; on the hosts it lies in the home folder."""
    return f"{FOLDER}/{spec.name}.tar"


def gcloud_commands(spec: LaunchSpec) -> dict[str, tuple[str, ...]]:
    """What the script asks of gcloud, by purpose. The node is named like the request for it."""
    tpus = tpu_slice(spec, "queued-resources")
    where = (f"--project={spec.project}", f"--zone={spec.zone}")
    requests = ("gcloud", "compute", "tpus", "queued-resources")
    machines = ("gcloud", "compute", "tpus", "tpu-vm")
    unpack = f"mkdir -p {spec.name} && tar -xf {spec.name}.tar -C {spec.name} && cd {spec.name}"
    mount = shell_line(("sh", "launch/mount_bucket.sh", bucket_to_mount(spec, "queued-resources"), MOUNT))
    training = f"exec env JAX_PLATFORMS={spec.platforms} PYTHONUNBUFFERED=1 {shell_line(spec.command)}"
    remote = " && ".join((unpack, mount, *spec.setup, training))
    return {
        "create": (
            *(*requests, "create", spec.name, *where, f"--node-id={spec.name}"),
            f"--accelerator-type={tpus.accelerator_type}",
            f"--runtime-version={tpus.generation.runtime}",
            *(("--spot",) if spec.spot else ()),
        ),
        "describe": (*requests, "describe", spec.name, *where, "--format=value(state.state)"),
        "copy": (*machines, "scp", archive(spec), f"{spec.name}:.", "--worker=all", *where),
        # With a terminal (-tt) a lost connection ends the training instead of leaving it behind on the chips.
        "train": (*machines, "ssh", spec.name, "--worker=all", *where, "--ssh-flag=-tt", f"--command={remote}"),
        "delete": (*requests, "delete", spec.name, *where, "--force", "--quiet"),
    }
