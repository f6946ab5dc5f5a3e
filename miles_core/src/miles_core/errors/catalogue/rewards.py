"""M290 to M299: options of rewards, and scoring without a run."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

REWARD_OPTIONS: dict[str, Explanation] = {
    "M290": Explanation(
        title="A dict without a key",
        meaning="The reward answers with a dict of numbers, and the option that says which of them counts names none.",
        remedy="Name one: `--reward-key score` is +1 and -1, `--reward-key acc` is 1 and 0.",
        example=(
            "M290 miles-rewards 0.1.0: reward dapo answers with a dict of score, acc and pred, and --reward-key names no number of "
            "it: it is not given. Do: give --reward-key score (+1 and -1) or --reward-key acc (1 and 0)"
        ),
    ),
    "M291": Explanation(
        title="A sum of rewards that cannot be made",
        meaning="`--sum-of` names no reward, one that is not installed, one twice, or a weight that is no number.",
        remedy="Name installed rewards, each with a weight or none: `--rm-type sum --sum-of math format=0.2`.",
        example=("M291 miles-rewards 0.1.0: --sum-of names 'maths', and no such reward is installed. Do: did you mean 'math'?"),
    ),
    "M295": Explanation(
        title="A server that cannot be asked for rewards",
        meaning=(
            "`--rm-url` or `--judge-url` is missing or is no address, the environment variable that should hold the token is not "
            "set, or a limit of the requests allows none."
        ),
        remedy="Give the address as `http://host:port/path`, and export the token where the command starts.",
        example=(
            "M295 miles-rewards 0.1.0: --rm-url is not given, so there is no server to ask. Do: name the server: --rm-url "
            "http://host:port/path"
        ),
    ),
    "M296": Explanation(
        title="A judge that cannot be asked",
        meaning="The judge's model is not named, its template cannot be read or has no `{response}`, or its limits allow nothing.",
        remedy="Give `--judge-model`, and a template in which `{response}` stands where the response belongs.",
        example="M296 miles-rewards 0.1.0: --judge-model is not given. Do: name the model as the server knows it",
    ),
    "M297": Explanation(
        title="Programs of responses cannot be run",
        meaning=(
            "The limits of reward `code` are too low for any program, or this kernel cannot keep programs from files, the network "
            "and other processes."
        ),
        remedy="Run on Linux 5.13 or later with Landlock and seccomp, or accept the risk with `--code-unsandboxed`.",
        example="M297 miles-rewards 0.1.0: --code-memory-mb is 8. Do: give 64 or more: Python itself takes some 30",
    ),
    "M298": Explanation(
        title="miles reward score called with something missing",
        meaning="No reward is named, the input is no file, the output cannot be one, or a limit allows nothing.",
        remedy="`miles reward score --rm-type math --input in.jsonl --output out.jsonl`; `--help` shows the reward's options, too.",
        example="M298 miles reward score: --input is not given. Do: give --input FILE, or --input -",
    ),
    "M299": Explanation(
        title="A line that cannot be scored",
        meaning="A line of the input of `miles reward score` is no JSON object with a response. No output is written.",
        remedy='Write one object a line: `{"response": "...", "label": "..."}`, and `metadata`, `prompt` if wanted.',
        example=(
            'M299 in.jsonl:7: the line has no response. Do: write a JSON object with "response", and "label", "metadata", '
            '"prompt" as the reward wants them'
        ),
    ),
}
