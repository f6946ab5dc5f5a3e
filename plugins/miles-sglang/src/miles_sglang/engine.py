"""The ``sglang`` engine: a server as a subprocess, and the calls that make a server an engine of miles."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from miles_core.config import ClusterOptions, RoutingOptions
from miles_core.errors import MilesError, RunError
from miles_core.options import Config
from miles_core.protocols import EngineLaunch
from miles_core.protocols.engine import WeightBucket
from miles_sglang.arguments import installed_source
from miles_sglang.checkpoint import parameter_shapes, ties_head
from miles_sglang.command import arguments, base_url, environment, free_port, json_override, launcher, shown
from miles_sglang.control import Control
from miles_sglang.external import check_server
from miles_sglang.fp8 import METHOD, OVERRIDE, SCALE, is_quantised
from miles_sglang.options import ServerOptions, SGLangOptions
from miles_sglang.readback import Readback
from miles_sglang.server import OWNER, ServerProcess, answers
from miles_sglang.transaction import WeightSync

PauseMode = Literal["abort", "retract", "in_place"]
TAGS = ("weights", "kv_cache")
GRAPHS = "cuda_graph"
KEY_FILE = "key.yaml"
BOOTSTRAP = 63
"""Port of the bootstrap server behind the one where nodes meet; SGLang itself takes those that follow at once."""
FLUSH_SECONDS = 30.0
PAUSE_SECONDS = 120.0
GENERATING_SECONDS = 3.0
"""A check of health that may take this long makes a token."""
log = logging.getLogger(__name__)


class SGLangEngine:
    """Implements :class:`miles_core.protocols.RolloutEngine`.

    A request's weight version is the one that is served when it ends: all its tokens are of that version, unless it lived through a
    pause of mode ``retract`` or ``in_place`` and a change of weights.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._options = config.get(SGLangOptions)
        self._process: ServerProcess | None = None
        self._remote: Control | None = None
        self._sync: WeightSync | None = None
        self._readback: Readback | None = None
        self._paused: PauseMode | None = None
        self._released: set[str] = set()
        self._defined = True
        self._tp = 1
        self._saver = False
        self._mourned: ServerProcess | None = None

    def start(self, launch: EngineLaunch) -> str:
        """See the protocol. On a node but the first it returns at once, with no URL: only the first serves HTTP.

        Raises:
            RunError: ``M517``, there is no SGLang; ``M511``, the server ended, or ``M512``, was not ready in time, with the tail of
                its log.
        """
        if self._process is not None or self._remote is not None:
            raise RunError("M515", "the engine was started twice", owner=OWNER)
        self._paused, self._released, self._defined, self._sync = None, set(), True, None
        if launch.url:
            return self._attach(launch)
        if not self._options.launcher and installed_source()[0] is None:
            fix = "pip install 'miles-sglang[server]', or give --sglang-launcher"
            raise RunError("M517", "SGLang is not installed", owner=OWNER, fix=fix)
        self._tp = self._config.get(ClusterOptions).rollout_num_gpus_per_engine
        self._saver = launch.memory_saver
        port = launch.port or free_port(launch.host)
        self._readback = Readback()
        routed = self._config.get(RoutingOptions).use_rollout_routing_replay
        line = arguments(
            self._config.get(ServerOptions),
            launch,
            port,
            tp=self._tp,
            routed=routed,
            extra={**self._role(launch), **self._quantised()},
        )
        command = [*launcher(self._options.launcher), *self._key_file(launch.api_key), *line]
        name = f"SGLang server of engine {launch.rank}" + (f", node {launch.node_rank}" if launch.num_nodes > 1 else "")
        suffix = f"-{launch.node_rank}" if launch.num_nodes > 1 else ""
        file = launch.log_dir / f"sglang-{launch.rank}{suffix}.log" if launch.log_dir is not None else self._readback.folder / "log"
        log.info("starting %s", shown(command))
        started = time.monotonic()
        self._process = ServerProcess(name, command, environment(launch, self._readback.file), file)
        if launch.node_rank > 0:
            return ""
        url = base_url(launch.host, port)
        try:
            self._process.wait(url, "/health", self._options.launch_timeout)
            # It has been read; a process that is killed later removes nothing.
            (self._readback.folder / KEY_FILE).unlink(missing_ok=True)
            # The first request compiles kernels, which the ones of the run need not wait for.
            left = self._options.launch_timeout - (time.monotonic() - started)
            self._process.wait(url, "/health_generate", max(left, 60.0))
        except BaseException:
            self.stop()
            raise
        self._connect(url, launch.model, launch.api_key)
        log.info("SGLang serves %s at %s after %.1f s", launch.model, url, time.monotonic() - started)
        return url

    def _attach(self, launch: EngineLaunch) -> str:
        """Take a server that runs already; what it is it says itself.

        Raises:
            RunError: ``M514``, it does not answer; ``M520``, it is not one that the run can use.
        """
        control = Control(launch.url, launch.api_key)
        info = control.get("/server_info", self._options.launch_timeout)
        self._tp = self._config.get(ClusterOptions).rollout_num_gpus_per_engine
        check_server(launch.url, info, self._tp, self._config.get(RoutingOptions).use_rollout_routing_replay)
        self._connect(launch.url, launch.model, launch.api_key)
        log.info("generating on the SGLang %s server at %s", info.get("version", ""), launch.url)
        return launch.url

    @property
    def _quantises(self) -> bool:
        return bool(self._config.get(ServerOptions).quantization == METHOD)

    def _quantised(self) -> dict[str, Any]:
        """Arguments of a server that holds FP8: it is told the form, and its weights come with the first publish."""
        if not self._quantises:
            return {}
        given = json.loads(self._config.get(ServerOptions).json_model_override_args or "{}")
        return {"json_model_override_args": json_override({**OVERRIDE, **given}), "load_format": "dummy"}

    def _role(self, launch: EngineLaunch) -> dict[str, Any]:
        """Arguments of prefill/decode disaggregation: the first engines prefill."""
        count = self._options.prefill_num_servers
        if not count:
            return {}
        if launch.rank < count:
            # Every part of a server has to know the port that its first node opens.
            port = int(launch.meeting.rpartition(":")[2]) + BOOTSTRAP if launch.meeting else free_port(launch.host)
            return {"disaggregation_mode": "prefill", "disaggregation_bootstrap_port": port}
        return {"disaggregation_mode": "decode"}

    def _key_file(self, key: str | None) -> list[str]:
        """Arguments that give the server its key, by a file of ours: others can see command lines."""
        if not key:
            return []
        assert self._readback is not None
        file = self._readback.folder / KEY_FILE
        file.touch(mode=0o600)
        file.write_text(f"api-key: {json.dumps(key)}\n", encoding="utf-8")
        return ["--config", str(file)]

    def _connect(self, url: str, model: Path, key: str | None) -> None:
        self._remote = Control(url, key)
        self._sync = WeightSync(self._remote, self._names(model), ties_head(model))

    def _names(self, model: Path) -> frozenset[str]:
        """Of what has to be published."""
        shapes = parameter_shapes(model)
        scales = [name + SCALE for name, shape in shapes.items() if self._quantises and is_quantised(name, shape)]
        return frozenset([*shapes, *scales])

    def health(self, timeout: float) -> None:
        """See the protocol. With three seconds and more, while it serves, the server has to make a token."""
        if self._process is not None:
            self._process.check()
            if self._remote is None:
                return  # a further node of an engine, which has no HTTP
        path = "/health_generate" if self.serving and timeout >= GENERATING_SECONDS else "/health"
        if not answers(self._control.url + path, timeout):
            if self._process is not None:
                self._process.check()
            what = f"the SGLang server at {self._control.url} does not answer {path} within {timeout:g} s"
            raise RunError("M514", what, owner=OWNER, fix="see the server's log")

    def ended(self) -> str:
        """See the protocol."""
        process = self._process
        code = process.ended() if process is not None else None
        if process is None or code is None:
            return ""
        if process is not self._mourned:
            self._mourned = process
            log.error("the end of %s:\n%s", process.log, process.tail())
        return f"the {process.name} ended with exit code {code}: {process.last_line()}"

    @property
    def serving(self) -> bool:
        """Whether requests are decoded as they come."""
        return self._paused is None and not self._missing()

    def pause(self, mode: PauseMode = "abort") -> None:
        """See the protocol. Requests that come meanwhile wait."""
        if self._paused == mode or (self._paused is not None and self._missing()):
            return
        if self._paused is not None and mode == "abort":
            # Requests that are frozen end in a step of decoding, which a paused server does not make.
            self._control.post("/continue_generation", {"torch_empty_cache": False})
        self._control.post("/pause_generation", {"mode": mode}, PAUSE_SECONDS)
        self._paused = mode

    def resume(self) -> None:
        """See the protocol.

        Raises:
            RunError: ``M515``, the engine has no whole weights or no cache to go on with.
        """
        missing = self._missing()
        if missing:
            raise RunError("M515", "the engine cannot go on", owner=OWNER, why=missing)
        if self._paused is not None:
            self._control.post("/continue_generation", {"torch_empty_cache": True})
            self._paused = None

    def abort(self) -> None:
        """End every request with what it has."""
        self._control.post("/abort_request", {"abort_all": True})

    def flush(self) -> None:
        """See the protocol.

        Raises:
            RunError: ``M513``, requests hold keys and values.
        """
        if "kv_cache" not in self._released:
            self._control.post(f"/flush_cache?timeout={FLUSH_SECONDS:g}", timeout=FLUSH_SECONDS + 30)

    def begin_weights(self, version: int) -> None:
        """See the protocol."""
        if self._paused is None:
            raise RunError("M515", "cannot take new weights while generating", owner=OWNER, fix="pause the engine first")
        if "weights" in self._released:
            fix = "call resume_memory(['weights']) first"
            raise RunError("M515", f"cannot take version {version}: the weights' memory is released", owner=OWNER, fix=fix)
        self._defined = False
        self._weights.begin(version)

    def receive_weights(self, bucket: WeightBucket) -> None:
        """See the protocol."""
        self._weights.receive(bucket)

    def commit_weights(self, version: int) -> None:
        """See the protocol."""
        self._weights.commit(version)
        self._defined = True

    def weight_dtypes(self) -> dict[str, str]:
        """See the protocol."""
        return {name: dtype for name, (dtype, _) in self._reported("dtypes").items()}

    def weight_digests(self) -> dict[str, str]:
        """See the protocol. Every rank joins in, and the server's memory is read: take it for checks."""
        if not self._defined:
            raise RunError("M515", "the engine has no whole weights to compare", owner=OWNER, fix="commit a version first")
        # The model that answers has no such layers; a model that drafts does, and is not read back.
        served = {name: found for name, (_, found) in self._reported("digests").items()}
        return dict.fromkeys(self._weights.drafts, "") | served

    def release_memory(self, tags: Sequence[str] = TAGS) -> None:
        """See the protocol. The engine is paused first, if it is not: a request would read memory that is gone."""
        chosen = self._tags(tags) - self._released
        if not self._saver:
            fix = "start it with memory_saver"
            raise RunError("M515", "the engine was started without a memory saver", owner=OWNER, fix=fix)
        if not chosen:
            return
        self.pause("abort")
        # The server ends itself when it has to release memory while it is not idle.
        self.flush()
        self._control.post("/release_memory_occupation", {"tags": self._named(chosen)}, PAUSE_SECONDS)
        self._released |= chosen
        if "weights" in chosen:
            self._defined = False

    def resume_memory(self, tags: Sequence[str] = TAGS) -> None:
        """See the protocol. Released weights have to be published again before :meth:`resume`."""
        # The server ends itself on memory that was not released.
        chosen = self._tags(tags) & self._released
        if chosen:
            self._control.post("/resume_memory_occupation", {"tags": self._named(chosen)}, PAUSE_SECONDS)
            self._released -= chosen

    def stop(self) -> None:
        """See the protocol."""
        process, self._process = self._process, None
        if process is None and self._remote is not None:
            self._leave()
        self._remote = None
        if process is not None:
            process.stop()
        if self._readback is not None:
            self._readback.close()
            self._readback = None

    def _leave(self) -> None:
        """Leave somebody else's server as it was: serving, and in no group of ours."""
        try:
            if self._sync is not None:
                self._sync.leave()
            if not self._missing():
                self.resume()
        except MilesError as error:
            log.warning("%s", error.line())

    def info(self) -> dict[str, Any]:
        """What the server says of itself."""
        found: dict[str, Any] = self._control.get("/server_info")
        return found

    @property
    def _control(self) -> Control:
        if self._remote is None:
            raise RunError("M515", "the engine was not started", owner=OWNER)
        return self._remote

    @property
    def _weights(self) -> WeightSync:
        if self._sync is None:
            raise RunError("M515", "the engine was not started", owner=OWNER)
        return self._sync

    def _missing(self) -> str:
        sync = self._sync
        if sync is not None and sync.open is not None:
            return f"the transaction of version {sync.open} is open"
        if self._released:
            return f"the memory of {' and '.join(sorted(self._released))} is released"
        return "" if self._defined else "its weights were released and no version was committed since"

    def _tags(self, tags: Sequence[str]) -> set[str]:
        unknown = sorted(set(tags) - {*TAGS, GRAPHS})
        if unknown:
            what = f"there is no memory called {', '.join(unknown)}"
            raise MilesError("M515", what, owner=OWNER, fix=f"choose of {', '.join(TAGS)}")
        # Graphs go and come with the cache whose addresses they hold.
        return set(tags) - {GRAPHS}

    def _named(self, tags: set[str]) -> list[str]:
        return sorted(tags | ({GRAPHS} if "kv_cache" in tags else set()))

    def _reported(self, what: str) -> dict[str, tuple[str, str]]:
        if self._readback is None:
            fix = "leave --check-weight-update-equal out"
            raise RunError("M522", "weights of a server that miles did not start cannot be read", owner=OWNER, fix=fix)
        return self._readback.ask(self._control, what, self._tp)
