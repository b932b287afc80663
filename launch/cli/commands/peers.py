"""`mpcache peers`: other systems that a benchmark can run beside this one."""

from __future__ import annotations

from launch.terminal.console import err, out
from launch.terminal.helping import Commands

app = Commands(help="Other systems to compare with: SecretFlow-SPU, in a virtual environment of its own.")


@app.command("install")
def install() -> None:
    """Install SecretFlow-SPU 0.9.5 in an environment of its own (about 1 GB, from PyPI); $MPCACHE_PEERS says where."""
    from launch.measure.baselines import environment

    with err.status("installing SecretFlow-SPU"):
        place = environment.install()
    out.print(f"SecretFlow-SPU is in {place}", soft_wrap=True)


@app.command("list")
def show() -> None:
    """The peers that a matrix can name as suites with `measure: peer`, and whether they can run."""
    from launch.measure.baselines import environment
    from launch.measure.baselines.run import BASELINES
    from mpc.errors import EnvironmentProblem

    try:
        state = f"installed in {environment.python().parent.parent}"
    except EnvironmentProblem as problem:
        state = str(problem)
    for name, (protocol, exponential, parties) in BASELINES.items():
        out.print(f"{name:<14} {protocol}, {exponential}, {parties} parties", highlight=False)
    out.print(state, soft_wrap=True)
