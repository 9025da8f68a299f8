"""Start one training process per device and make their end one line and one exit code.

    python revisionllm/train/launch.py --nproc_per_node 8 revisionllm/train/train.py --stage dense

The training launchers start it. On one machine it starts the processes itself, and what they use to
find one another listens on 127.0.0.1 alone. With --nnodes it hands over to torch.distributed.run,
which listens where the other machines can reach it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started by path: import from the repository, not from here
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from revisionllm.errors import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    Terminated,
    UserError,
    run_entry_point,
)
from revisionllm.options import COUNT, Parser, Range

LOCAL = "127.0.0.1"
# How long the processes may take to close what they have open once one has ended badly.
GRACE_S = 20.0


def build_parser() -> Parser:
    """The command line; what follows the script is the script's own."""
    ranges = {"nproc_per_node": Range(1, 1024), "nnodes": COUNT, "node_rank": Range(0, 10**6)}
    ranges["master_port"] = Range(1, 65535)
    parser = Parser(prog="launch", description=__doc__.split("\n")[0], ranges=ranges)
    add = parser.add_argument
    add("--nproc_per_node", type=int, default=1, help="processes on this machine (%(default)s)")
    add("--nnodes", type=int, default=1, help="machines (%(default)s)")
    add("--node_rank", type=int, default=0, help="number of this machine (%(default)s)")
    add("--master_addr", default=LOCAL, help="the first machine (%(default)s)")
    add("--master_port", type=int, default=29500, help="on it (%(default)s)")
    add("script", help="what each process runs")
    add("arguments", nargs="...", help="its arguments")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit code of the process that failed first, or 0."""
    args = build_parser().parse_args(argv)
    command = [sys.executable, args.script, *args.arguments]
    if args.nnodes > 1:
        return run_entry_point(lambda: several_machines(args), "launch")
    return run_entry_point(lambda: one_machine(args.nproc_per_node, command), "launch")


def one_machine(count: int, command: Sequence[str]) -> int:
    """Run `count` processes; returns 0, or the exit code of the first that failed."""
    with socket.socket() as listening:
        listening.bind((LOCAL, 0))
        listening.listen(2048)
        port = listening.getsockname()[1]
        store = _store(port, os.dup(listening.fileno()))
        common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        common |= {"MASTER_ADDR": LOCAL, "MASTER_PORT": str(port)}
        # the processes are clients of this one's store and start none of their own
        common |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        common |= {f"{library}_SOCKET_IFNAME": loopback for library in ("GLOO", "NCCL")}
        processes = []
        try:
            for rank in range(count):
                environment = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                processes.append(subprocess.Popen(command, env=os.environ | environment))
            return _first_failure(processes)
        except (KeyboardInterrupt, Terminated) as stop:
            # they say themselves what was interrupted
            interrupted = isinstance(stop, KeyboardInterrupt)
            _end(processes, signal.SIGINT if interrupted else signal.SIGTERM)
            return EXIT_INTERRUPTED if interrupted else EXIT_TERMINATED
        finally:
            _end(processes, signal.SIGTERM)
            del store


def _store(port: int, listening: int):
    """The store in which the processes find one another, on a socket that is bound already."""
    import torch
    import torch.distributed as dist
    from packaging.version import Version

    return dist.TCPStore(
        *(LOCAL, port, None, True),
        wait_for_workers=False,
        master_listen_fd=listening,
        use_libuv=Version(torch.__version__) >= Version("2.7"),  # older ones take no socket of ours
    )


def _first_failure(processes: list[subprocess.Popen]) -> int:
    """Wait until all have ended well or one has not; returns its exit code."""
    while True:
        codes = [process.poll() for process in processes]
        failed = [code for code in codes if code]
        if failed:
            if any(code < 0 for code in failed):
                number = next(n for n, code in enumerate(codes) if code and code < 0)
                name = signal.Signals(-codes[number]).name
                hint = "; out of memory?" if name == "SIGKILL" else ""
                raise UserError(f"process {number} of {len(codes)} was ended by {name}{hint}")
            return failed[0]
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.05)


def _end(processes: list[subprocess.Popen], number: signal.Signals) -> None:
    """Ask those that run to end, and end those that do not."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)
    deadline = time.monotonic() + GRACE_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def several_machines(args) -> int:
    """This machine's share, by torch.distributed.run; returns the exit code."""
    import logging

    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    words = [f"--{name}={getattr(args, name)}" for name in ("nproc_per_node", "nnodes")]
    words += [f"--node_rank={args.node_rank}", f"--master_addr={args.master_addr}"]
    words += [f"--master_port={args.master_port}", args.script, *args.arguments]
    try:
        run.run(run.parse_args(words))
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        return next((code for code in codes if code > 0), 1)
    except SignalException as stop:
        return 128 + stop.sigval
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
