"""Puts a team together and takes it apart again."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import torch.distributed as dist

from trainer.config import TrainerConfig
from trainer.distributed.membership import device_of, membership
from trainer.distributed.peers import Peers, end_with_leader
from trainer.distributed.team import Processes, Team

_LOOPBACK = "127.0.0.1"


@contextmanager
def open_team(config: TrainerConfig, processes: int | None, argv: Sequence[str]) -> Iterator[Team]:
    """The team that this process belongs to, as long as the block runs.

    `processes` is what --processes says, None without it; `argv` starts the trainer's other processes if this one
    leads. An error that another process has caused is raised as the TeamError that names it.
    Raises UsageError, and ConfigError when so many processes cannot train this configuration.
    """
    member = membership(processes)
    device = device_of(config, member)
    if member.size == 1:
        yield Team(device)
        return
    end_with_leader()
    with ExitStack() as leaving:
        if member.is_started:
            timeout = timedelta(seconds=config.distributed.timeout_s)
            store, peers = next(dist.rendezvous("env://", member.rank, member.size, timeout=timeout))[0], None
        else:
            store, port = _own_store(member.size)
            peers = Peers(argv, member.size, port)
            leaving.callback(peers.kill)
        if os.environ.get("MASTER_ADDR", _LOOPBACK) == _LOOPBACK and sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # nobody else needs to reach these processes
        team = Processes(device, member.rank, member.size, store, config.distributed.timeout_s, peers)
        leaving.callback(dist.destroy_process_group)
        try:
            yield team
        except RuntimeError as error:  # of torch: a connection that broke
            if (cause := team.blame()) is not None:
                raise cause from error
            raise


def _own_store(size: int) -> tuple[dist.Store, int]:
    """A store that only this machine can reach, and its port."""
    listener = socket.create_server((_LOOPBACK, 0))
    port: int = listener.getsockname()[1]
    descriptor = listener.detach()
    store = dist.TCPStore(_LOOPBACK, port, size, is_master=True, wait_for_workers=False, master_listen_fd=descriptor)
    return store, port
