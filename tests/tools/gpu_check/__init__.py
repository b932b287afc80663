"""Checks and measures shares on a GPU, in minutes, and writes what it found as JSON: the first thing to run on a new one.

`python -m tests.tools.gpu_check --out FILE`: exit status 0 where everything is right, 1 where something is wrong, 2 without
a GPU. `--device cpu` and `--device stand-in` try the program itself. Every part is a process with a deadline of its own, so
that one that dies or hangs costs its own rows alone; FILE is whole after each row. docs/gpu.md says what the parts and the
fields are.
"""
