"""The wheel in a fresh environment, installed with plain pip as a user would, and what must work there.

`python -m tests.tools.check_wheel` needs a package index, some gigabytes and minutes. Without CrypTen: `import mpcache` and
its types, `mpcache doctor`, `check`, `demo` and `generate` by the suite masked; `--suite crypten` ends with the one command
that installs it, and after that command it works. Versions are those of constraints.txt.

With `--extra` CrypTen comes by `mpcache[crypten]`, whose requirements pip resolves; versions are the index's newest, since
torchvision, one of the requirements, works with the index's own build of torch alone.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path

from tests.tools.wheel import ROOT, build

PROGRAM = """
import sys
import mpcache
assert not {"torch", "grpc"} & set(sys.modules)
costs = mpcache.estimate("gpt2", prompt_tokens=32, new_tokens=2)
assert costs.session.rounds > 0 and "mpcache" in mpcache.policies()
assert mpcache.PrivateModel and "crypten" not in sys.modules
print(mpcache.__version__, mpcache.__file__)
"""
TYPED = """
from typing import assert_type
import mpcache

costs = mpcache.estimate("gpt2", prompt_tokens=32, setting=mpcache.Setting("masked", parties=3))
assert_type(costs.session.rounds, int)
assert_type(mpcache.policies()["h2o"], mpcache.Policy)
assert_type(mpcache.__version__, str)


def answer(model: mpcache.PrivateModel) -> str:
    try:
        return model.complete("ab", max_new_tokens=4)
    except mpcache.PeerLost as error:
        return error.peer
"""
QUESTION = "Codes . Kepler : 0 4 5 1 ; Curie : 9 3 2 7 ; Bohr : 5 5 1 8 . ? Curie :"
INSTALL_LINE = re.compile(r"run: (pip install --no-deps crypten==\S+)")


class Environment:
    """A fresh virtual environment, and an empty folder to run in, beside which a folder named mpcache lies."""

    def __init__(self, folder: Path, constraints: Sequence[str]) -> None:
        self.bin = folder / "venv" / "bin"
        self.work = folder / "work"
        (self.work / "mpcache").mkdir(parents=True)
        self._constraints = list(constraints)
        venv.create(folder / "venv", with_pip=True)

    def pip(self, *arguments: str) -> None:
        """Run pip install with plain pip."""
        command = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments, *self._constraints]
        self.run("python", *command)

    def run(self, program: str, *arguments: str, code: int = 0) -> str:
        """Return what a program says. Raises `SystemExit` with it when its exit code is not `code`."""
        start = time.perf_counter()
        done = subprocess.run(
            [str(self.bin / program), *arguments],
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        shown = " ".join([program, *arguments]).split("\n")[0][:100]
        print(f"{time.perf_counter() - start:6.1f} s  {shown}", flush=True)
        if done.returncode != code:
            raise SystemExit(f"exit code {done.returncode}, not {code}:\n{done.stdout}")
        return done.stdout

    def model(self) -> str:
        """Return the folder of a shipped model, inside the installed package."""
        said = self.run("python", "-c", "import models.recall; print(models.recall.__path__[0])")
        return str(Path(said.strip()) / "llama")


def check_masked(environment: Environment) -> None:
    """Everything that works without CrypTen, and what is said where it is needed."""
    environment.run("python", "-c", PROGRAM)
    environment.run("python", "-m", "pip", "check")
    environment.run("mpcache", "doctor")
    environment.run("mpcache", "demo")
    environment.run("mpcache", "check", "--model", environment.model())
    (environment.work / "question.txt").write_text(QUESTION, encoding="utf-8")
    asked = ["generate", "--model", environment.model(), "--prompt-file", "question.txt", "--max-new-tokens", "4"]
    said = environment.run("mpcache", *asked, "--suite", "masked")
    if "9 3 2 7" not in said:
        raise SystemExit(f"the answer is not 9 3 2 7:\n{said}")


def check_types(environment: Environment) -> None:
    """mypy, this environment's, sees the installed package's types in a program of its user."""
    (environment.work / "program.py").write_text(TYPED, encoding="utf-8")
    python = ["--python-executable", str(environment.bin / "python")]
    settings = ["--strict", "--config-file=", "--cache-dir", str(environment.work / "types"), "--follow-imports=silent"]
    command = [sys.executable, "-m", "mypy", *settings, *python, "program.py"]
    done = subprocess.run(command, cwd=environment.work, text=True, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


def install_crypten(environment: Environment) -> None:
    """Run the command that the error names."""
    said = environment.run("mpcache", "demo", "--suite", "crypten", code=2)
    found = INSTALL_LINE.search(" ".join(said.split()))
    if found is None:
        raise SystemExit(f"no command is named:\n{said}")
    environment.run(*found.group(1).split())


def main() -> None:
    """Build, install, run; the first thing that fails ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extra", action="store_true", help="install mpcache[crypten], newest versions")
    options = parser.parse_args()
    constraints = [] if options.extra else ["-c", str(ROOT / "constraints.txt")]
    with tempfile.TemporaryDirectory(prefix="mpcache-wheel-") as temporary:
        folder = Path(temporary)
        wheel = build(folder)
        environment = Environment(folder, constraints)
        environment.pip(f"{wheel}[crypten]" if options.extra else str(wheel))
        check_masked(environment)
        check_types(environment)
        if not options.extra:
            install_crypten(environment)
        environment.run("mpcache", "demo", "--suite", "crypten")
    print("the wheel works")


if __name__ == "__main__":
    main()
