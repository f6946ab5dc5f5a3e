"""Options: declared as fields of frozen dataclasses, resolved with the source and place of every value."""

from miles_core.options.config import Config
from miles_core.options.option import Option, option, options_of
from miles_core.options.value import Source, Value

__all__ = ["Config", "Option", "Source", "Value", "option", "options_of"]
