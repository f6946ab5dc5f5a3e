"""What the ranks of actor and critic have in common: a process group, a backend, and moving and saving its model."""

from __future__ import annotations

import datetime
import logging
import os
from pathlib import Path
from typing import Any

from miles_core.config import ClusterOptions, TrainingOptions
from miles_core.options import Config
from miles_core.runtime.identity import ProcessIdentity, free_port, meeting_address, recorded
from miles_core.runtime.plan import RunPlan
from miles_core.runtime.watch import Watched

_log = logging.getLogger(__name__)


class RankProcess(Watched):
    """One rank of a model that is trained. Methods are collective: the driver calls them on all ranks of the model at once.

    The subclass sets ``backend``.
    """

    backend: Any

    def __init__(self, identity: ProcessIdentity, config: Config, plan: RunPlan) -> None:
        super().__init__(identity)
        self.config = config
        self.plan = plan
        self.rank = identity.rank

    @recorded
    def rendezvous(self, spans_nodes: bool) -> tuple[str, int]:
        """Address and port at which the ranks meet; asked of rank 0. See :func:`meeting_address`."""
        host = meeting_address(spans_nodes)
        return host, free_port(host)

    def join(self, address: tuple[str, int], world: int) -> None:
        """Join the other ranks of the model, and seed this one."""
        import torch
        import torch.distributed as dist

        from miles_core.accelerator.device import accelerator_of, rank_device

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        host, port = address
        minutes = self.config.get(ClusterOptions).distributed_timeout_minutes
        here = accelerator_of(self.plan.placement.device)
        if here.count() > 0 and (cpus := here.pin_to_node(rank_device(self.rank, here.type))):
            _log.info("kept on the %d CPUs beside the %s device", len(cpus), here.name)
        dist.init_process_group(
            here.groups(self.plan.placement.communication),
            init_method=f"tcp://{f'[{host}]' if ':' in host else host}:{port}",
            rank=self.rank,
            world_size=world,
            timeout=datetime.timedelta(minutes=minutes),
        )
        torch.manual_seed(self.config.get(TrainingOptions).seed + self.rank)

    @recorded
    def save(self, directory: Path) -> None:
        """Write this rank's part of a run state."""
        self.backend.save(directory)

    @recorded
    def export_hf(self, directory: Path) -> None:
        """Write the model as an HF directory."""
        self.backend.export_hf(directory)

    @recorded
    def offload(self) -> None:
        """Free the device for others."""
        self.backend.offload()

    @recorded
    def onload(self) -> None:
        """Take the device back."""
        self.backend.onload()

    @recorded
    def close(self) -> None:
        """End well: backend and process group."""
        import torch.distributed as dist

        self.backend.close()
        if dist.is_initialized():
            dist.destroy_process_group()
