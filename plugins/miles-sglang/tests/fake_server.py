"""A stand-in for ``python -m sglang.launch_server`` that speaks its HTTP: same paths, bodies, answers, and the same refusals.

Weights go through the functions that the arguments name, into a model that fuses parameters as SGLang's do. A GPU handle stands for
a file: what is tested is what miles sends, not CUDA. ``FAKE_*`` variables make it fail.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib
import io
import json
import os
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

ALLOWED = ("builtins.", "collections.", "copyreg.", "functools.", "torch.", "multiprocessing.reduction.", "types.")
"""Modules that SGLang's unpickler admits, of those that matter here."""
ARGUMENTS = Path(__file__).parents[1] / "src" / "miles_sglang" / "server_args.json"
LAYER = "model.layers.0"


def parse(words: list[str]) -> dict[str, Any]:
    """The arguments by SGLang's names; one that SGLang does not have ends the server as it would end SGLang."""
    known = {flag: each for each in json.loads(ARGUMENTS.read_text())["arguments"] for flag in each["flags"]}
    found: dict[str, Any] = {}
    field = ""
    if "--config" in words:
        place = words.index("--config")
        for key, value in yaml.safe_load(Path(words[place + 1]).read_text()).items():
            found[known[f"--{key}"]["field"]] = value
        words = words[:place] + words[place + 2 :]
    for word in words:
        flag, equals, value = word.partition("=")
        if word.startswith("--"):
            if flag not in known:
                sys.exit(f"launch_server.py: error: unrecognized arguments: {word}")
            field = known[flag]["field"]
            found[field] = value if equals else True
        else:
            before = found[field]
            found[field] = [word] if before is True else [*before, word]
    return found


class SafeUnpickler(pickle.Unpickler):
    """Refuses what SGLang's refuses."""

    def find_class(self, module: str, name: str) -> Any:
        if not any(f"{module}.".startswith(prefix) for prefix in ALLOWED):
            raise RuntimeError(f"Blocked unsafe class loading ({module}.{name})")
        return super().find_class(module, name)


def rebuild(*arguments: Any) -> Any:
    """In place of torch's: the handle is the name of a file."""
    import torch

    assert isinstance(arguments[6], str), "SGLang identifies a GPU by its UUID"
    return torch.frombuffer(bytearray(Path(arguments[7].decode()).read_bytes()), dtype=torch.uint8)


FUSED = {"q_proj": ("qkv_proj", 0), "k_proj": ("qkv_proj", 1), "v_proj": ("qkv_proj", 2)}
FUSED |= {"gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1)}


class Model:
    """One layer of a Qwen3, fused as SGLang's is, on the CPU in bfloat16."""

    def __init__(self, folder: Path) -> None:
        import torch

        config = json.loads((folder / "config.json").read_text())
        hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
        heads, pairs, size = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]

        def linear(kind: str, rows: int, columns: int, **attributes: Any) -> Any:
            module = type(kind, (torch.nn.Module,), {})()
            module.weight = torch.nn.Parameter(torch.zeros(rows, columns, dtype=torch.bfloat16), requires_grad=False)
            vars(module).update(attributes)
            return module

        attention, mlp, layer = torch.nn.Module(), torch.nn.Module(), torch.nn.Module()
        attention.qkv_proj = linear(
            "QKVParallelLinear", (heads + 2 * pairs) * size, hidden, num_heads=heads, num_kv_heads=pairs, head_size=size
        )
        attention.o_proj = linear("RowParallelLinear", hidden, heads * size)
        mlp.gate_up_proj = linear("MergedColumnParallelLinear", 2 * inner, hidden, output_sizes=[inner, inner])
        mlp.down_proj = linear("RowParallelLinear", hidden, inner)
        layer.self_attn, layer.mlp = attention, mlp
        self.root = torch.nn.Module()
        self.root.model = torch.nn.Module()
        self.root.model.embed_tokens = linear("VocabParallelEmbedding", vocab + 6, hidden, org_vocab_size=vocab)
        self.root.model.layers = torch.nn.ModuleList([layer])
        self.config = type("Config", (), config)
        self.named_modules = self.root.named_modules

    def named_parameters(self) -> Any:
        return self.root.named_parameters()

    def load_weights(self, weights: Any) -> None:
        """As Qwen3's in SGLang, which skips names that it does not know."""
        parameters = dict(self.named_parameters())
        for name, tensor in weights:
            *owner, last, leaf = name.split(".")
            fused, place = FUSED.get(last, (last, None))
            target = parameters.get(".".join([*owner, fused, leaf]))
            if target is None:
                continue
            if place is None:
                target[: len(tensor)].copy_(tensor)
            else:
                module = dict(self.named_modules())[".".join([*owner, fused])]
                if fused == "qkv_proj":
                    sizes = [module.num_heads * module.head_size] + [module.num_kv_heads * module.head_size] * 2
                else:
                    sizes = module.output_sizes
                target.split(list(sizes))[place].copy_(tensor)


class Server:
    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self.version = "default"
        self.paused: str | None = None
        self.released: set[str] = set()
        self.calls: list[list[Any]] = []
        self.running: dict[str, asyncio.Event] = {}
        self.waiting: set[str] = set()
        self.changed = asyncio.Condition()
        self.born = time.monotonic()
        self.node, self.nodes = int(arguments.get("node_rank", 0)), int(arguments.get("nnodes", 1))
        self.links: dict[int, tuple[asyncio.StreamWriter, asyncio.Queue[Any]]] = {}
        self.digests: dict[int, str] = {}
        self._model: Model | None = None
        self._groups: dict[str, Any] = {}

    @property
    def model(self) -> Model:
        if self._model is None:
            from torch.multiprocessing import reductions

            reductions.rebuild_cuda_tensor = rebuild
            self._model = Model(Path(self.arguments["model_path"]))
        return self._model

    @web.middleware
    async def authorised(self, request: web.Request, handler: Any) -> web.StreamResponse:
        key = self.arguments.get("api_key")
        shown = request.headers.get("Authorization")
        if key and not request.path.startswith("/health") and shown != f"Bearer {key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def health(self, request: web.Request) -> web.Response:
        ready = time.monotonic() - self.born > float(os.environ.get("FAKE_START_SECONDS", "0"))
        if request.path == "/health_generate" and self.released:
            os._exit(99)  # SGLang would read memory that is gone
        return web.Response(status=200 if ready and len(self.links) == self.nodes - 1 else 503)

    async def generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        rid, wanted = body["rid"], body["sampling_params"]["max_new_tokens"]
        self.waiting.add(rid)
        async with self.changed:
            await self.changed.wait_for(lambda: self.paused is None)
        if rid not in self.waiting:
            return web.json_response({"error": {"message": f"Request {rid} was aborted"}}, status=499)
        self.waiting.remove(rid)
        ended = self.running[rid] = asyncio.Event()
        made: list[int] = []
        reason: dict[str, Any] = {"type": "length", "length": wanted}
        try:
            while len(made) < wanted:
                made.append(len(made) + 1)
                if wanted > 1000:
                    try:
                        await asyncio.wait_for(ended.wait(), 0.02)
                    except TimeoutError:
                        continue
                    reason = {"type": "abort", "message": "Aborted"}
                    break
        finally:
            del self.running[rid]
        meta = {
            "id": rid,
            "finish_reason": reason,
            "prompt_tokens": len(body["input_ids"]),
            "completion_tokens": len(made),
            "weight_version": self.version,
            "output_token_logprobs": [[-0.5, token, None] for token in made],
        }
        if body.get("return_routed_experts"):
            rows = len(body["input_ids"]) + len(made) - 1
            meta["routed_experts"] = base64.b64encode(b"\x01\x00\x00\x00" * rows * 2 * 1).decode()
        return web.json_response({"text": "x" * len(made), "output_ids": made, "meta_info": meta})

    async def control(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else {}
        shown = {key: value for key, value in body.items() if key != "serialized_named_tensors"}
        if "serialized_named_tensors" in body:
            shown["ranks"] = len(body["serialized_named_tensors"])
        self.calls.append([request.path, shown, dict(request.query)])
        spread = self.links if "weights" in request.path else ()
        try:
            answer, *_ = await asyncio.gather(
                getattr(self, request.path[1:])(body), *(self._tell(node, request.path[1:], body) for node in spread)
            )
            self.digests[0] = self.digest()
            return answer
        except Exception as error:
            return web.json_response({"success": False, "message": f"{type(error).__name__}: {error}"}, status=400)

    def meeting(self) -> tuple[str, int]:
        host, _, port = self.arguments["dist_init_addr"].rpartition(":")
        return host.strip("[]"), int(port)

    async def lead(self, app: web.Application) -> None:
        """Wait for the other nodes, and end with any of them."""

        async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            node = int(await reader.readline())
            answers: asyncio.Queue[Any] = asyncio.Queue()
            self.links[node] = (writer, answers)
            while line := await reader.readline():
                answers.put_nowait(json.loads(line))
            sys.stderr.write(f"RuntimeError: node {node} is gone\n")
            sys.stderr.flush()
            os._exit(1)

        await asyncio.start_server(joined, *self.meeting(), limit=1 << 28)

    async def _tell(self, node: int, name: str, body: dict[str, Any]) -> None:
        """Have a node do its part of a call."""
        writer, answers = self.links[node]
        writer.write(json.dumps([name, body]).encode() + b"\n")
        error, self.digests[node] = await answers.get()
        if error:
            raise RuntimeError(f"node {node}: {error}")

    async def follow(self) -> None:
        """Do what the first node says, and end with it."""
        while True:
            try:
                reader, writer = await asyncio.open_connection(*self.meeting(), limit=1 << 28)
                break
            except OSError:
                await asyncio.sleep(0.1)
        writer.write(f"{self.node}\n".encode())
        while line := await reader.readline():
            name, body = json.loads(line)
            error = ""
            try:
                await getattr(self, name)(body)
            except Exception as caught:
                error = f"{type(caught).__name__}: {caught}"
            writer.write(json.dumps([error, self.digest()]).encode() + b"\n")
        sys.exit("RuntimeError: node 0 is gone")

    def digest(self) -> str:
        """Of every parameter of this node; it has none before the first that comes."""
        if self._model is None:
            return ""
        import torch

        state = hashlib.sha256()
        for _, tensor in self._model.named_parameters():
            state.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
        return state.hexdigest()

    async def abort_request(self, body: dict[str, Any]) -> web.Response:
        self.waiting -= self.waiting if body.get("abort_all") else {body.get("rid")}
        for rid, ended in self.running.items():
            if body.get("abort_all") or rid == body.get("rid"):
                ended.set()
        return web.Response()

    async def pause_generation(self, body: dict[str, Any]) -> web.Response:
        self.paused = body.get("mode", "abort")
        while self.paused == "abort" and self.running:
            await self.abort_request({"abort_all": True})
            await asyncio.sleep(0.01)
        return web.json_response({"message": "Generation paused successfully.", "status": "ok"})

    async def continue_generation(self, body: dict[str, Any]) -> web.Response:
        async with self.changed:
            self.paused = None
            self.changed.notify_all()
        return web.json_response({"message": "Generation continued successfully.", "status": "ok"})

    async def flush_cache(self, body: dict[str, Any]) -> web.Response:
        return web.Response(
            text="Flush cache failed.\n" if self.running else "Cache flushed.\n", status=400 if self.running else 200
        )

    async def release_memory_occupation(self, body: dict[str, Any]) -> web.Response:
        if self.running:
            os._exit(98)  # SGLang's scheduler fails an assertion
        self.released |= set(body["tags"])
        return web.json_response(None)

    async def resume_memory_occupation(self, body: dict[str, Any]) -> web.Response:
        for tag in body["tags"]:
            if tag not in self.released:
                os._exit(97)  # SGLang's scheduler fails with a KeyError
            self.released.remove(tag)
        return web.json_response(None)

    async def update_weight_version(self, body: dict[str, Any]) -> web.Response:
        self.version = body["new_version"]
        return web.json_response({"success": True, "message": "", "new_version": self.version})

    async def update_weights_from_tensor(self, body: dict[str, Any]) -> web.Response:
        model = self.model
        if os.environ.get("FAKE_REFUSE_WEIGHTS"):
            raise RuntimeError("not today")
        named = SafeUnpickler(io.BytesIO(base64.b64decode(body["serialized_named_tensors"][self.node], validate=True))).load()
        assert body["load_format"] in self.arguments["custom_weight_loader"]
        module, _, function = body["load_format"].rpartition(".")
        getattr(importlib.import_module(module), function)(model, [(name, tensor.to("cpu")) for name, tensor in named])
        return web.json_response({"success": True, "message": "Success"})

    async def init_weights_update_group(self, body: dict[str, Any]) -> web.Response:
        await asyncio.to_thread(self._join, body)
        return web.json_response({"success": True, "message": "Succeeded to initialize custom process group."})

    def _join(self, body: dict[str, Any]) -> None:
        """The way SGLang does."""
        from datetime import timedelta

        from torch.distributed.distributed_c10d import Backend, PrefixStore, _new_process_group_helper, rendezvous

        limit = timedelta(seconds=20)
        where = f"tcp://{body['master_address']}:{body['master_port']}"
        store, rank, world = next(iter(rendezvous(where, body["rank_offset"] + self.node, body["world_size"], timeout=limit)))
        store.set_timeout(limit)
        name = body["group_name"]
        group, _ = _new_process_group_helper(
            world, rank, [], Backend(body["backend"]), PrefixStore(name, store), group_name=name, timeout=limit
        )
        self._groups[name] = group

    async def destroy_weights_update_group(self, body: dict[str, Any]) -> web.Response:
        del self._groups[body["group_name"]]
        return web.json_response({"success": True, "message": ""})

    async def update_weights_from_distributed(self, body: dict[str, Any]) -> web.Response:
        import torch

        def receive() -> list[tuple[str, Any]]:
            found = []
            for name, dtype, shape in zip(body["names"], body["dtypes"], body["shapes"], strict=True):
                tensor = torch.empty(shape, dtype=getattr(torch, dtype))
                self._groups[body["group_name"]].broadcast(tensor, 0).wait()
                found.append((name, tensor))
            return found

        self.model.load_weights(await asyncio.to_thread(receive))
        return web.json_response({"success": True, "message": "Succeeded to update parameter online."})

    async def update_weights_from_disk(self, body: dict[str, Any]) -> web.Response:
        from safetensors.torch import load_file

        for file in sorted(Path(body["model_path"]).glob("*.safetensors")):
            self.model.load_weights(load_file(file).items())
        return web.json_response({"success": True, "message": "", "num_paused_requests": 0})

    async def server_info(self, request: web.Request) -> web.Response:
        known = {each["field"]: each["default"] for each in json.loads(ARGUMENTS.read_text())["arguments"]}
        own = {"weight_version": self.version, "calls": self.calls, "released": sorted(self.released), "pid": os.getpid()}
        own |= {"running": sorted(self.running), "waiting": sorted(self.waiting), "digests": self.digests}
        sizes = {"tp_size": int(self.arguments.get("tp_size", 1)), "internal_states": [{}], "version": "0.5.17"}
        return web.json_response({**known, **self.arguments, **sizes, **own})


CONTROL = (
    *("abort_request", "pause_generation", "continue_generation", "flush_cache", "release_memory_occupation"),
    *("resume_memory_occupation", "update_weight_version", "update_weights_from_tensor", "init_weights_update_group"),
    *("destroy_weights_update_group", "update_weights_from_distributed", "update_weights_from_disk"),
)


def main() -> None:
    arguments = parse(sys.argv[1:])
    sys.stdout.write(f"server_args={arguments}\n")
    sys.stdout.flush()
    if os.environ.get("FAKE_FAIL"):
        raise RuntimeError(os.environ["FAKE_FAIL"])
    server = Server(arguments)
    if server.node:
        asyncio.run(server.follow())
    app = web.Application(client_max_size=1 << 28, middlewares=[server.authorised])
    if server.nodes > 1:
        app.on_startup.append(server.lead)
    app.router.add_get("/health", server.health)
    app.router.add_get("/health_generate", server.health)
    app.router.add_get("/server_info", server.server_info)
    app.router.add_post("/generate", server.generate)
    for name in CONTROL:
        app.router.add_post(f"/{name}", server.control)
    web.run_app(app, host=arguments["host"], port=int(arguments["port"]), print=lambda _: None, access_log=None)


if __name__ == "__main__":
    main()
