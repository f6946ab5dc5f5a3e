"""M300 and M307 to M309: loggers and run folders."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

LOGGING: dict[str, Explanation] = {
    "M300": Explanation(
        title="The library of a logger is not installed",
        meaning="Weights & Biases and TensorBoard are optional: miles-loggers does not bring them.",
        remedy="Install them with it, or log elsewhere.",
        example=(
            "M300 miles-loggers: cannot log to wandb: the library wandb is not installed. Do: pip install 'miles-loggers[wandb]'"
        ),
    ),
    "M307": Explanation(
        title="There is no such run",
        meaning="The folder is missing, or holds nothing that a run writes.",
        remedy="Give a run folder, or its name below `runs`; `miles runs list` shows which there are.",
        example="M307 miles-core: there is no run 'runs/first': the folder does not exist. Do: see miles runs list",
    ),
    "M308": Explanation(
        title="The report cannot be written",
        meaning="The file of `miles report -o` cannot be made.",
        remedy="Check the folder's permissions, or name another file.",
        example="M308 miles-core: cannot write /report.html: Permission denied. Do: name another file with -o",
    ),
    "M309": Explanation(
        title="The name of a folder that is no name",
        meaning="`--tb-project-name` and `--tb-experiment-name` are single names, which cannot lead out of the folder they are in.",
        remedy="Leave out separators and leading dots; TENSORBOARD_DIR says where the folders are.",
        example=(
            "M309 miles-loggers: --tb-project-name '../logs' is no name: it names a folder in another one. Do: leave out "
            "separators and leading dots"
        ),
    ),
}
