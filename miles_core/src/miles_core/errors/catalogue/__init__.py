"""Every error code of miles, with what it means and what to do about it."""

from __future__ import annotations

from miles_core.errors.catalogue.agents import AGENTS
from miles_core.errors.catalogue.algorithms import ALGORITHM_OPTIONS, ALGORITHM_RUN
from miles_core.errors.catalogue.critic import CRITIC_OPTIONS, CRITIC_RUN
from miles_core.errors.catalogue.data import DATA
from miles_core.errors.catalogue.debug import DEBUG
from miles_core.errors.catalogue.engines import ENGINES
from miles_core.errors.catalogue.explanation import Explanation
from miles_core.errors.catalogue.external import EXTERNAL_OPTIONS, EXTERNAL_RUN
from miles_core.errors.catalogue.fault_tolerance import FAULT_TOLERANCE
from miles_core.errors.catalogue.fsdp import FSDP_OPTIONS
from miles_core.errors.catalogue.logging import LOGGING
from miles_core.errors.catalogue.loops import LOOP_OPTIONS
from miles_core.errors.catalogue.megatron import MEGATRON_OPTIONS
from miles_core.errors.catalogue.options import OPTIONS
from miles_core.errors.catalogue.plugins import PLUGINS
from miles_core.errors.catalogue.prompts import PROMPTS
from miles_core.errors.catalogue.rewards import REWARD_OPTIONS
from miles_core.errors.catalogue.rollouts import ROLLOUTS
from miles_core.errors.catalogue.router import ROUTER_OPTIONS, ROUTER_RUN
from miles_core.errors.catalogue.routing import ROUTING_OPTIONS, ROUTING_RUN
from miles_core.errors.catalogue.run import RUN
from miles_core.errors.catalogue.sampling import SAMPLING_OPTIONS
from miles_core.errors.catalogue.saving import SAVING
from miles_core.errors.catalogue.sglang import SGLANG
from miles_core.errors.catalogue.state import STATE
from miles_core.errors.catalogue.teacher import TEACHER_OPTIONS, TEACHER_RUN
from miles_core.errors.catalogue.training import TRAINING
from miles_core.errors.catalogue.true_on_policy import TRUE_ON_POLICY_OPTIONS, TRUE_ON_POLICY_RUN

SECTIONS: dict[str, dict[str, Explanation]] = {
    "Plugins": PLUGINS,
    "Options": dict(
        sorted(
            {
                **OPTIONS,
                **ALGORITHM_OPTIONS,
                **REWARD_OPTIONS,
                **CRITIC_OPTIONS,
                **LOOP_OPTIONS,
                **ROUTER_OPTIONS,
                **ROUTING_OPTIONS,
                **SAMPLING_OPTIONS,
                **TEACHER_OPTIONS,
                **TRUE_ON_POLICY_OPTIONS,
            }.items()
        )
    ),
    "Data, checkpoints, loggers and run folders": dict(
        sorted({**DATA, **PROMPTS, **LOGGING, **DEBUG, **EXTERNAL_OPTIONS, **AGENTS}.items())
    ),
    "Rollouts": ROLLOUTS,
    "Training": dict(sorted({**TRAINING, **ALGORITHM_RUN, **CRITIC_RUN, **ROUTING_RUN}.items())),
    "Engines": dict(sorted({**ENGINES, **ROUTER_RUN}.items())),
    "Run states and weights": {**STATE, **SAVING},
    "Processes of a run": dict(sorted({**RUN, **EXTERNAL_RUN, **TEACHER_RUN, **TRUE_ON_POLICY_RUN}.items())),
    "SGLang servers": SGLANG,
    "Fault tolerance": FAULT_TOLERANCE,
    "Megatron": MEGATRON_OPTIONS,
    "FSDP": FSDP_OPTIONS,
}
"""The catalogue as chapters."""

CATALOGUE: dict[str, Explanation] = {code: said for codes in SECTIONS.values() for code, said in codes.items()}
"""By code, in order."""


def markdown() -> str:
    """The text of ``docs/errors.md``."""
    parts = [
        "# Errors",
        "Every error of miles is one line: code, whose it is, what is wrong, why, and what to do. `miles explain CODE` prints the "
        "entry below. Exit code 2 means that nothing was started; 1 that a run had started.",
        "This page is written by `miles explain --markdown`.",
    ]
    for title, codes in SECTIONS.items():
        if codes:
            parts.append(f"## {title}")
        for code, said in codes.items():
            parts += [f"### {code}: {said.title}", said.meaning, f"**What to do.** {said.remedy}", f"```text\n{said.example}\n```"]
    return "\n\n".join(parts) + "\n"


__all__ = ["CATALOGUE", "SECTIONS", "Explanation", "markdown"]
