"""TPU VMs for a single researcher: a queued resource is asked for, trained on through ssh, and given back.

The rendering is a shell script that is left running in a terminal (in tmux, so that it outlives a closed window). It
copies the checked-out commit, so nothing has to be pushed anywhere. Started again, it takes the slice that is there.
Every host mounts the bucket before the setup commands run.
"""

from launch.gke import SIGNED_IN
from launch.rendering import FOLDER, Commands, shell_line
from launch.spec import GRACE_SECONDS, MOUNT, LaunchError, LaunchSpec, bucket_to_mount, check, tpu_slice
from rl_llm.cli import PREEMPTED

PAUSE_SECONDS = 30  # between two looks at what has become of the request
SILENT_LOOKS = 20  # in a row without an answer, after which the script gives up

SCRIPT = """\
#!/bin/sh
# {chips} {accelerator} chips on {hosts} hosts: ask, wait, train, go on after preemptions, give back.
set -u
stop() {{
    echo "{name}: $1" >&2
    exit 1
}}
# What has become of the request: nothing if there is none, UNSEEN without an answer.
state() {{
    {look} 2>/dev/null || echo UNSEEN
}}
# Until it is gone: what is left goes on costing.
give_back() {{
    tries=0
    until {delete} || [ -z "$(state)" ]; do
        tries=$((tries + 1))
        [ "$tries" -lt {silent} ] || stop "not given back: look for it and delete it, as it costs"
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
        [ "$now" = "$before" ] || echo "{name}: ${{now:-not there}}" >&2
        before=$now
        case "$now:$ours" in
            # Looked for after a refusal, too: the request may have got through although the answer did not.
            :) ours=yes; {create} ;;
            :yes) stop "there is no request: it was refused, or somebody deleted it" ;;
            FAILED:yes) stop "the request failed" ;;
            # What a preemption, or a request that failed before, leaves behind keeps the name.
            SUSPENDED:* | FAILED:) ours=; give_back; continue ;;
            # Until DELETING and SUSPENDING are over one has to wait, as for capacity.
        esac
        [ "$now" = UNSEEN ] && silent=$((silent + 1)) || silent=0
        [ "$silent" -lt {silent} ] || stop "no connection: look whether there is a slice, as it costs"
        sleep {pause}
    done
    ours=yes
    {copy} || {{ sleep {pause}; continue; }}
    {train}
    code=$?
    case "$code" in
        0) give_back; exit 0 ;;
        # Saved; or a host left as it had lost another one; or the connection was lost, with or without the slice.
        {preempted} | 134 | 255) ;;
        # gcloud says 1, too, when the slice is being taken away.
        *) case "$(state)" in SUSPEND*) ;; *) give_back; exit "$code" ;; esac ;;
    esac
    echo "exit code $code: going on" >&2
    sleep {pause}
done
give_back
stop "started {restarts} times again: giving up"
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
    requests = ("compute", "tpus", "queued-resources")
    machines = ("gcloud", "compute", "tpus", "tpu-vm")
    shape: tuple[str, ...] = (f"--accelerator-type={tpus.accelerator_type}",)
    if not tpus.named_by_type:
        shape = (f"--type={tpus.generation.type_prefix}", f"--topology={tpus.topology}")
    return {
        "create": (
            *(("gcloud",) if tpus.named_by_type else ("gcloud", "alpha")),  # without alpha, --type=v5p is refused
            *(*requests, "create", spec.name, *where, f"--node-id={spec.name}", *shape),
            f"--runtime-version={tpus.generation.runtime}",
            *(("--spot",) if spec.spot else ()),
        ),
        # Other than describe, it answers in the same way whether there is a request or not.
        "look": ("gcloud", *requests, "list", *where, f"--filter=name~/{spec.name}$", "--format=value(state.state)"),
        "copy": (*machines, "scp", archive(spec), f"{spec.name}:.", "--worker=all", *where),
        # With a terminal (-tt) a lost connection ends the training instead of leaving it behind on the chips.
        "train": (*machines, "ssh", spec.name, "--worker=all", *where, "--ssh-flag=-tt", f"--command={remote(spec)}"),
        "delete": ("gcloud", *requests, "delete", spec.name, *where, "--force", "--quiet"),
    }


def remote(spec: LaunchSpec) -> str:
    """What every host runs. A host may learn late that a connection was lost: the training of that one ends first."""
    lock = f"{spec.name}.lock"  # held by the training for as long as it runs
    end = f"{{ fuser --silent --kill -TERM {lock}; flock --timeout {GRACE_SECONDS} {lock} true; }}"
    unpack = f"mkdir -p {spec.name} && tar -xf {spec.name}.tar -C {spec.name} && cd {spec.name}"
    mount = shell_line(("sh", "launch/mount_bucket.sh", bucket_to_mount(spec, "queued-resources"), MOUNT))
    environment = f"env JAX_PLATFORMS={spec.platforms} PYTHONUNBUFFERED=1"
    training = f"exec flock --no-fork ../{lock} {environment} {shell_line(spec.command)}"
    return " && ".join((end, unpack, mount, *spec.setup, training))
