"""Building an image without an engine: its Dockerfile's steps, as they stand, over this machine's root.

Each stage gets an overlay of its own over `/`, kept in memory and gone with the builder, with this Python in
the place of the base image's. RUN is a `chroot` into it, COPY a `cp`. Needs root and overlayfs.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.support.deploy.dockerfile import Instruction, environment, last, stages

ROOT = Path(__file__).parents[3]
_SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class BuildError(AssertionError):
    """A step failed; its output is the message."""


class Builder:
    """One image being built, and then what its containers would see.

    Args:
        image: name of the Dockerfile.
        folder: an empty folder to mount on.
        arguments: values of ARG, as `--build-arg` gives them.
    """

    def __init__(self, image: str, folder: Path, arguments: Mapping[str, str] | None = None) -> None:
        self.image = image
        self._folder = folder
        self._arguments = dict(arguments or {})
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "sleep", "infinity"]
        )
        while os.readlink(self._mounts) == os.readlink("/proc/self/ns/mnt"):  # it is about to leave ours
            time.sleep(0.01)
        self._stage = "final"

    def build(self) -> None:
        """Every instruction of every stage, in order."""
        self._here(f"mount -t tmpfs builder {self._folder}")
        for number, stage in enumerate(stages(self.image)):
            name = stage[0].value.partition(" AS ")[2] or "final"
            self._begin(name)
            workdir, shell = "/", ["/bin/sh", "-c"]
            for each in stage:
                if each.name == "WORKDIR":
                    workdir = each.value
                    self._here(f"mkdir -p {self._root(name)}{workdir}")
                elif each.name == "SHELL":
                    shell = json.loads(each.value)
                elif each.name == "COPY":
                    self._copy(each, workdir)
                elif each.name == "RUN":
                    self._run([*shell, each.value], workdir, self._build_environment(), number)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command in a container of the finished image: its user, folder and environment, and no more."""
        inside = ["/usr/bin/env", f"--chdir={last(self.image, 'WORKDIR')}", *command]
        uid = last(self.image, "USER")
        root = ["chroot", f"--userspec={uid}", f"--groups={uid.split(':')[1]}", self._root("final")]
        variables = [f"{name}={value}" for name, value in environment(self.image).items()]
        done = self._enter([*root, "/usr/bin/env", "-i", *variables, *inside])
        if check and done.returncode != 0:
            raise BuildError(f"{shlex.join(command)}: {done.stdout}{done.stderr}")
        return done

    def close(self) -> None:
        """Forget everything."""
        self._holder.kill()
        self._holder.wait()

    @property
    def _mounts(self) -> str:
        return f"/proc/{self._holder.pid}/ns/mnt"

    def _root(self, stage: str) -> str:
        return f"{self._folder}/{stage}/root"

    def _begin(self, name: str) -> None:
        self._stage = name
        base, root = f"{self._folder}/{name}", self._root(name)
        python = Path(sys.base_prefix)
        lines = [f"mkdir -p {base}/upper {base}/work {root}"]
        # Folders on the way to this Python may be closed to all but their owner; the base image's are not.
        lines += [f"mkdir -p -m 755 {base}/upper{parent}" for parent in reversed(python.parents)]
        lines += [
            f"mount -t overlay -o lowerdir=/,upperdir={base}/upper,workdir={base}/work overlay {root}",
            f"mount --rbind /dev {root}/dev; mount -t proc proc {root}/proc",
        ]
        self._here("; ".join(lines))

    def _build_environment(self) -> dict[str, str]:
        # Which package index this machine uses is its own affair, as it is a build machine's.
        index = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        path = f"{sys.base_prefix}/bin:{_SYSTEM}"
        return {"PATH": path, "HOME": "/tmp"} | index | self._arguments

    def _run(self, command: list[str], workdir: str, variables: Mapping[str, str], number: int) -> None:
        pairs = [f"{name}={value}" for name, value in variables.items()]
        inside = ["/usr/bin/env", "-i", f"--chdir={workdir}", *pairs, *command]
        done = self._enter(["chroot", self._root(self._stage), *inside])
        if done.returncode != 0:
            raise BuildError(f"stage {number}, RUN {command[-1]}: {done.stdout[-3000:]}{done.stderr[-3000:]}")

    def _copy(self, each: Instruction, workdir: str) -> None:
        *sources, target = each.value.split()
        origin = str(ROOT)
        if sources[0].startswith("--from="):
            origin = self._root(sources.pop(0).removeprefix("--from="))
        place = Path(self._root(self._stage) + str(Path(workdir, target)))
        for source in sources:
            found = Path(f"{origin}/{source}")
            # COPY puts the contents of a folder into the target; a file goes into it or becomes it.
            self._here(f"if [ -d {found} ]; then mkdir -p {place}; fi")
            self._here(f"if [ -d {found} ]; then cp -a {found}/. {place}/; else cp -a {found} {place}; fi")

    def _here(self, script: str) -> None:
        done = self._enter(["bash", "-euc", script])
        if done.returncode != 0:
            raise BuildError(f"{script}: {done.stderr}")

    def _enter(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", f"--mount={self._mounts}", *command]
        return subprocess.run(enter, capture_output=True, text=True, timeout=900, env={"PATH": _SYSTEM})
