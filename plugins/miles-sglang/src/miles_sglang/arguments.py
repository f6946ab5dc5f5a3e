"""The arguments of SGLang's server, read from its source without importing it."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SNAPSHOT = Path(__file__).with_name("server_args.json")
"""The arguments of one release, for machines without SGLang. ``python -m miles_sglang.snapshot`` writes it."""
SOURCE = Path("srt", "server_args.py")
FORMAT = 1
"""Of the files that hold arguments; another number is read anew."""
HUMAN_INT = "human_readable_int"
_SCALARS = {"bool": "bool", "int": "int", "float": "float", "str": "str"}
_FLAG_ACTIONS = frozenset({"store_true", "DeprecatedStoreTrueAction", "DeprecatedStoreConstAction", "DeprecatedAction"})


@dataclass(frozen=True)
class Argument:
    """One argument of ``python -m sglang.launch_server``.

    Attributes:
        field: name of the value.
        flags: its flags, the first one is used.
        kind: ``bool``, ``int``, ``float``, ``str``, or ``list[...]`` of the last three.
        default: SGLang's own; None where it is computed, and ``optional`` then.
        choices: the only legal values; empty for any, or where they are computed.
        negatable: a switch with a ``--no-...``.
        human: an integer that may be written ``8k`` or ``8Ki``.
    """

    field: str
    flags: tuple[str, ...]
    kind: str
    default: Any
    optional: bool
    choices: tuple[Any, ...]
    help: str
    negatable: bool = False
    human: bool = False


@dataclass(frozen=True)
class Arguments:
    """All of one release. ``installed`` is whether they are those of the SGLang of this environment."""

    version: str
    installed: bool
    entries: tuple[Argument, ...]


def server_arguments() -> Arguments:
    """The arguments of the installed SGLang; those of the packaged release where there is none, or its source cannot be read."""
    version, source = installed_source()
    snapshot = _read(SNAPSHOT)
    if version is None or source is None:
        return Arguments(snapshot[0], False, snapshot[1])
    if version == snapshot[0]:
        return Arguments(version, True, snapshot[1])
    cached = _cached(version, source)
    return Arguments(version, True, cached) if cached else Arguments(snapshot[0], False, snapshot[1])


def installed_source() -> tuple[str | None, Path | None]:
    """Version of the installed SGLang and the file that declares its arguments; its package is located and not imported."""
    try:
        version = importlib.metadata.version("sglang")
        spec = importlib.util.find_spec("sglang")
    except (importlib.metadata.PackageNotFoundError, ImportError, ValueError):
        return None, None
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (Path(folder) / SOURCE).is_file():
            return version, Path(folder) / SOURCE
    return version, None


def read_source(source: str) -> tuple[Argument, ...]:
    """The arguments that SGLang's ``server_args.py`` declares.

    They are fields ``name: A[type, "help" or Arg(...), NS(...)] = default`` of ``ServerArgs`` and calls of ``add_argument``.

    Raises:
        ValueError: the text has no ``ServerArgs``.
    """
    tree = ast.parse(source)
    constants = _constants(tree)
    owner = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "ServerArgs"), None)
    if owner is None:
        raise ValueError("there is no class ServerArgs")
    fields: dict[str, Argument] = {}
    for node in owner.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found = _field(node.target.id, node.annotation, node.value, constants)
            if found is not None:
                fields[found.field] = found
    method = next((n for n in owner.body if isinstance(n, ast.FunctionDef) and n.name == "add_cli_args"), None)
    for call in ast.walk(method) if method is not None else ():
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument":
            found = _call(call, constants)
            if found.field != "config":
                fields.setdefault(found.field, found)
    return tuple(fields.values())


def _constants(tree: ast.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            value = _literal(node.value, found)
            if value is not None:
                found[node.targets[0].id] = value
    return found


def _literal(node: ast.expr | None, constants: dict[str, Any]) -> Any:
    """The value of an expression of literals and known constants; None when it is no such thing."""
    if node is None:
        return None
    if isinstance(node, ast.Name):
        return constants.get(node.id)
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        values, index = constants.get(node.value.id), _literal(node.slice, constants)
        return values[index] if isinstance(values, list) and isinstance(index, int) and index < len(values) else None
    if isinstance(node, (ast.List, ast.Tuple)):
        values = [_literal(each, constants) for each in node.elts]
        return None if any(v is None for v in values) else values
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _literal(node.left, constants), _literal(node.right, constants)
        return left + right if type(left) is type(right) and isinstance(left, (str, list)) else None
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _text(node: ast.expr | None) -> str:
    """The literal parts of a help text, on one line."""
    if node is None:
        return ""
    if isinstance(node, ast.BinOp):
        return f"{_text(node.left)} {_text(node.right)}"
    if isinstance(node, ast.JoinedStr):
        parts = [str(v.value) for v in node.values if isinstance(v, ast.Constant)]
        return " ".join("".join(parts).split())
    value = _literal(node, {})
    return " ".join(value.split()) if isinstance(value, str) else ""


def _field(name: str, annotation: ast.expr, value: ast.expr | None, constants: dict[str, Any]) -> Argument | None:
    if not (isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name) and annotation.value.id == "A"):
        return None
    elements = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    settings: dict[str, ast.expr] | None = None
    for element in elements[1:]:
        if isinstance(element, ast.Call) and isinstance(element.func, ast.Name) and element.func.id == "Arg":
            settings = {keyword.arg: keyword.value for keyword in element.keywords if keyword.arg}
        elif isinstance(element, (ast.Constant, ast.JoinedStr, ast.BinOp)):
            settings = {"help": element}
    if settings is None or _literal(settings.get("no_cli"), constants):
        return None
    flag = _literal(settings.get("cli_name"), constants) or "--" + name.replace("_", "-")
    flags = (flag, *(_literal(settings.get("aliases"), constants) or ()))
    return _argument(name, flags, elements[0], value, settings, constants)


def _call(call: ast.Call, constants: dict[str, Any]) -> Argument:
    settings = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    flags = tuple(_literal(each, constants) for each in call.args)
    switch = _action(settings) in _FLAG_ACTIONS
    kind = ast.Name("bool") if switch else settings.get("type", ast.Name("str"))
    if "nargs" in settings and not switch:
        kind = ast.Subscript(ast.Name("List"), kind)
    default = ast.Constant(False) if switch else None
    return _argument(flags[0].lstrip("-").replace("-", "_"), flags, kind, default, settings, constants)


def _action(settings: dict[str, ast.expr]) -> str:
    action = settings.get("action")
    if isinstance(action, ast.Constant):
        return str(action.value)
    if isinstance(action, ast.Attribute):
        return action.attr
    return action.id if isinstance(action, ast.Name) else ""


def _argument(
    name: str,
    flags: tuple[str, ...],
    kind: ast.expr,
    value: ast.expr | None,
    settings: dict[str, ast.expr],
    constants: dict[str, Any],
) -> Argument:
    base, optional, choices = _kind(kind)
    parser = settings.get("type_parser")
    human = isinstance(parser, ast.Name) and parser.id == HUMAN_INT
    action = _action(settings)
    if action == "LoRAPathAction" or ("nargs" in settings and base == "str" and _literal(settings["nargs"], {}) in ("*", "+")):
        base = "list[str]"
    elif parser is not None:
        base = "str"
    given = _literal(settings.get("choices"), constants)
    choices = tuple(given) if given else choices
    default = _literal(value, constants)
    if isinstance(value, ast.Call):
        default = [] if base.startswith("list") else None
    if human and isinstance(default, int):
        default = str(default)
    if base == "bool" and default is None:
        # A switch that SGLang decides itself unless it is set.
        optional = True
    fits = {"bool": bool, "int": int, "float": (int, float), "str": str}.get(base, list)
    if default is not None and not isinstance(default, fits):  # type: ignore[arg-type]
        default = None
    if choices and default is not None and default not in choices:
        choices = (*choices, default)
    negatable = action == "BooleanOptionalAction"
    return Argument(
        name, tuple(flags), base, default, optional or default is None, choices, _text(settings.get("help")), negatable, human
    )


def _kind(node: ast.expr) -> tuple[str, bool, tuple[Any, ...]]:
    """The type, whether None is legal, and the choices of a ``Literal``."""
    if isinstance(node, ast.Name):
        return _SCALARS.get(node.id, "str"), False, ()
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        outer = node.value.id
        if outer == "Optional":
            kind, _, choices = _kind(node.slice)
            return kind, True, choices
        if outer == "Literal":
            values = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            choices = tuple(value for each in values if (value := _literal(each, {})) is not None)
            return (type(choices[0]).__name__ if choices else "str"), len(choices) < len(values), choices
        if outer in ("List", "list"):
            element = _kind(node.slice)[0]
            return f"list[{element if element in ('int', 'float', 'str') else 'str'}]", False, ()
    return "str", False, ()


def dump(version: str, entries: tuple[Argument, ...]) -> str:
    """The text of a file of arguments."""
    document = {"format": FORMAT, "sglang": version, "arguments": [asdict(each) for each in entries]}
    return json.dumps(document, indent=1) + "\n"


def _read(path: Path) -> tuple[str, tuple[Argument, ...]]:
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["format"] != FORMAT:
        raise ValueError(f"{path} is of format {document['format']}")
    entries = [{**each, "flags": tuple(each["flags"]), "choices": tuple(each["choices"])} for each in document["arguments"]]
    return document["sglang"], tuple(Argument(**each) for each in entries)


def _cached(version: str, source: Path) -> tuple[Argument, ...]:
    """Arguments of an installed release, read once and kept: its source has ten thousand lines. Empty if it is unreadable."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "miles"
    changed = source.stat().st_mtime_ns
    path = cache / f"sglang-{version}-{changed:x}.json"
    try:
        return _read(path)[1]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        entries = read_source(source.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return ()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=cache, delete=False, encoding="utf-8") as file:
            file.write(dump(version, entries))
        Path(file.name).replace(path)
    except OSError:
        return entries
    return entries
