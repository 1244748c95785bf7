"""Reading Dockerfiles: their instructions, and what the last stage tells a container."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from string import Template

DOCKER = Path(__file__).parents[3] / "deploy" / "docker"
_BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its name in capitals, and the rest with continuation lines joined."""

    name: str
    value: str


def stages(image: str) -> list[list[Instruction]]:
    """The instructions of each stage, the one before the first FROM left out."""
    text = (DOCKER / f"{image}.Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    found: list[list[Instruction]] = []
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        name, _, value = line.partition(" ")
        if name == "FROM":
            found.append([])
        if name and found:
            found[-1].append(Instruction(name, value.strip()))
    return found


def environment(image: str) -> dict[str, str]:
    """What ENV of the last stage sets, with the base image's PATH filled in."""
    known = {"PATH": _BASE_PATH}
    for each in stages(image)[-1]:
        if each.name == "ENV":
            pairs = [pair.partition("=") for pair in shlex.split(each.value)]
            known |= {name: Template(value).substitute(known) for name, _, value in pairs}
    return known


def last(image: str, name: str) -> str:
    """The last instruction of a name, such as USER, in the last stage."""
    return [each.value for each in stages(image)[-1] if each.name == name][-1]
