"""M510 to M529: SGLang servers."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

SGLANG: dict[str, Explanation] = {
    "M510": Explanation(
        title="An argument that SGLang servers of a run cannot have",
        meaning="An `--sglang-*` option contradicts what miles sets itself, another option, or its own range.",
        remedy="Use the option of miles that the line names, or leave it out.",
        example=(
            "M510 miles-sglang: --sglang-tp-size (argument 9) cannot be given: miles places engines on GPUs and nodes. Do: "
            "use --rollout-num-gpus-per-engine"
        ),
    ),
    "M511": Explanation(
        title="An SGLang server ended",
        meaning=(
            "The server's process ended by itself while it started or while it served; the line has the last error of its log, "
            "and what is shown with it the end of the log."
        ),
        remedy="Read the end of the log: too little memory, an argument that it does not take, a model that it does not know.",
        example=(
            "M511 miles-sglang: the SGLang server of engine 0 ended with exit code 1: RuntimeError: Not enough memory. Do: "
            "see runs/1/logs/sglang-0.log"
        ),
    ),
    "M512": Explanation(
        title="An SGLang server was not ready in time",
        meaning="The server runs and has not answered its first request within `--sglang-launch-timeout` seconds.",
        remedy="See its log; raise the time for a large model, or where kernels are compiled first.",
        example=(
            "M512 miles-sglang: the SGLang server of engine 0 was not ready within 1200 s: Capturing batches. Do: see its log; "
            "raise --sglang-launch-timeout when it only needs more time"
        ),
    ),
    "M513": Explanation(
        title="An SGLang server refused a call",
        meaning="A call that pauses the server, moves its memory or brings weights was answered with an error.",
        remedy="Read the reason in the line, and the server's log in the run folder.",
        example=(
            "M513 miles-sglang: the SGLang server at http://127.0.0.1:30000 refused /flush_cache: HTTP 400: Flush cache failed. "
            "Do: see the server's log"
        ),
    ),
    "M514": Explanation(
        title="An SGLang server does not answer",
        meaning="There was no connection, or no answer in time.",
        remedy="See the server's log: it has ended, or is stuck.",
        example=(
            "M514 miles-sglang: the SGLang server at http://127.0.0.1:30000 does not answer /pause_generation: no answer within "
            "120 s. Do: see the server's log"
        ),
    ),
    "M515": Explanation(
        title="An SGLang engine in the wrong state",
        meaning="An engine was asked for something out of order, such as new weights while it generates, or memory it has not.",
        remedy="Report it with the engine's log.",
        example="M515 miles-sglang: cannot take new weights while generating. Do: pause the engine first",
    ),
    "M516": Explanation(
        title="Weights that are not whole",
        meaning=(
            "What the trainer published is not what the checkpoint that the engine serves consists of: a parameter is missing, "
            "a name is unknown, or buckets came out of order. The engine stays paused."
        ),
        remedy="Start trainer and engine from one checkpoint.",
        example=(
            "M516 miles-sglang: version 3 is not whole: 1 are missing (model.norm.weight). Do: publish every parameter of the "
            "checkpoint's architecture, under its names"
        ),
    ),
    "M517": Explanation(
        title="SGLang is not installed",
        meaning="An engine cannot be started: its Python has no SGLang.",
        remedy="`pip install 'miles-sglang[server]'`, or name a command that starts a server with `--sglang-launcher`.",
        example="M517 miles-sglang: SGLang is not installed. Do: pip install 'miles-sglang[server]', or give --sglang-launcher",
    ),
    "M518": Explanation(
        title="SGLang's router is not installed",
        meaning="Several engines of SGLang have sglang-router in front of them unless the run takes the router of miles.",
        remedy="`pip install 'miles-sglang[router]'`, or give `--use-miles-router`.",
        example=(
            "M518 miles-sglang: sglang-router is not installed: engine sglang puts it in front of several engines. Do: pip install "
            "'miles-sglang[router]', or take miles' own with --use-miles-router"
        ),
    ),
    "M519": Explanation(
        title="SGLang's router and an engine do not meet",
        meaning="sglang-router was told of an engine and does not find it well, or keeps one that was taken away.",
        remedy="See `logs/sglang-router.log` in the run folder, and the engine's log.",
        example=(
            "M519 miles-sglang: sglang-router does not find http://127.0.0.1:30000 well after 120 s. Do: see "
            "runs/1/logs/sglang-router.log"
        ),
    ),
    "M520": Explanation(
        title="An external server that the run cannot use",
        meaning=("A server of `--rollout-external-engine-addrs` answers, and what `/server_info` says of it does not fit the run."),
        remedy="Give the option that the line names, or start the server as it says.",
        example=(
            "M520 miles-sglang: the server at http://10.0.0.7:30000 is not one for this run: it has 8 GPUs. Do: give "
            "--rollout-num-gpus-per-engine 8"
        ),
    ),
    "M521": Explanation(
        title="External engines that cannot be used",
        meaning="`--rollout-external` has no address or a wrong one, or goes with an option for engines of the run's own.",
        remedy="Give `--rollout-external-engine-addrs HOST:PORT ...`, and leave out what the line names.",
        example=(
            "M521 miles-core 0.1.0: --rollout-external-engine-addrs has '::1:30000': an IPv6 address has brackets: [::1]:30000. "
            "Do: give HOST:PORT or [IPV6]:PORT"
        ),
    ),
    "M522": Explanation(
        title="An SGLang server's weights cannot be read",
        meaning=(
            "`--check-weight-update-equal` reads parameters in the server's processes, with a function of miles-sglang: the server "
            "was not started by this run, or its Python cannot import miles_sglang."
        ),
        remedy="Make miles_sglang importable for the server, or leave the check out.",
        example=(
            "M522 miles-sglang: the server wrote no report of its weights: No such file or directory. Do: see the server's log"
        ),
    ),
    "M523": Explanation(
        title="Prefill and decode engines that do not add up",
        meaning="`--prefill-num-servers` leaves no engine for one of the two parts, or the router is one that knows no pairs.",
        remedy="Have at least one engine of each kind, behind SGLang's router.",
        example=(
            "M523 miles-sglang: --prefill-num-servers 2 is out of range: 2 engines have to be at least one that prefills and one "
            "that decodes. Do: give 1 to 1"
        ),
    ),
    "M524": Explanation(
        title="A quantisation that does not fit the run",
        meaning=(
            "With `--sglang-quantization fp8` the trainer sends matrices in FP8 with a scale per block; other forms cannot be "
            "replaced while a server runs, and FP8 servers have no weights before a trainer sends some."
        ),
        remedy="Take `fp8`, and leave out what the line names.",
        example=(
            "M524 miles-sglang: --sglang-quantization awq cannot be used: servers cannot take new weights in that form from a "
            "trainer. Do: take fp8, or leave it out"
        ),
    ),
}
