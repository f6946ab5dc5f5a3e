"""Records: what a plugin offers, said without importing anything heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Record:
    """One implementation that a plugin offers.

    Attributes:
        name: the name that users type; equal to the entry point's name.
        create: ``package.module:attribute``, imported in the process that needs it and called with the run's ``Config``.
        options: frozen dataclass of the implementation's options, several in a tuple, or None. Records may share them.
        summary: one line for ``miles plugins list``.
        capabilities: names of optional abilities, see the protocol of the kind.
    """

    name: str
    create: str
    options: type | tuple[type, ...] | None = None
    summary: str = ""
    capabilities: frozenset[str] = frozenset()


@dataclass(frozen=True)
class BackendRecord(Record):
    """A training backend (:class:`miles_core.protocols.TrainingBackend`).

    Capabilities: ``cpu``, ``cuda``, ``context_parallel``, ``critic``, ``routing_replay``; ``true_on_policy`` (on a CPU,
    log-probs with the same bits in every batch, by :mod:`miles_core.numerics`).
    """


@dataclass(frozen=True)
class EngineRecord(Record):
    """A rollout engine (:class:`miles_core.protocols.RolloutEngine`).

    Capabilities: ``cpu``, ``cuda``; ``batch_stream`` (one HTTP call takes many requests and answers each as it ends);
    ``concurrency:--flag`` (the option of its own that says how many calls one engine takes at a time); ``several_gpus`` (an
    engine may have more than one); ``several_nodes`` (of more than one node, with a process on each); ``external`` (it attaches to
    servers that run already); ``routed_experts`` (it says which experts each token went to); ``true_on_policy``, as of backends;
    and the weight transports ``shared_file``, ``cuda_ipc``, ``broadcast``, ``process_group``, ``disk``.

    Attributes:
        router: ``package.module:attribute`` of the :class:`miles_core.protocols.Router` that stands in front of several engines of
            this kind where the user asks for no other; empty for core's.
        export: ``package.module:attribute``, called with the run's ``Config`` in each trainer that publishes; the result turns an
            export, names and tensors, into what engines are sent. Empty for the export as it is.
    """

    router: str = ""
    export: str = ""


@dataclass(frozen=True)
class AdvantageRecord(Record):
    """An advantage estimator (:class:`miles_core.protocols.Advantage`).

    Capabilities: ``critic`` (it needs ``values``, so that the run trains a critic); ``reward_free`` (a run may do without a
    reward: the estimator reads none); ``teacher`` (it needs teacher log-probs), or ``teacher:--flag`` (it does while that switch
    of its options is on).
    """


@dataclass(frozen=True)
class LossRecord(Record):
    """A loss (:class:`miles_core.protocols.Loss`).

    Capabilities: ``supervised`` (responses come from the data, no engine is needed); ``critic`` (it trains values and not a policy,
    for ``--critic-loss-type``).
    """


@dataclass(frozen=True)
class RewardRecord(Record):
    """A reward (:class:`miles_core.protocols.Reward`). Capability ``group``: it reads ``--group-rm``."""


@dataclass(frozen=True)
class FilterRecord(Record):
    """A filter of sample groups (:class:`miles_core.protocols.Filter`)."""


@dataclass(frozen=True)
class MiddlewareRecord(Record):
    """A router middleware (:class:`miles_core.protocols.RouterMiddleware`)."""


@dataclass(frozen=True)
class LoggerRecord(Record):
    """A metric logger (:class:`miles_core.protocols.MetricLogger`)."""


@dataclass(frozen=True)
class CommandRecord(Record):
    """A command of the CLI; ``create`` names a click command."""


@dataclass(frozen=True)
class AlgorithmRecord:
    """A recipe for ``--algo``: which plugins make up an algorithm, and which defaults it changes.

    ``defaults`` maps flags without dashes in front (``eps-clip-high``) to values.
    """

    name: str
    advantage: str | None
    loss: str
    filters: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    options: type | tuple[type, ...] | None = None
    summary: str = ""


def option_groups(record: Any) -> tuple[type, ...]:
    """The dataclasses of a record's options; none for observers, which have no record."""
    options = getattr(record, "options", None)
    if options is None:
        return ()
    return tuple(options) if isinstance(options, tuple) else (options,)
