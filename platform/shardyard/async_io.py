"""Whether DeepSpeed's asynchronous operations on files can be compiled here. Imports no other module of Shardyard."""

from __future__ import annotations

import shutil
import subprocess

_PROGRAM = "#include <libaio.h>\nint main() { io_context_t context = 0; return io_setup(1, &context); }\n"
INSTALL = (
    "install libaio with its headers: apt-get install libaio-dev (Debian, Ubuntu), dnf install libaio-devel (Fedora, "
    "RHEL), or without root as docs/install.md shows; or set zero.offload_optimizer to cpu"
)


def missing_for_async_io() -> str | None:
    """What is missing, and how to get it; None if nothing is. Compiles a program of one line."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return "there is no C++ compiler (c++, g++); apt-get install g++, or set zero.offload_optimizer to cpu"
    command = [compiler, "-x", "c++", "-", "-o", "/dev/null", "-laio"]
    made = subprocess.run(command, input=_PROGRAM, capture_output=True, text=True, check=False)
    return None if made.returncode == 0 else f"libaio is missing here; {INSTALL}"
