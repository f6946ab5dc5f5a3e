"""The work protocols: core calls these, and nothing else."""

from miles_core.protocols.advantage import Advantage, AdvantageInputs, AdvantageOutputs
from miles_core.protocols.backend import LossCallback, ModelSpec, OutputRequest, Parallel, StepReport, TrainingBackend
from miles_core.protocols.engine import EngineLaunch, RolloutEngine, TensorEntry, WeightBucket
from miles_core.protocols.filter import Decision, Filter
from miles_core.protocols.logger import MetricLogger
from miles_core.protocols.loss import Loss, LossInputs, LossOutputs
from miles_core.protocols.middleware import RouterMiddleware
from miles_core.protocols.reward import Reward
from miles_core.protocols.router import Router, RouterLaunch

__all__ = [
    "Advantage",
    "AdvantageInputs",
    "AdvantageOutputs",
    "Decision",
    "EngineLaunch",
    "Filter",
    "Loss",
    "LossCallback",
    "LossInputs",
    "LossOutputs",
    "MetricLogger",
    "ModelSpec",
    "OutputRequest",
    "Parallel",
    "Reward",
    "RolloutEngine",
    "Router",
    "RouterLaunch",
    "RouterMiddleware",
    "StepReport",
    "TensorEntry",
    "TrainingBackend",
    "WeightBucket",
]
