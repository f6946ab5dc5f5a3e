"""The recipes of ``--algo``: which estimator and loss make up an algorithm, and which defaults it changes."""

from __future__ import annotations

from miles_core.plugins import AlgorithmRecord

RECIPES = (
    AlgorithmRecord("grpo", advantage="grpo", loss="policy_loss", summary="Group relative policy optimisation: no critic"),
    AlgorithmRecord(
        "dr_grpo",
        advantage="grpo",
        loss="policy_loss",
        defaults={"disable-grpo-std-normalization": True, "loss-length-divisor": 0},
        summary="GRPO without the biases of its normalisation: no division by the spread or by the response's own length",
    ),
    AlgorithmRecord(
        "dapo",
        advantage="grpo",
        loss="policy_loss",
        filters=("nonzero_std",),
        defaults={
            "eps-clip": 0.2,
            "eps-clip-high": 0.28,
            "calculate-per-token-loss": True,
            "overlong-buffer-ratio": 0.2,
            "overlong-penalty-factor": 1.0,
        },
        summary="GRPO with clip-higher, token mean, dynamic sampling and a soft penalty for overlong responses",
    ),
    AlgorithmRecord(
        "gspo",
        advantage="gspo",
        loss="gspo_loss",
        defaults={"eps-clip": 3e-4, "eps-clip-high": 4e-4},
        summary="Group sequence policy optimisation: one ratio for a whole response",
    ),
    AlgorithmRecord(
        "ppo",
        advantage="ppo",
        loss="policy_loss",
        defaults={"normalize-advantages": True},
        summary="Proximal policy optimisation: a critic and generalised advantage estimation",
    ),
    AlgorithmRecord(
        "reinforce_plus_plus",
        advantage="reinforce_plus_plus",
        loss="policy_loss",
        defaults={"normalize-advantages": True, "kl-coef": 1e-3, "kl-loss-type": "k1"},
        summary="REINFORCE++: whitened returns with a KL penalty in the reward, no critic and no group",
    ),
    AlgorithmRecord(
        "reinforce_plus_plus_baseline",
        advantage="reinforce_plus_plus_baseline",
        loss="policy_loss",
        defaults={"normalize-advantages": True, "use-kl-loss": True, "kl-loss-coef": 1e-3, "kl-loss-type": "k2"},
        summary="REINFORCE++ with the group's mean as baseline",
    ),
    AlgorithmRecord("rloo", advantage="rloo", loss="policy_loss", summary="REINFORCE with the siblings' mean as baseline"),
    AlgorithmRecord(
        "cispo",
        advantage="grpo",
        loss="cispo",
        defaults={"eps-clip": 1.0, "eps-clip-high": 4.0, "calculate-per-token-loss": True},
        summary="Clipped importance weights: every token keeps a gradient",
    ),
    AlgorithmRecord("sapo", advantage="grpo", loss="sapo", summary="GRPO with a soft gate in the place of the clip"),
    AlgorithmRecord(
        "opd",
        advantage="on_policy_distillation",
        loss="policy_loss",
        summary="On-policy distillation: learn a teacher's view of the policy's own responses",
    ),
    AlgorithmRecord("sft", advantage=None, loss="sft_loss", summary="Supervised fine-tuning on labelled responses"),
)
