"""Prints what our distributions need of others, as in `requirements.py client[cli] server[cpu,redis]`."""

import re
import sys
import tomllib
from pathlib import Path

for wanted in sys.argv[1:]:
    folder, _, extras = wanted.rstrip("]").partition("[")
    project = tomllib.loads(Path(folder, "pyproject.toml").read_text())["project"]
    optional = project.get("optional-dependencies", {})
    for requirement in [
        *project["dependencies"],
        *(one for extra in filter(None, extras.split(",")) for one in optional[extra]),
    ]:
        if not re.match(r"statestream\b", requirement):
            print(requirement)
