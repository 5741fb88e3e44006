"""Whether a JSON schema has an instance of finite depth: one that demands itself inside itself has none."""

from __future__ import annotations

from typing import Any

SCALARS = frozenset({"string", "integer", "number", "boolean", "null"})


def has_finite_instance(schema: Any) -> bool:
    """False only where every document that `schema` accepts would have to be infinitely deep.

    References start as unproven, and one is proven when its target needs proven ones only, until nothing changes (a
    least fixed point). What else a schema may contradict itself in is not looked at.
    """
    try:
        references = _references(schema)
        proven: set[str] = set()
        while True:
            found = {r for r in references - proven if _is_finite(_target(schema, r), proven)}
            if not found:
                return _is_finite(schema, proven)
            proven |= found
    except RecursionError:
        return True


def _references(node: Any) -> set[str]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    own = {node["$ref"]} if isinstance(node, dict) and isinstance(node.get("$ref"), str) else set()
    return own.union(*map(_references, children))


def _target(root: Any, reference: str) -> Any:
    """What a local JSON pointer names; True (anything) where it points elsewhere, which others complain about."""
    if reference != "#" and not reference.startswith("#/"):
        return True
    node = root
    for part in reference.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and key.isdigit() and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, dict) and key in node:
            node = node[key]
        else:
            return True
    return node


def _is_finite(node: Any, proven: set[str]) -> bool:
    """Whether a document of finite depth can satisfy `node`, with the references in `proven` known to have one."""
    if not isinstance(node, dict):
        return True
    if "$ref" in node and node["$ref"] not in proven:
        return False
    if not all(_is_finite(part, proven) for part in _parts(node, "allOf")):
        return False
    for key in ("anyOf", "oneOf"):
        if _parts(node, key) and not any(_is_finite(part, proven) for part in _parts(node, key)):
            return False
    if "enum" in node or "const" in node:
        return True
    types = node.get("type")
    named = {types} if isinstance(types, str) else set(types) if isinstance(types, list) else SCALARS
    if named & SCALARS or not named & {"object", "array"}:
        return True
    return ("object" in named and _object_is_finite(node, proven)) or (
        "array" in named and _array_is_finite(node, proven)
    )


def _object_is_finite(node: dict[str, Any], proven: set[str]) -> bool:
    properties = node.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    others = node.get("additionalProperties", True)
    return all(_is_finite(properties.get(name, others), proven) for name in _parts(node, "required"))


def _array_is_finite(node: dict[str, Any], proven: set[str]) -> bool:
    least = node.get("minItems", 0)
    least = int(least) if isinstance(least, int | float) else 0
    first = _parts(node, "prefixItems")
    needed = [*first[:least], *([node.get("items", True)] if least > len(first) else [])]
    return all(_is_finite(part, proven) for part in needed)


def _parts(node: dict[str, Any], key: str) -> list[Any]:
    value = node.get(key)
    return value if isinstance(value, list) else []
