"""Validates the objects of the Prometheus operator in the YAML files of the arguments against its definitions."""
import sys

import yaml
from cloudcoil.models.prometheus_operator import v1
from pydantic import BaseModel, ValidationError


def unknown(given, model, path):
    """Keys that the definition does not have: the API server would drop them without a word."""
    if isinstance(given, dict) and isinstance(model, BaseModel):
        fields = {field.alias or name: name for name, field in type(model).model_fields.items()}
        for key, value in given.items():
            if key in fields:
                yield from unknown(value, getattr(model, fields[key]), f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(given, list) and isinstance(model, (list, tuple)):
        for at, (value, one) in enumerate(zip(given, model)):
            yield from unknown(value, one, f"{path}[{at}]")


checked = 0
for name in sys.argv[1:]:
    for document in yaml.safe_load_all(open(name)):
        if not document or not document["apiVersion"].startswith("monitoring.coreos.com/"):
            continue
        kind = document["kind"]
        try:
            keys = list(unknown(document, getattr(v1, kind).model_validate(document), kind))
        except (AttributeError, ValidationError) as error:
            sys.exit(f"{name}: {kind}: {error}")
        if keys:
            sys.exit(f"{name}: unknown keys: {', '.join(keys)}")
        checked += 1
if not checked:
    sys.exit(f"no objects of the Prometheus operator in {', '.join(sys.argv[1:])}")
