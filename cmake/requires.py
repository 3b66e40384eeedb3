"""Prints what the package and the extras named as arguments need, for pip: without building the package first."""

import sys
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
for name in project["dependencies"] + [x for extra in sys.argv[1:] for x in project["optional-dependencies"][extra]]:
    print(name)
