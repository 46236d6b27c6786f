"""Holds documents against the schemas beside this file: validate.py SCHEMA DOCUMENT [SCHEMA DOCUMENT]…"""

import json
import pathlib
import sys

from jsonschema import Draft4Validator, RefResolver

here = pathlib.Path(__file__).parent


def read(name):
    return json.loads((here / name).read_text())


# The schemas name each other by addresses that are files of this folder.
handlers = {"https": lambda address: read(address.rsplit("/", 1)[1])}
wrong = 0
for name, document in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    schema = read(name)
    Draft4Validator.check_schema(schema)
    validator = Draft4Validator(schema, resolver=RefResolver.from_schema(schema, handlers=handlers))
    for error in validator.iter_errors(json.loads(pathlib.Path(document).read_text())):
        wrong += 1
        print(f"{document} is no {name}: {'/'.join(map(str, error.path))}: {error.message}")
sys.exit(wrong > 0)
