"""Prints what the package, and the extras and dependency groups named as arguments, need on this Python.

For pip, line by line, and without markers, so that a shell may take the lines apart. pip itself reads groups since
25.1, and extras only of a package that it has built.
"""

import sys
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

pyproject = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))


def needs(name):
    """The requirements of an extra or a group, with those of the groups that it includes."""
    listed = {**pyproject["project"]["optional-dependencies"], **pyproject["dependency-groups"]}
    if name not in listed:
        sys.exit(f"there is no extra or dependency group {name!r}; there are {', '.join(listed)}")
    for one in listed[name]:
        yield from needs(one["include-group"]) if isinstance(one, dict) else [one]


wanted = pyproject["project"]["dependencies"] + [one for name in sys.argv[1:] for one in needs(name)]
for requirement in map(Requirement, dict.fromkeys(wanted)):
    if requirement.marker is None or requirement.marker.evaluate():
        extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        print(f"{requirement.name}{extras}{requirement.specifier}")
