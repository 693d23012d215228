# SPDX-License-Identifier: Apache-2.0
"""Checks answers against api/openapi.yaml: the part of JSON Schema that it uses."""
import os
import re

try:
    import yaml
except ImportError:  # the answers are not checked then
    yaml = None

PATH = os.path.join(os.path.dirname(__file__), "..", "..", "..", "api", "openapi.yaml")
TYPES = {"string": str, "object": dict, "array": list, "boolean": bool, "null": type(None)}


def is_type(value, name):
    if name == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, TYPES[name])


class Api:
    def __init__(self):
        self.document = None
        if yaml:
            with open(PATH, encoding="utf-8") as f:
                self.document = yaml.safe_load(f)

    def resolve(self, schema):
        while "$ref" in schema:
            target = self.document
            for part in schema["$ref"].lstrip("#/").split("/"):
                target = target[part]
            schema = target
        return schema

    def check(self, value, schema, where):
        schema = self.resolve(schema)
        types = schema.get("type", [])
        types = [types] if isinstance(types, str) else types
        assert not types or any(is_type(value, t) for t in types), f"{where}: {value!r} is no {types}"
        assert "enum" not in schema or value in schema["enum"], f"{where}: {value!r} is not in {schema['enum']}"
        assert "const" not in schema or value == schema["const"], f"{where}: {value!r} is not {schema['const']}"
        assert not isinstance(value, int) or value >= schema.get("minimum", value), f"{where}: {value!r} is too small"
        if "oneOf" in schema:
            fits = []
            for one in schema["oneOf"]:
                try:
                    self.check(value, one, where)
                    fits.append(one)
                except AssertionError:
                    pass
            assert len(fits) == 1, f"{where}: {value!r} fits {len(fits)} of oneOf"
        if isinstance(value, dict):
            properties = schema.get("properties", {})
            for name in schema.get("required", []):
                assert name in value, f"{where}.{name} is missing"
            for name, field in value.items():
                if name in properties:
                    self.check(field, properties[name], f"{where}.{name}")
                else:
                    more = schema.get("additionalProperties", True)
                    assert more is not False, f"{where}.{name} is not described"
                    if isinstance(more, dict):
                        self.check(field, more, f"{where}.{name}")
        if isinstance(value, list) and "items" in schema:
            for i, item in enumerate(value):
                self.check(item, schema["items"], f"{where}[{i}]")

    def answer(self, method, path, status, value):
        """Asserts that the answer of a call is one that is described."""
        if not self.document:
            return
        path = path.split("?")[0]
        for pattern, item in self.document["paths"].items():
            expression = re.sub(r"\{\w+\}", "[^/]+", pattern)
            if not re.fullmatch(expression, path) or method.lower() not in item:
                continue
            responses = item[method.lower()]["responses"]
            response = self.resolve(responses.get(str(status), responses["default"]))
            assert str(status) in responses or status >= 400, f"{method} {path}: {status} is not described"
            self.check(value, response["content"]["application/json"]["schema"], f"{method} {path}")
            return
        raise AssertionError(f"{method} {path} is not described")

    def named(self, name, value):
        if self.document:
            self.check(value, self.document["components"]["schemas"][name], name)
