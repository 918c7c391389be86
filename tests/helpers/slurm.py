"""A Slurm cluster of one node on this machine, for as long as a test needs it."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

COMMANDS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "scancel", "sinfo")
# A step of a job finds this file only; it gets no SLURM_CONF.
CONFIGURATION = Path("/etc/slurm/slurm.conf")
SECONDS_TO_START, SECONDS_TO_STOP = 30, 15

# No cgroups, no accounts, loopback only. Ended jobs are remembered for 10 minutes, as
# `slurm-status-command: squeue` needs it.
TEMPLATE = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
MinJobAge=600
KillWait=2
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no cluster can be started here; empty if one can."""
    if os.geteuid() != 0:
        return "only root can start a Slurm of its own"
    # Daemons lie in sbin, which is not on every PATH.
    absent = [name for name in COMMANDS if _command(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (packages slurm-wlm and munge)"
    if CONFIGURATION.exists():
        return f"{CONFIGURATION} is there: this machine has a Slurm already"
    return ""


@contextmanager
def one_node() -> Iterator[Path]:
    """A running cluster of one node with two CPUs; its folder.

    One process at a time has it, the others wait.
    """
    with (Path(tempfile.gettempdir()) / "needsaug-test-slurm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Short: the name of a socket has at most 107 characters.
        folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        made = not CONFIGURATION.parent.exists()
        try:
            _start(folder)
            yield folder
        finally:
            _stop(folder)
            if CONFIGURATION.is_symlink():
                CONFIGURATION.unlink()
            if made:
                shutil.rmtree(CONFIGURATION.parent, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)


def jobs(states: str = "all") -> dict[str, tuple[str, str]]:
    """Comment and state of the jobs in the queue, by their numbers."""
    listing = subprocess.run(
        ["squeue", "--noheader", f"--states={states}", "--format=%i|%k|%T"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    rows = [line.split("|") for line in listing.stdout.splitlines()]
    return {number: (comment, state) for number, comment, state in rows}


def _start(folder: Path) -> None:
    # munged refuses a folder that others may write to, and others must reach a socket.
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    configuration = folder / "slurm.conf"
    configuration.write_text(
        TEMPLATE.format(
            folder=folder,
            host=socket.gethostname().split(".")[0],
            memory=_memory_mib(),
            controller_port=_free_port(),
            node_port=_free_port(),
        )
    )
    CONFIGURATION.parent.mkdir(exist_ok=True)
    CONFIGURATION.symlink_to(configuration)
    key = folder / "munge.key"
    _call("mungekey", "--create", f"--keyfile={key}")
    _call(
        *("munged", "--force", f"--key-file={key}"),
        *(f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid"),
        *(f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"),
    )
    _call("slurmctld")
    _call("slurmd")
    deadline = time.monotonic() + SECONDS_TO_START
    while _state() != "idle":
        if time.monotonic() > deadline:
            logs = [file.read_text()[-2000:] for file in folder.glob("slurm*.log")]
            raise RuntimeError("the node isn't ready\n" + "\n".join(logs))
        time.sleep(0.2)


def _stop(folder: Path) -> None:
    if (folder / "slurmctld.pid").exists():
        subprocess.run(
            ["scancel", "--user=root"], timeout=30, check=False, capture_output=True
        )
        deadline = time.monotonic() + SECONDS_TO_STOP
        while _state() not in ("idle", "") and time.monotonic() < deadline:
            time.sleep(0.2)
    for name in ("slurmd", "slurmctld", "munged"):
        _end(folder / f"{name}.pid")


def _end(pid_file: Path) -> None:
    """End the daemon of a pid file, by force if it doesn't want to."""
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    deadline = time.monotonic() + SECONDS_TO_STOP
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        while _runs(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        if _runs(pid):
            os.kill(pid, signal.SIGKILL)


def _runs(pid: int) -> bool:
    """True unless the process has ended, also if nobody has asked how it ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def _state() -> str:
    listing = subprocess.run(
        ["sinfo", "-h", "-o", "%T"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return listing.stdout.strip()


def _call(name: str, *arguments: str) -> None:
    program = _command(name)
    assert program is not None
    done = subprocess.run(
        [program, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name} didn't start: {done.stdout}")


def _command(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _memory_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
