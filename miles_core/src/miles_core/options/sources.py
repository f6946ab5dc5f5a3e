"""Options from a YAML file, from the environment and from a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miles_core.errors import UsageError
from miles_core.options.convert import BadValue, from_data, from_environment, from_text, is_dict, is_list
from miles_core.options.option import Option
from miles_core.options.parse import Parsed
from miles_core.options.table import FlagTable, Setting, bad_value, given_twice
from miles_core.options.value import Source

if TYPE_CHECKING:
    import yaml

PREFIX = "MILES_"
OTHER_VARIABLES = frozenset({"MILES_CONFIG", "MILES_HOST_IP", "MILES_TEST_DATA", "MILES_EXPERIMENTAL_ROLLOUT_REFACTOR"})
"""Variables of miles that are no options."""

_RESEMBLES = 0.75


class ConfigFile:
    """A YAML file of options, composed but not yet matched to options.

    Attributes:
        entries: key node and value node of every line of the mapping.
        errors: why the file cannot be used, as a list of at most one error.
    """

    def __init__(self, path: str) -> None:
        import yaml

        self.path = path
        self.entries: list[tuple[yaml.Node, yaml.Node]] = []
        self.errors: list[UsageError] = []
        try:
            node = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except FileNotFoundError:
            self._fail("there is no such file", "check the path")
        except (OSError, UnicodeDecodeError) as error:
            self._fail(f"it cannot be read: {error}", "check the path")
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            owner = f"{path}:{mark.line + 1}" if mark else path
            self._fail(f"it is not YAML: {getattr(error, 'problem', None) or error}", "repair that line", owner)
        else:
            if isinstance(node, yaml.MappingNode):
                self.entries = list(node.value)
            elif node is not None:
                self._fail("it is not a mapping", "write one option a line: lr: 1e-6")

    def _fail(self, why: str, fix: str, owner: str = "--config") -> None:
        self.errors.append(UsageError("M205", f"the config file {self.path} cannot be used", owner=owner, why=why, fix=fix))

    def parse(self, table: FlagTable) -> Parsed:
        """Every setting of the file; keys are flags without dashes in front."""
        parsed = Parsed(errors=list(self.errors))
        first: dict[tuple[type, str], Setting] = {}
        for key, node in self.entries:
            place = f"{self.path}:{key.start_mark.line + 1}"
            name = str(key.value)
            option = table.key(name)
            if option is None:
                parsed.unknown.append((name, place))
                continue
            try:
                value = _from_node(option, node)
            except BadValue as problem:
                shown = node.value if isinstance(node.value, str) else "a nested value"
                parsed.errors.append(bad_value(option, shown, place, problem))
                continue
            setting = Setting(option, value, Source.FILE, place, name)
            before = first.setdefault((option.group, option.field), setting)
            if before is setting:
                parsed.settings.append(setting)
            else:
                parsed.errors.append(given_twice(option, before, setting))
        return parsed


def _from_node(option: Option, node: Any) -> Any:
    """The value of a YAML node. Scalars count as they are written: ``1e-6`` is a number, and ``no`` is text where text is due."""
    import yaml

    if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
        return from_data(option, None)
    if is_list(option):
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        return [from_text(option, _scalar_text(item)) for item in nodes]
    if is_dict(option) and isinstance(node, yaml.MappingNode):
        return from_data(option, _construct(node))
    return from_text(option, _scalar_text(node))


def _scalar_text(node: Any) -> str:
    import yaml

    if not isinstance(node, yaml.ScalarNode):
        raise BadValue("one value")
    return str(node.value)


def _construct(node: Any) -> Any:
    import yaml

    try:
        return yaml.safe_load(yaml.serialize(node))
    except yaml.YAMLError as error:
        raise BadValue(f"a mapping of plain data ({error})") from error


def parse_environment(environment: Mapping[str, str], table: FlagTable) -> Parsed:
    """Every setting of ``MILES_*`` variables. An empty one is not set; an unknown one that resembles an option is a warning."""
    parsed = Parsed()
    first: dict[tuple[type, str], Setting] = {}
    for name in sorted(environment):
        text = environment[name]
        if not name.startswith(PREFIX) or name in OTHER_VARIABLES or not text.strip():
            continue
        option = table.variable(name)
        if option is None:
            near = table.near_variable(name, _RESEMBLES)
            if near is not None:
                parsed.warnings.append(f"the environment variable {name} is no option and is ignored; did you mean {near}?")
            continue
        try:
            setting = Setting(option, from_environment(option, text), Source.ENVIRONMENT, name, name)
        except BadValue as problem:
            parsed.errors.append(bad_value(option, text, name, problem))
            continue
        before = first.setdefault((option.group, option.field), setting)
        if before is setting:
            parsed.settings.append(setting)
        else:
            parsed.errors.append(given_twice(option, before, setting))
    return parsed


def parse_recipe(name: str, owner: str, defaults: Mapping[str, Any], table: FlagTable) -> Parsed:
    """Every setting of an algorithm recipe; a default that fits no option is the recipe's mistake."""
    parsed = Parsed()
    for key, data in defaults.items():
        option = table.key(key)
        fix = f"report it to the author of {owner.partition(' ')[0]}, or choose another algorithm"
        what = f"the recipe {name!r} sets {key!r}"
        if option is None:
            near = table.near_key(key)
            why = "there is no such option" + (f"; did it mean {near!r}?" if near else "")
            parsed.errors.append(UsageError("M207", what, owner=owner, why=why, fix=fix))
            continue
        try:
            value = from_data(option, data)
        except BadValue as problem:
            parsed.errors.append(UsageError("M207", f"{what} to {data!r}", owner=owner, why=f"expected {problem}", fix=fix))
            continue
        parsed.settings.append(Setting(option, value, Source.RECIPE, f"recipe {name}", key))
    return parsed
