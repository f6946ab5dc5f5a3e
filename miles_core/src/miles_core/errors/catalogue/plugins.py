"""M101 to M111: plugins."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

PLUGINS: dict[str, Explanation] = {
    "M101": Explanation(
        title="Unknown plugin",
        meaning=(
            "No installed distribution offers a plugin of that kind and name. Plugins are found by the entry points of "
            "the distributions that this Python sees; one that is installed in another environment does not count."
        ),
        remedy=(
            "Compare the name with `miles plugins list --kind KIND`. If the plugin is not there, install its distribution "
            "into the environment that runs miles. If you have installed it, ask `miles plugins doctor`: a misspelt "
            "entry-point group or damaged metadata hides a plugin."
        ),
        example=(
            "M101 there is no loss plugin 'policy_los': installed are policy_loss, sft_loss. Do: did you mean "
            "'policy_loss'? Otherwise see miles plugins list --kind loss, or install the plugin (pip install miles-algos)"
        ),
    ),
    "M102": Explanation(
        title="Two distributions offer the same plugin",
        meaning=(
            "Kind and name are offered by more than one distribution, and miles does not guess which one you mean. It is "
            "an error only when the name is used."
        ),
        remedy="Write `distribution:name`, uninstall one of the two, or block one with `--block-plugins`.",
        example=(
            "M102 acme-rewards 1.0 and miles-rewards 0.1.0: the reward plugin 'math' is offered 2 times. Do: write "
            "acme-rewards:math or miles-rewards:math, or uninstall one"
        ),
    ),
    "M103": Explanation(
        title="A plugin cannot be loaded",
        meaning=(
            "Importing the plugin's light module raised an exception or tried to exit, or the hook that offers its "
            "records did. The line names the exception, and the file and line of the plugin that it came from."
        ),
        remedy=(
            "When a module is missing, install what provides it. Otherwise reinstall or upgrade the distribution, or "
            "report the line to its author. `miles plugins doctor` tries every plugin in a process of its own."
        ),
        example=(
            "M103 acme-rewards 1.0: the reward plugin 'acme' cannot be imported from acme_rewards.plugin: "
            "ModuleNotFoundError: No module named 'numba' (acme_rewards/plugin.py:3). Do: pip install what provides the "
            "module 'numba'"
        ),
    ),
    "M104": Explanation(
        title="A plugin is blocked",
        meaning=(
            "`--block-plugins` names the plugin or its distribution, or `--allow-plugins` is given and does not. The "
            "plugin was not imported."
        ),
        remedy="Choose another plugin, or change the list. An entry is a distribution, or `distribution:name`.",
        example=(
            "M104 acme-rewards 1.0: the reward plugin 'acme' is blocked: --block-plugins has 'acme-rewards'. Do: choose "
            "another reward plugin, or change that option"
        ),
    ),
    "M105": Explanation(
        title="A plugin needs another version of miles-core",
        meaning=(
            "The distribution's requirement on miles-core excludes the installed version. That is read from its metadata, "
            "before anything of it is imported; pip allows such a state when packages are installed one by one or with "
            "`--no-deps`."
        ),
        remedy="Upgrade both together: `pip install --upgrade DISTRIBUTION miles-core`.",
        example=(
            "M105 acme-rewards 3.0: the reward plugin 'acme' does not fit: it needs miles-core>=2, and this is 0.1.0. Do: "
            "pip install --upgrade acme-rewards miles-core, or choose another reward plugin"
        ),
    ),
    "M106": Explanation(
        title="A hook is invalid, or failed",
        meaning=(
            "The plugin implements a hook that does not exist, has arguments that the hook does not have or that would "
            "never be filled (by keyword only, with a default, `*args`), is async, is a wrapper, or lacks `@hookimpl`. Or "
            "a hook of a run raised an exception: every other plugin still got the event, then the run ended."
        ),
        remedy=(
            "Compare the hook with its signature in `docs/hooks.md`. A helper function of a plugin module must not have a "
            "name that starts with `miles_`. A hook of a later miles-core may be marked `@hookimpl(optionalhook=True)`."
        ),
        example="M106 acme-rewards 1.0: there is no hook miles_rewards. Do: did you mean miles_reward?",
    ),
    "M107": Explanation(
        title="Entry point and record disagree",
        meaning=(
            "The module that the entry point names has no provider hook of that kind, its hook offers no record of the "
            "entry point's name (or several), the record is of another type, or a field of it is malformed."
        ),
        remedy=(
            "Give entry point and record the same name; return the record type of the kind; write `create` as "
            "'package.module:attribute' and `options` as a frozen dataclass whose fields are made with `option(...)`."
        ),
        example=(
            "M107 acme-rewards 1.0: entry point and record of the reward plugin 'acme' disagree: miles_reward returned no "
            "records of that name; its names are 'acmee'. Do: name the entry point 'acmee', or the record 'acme'"
        ),
    ),
    "M108": Explanation(
        title="A flag has two owners",
        meaning=(
            "Two selected plugins, or a plugin and core, declare the same flag or alias, so that it would be unclear "
            "which one is set."
        ),
        remedy=(
            "Use one of the plugins without the other, or ask one author to rename the flag; `--<plugin>-<field>` is the default."
        ),
        example=(
            "M108 core (TrainingOptions.lr) and acme 1.0 (AcmeOptions.rate): the flag --lr has two owners. Do: use one of "
            "the two plugins without the other, or have one author rename the flag"
        ),
    ),
    "M109": Explanation(
        title="A factory cannot be resolved, or failed",
        meaning=(
            "The `create` of a plugin's record was imported or called in the process that needs the object, and that "
            "failed. Heavy dependencies are imported only here, so a missing one shows at this point."
        ),
        remedy=("Install what the plugin's README asks for. If it is a fault of the plugin, report the line to its author."),
        example=(
            "M109 miles-sglang 0.1.0: the factory miles_sglang.engine:create of the engine plugin 'sglang' cannot be "
            "resolved: ModuleNotFoundError: No module named 'sglang' (miles_sglang/engine.py:8). Do: install what "
            "miles-sglang needs (pip install --upgrade miles-sglang), or choose another engine plugin"
        ),
    ),
    "M110": Explanation(
        title="A process has another version of a plugin",
        meaning=(
            "A worker found another version of the distribution than the one that the run was resolved with, or none. Two "
            "versions in one run would disagree without saying so, therefore the worker refuses."
        ),
        remedy=(
            "Make the environments of all nodes equal, then start again. The run folder's plugin lock lists what the run expects."
        ),
        example=(
            "M110 miles-fsdp 0.2.0: the backend plugin 'fsdp' is not the one that the run was resolved with: this process "
            "has miles-fsdp 0.1.0 in /opt/venv/lib/python3.11/site-packages. Do: pip install miles-fsdp==0.2.0 in this "
            "process's environment, and start again"
        ),
    ),
    "M111": Explanation(
        title="A dotted path cannot be used",
        meaning=(
            "An option names a function by `package.module.function` or `file.py:function`, and there is no such module, "
            "file or name, importing it failed, or the function cannot be called as that option calls it. A filter that "
            "fails or does not answer with a bool or a decision has this code too."
        ),
        remedy=(
            "Check the path; modules are looked up on `PYTHONPATH` and among installed packages, files from the current "
            "folder. Give the function the signature that the line names."
        ),
        example=(
            "M111 --custom-rm-path: 'rewards.exact_macth' cannot be used: rewards.py has no 'exact_macth'. Do: did you "
            "mean 'exact_match'?"
        ),
    ),
}
