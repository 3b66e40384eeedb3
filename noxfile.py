"""The package on other Pythons: ``nox`` runs it on each of 3.10 to 3.14 that this machine has (docs/building.md).

A session installs the wheel, which is built once, into an environment of its own and runs tests/python on it, away from
the source tree. ``nox -s lowest`` takes the oldest versions of the dependencies that pyproject.toml allows.
"""

from __future__ import annotations

import os
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
WHEELS = ROOT / "dist"  # a wheel that is there is taken as it is

nox.options.sessions = ["tests", "lowest"]
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"
nox.needs_version = ">=2025.10.16"

PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """tests/python on the wheel, with the newest dependencies."""
    session.install(*nox.project.dependency_groups(PROJECT, "quick"), wheel(session))
    run(session)


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """The same with the oldest dependencies."""
    oldest = [one.replace(">=", "==") for one in PROJECT["project"]["dependencies"]]
    session.install(*nox.project.dependency_groups(PROJECT, "quick"), wheel(session), *oldest)
    run(session)


def wheel(session: nox.Session) -> str:
    """The wheel's path; one for every Python, built where there is none."""
    found = sorted(WHEELS.glob("pyaircache-*.whl"), key=os.path.getmtime)
    if not found:
        session.run("python", "-m", "pip", "wheel", "--no-deps", "-w", str(WHEELS), str(ROOT))
        found = sorted(WHEELS.glob("pyaircache-*.whl"))
    return str(found[-1])


def run(session: nox.Session) -> None:
    """pytest, from a folder where Python does not find the source tree."""
    session.chdir(session.create_tmp())
    session.run("python", "-c", "import sys, pyaircache; assert pyaircache.__file__.startswith(sys.prefix)")
    arguments = session.posargs or [str(ROOT / "tests" / "python")]
    session.run("pytest", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", "-q", *arguments)
