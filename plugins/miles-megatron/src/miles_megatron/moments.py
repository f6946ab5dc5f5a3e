"""Master weights and Adam's moments, parameter by parameter, whichever of megatron-core's optimizers keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from miles_megatron.optimizer import Optimizer

MASTER = "master"
ADAM = ("exp_avg", "exp_avg_sq")


class Moments:
    """Reads and writes what an optimizer keeps of a parameter, as float32 tensors of this rank's whole parameter.

    The distributed optimizer keeps a stretch of the flattened parameter on each data-parallel rank. A parameter that is not trained
    is its own master, and its moments are zeros, so that a later run may train it.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._owner = {param: part for part in optimizer.parts for param in _parameters(part)}

    def fields(self, steps: int) -> tuple[str, ...]:
        """What there is after so many steps of Adam's: the master weights, and the moments once a step was taken."""
        return (MASTER, *ADAM) if self._optimizer.kind == "adam" and steps else (MASTER,)

    def steps(self) -> int:
        """Steps by Adam's own count, which its bias correction goes by. Collective: a rank may own a stretch of no parameter."""
        found = 0
        for part in self._optimizer.parts:
            for group in part.param_groups:
                found = max(found, int(group.get("step", 0)))
            for entry in part.optimizer.state.values():
                found = max(found, int(entry.get("step", 0)))
        if dist.get_world_size() > 1:
            box: list[int] = [0] * dist.get_world_size()
            dist.all_gather_object(box, found)
            found = max(box)
        return found

    def whole(self, field: str, param: torch.nn.Parameter) -> torch.Tensor:
        """A field of a parameter. Collective among its data-parallel ranks."""
        part = self._owner.get(param)
        if part is None:
            return param.detach().float() if field == MASTER else torch.zeros_like(param, dtype=torch.float32)
        if not isinstance(part, DistributedOptimizer):
            return self._held(part, field, _main(param)).detach().float().view(param.shape)
        flat = torch.zeros(param.numel(), dtype=torch.float32, device=param.device)
        stretch = _stretch(part, param)
        if stretch is not None:
            main, start, stop = stretch
            flat[start:stop] = self._held(part, field, main).detach().float().view(-1)
        if part.data_parallel_group.size() > 1:
            dist.all_reduce(flat, group=part.data_parallel_group)
        return flat.view(param.shape)

    def begin(self, fields: Sequence[str], steps: int) -> None:
        """Make room for these fields, as if so many steps had been taken."""
        moments = [field for field in fields if field != MASTER]
        for part in self._optimizer.parts:
            part.optimizer.state.clear()
            for group in part.param_groups:
                if "step" in group or (moments and not isinstance(part.optimizer, torch.optim.Optimizer)):
                    group["step"] = steps
                for main in group["params"]:
                    if not moments:
                        continue
                    entry: dict[str, Any] = {field: torch.zeros_like(main, dtype=torch.float32) for field in moments}
                    if "step" not in group:
                        entry["step"] = torch.tensor(float(steps), device=main.device)
                    part.optimizer.state[main] = entry

    @torch.no_grad()
    def put(self, field: str, param: torch.nn.Parameter, tensor: torch.Tensor) -> None:
        """Overwrite a field of a parameter; with the master weights the parameter follows."""
        part = self._owner.get(param)
        if field == MASTER:
            param.data.copy_(tensor)
        if part is None:
            return
        if not isinstance(part, DistributedOptimizer):
            self._held(part, field, _main(param)).copy_(tensor.view_as(param))
            return
        stretch = _stretch(part, param)
        if stretch is not None:
            main, start, stop = stretch
            held = self._held(part, field, main)
            held.copy_(tensor.view(-1)[start:stop].view_as(held))

    @staticmethod
    def _held(part: Any, field: str, main: torch.Tensor) -> torch.Tensor:
        return main.data if field == MASTER else part.optimizer.state[main][field]


def masters(part: Any) -> dict[torch.nn.Parameter, torch.Tensor]:
    """What one of megatron-core's optimizers steps on a run's only rank, by the model's parameters; those of fp32 are their own,
    perhaps flattened."""
    found = {}
    for param in _parameters(part):
        if not isinstance(part, DistributedOptimizer):
            found[param] = _main(param)
        elif (stretch := _stretch(part, param)) is not None:
            found[param] = stretch[0]
    return found


def _stretch(part: Any, param: torch.nn.Parameter) -> tuple[torch.Tensor, int, int] | None:
    """This rank's master of a parameter, and where in the flattened parameter it is."""
    if param not in part.model_param_group_index_map:
        return None
    group, order = part.model_param_group_index_map[param]
    place = part._get_model_param_range_map(param)["param"]
    return part.optimizer.param_groups[group]["params"][order], place.start, place.end


def _main(param: torch.nn.Parameter) -> torch.Tensor:
    main = getattr(param, "main_param", None)
    return param if main is None else main


def _parameters(part: Any) -> list[torch.nn.Parameter]:
    """The model's parameters that one of megatron-core's optimizers steps, on any rank."""
    if isinstance(part, DistributedOptimizer):
        return [param for buffer in part.buffers for param in buffer.params]
    groups = getattr(part, "float16_groups", [])
    if groups:
        return [param for group in (*groups, *part.fp32_from_fp32_groups) for param in group]
    return [param for group in part.param_groups for param in group["params"]]
