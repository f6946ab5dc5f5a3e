"""The ``transformers`` engine: model, decoding thread and HTTP server in the process that made it."""

from __future__ import annotations

import importlib.metadata
import logging
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import torch

from miles_core.accelerator.device import accelerator_of
from miles_core.config import ClusterOptions, RoutingOptions, TrainingOptions
from miles_core.errors import MilesError, RunError
from miles_core.options import Config
from miles_core.protocols import EngineLaunch
from miles_core.protocols.engine import WeightBucket
from miles_core.serving import PauseMode, ServerThread, engine_app
from miles_transformers.decoder import Decoder
from miles_transformers.model import OWNER, LoadedModel, cache_tokens, device_of, load_model
from miles_transformers.options import TransformersOptions
from miles_transformers.scheduler import Scheduler
from miles_transformers.service import Service
from miles_transformers.weights import WeightStore

TAGS = ("weights", "kv_cache")
log = logging.getLogger(__name__)


class TransformersEngine:
    """Implements :class:`miles_core.protocols.RolloutEngine`.

    A result's weight version is that of its first token, the oldest of all: only a request that lived through a pause of mode
    ``retract`` or ``in_place`` has tokens of several versions. One that froze ``in_place`` goes on with the keys and values that
    the old weights made.
    """

    model: LoadedModel
    scheduler: Scheduler

    def __init__(self, config: Config) -> None:
        self._config = config
        self._options = config.get(TransformersOptions)
        self._server: ServerThread | None = None
        self._url = ""
        self._weights: WeightStore | None = None
        self._host = "127.0.0.1"
        self.seed = 0

    def start(self, launch: EngineLaunch) -> str:
        """See the protocol.

        Raises:
            MilesError: ``M440`` no port, ``M451`` no device, ``M452`` no usable checkpoint, ``M453`` no room for the cache,
                ``M436`` routes are asked for of a model that cannot tell them.
        """
        if self._server is not None:
            raise RunError("M454", "the engine was started twice", owner=OWNER)
        options = self._options
        if options.threads:
            torch.set_num_threads(options.threads)
        device = device_of(self._config.get(ClusterOptions).device, launch.devices)
        accelerator_of(device).use(device)
        exact = self._config.get(TrainingOptions).true_on_policy_mode
        attention = "sdpa" if exact else options.attn_implementation
        self.model = load_model(launch.model, device, options.dtype, attention, invariant=exact)
        self._weights = WeightStore(self.model.module, device)
        tokens = cache_tokens(self.model, options.kv_cache_tokens, options.kv_cache_share, options.max_batch)
        routes = self._config.get(RoutingOptions).use_rollout_routing_replay
        decoder = Decoder(self.model, options.max_batch, tokens, options.prefill_tokens, options.cuda_graphs, routes)
        self.scheduler = Scheduler(decoder, self._missing, options.threads)
        self.seed = launch.seed
        server = ServerThread(engine_app(Service(self), api_key=launch.api_key), launch.host, launch.port)
        self.scheduler.start()
        try:
            self._url = server.start()
        except BaseException:
            self.scheduler.stop()
            raise
        self._server = server
        self.health(30.0)
        log.info("serving %s at %s on %s, KV cache of %d tokens", launch.model, self._url, device, tokens)
        return self._url

    def health(self, timeout: float) -> None:
        """See the protocol."""
        try:
            # The server is this process's own: a proxy of the environment has no business between.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"{self._url}/health", timeout=timeout):
                return
        except (OSError, ValueError) as error:
            why = error.read().decode(errors="replace") if isinstance(error, urllib.error.HTTPError) else str(error)
            raise RunError("M456", "the engine does not answer", owner=OWNER, why=why, fix="see the engine's log") from error

    def ended(self) -> str:
        """See the protocol."""
        return "" if self._server is None or self.scheduler.alive else "its decoding thread has ended"

    def ping(self, timeout: float = 60.0) -> None:
        """Return when the decoding thread has come to the end of a step.

        Raises:
            RunError: ``M456``, it has ended, or is stuck for ``timeout`` seconds.
        """
        try:
            self.scheduler.call(lambda: None, timeout)
        except TimeoutError as error:
            raise RunError("M456", f"the decoding thread is stuck for {timeout:g} s", owner=OWNER, fix="see its log") from error

    @property
    def serving(self) -> bool:
        """Whether requests are decoded as they come."""
        return self.scheduler.paused is None and not self._missing()

    def pause(self, mode: PauseMode = "abort") -> None:
        """See the protocol."""
        self.scheduler.pause(mode)

    def resume(self) -> None:
        """See the protocol.

        Raises:
            MilesError: ``M454``, the engine has no whole weights or no cache to go on with.
        """
        missing = self._missing()
        if missing:
            raise MilesError("M454", "the engine cannot go on", owner=OWNER, why=missing)
        self.scheduler.resume()

    def flush(self) -> None:
        """See the protocol. Nothing is cached beyond its request, so there is nothing to drop."""

        def work() -> None:
            self._check_idle("flush")

        self.scheduler.call(work)

    def begin_weights(self, version: int) -> None:
        """See the protocol."""
        store = self._store()

        def work() -> None:
            if self.scheduler.paused is None:
                raise MilesError("M454", "cannot take new weights while generating", owner=OWNER, fix="pause the engine first")
            store.begin(version)

        self.scheduler.call(work)

    def receive_weights(self, bucket: WeightBucket) -> None:
        """See the protocol."""
        self._store().receive(bucket)

    def commit_weights(self, version: int) -> None:
        """See the protocol."""
        store = self._store()

        def work() -> None:
            store.commit(version)
            self.scheduler.decoder.version = version

        self.scheduler.call(work)

    def weight_dtypes(self) -> dict[str, str]:
        """See the protocol."""
        return self._store().dtypes()

    def weight_digests(self) -> dict[str, str]:
        """See the protocol."""
        store = self._store()
        if not store.defined:
            raise MilesError("M454", "the engine has no whole weights to compare", owner=OWNER, fix="commit a version first")
        return store.digests()

    def release_memory(self, tags: Sequence[str] = TAGS) -> None:
        """See the protocol. On a CPU weights stay: they are in host memory anyway."""
        chosen, store = _tags(tags), self._store()

        def work() -> None:
            self._check_idle("release memory")
            if "kv_cache" in chosen:
                self.scheduler.decoder.free()
            if "weights" in chosen:
                self.scheduler.decoder.runner.clear()
                store.release()
            self._empty_cache()

        self.scheduler.call(work)

    def resume_memory(self, tags: Sequence[str] = TAGS) -> None:
        """See the protocol. Released weights have to be published again before :meth:`resume`."""
        chosen, store = _tags(tags), self._store()

        def work() -> None:
            if "weights" in chosen:
                store.restore()
            if "kv_cache" in chosen:
                self.scheduler.decoder.allocate()

        self.scheduler.call(work)

    def stop(self) -> None:
        """See the protocol."""
        server, self._server = self._server, None
        if server is not None:
            self.scheduler.stop()
            server.stop()

    def info(self) -> dict[str, Any]:
        """Settings and state, for ``/server_info``."""
        decoder, options = self.scheduler.decoder, self._options
        return {
            "engine": "transformers",
            "version": importlib.metadata.version("miles-transformers"),
            "model_path": str(self.model.path),
            "device": str(self.model.device),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "attention": "eager" if self.model.eager else "sdpa",
            "context_length": decoder.limit,
            "max_running_requests": options.max_batch,
            "max_total_num_tokens": decoder.tokens,
            "weight_version": str(decoder.version),
            "paused": self.scheduler.paused,
            "num_running_reqs": self.scheduler.running,
            "num_waiting_reqs": self.scheduler.waiting,
            "decode_steps": self.scheduler.steps,
        }

    def _store(self) -> WeightStore:
        if self._weights is None:
            raise RunError("M454", "the engine was not started", owner=OWNER)
        return self._weights

    def _missing(self) -> str:
        store = self._store()
        if store.open is not None:
            return f"the transaction of version {store.open} is open"
        if not store.defined:
            return "its weights were released and no version was committed since"
        if self.scheduler.decoder.cache is None:
            return "the memory of its KV cache is released"
        return ""

    def _check_idle(self, doing: str) -> None:
        if self.scheduler.running:
            why = f"{self.scheduler.running} requests hold keys and values"
            raise MilesError("M454", f"cannot {doing} now", owner=OWNER, why=why, fix="pause the engine in mode abort or retract")

    def _empty_cache(self) -> None:
        accelerator_of(self.model.device).release_cache()


def _tags(tags: Sequence[str]) -> set[str]:
    # CUDA graphs are part of SGLang's list; this engine has none to free.
    unknown = sorted(set(tags) - {*TAGS, "cuda_graph"})
    if unknown:
        raise MilesError("M454", f"there is no memory called {', '.join(unknown)}", owner=OWNER, fix=f"choose of {', '.join(TAGS)}")
    return set(tags)
