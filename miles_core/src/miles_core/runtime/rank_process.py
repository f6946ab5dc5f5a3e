"""What the ranks of actor and critic have in common: a process group, a backend, and moving and saving its model."""

from __future__ import annotations

import datetime
import errno
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from miles_core.config import ClusterOptions, TrainingOptions
from miles_core.errors import RunError
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
    def hold(self, directory: Path) -> None:
        """Copy this rank's part of a run state to host memory; :meth:`write_held` writes it while the rank goes on."""
        self._held = self.backend.hold(directory)

    # Ray looks for the group on the innermost function alone.
    @recorded
    @ray.method(concurrency_group="files")  # type: ignore[untyped-decorator]
    def write_held(self, directory: Path) -> Any:
        """Write what :meth:`hold` copied, in a thread of its own; returns what rank 0 needs of it."""
        with _writing(directory):
            return self._held.write()

    @recorded
    @ray.method(concurrency_group="files")  # type: ignore[untyped-decorator]
    def complete_held(self, directory: Path, parts: Sequence[Any]) -> None:
        """Write what is of all ranks, whose :meth:`write_held` returned ``parts``; asked of rank 0."""
        with _writing(directory):
            self._held.complete(parts)

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


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Turn a system error of a background write into one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        raise RunError(
            "M477",
            f"the run state in {directory} could not be written in the background",
            owner="miles-core",
            why=str(getattr(error, "strerror", None) or error).splitlines()[0],
            fix=("free space, or keep fewer states with --save-total-limit" if full else "check the file system and permissions")
            + "; the last good state is untouched",
        ) from error
