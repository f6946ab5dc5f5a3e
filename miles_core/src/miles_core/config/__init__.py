"""Core's options, one group a file."""

from miles_core.config.algorithm import AlgorithmOptions
from miles_core.config.checkpoint import CheckpointOptions
from miles_core.config.cluster import ClusterOptions
from miles_core.config.critic import CriticOptions
from miles_core.config.data import DataOptions
from miles_core.config.debug import DebugOptions
from miles_core.config.evaluation import EvaluationOptions
from miles_core.config.external import ExternalOptions
from miles_core.config.fault_tolerance import FaultToleranceOptions
from miles_core.config.logging import LoggingOptions
from miles_core.config.loops import LoopOptions
from miles_core.config.plugins import PluginOptions
from miles_core.config.reward import RewardOptions
from miles_core.config.rollout import RolloutOptions
from miles_core.config.router import RouterOptions
from miles_core.config.routing import RoutingOptions
from miles_core.config.run import RunOptions
from miles_core.config.sampling import SamplingOptions
from miles_core.config.teacher import TeacherOptions
from miles_core.config.training import TrainingOptions

CORE_GROUPS: tuple[type, ...] = (
    PluginOptions,
    ClusterOptions,
    LoopOptions,
    RolloutOptions,
    SamplingOptions,
    RouterOptions,
    FaultToleranceOptions,
    ExternalOptions,
    DataOptions,
    RewardOptions,
    AlgorithmOptions,
    CriticOptions,
    TeacherOptions,
    RoutingOptions,
    TrainingOptions,
    EvaluationOptions,
    CheckpointOptions,
    LoggingOptions,
    DebugOptions,
    RunOptions,
)
"""All of core's option groups, in the order of ``--help``."""

__all__ = [
    "CORE_GROUPS",
    "AlgorithmOptions",
    "CheckpointOptions",
    "ClusterOptions",
    "CriticOptions",
    "DataOptions",
    "DebugOptions",
    "EvaluationOptions",
    "ExternalOptions",
    "FaultToleranceOptions",
    "LoggingOptions",
    "LoopOptions",
    "PluginOptions",
    "RewardOptions",
    "RolloutOptions",
    "RouterOptions",
    "RoutingOptions",
    "RunOptions",
    "SamplingOptions",
    "TeacherOptions",
    "TrainingOptions",
]
