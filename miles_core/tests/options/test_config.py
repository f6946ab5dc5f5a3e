"""Reading options with and without a trace."""

from __future__ import annotations

import pickle

from miles_core.config import ClusterOptions, DataOptions, TrainingOptions
from miles_core.options import Config, Source


def test_peeking_leaves_no_trace_and_getting_does() -> None:
    config = Config.of(TrainingOptions(lr=1.0, seed=2))
    assert config.peek(TrainingOptions).lr == 1.0
    assert config.untracked().get(TrainingOptions).lr == 1.0
    assert config.reads() == frozenset()
    assert [option.flag for option, _ in config.unread()] == ["--lr", "--seed"]
    assert config.get(TrainingOptions).lr == 1.0
    assert config.reads() == {"--lr"}
    assert [option.flag for option, _ in config.unread(["--seed"])] == []


def test_values_of_a_group_that_is_not_there() -> None:
    config = Config.of(TrainingOptions())
    assert config.value(ClusterOptions, "colocate").value is False
    assert not config.chosen(ClusterOptions, "colocate")
    assert config.peek(DataOptions).input_key == "input"


def test_derived_values_share_the_reads_and_pickle() -> None:
    config = Config.of(DataOptions(num_epoch=2))
    derived = config.replaced(DataOptions, num_rollout=7)
    assert derived.get(DataOptions).num_rollout == 7
    assert "--num-rollout" in config.reads()
    assert derived.value(DataOptions, "num_rollout").source is Source.DERIVED
    again = pickle.loads(pickle.dumps(derived))
    assert again.peek(DataOptions) == derived.peek(DataOptions)
    assert again.reads() == frozenset()
