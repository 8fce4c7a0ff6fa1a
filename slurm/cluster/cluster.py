#!/usr/bin/env python3
"""A real SLURM cluster of four nodes on this machine, to try things on that one would not try on a real one.

Each node has network and host-name namespaces of its own: its own address, its own name, its own slurmd. So
one can be killed or cut off as a machine can. Nothing of it is reachable from elsewhere, and nothing of an
installed SLURM is touched.

  sudo python3 slurm/cluster/cluster.py up       installs Debian's packages, starts everything, waits until it is ready
  export SLURM_CONF=/var/lib/glci-slurm/slurm.conf
  sinfo
  sudo python3 slurm/cluster/cluster.py kill glci-n2     its slurmd and all its tasks, as if the power failed
  sudo python3 slurm/cluster/cluster.py start glci-n2    switches it on again
  sudo python3 slurm/cluster/cluster.py cut glci-n3      takes its cable out; what runs on it runs on
  sudo python3 slurm/cluster/cluster.py heal glci-n3     puts it back
  sudo python3 slurm/cluster/cluster.py down     stops everything and leaves nothing behind but the packages
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from daemons import find, is_running, start_daemon, stop_daemon

STATE = Path("/var/lib/glci-slurm")
CONF = STATE / "slurm.conf"
NODES = tuple(f"glci-n{number}" for number in range(1, 5))
HOST_ADDRESS = "10.77.0.1"
CPUS, GPUS, MEMORY_MB = 8, 8, 16000

_BRIDGE = "glci-br0"
_PACKAGES = {
    "munge": "munged",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "slurm-client": "sbatch",
    "slurmdbd": "slurmdbd",
    "mariadb-server": "mariadbd",
    "iproute2": "ip",
    "util-linux": "nsenter",
}
"""Debian's packages, by a program that each brings."""
_MUNGE, _MARIADB = STATE / "munge" / "socket", STATE / "mariadb" / "socket"
_MARK = "# glci-slurm"
_DEVICES = tuple(Path(f"/dev/glci-gpu{number}") for number in range(GPUS))
_LOCK = Path("/run/lock/glci-slurm.lock")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("up", help="bring the cluster up; a second time it only mends what is missing")
    commands.add_parser("down", help="take it down and remove all of it")
    for name, help_text in (
        ("kill", "kill a node's slurmd and all its tasks"),
        ("start", "start a node that was killed"),
        ("cut", "cut a node off the network"),
        ("heal", "connect it again"),
    ):
        commands.add_parser(name, help=help_text).add_argument("node", choices=NODES)
    parsed = parser.parse_args(arguments)
    if os.geteuid() != 0:
        print("slurm cluster: error: it needs root: namespaces, daemons, packages", file=sys.stderr)
        return 2
    actions: dict[str, Callable[[str], None]] = {"kill": kill, "start": start, "cut": cut, "heal": heal}
    try:
        with _alone():
            if parsed.command == "up":
                up()
            elif parsed.command == "down":
                down()
            else:
                actions[parsed.command](parsed.node)
    except ClusterError as error:
        print(f"slurm cluster: error: {error}", file=sys.stderr)
        return 2
    return 0


class ClusterError(Exception):
    """What could not be done, and what to do about it, in one line."""


def up() -> None:
    """Bring everything up that is not; returns when all nodes are idle or busy."""
    began = time.monotonic()
    _install()
    _write_files()
    for folder in ("ctld", "run", "log", "spool", "pids"):
        (STATE / folder).mkdir(parents=True, exist_ok=True)
    _make_network()
    for device in _DEVICES:
        if not device.exists():
            # As /dev/null: SLURM counts GPUs by their files.
            os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))
    _start_munge()
    _start_mariadb()
    _daemon("slurmdbd", ["slurmdbd", "-D"], environment={"MYSQL_UNIX_PORT": str(_MARIADB)})
    _wait("the accounting", ["slurmdbd"], lambda: _succeeds("sacctmgr", "-n", "-i", "show", "cluster"))
    _daemon("slurmctld", ["slurmctld", "-D", "-f", str(CONF)])
    _wait("the controller", ["slurmctld"], lambda: _succeeds("scontrol", "ping"))
    for node in NODES:
        start(node)
    _wait("all nodes", NODES, lambda: all(state in ("idle", "mix", "alloc") for state in node_states().values()))
    print(
        f"{len(NODES)} nodes are ready ({time.monotonic() - began:.0f} s): {NODES[0]} to {NODES[-1]}, {CPUS} CPUs and "
        f"{GPUS} (pretended) GPUs each; partitions main, and high, which preempts it\n"
        f"  export SLURM_CONF={CONF}\n  sinfo"
    )


def down() -> None:
    """Stop everything that ``up`` started and remove what it made, but for the packages."""
    for node in NODES:
        for pid in _pids_in(node):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    for name in ("slurmctld", "slurmdbd", "mariadb", "munged"):
        stop_daemon(STATE, name)
    for node in NODES:
        subprocess.run(["ip", "link", "del", _port(node)], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["ip", "netns", "del", node], stderr=subprocess.DEVNULL, check=False)
    subprocess.run(["ip", "link", "del", _BRIDGE], stderr=subprocess.DEVNULL, check=False)
    _write_hosts([])
    for device in _DEVICES:
        device.unlink(missing_ok=True)
    shutil.rmtree(STATE, ignore_errors=True)
    print("the cluster is down; its packages stay installed")


def kill(node: str) -> None:
    """Kill a node's slurmd and all its tasks, as if its power failed."""
    for pid in _pids_in(node):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def start(node: str) -> None:
    """Start a node's slurmd, if it does not run."""
    _daemon(
        node,
        [
            *("nsenter", f"--net=/run/netns/{node}", "unshare", "--uts"),
            *("sh", "-c", f"hostname {node}; exec slurmd -D -N {node} -f {CONF}"),
        ],
    )


def cut(node: str) -> None:
    """Take a node's network cable out; its processes run on."""
    _run("ip", "link", "set", _port(node), "down")


def heal(node: str) -> None:
    """Put it in again."""
    _run("ip", "link", "set", _port(node), "up")


def node_states() -> dict[str, str]:
    """What the controller says of each node: ``idle``, ``alloc``, ``mix``, ``down*``, ..."""
    told = _output("sinfo", "-h", "-N", "-p", "main", "-o", "%N %t")
    return dict(line.split() for line in told.splitlines())


@contextmanager
def _alone() -> Iterator[None]:
    """One of these commands at a time."""
    with _LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install() -> None:
    missing = [package for package, program in _PACKAGES.items() if find(program) is None]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise ClusterError(f"{', '.join(missing)} is missing, and this is no Debian: install it and try again")
    print(f"installing {', '.join(missing)}", flush=True)
    # The packages would start daemons of their own on a machine that has an init system.
    policy = Path("/usr/sbin/policy-rc.d")
    is_ours = not policy.exists()
    if is_ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", *missing]):
            done = subprocess.run(
                ["apt-get", *command], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
            if done.returncode:
                last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
                raise ClusterError(f"apt-get {command[0]} failed: {' '.join(last)}")
    finally:
        if is_ours:
            policy.unlink()


def _write_files() -> None:
    STATE.mkdir(mode=0o755, exist_ok=True)
    host = os.uname().nodename.split(".")[0]
    text = (
        Path(__file__)
        .with_name("slurm.conf.in")
        .read_text()
        .format(host=host, address=HOST_ADDRESS, munge=_MUNGE, state=STATE)
    )
    for node in NODES:
        text += (
            f"NodeName={node} NodeAddr={_address(node)} CPUs={CPUS} CoresPerSocket={CPUS} RealMemory={MEMORY_MB} "
            f"Gres=gpu:{GPUS} State=UNKNOWN\n"
        )
    every = ",".join(NODES)
    text += f"PartitionName=main Nodes={every} Default=YES PriorityTier=1 GraceTime=10 State=UP\n"
    text += f"PartitionName=high Nodes={every} PriorityTier=10 PreemptMode=OFF State=UP\n"
    CONF.write_text(text)
    (STATE / "gres.conf").write_text(f"Name=gpu File=/dev/glci-gpu[0-{GPUS - 1}]\n")
    (STATE / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    accounting = STATE / "slurmdbd.conf"
    accounting.touch(mode=0o600)
    accounting.write_text(
        f"AuthType=auth/munge\nAuthInfo=socket={_MUNGE}\nDbdHost={host}\nDbdAddr={HOST_ADDRESS}\nSlurmUser=root\n"
        f"StorageType=accounting_storage/mysql\nStorageHost=localhost\nStorageUser=root\nStorageLoc=glci_slurm\n"
        f"LogFile={STATE}/log/slurmdbd.log\nPidFile={STATE}/run/slurmdbd.pid\n"
    )
    _write_hosts([f"{HOST_ADDRESS} {host} {_MARK}", *(f"{_address(node)} {node} {_MARK}" for node in NODES)])


def _write_hosts(lines: Sequence[str]) -> None:
    # In place: in a container the file cannot be moved over.
    path = Path("/etc/hosts")
    before = path.read_text().splitlines()
    kept = [line for line in before if not line.endswith(_MARK)]
    # First, so that this host's name is its address on the bridge, which the nodes can reach.
    if [*lines, *kept] != before:
        path.write_text("\n".join([*lines, *kept]) + "\n")


def _make_network() -> None:
    if not _exists(_BRIDGE):
        _run("ip", "link", "add", _BRIDGE, "type", "bridge")
        _run("ip", "addr", "add", f"{HOST_ADDRESS}/24", "dev", _BRIDGE)
    _run("ip", "link", "set", _BRIDGE, "up")
    for node in NODES:
        if not Path(f"/run/netns/{node}").exists():
            _run("ip", "netns", "add", node)
        if not _exists(_port(node)):
            _run("ip", "link", "add", _port(node), "type", "veth", "peer", "name", "eth0", "netns", node)
            _run("ip", "-n", node, "addr", "add", f"{_address(node)}/24", "dev", "eth0")
        _run("ip", "-n", node, "link", "set", "lo", "up")
        _run("ip", "-n", node, "link", "set", "eth0", "up")
        _run("ip", "link", "set", _port(node), "master", _BRIDGE, "up")


def _start_munge() -> None:
    folder = _MUNGE.parent
    folder.mkdir(mode=0o755, exist_ok=True)
    key = folder / "key"
    if not key.exists():
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        for path in (folder, key):
            shutil.chown(path, "munge", "munge")
    _daemon(
        "munged",
        [
            *("setpriv", "--reuid", "munge", "--regid", "munge", "--clear-groups", "munged", "-F"),
            *(f"--socket={_MUNGE}", f"--key-file={key}", f"--seed-file={folder}/seed", f"--pid-file={folder}/pid"),
            f"--log-file={folder}/log",
        ],
    )
    _wait("munge", ["munged"], lambda: _succeeds("munge", "-S", str(_MUNGE), "-n"))


def _start_mariadb() -> None:
    data = STATE / "mariadb"
    if not data.exists():
        data.mkdir()
        shutil.chown(data, "mysql", "mysql")
        _run(
            "mariadb-install-db",
            *("--no-defaults", f"--datadir={data}", "--user=mysql", "--skip-test-db"),
            "--auth-root-authentication-method=socket",
        )
    log = STATE / "log" / "mariadb.log"
    _daemon(
        "mariadb",
        [
            *("mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={_MARIADB}", "--skip-networking"),
            *("--user=mysql", f"--pid-file={data}/pid", "--innodb-buffer-pool-size=64M"),
            "--innodb-lock-wait-timeout=900",
        ],
        log=log,
    )
    asked = ("mariadb", "--no-defaults", f"--socket={_MARIADB}", "-e", "select 1")
    _wait("the data base", ["mariadb"], lambda: _succeeds(*asked))


def _daemon(
    name: str, command: Sequence[str], *, environment: Mapping[str, str] | None = None, log: Path | None = None
) -> None:
    start_daemon(STATE, name, command, environment={**_environment(), **(environment or {})}, log=log)


def _pids_in(node: str) -> list[int]:
    if not Path(f"/run/netns/{node}").exists():
        return []
    return [int(pid) for pid in _output("ip", "netns", "pids", node).split()]


def _address(node: str) -> str:
    return f"10.77.0.{10 + NODES.index(node) + 1}"


def _port(node: str) -> str:
    """The bridge's end of a node's cable."""
    return f"glci-v{NODES.index(node) + 1}"


def _exists(link: str) -> bool:
    return Path(f"/sys/class/net/{link}").exists()


def _environment() -> dict[str, str]:
    """The caller's, without what changes the programs' answers, or is a folder that daemons' users cannot write."""
    programs = ("SLURM_", "SBATCH_", "SQUEUE_", "SINFO_", "SACCT_", "SCONTROL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(programs) and name != "TMPDIR"}
    return {**kept, "SLURM_CONF": str(CONF)}


def _wait(what: str, daemons: Sequence[str], is_ready: Callable[[], bool], *, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not is_ready():
        dead = [daemon for daemon in daemons if not is_running(STATE, daemon)]
        if dead:
            raise ClusterError(f"{', '.join(dead)} ended at once: see {STATE}/log")
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} did not come up within {seconds:.0f} s: see {STATE}/log")
        time.sleep(0.2)


def _succeeds(*command: str) -> bool:
    try:
        return not subprocess.run(command, env=_environment(), capture_output=True, timeout=20).returncode
    except subprocess.TimeoutExpired:
        return False


def _output(*command: str) -> str:
    return subprocess.run(
        command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=30
    ).stdout


def _run(*command: str) -> None:
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise ClusterError(f"{' '.join(command[:4])} ... failed: {' '.join(said)}")


if __name__ == "__main__":
    sys.exit(main())
