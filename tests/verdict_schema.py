"""docs/verdict.schema.json, for tests that have a verdict at hand."""

import json
from functools import cache
from typing import Any

import jsonschema
from pages import ROOT

SCHEMA = ROOT / "docs/verdict.schema.json"


@cache
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def errors(verdict: Any) -> list[str]:
    """What the schema finds wrong, as "where: what"."""
    return [f"{error.json_path}: {error.message}" for error in validator().iter_errors(verdict)]
