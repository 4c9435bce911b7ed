"""The contract's rules (protoc-gen-validate) with the path of every violated field."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from validate import validate_pb2
from vigil.rules_gen import ValidationFailed, validate

from vigil_sidecar.errors import ContractViolation

__all__ = ["check_rules", "violations"]

_RULES: Any = validate_pb2.rules
_REQUIRED: Any = validate_pb2.required
_NUMERIC = ("float", "double", "int32", "int64", "uint32", "uint64")


def _text_rules(value: str, rules: Any) -> str | None:
    if rules.HasField("min_len") and len(value) < rules.min_len:
        return f"has {len(value)} characters, at least {rules.min_len} are needed"
    if rules.HasField("max_len") and len(value) > rules.max_len:
        return f"has {len(value)} characters, the limit is {rules.max_len}"
    if rules.HasField("pattern") and not re.search(rules.pattern, value):
        return f"does not match {rules.pattern}"
    return None


def _bytes_rules(value: bytes, rules: Any) -> str | None:
    if rules.HasField("min_len") and len(value) < rules.min_len:
        return f"has {len(value)} bytes, at least {rules.min_len} are needed"
    if rules.HasField("max_len") and len(value) > rules.max_len:
        return f"has {len(value)} bytes, the limit is {rules.max_len}"
    return None


def _number_rules(value: float, rules: Any) -> str | None:
    if rules.HasField("gt") and not value > rules.gt:
        return f"is {value}, it must be greater than {rules.gt}"
    if rules.HasField("gte") and not value >= rules.gte:
        return f"is {value}, it must be at least {rules.gte}"
    if rules.HasField("lt") and not value < rules.lt:
        return f"is {value}, it must be less than {rules.lt}"
    if rules.HasField("lte") and not value <= rules.lte:
        return f"is {value}, it must be at most {rules.lte}"
    return None


def _value_rules(value: Any, rules: Any) -> str | None:
    kind = rules.WhichOneof("type")
    if kind == "string":
        return _text_rules(value, rules.string)
    if kind == "bytes":
        return _bytes_rules(value, rules.bytes)
    if kind in _NUMERIC:
        return _number_rules(value, getattr(rules, kind))
    return None


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _map_value(field: FieldDescriptor) -> Any:
    return field.message_type.fields_by_name["value"].message_type if field.message_type is not None else None


def _field(message: Message, field: Any, path: str) -> Iterator[tuple[str, str]]:
    rules = field.GetOptions().Extensions[_RULES]
    value = getattr(message, field.name)
    if _is_map(field):
        if rules.map.HasField("max_pairs") and len(value) > rules.map.max_pairs:
            yield path, f"has {len(value)} entries, the limit is {rules.map.max_pairs}"
        if _map_value(field) is not None:
            for key in sorted(value):
                yield from violations(value[key], f"{path}[{key}].")
        return
    if field.is_repeated:
        if rules.repeated.HasField("min_items") and len(value) < rules.repeated.min_items:
            yield path, f"has {len(value)} items, at least {rules.repeated.min_items} are needed"
        if rules.repeated.HasField("max_items") and len(value) > rules.repeated.max_items:
            yield path, f"has {len(value)} items, the limit is {rules.repeated.max_items}"
        if rules.repeated.HasField("items") or field.message_type is not None:
            for i, item in enumerate(value):
                yield from _item(item, field, rules.repeated.items, f"{path}[{i}]")
        return
    if field.message_type is not None:
        if message.HasField(field.name):
            yield from violations(value, path + ".")
        elif rules.message.required:
            yield path, "is missing"
        return
    if field.containing_oneof is None or message.WhichOneof(field.containing_oneof.name) == field.name:
        problem = _value_rules(value, rules)
        if problem is not None:
            yield path, problem


def _item(item: Any, field: FieldDescriptor, rules: Any, path: str) -> Iterator[tuple[str, str]]:
    if field.message_type is not None:
        yield from violations(item, path + ".")
    else:
        problem = _value_rules(item, rules)
        if problem is not None:
            yield path, problem


def violations(message: Message, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every violated field as (path, what is wrong), in the order of the message's fields."""
    for field in message.DESCRIPTOR.fields:
        yield from _field(message, field, prefix + field.name)
    for oneof in message.DESCRIPTOR.oneofs:
        if oneof.GetOptions().Extensions[_REQUIRED] and message.WhichOneof(oneof.name) is None:
            yield prefix + oneof.name, "one of its fields must be set"


def check_rules(message: Message) -> None:
    """Run the rules; raise ``ContractViolation`` naming every violated field.

    The verdict is the generated validator's. Anything it raises besides a
    validation failure is a refusal as well: a rule that cannot be run does not hold.
    """
    try:
        validate(message)
    except ValidationFailed as failure:
        found = list(violations(message)) or [("", str(failure))]
    except Exception as error:  # the validator itself broke on this message
        found = list(violations(message)) or [("", f"the rules could not be run: {type(error).__name__}")]
    else:
        return
    names = ", ".join(f"{field} {problem}" for field, problem in found[:10])
    raise ContractViolation(f"contract violation: {names}", found)
