"""Programs in a process of their own, in which torch is already imported: a copy of one that waits for them.

To import torch takes seconds, to copy a process that has done so milliseconds.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Its torch is as the program would import it, and dreluop is not there yet.
SERVER = """
import json, os, sys, traceback, torch

def run(task):
    for descriptor, file in ((1, task["stdout"]), (2, task["stderr"])):
        os.dup2(os.open(file, os.O_WRONLY), descriptor)
    os.environ.clear()
    os.environ.update(task["environment"])
    os.chdir(task["folder"])
    sys.path.insert(0, task["folder"])
    sys.argv[:] = task["arguments"]
    code = 0
    try:
        exec(compile(task["program"], "<program>", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        code = ended.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run(json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@functools.cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    # It ends where its input does.
    atexit.register(server.stdin.close)
    return server


def run(
    program: str, *arguments: str, environment: dict[str, str] | None = None, folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """What ``python -c program`` would do in this folder: exit code and output."""
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    with tempfile.NamedTemporaryFile("r") as stdout, tempfile.NamedTemporaryFile("r") as stderr:
        task = {
            **{"program": program, "arguments": ["-c", *arguments], "stdout": stdout.name, "stderr": stderr.name},
            **{"environment": dict(os.environ) if environment is None else environment, "folder": str(folder)},
        }
        print(json.dumps(task), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(program, code, stdout.read(), stderr.read())
