"""TPU VMs for a single researcher: request a queued resource, train on it through ssh, and delete it.

The rendering is a shell script to leave running in a terminal (in tmux, to survive a closed window). It copies the
checked-out commit, so nothing has to be pushed. If it is started again, it uses the existing slice. Every host mounts
the bucket before the setup commands run.
"""

from launch.gke import SIGNED_IN
from launch.rendering import FOLDER, Commands, shell_line
from launch.spec import GRACE_SECONDS, MOUNT, LaunchError, LaunchSpec, bucket_to_mount, check, tpu_slice
from rl_llm.cli import PREEMPTED

PAUSE_SECONDS = 30  # between two polls of the request's state
SILENT_LOOKS = 20  # consecutive polls without an answer before the script gives up

SCRIPT = """\
#!/bin/sh
# {chips} {accelerator} chips on {hosts} hosts: request, wait, train, resume after preemptions, delete.
set -u
stop() {{
    echo "{name}: $1" >&2
    exit 1
}}
# State of the request: empty if there is none, UNSEEN without an answer.
state() {{
    {look} 2>/dev/null || echo UNSEEN
}}
# Retry until the slice is gone, because it is billed until then.
give_back() {{
    tries=0
    until {delete} || [ -z "$(state)" ]; do
        tries=$((tries + 1))
        [ "$tries" -lt {silent} ] || stop "the slice was not deleted and is still billed: find and delete it"
        sleep {pause}
    done
}}

{look} >/dev/null || exit 1
git archive --output={archive} HEAD || exit 1
starts=0 ours=
while [ "$starts" -le {restarts} ]; do
    starts=$((starts + 1))
    silent=0 before=none
    until now=$(state); [ "$now" = ACTIVE ]; do
        [ "$now" = "$before" ] || echo "{name}: ${{now:-no request}}" >&2
        before=$now
        case "$now:$ours" in
            # Poll even after a refusal: the request may have arrived although the answer did not.
            :) ours=yes; {create} ;;
            :yes) stop "there is no request: it was refused or deleted" ;;
            FAILED:yes) stop "the request failed" ;;
            # Remains of a preemption or of an earlier failed request hold the name.
            SUSPENDED:* | FAILED:) ours=; give_back; continue ;;
            # DELETING and SUSPENDING: wait, as for capacity.
        esac
        [ "$now" = UNSEEN ] && silent=$((silent + 1)) || silent=0
        [ "$silent" -lt {silent} ] || stop "no connection: check whether there is a slice, which is billed"
        sleep {pause}
    done
    ours=yes
    {copy} || {{ sleep {pause}; continue; }}
    {train}
    code=$?
    case "$code" in
        0) give_back; exit 0 ;;
        # State saved; or a host exited because a peer was lost; or the connection was lost, perhaps with the slice.
        {preempted} | 134 | 255) ;;
        # gcloud also returns 1 while the slice is being preempted.
        *) case "$(state)" in SUSPEND*) ;; *) give_back; exit "$code" ;; esac ;;
    esac
    echo "exit code $code: resuming" >&2
    sleep {pause}
done
give_back
stop "restarted {restarts} times: giving up"
"""


def render(spec: LaunchSpec) -> Commands:
    """Render the script. Its exit code is that of the training."""
    check(spec, "queued-resources", needs=("setup", "project", "zone"), takes=("spot", "restarts"))
    if not spec.in_one_zone:
        raise LaunchError(f"zone {spec.zone!r} is a region; a queued resource needs a zone, such as {spec.zone}-b")
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
    """The shell script, with each gcloud command on one line."""
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
    """Local path of the packed commit; on the hosts it is in the home folder."""
    return f"{FOLDER}/{spec.name}.tar"


def gcloud_commands(spec: LaunchSpec) -> dict[str, tuple[str, ...]]:
    """The script's gcloud commands, by purpose. The node has the name of its request."""
    tpus = tpu_slice(spec, "queued-resources")
    where = (f"--project={spec.project}", f"--zone={spec.zone}")
    requests = ("compute", "tpus", "queued-resources")
    machines = ("gcloud", "compute", "tpus", "tpu-vm")
    shape: tuple[str, ...] = (f"--accelerator-type={tpus.accelerator_type}",)
    if not tpus.named_by_type:
        shape = (f"--type={tpus.generation.type_prefix}", f"--topology={tpus.topology}")
    return {
        "create": (
            *(("gcloud",) if tpus.named_by_type else ("gcloud", "alpha")),  # only alpha accepts --type=v5p
            *(*requests, "create", spec.name, *where, f"--node-id={spec.name}", *shape),
            f"--runtime-version={tpus.generation.runtime}",
            *(("--spot",) if spec.spot else ()),
        ),
        # Unlike describe, list succeeds even if there is no request.
        "look": ("gcloud", *requests, "list", *where, f"--filter=name~/{spec.name}$", "--format=value(state.state)"),
        "copy": (*machines, "scp", archive(spec), f"{spec.name}:.", "--worker=all", *where),
        # With a terminal (-tt), a lost connection ends the training instead of leaving it on the chips.
        "train": (*machines, "ssh", spec.name, "--worker=all", *where, "--ssh-flag=-tt", f"--command={remote(spec)}"),
        "delete": ("gcloud", *requests, "delete", spec.name, *where, "--force", "--quiet"),
    }


def remote(spec: LaunchSpec) -> str:
    """The command for every host. It first ends a training left over from a lost connection."""
    lock = f"{spec.name}.lock"  # held by the training while it runs
    end = f"{{ fuser --silent --kill -TERM {lock}; flock --timeout {GRACE_SECONDS} {lock} true; }}"
    unpack = f"mkdir -p {spec.name} && tar -xf {spec.name}.tar -C {spec.name} && cd {spec.name}"
    mount = shell_line(("sh", "launch/mount_bucket.sh", bucket_to_mount(spec, "queued-resources"), MOUNT))
    environment = f"env JAX_PLATFORMS={spec.platforms} PYTHONUNBUFFERED=1"
    training = f"exec flock --no-fork ../{lock} {environment} {shell_line(spec.command)}"
    return " && ".join((end, unpack, mount, *spec.setup, training))
