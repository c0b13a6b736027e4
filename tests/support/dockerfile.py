"""Reads a Dockerfile, and runs its RUN instructions in a folder instead of a container."""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Instruction(NamedTuple):
    """One instruction, such as `RUN`, and its arguments on one line."""

    name: str
    arguments: str


def parse(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile, in order."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    pairs = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [Instruction(name.upper(), arguments.strip()) for name, _, arguments in pairs]


def environment(instructions: list[Instruction]) -> dict[str, str]:
    """The variables that ENV sets."""
    words = [
        word for instruction in instructions if instruction.name == "ENV" for word in instruction.arguments.split()
    ]
    return dict(word.split("=", 1) for word in words)


def run(command: str, root: Path, variables: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run the arguments of a RUN instruction with Docker's shell. Its /tmp and /home/ray are in the folder `root`."""
    moved = re.sub(r"(?<![\w/])(/tmp|/home/ray)(?=/)", rf"{root}\1", command)
    return subprocess.run(
        ["/bin/sh", "-c", moved],
        cwd=root,
        env={"HOME": f"{root}/home/ray", "LANG": "C.UTF-8", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def path_with(folder: Path) -> str:
    """A PATH on which the programs of `folder` come first."""
    return f"{folder}{os.pathsep}/usr/local/bin{os.pathsep}/usr/bin{os.pathsep}/bin"
