"""The rules of protoc-gen-validate as plain Python: what its own templates make of each message, once instead of at each start."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from typing import Any

from protoc_gen_validate import validator

__all__ = ["python_rules"]

_HELPERS = '''
import re
from collections.abc import Callable
from typing import Any


class ValidationFailed(Exception):
    """A rule does not hold."""


def _has_field(message: Any, name: str) -> bool:
    try:
        return bool(message.HasField(name))
    except ValueError:  # a field without presence, which is always there
        return name in message.DESCRIPTOR.fields_by_name


def byte_len(text: Any) -> int:
    return len(text.encode()) if isinstance(text, str) else len(text)


def validate(message: Any) -> None:
    """Raise ``ValidationFailed`` at the first rule that does not hold; ``KeyError`` for a message of another contract."""
    RULES[message.DESCRIPTOR.full_name](message)
'''


def _messages(descriptors: Sequence[Any]) -> Iterator[Any]:
    for d in descriptors:
        yield d
        yield from _messages(d.nested_types)


def _name(descriptor: Any) -> str:
    return "_" + re.sub(r"\W", "_", descriptor.full_name)


def _function(descriptor: Any) -> str:
    """The generated validator of one message as a function of its own name, without what does nothing."""
    tree = ast.parse(validator.file_template(type("P", (), {"DESCRIPTOR": descriptor})))
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    function.name = _name(descriptor)
    return re.sub(r"^def (\w+)\(p\):", r"def \1(p: Any) -> None:", ast.unparse(function))


def python_rules(header: str, modules: Sequence[Any]) -> str:
    """The module's text, for all messages of these modules and of what they import besides Google's own descriptors."""
    files: dict[str, Any] = {}

    def add(file: Any) -> None:
        if file.name not in files and not file.name.startswith("validate/"):
            files[file.name] = file
            for other in file.dependencies:
                add(other)

    for module in modules:
        add(module.DESCRIPTOR)
    found = [
        d
        for _, f in sorted(files.items())
        for d in _messages(f.message_types_by_name.values())
        if f.name != "google/protobuf/descriptor.proto"
    ]
    functions = [_function(d) for d in found]
    names = [f'    "{d.full_name}": {_name(d)},' for d in found]
    table = "RULES: dict[str, Callable[[Any], None]] = {\n" + "\n".join(names) + "\n}"
    return f'"""{header}"""\n' + "\n\n".join([_HELPERS.rstrip(), *("\n" + f for f in functions), "\n" + table]) + "\n"
