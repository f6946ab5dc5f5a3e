"""The instructions, a module per family; each has a ``TABLE`` from the name behind the colon to the instruction."""
