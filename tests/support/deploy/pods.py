"""Pods without a container engine: what a manifest says, in Linux namespaces of this machine.

A pod gets its own network (an address on a bridge that only the pods and this machine share), processes,
mounts and root. The root is read-only, as the manifests want it, and shows the system's libraries, this
Python environment as `/opt/tide`, the repository's packages, and the volumes of the manifest. The command
runs as the image's user, without capabilities or a way to new ones. Needs root, `ip`, `unshare` and `chroot`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.support.deploy.dockerfile import environment, last
from tests.support.deploy.kuberay import quantity

ROOT = Path(__file__).parents[3]
TOOLS = ("ip", "unshare", "chroot", "setpriv", "mount")
_SYSTEM = "/usr/sbin:/usr/bin:/sbin:/bin"

Container = dict[str, Any]


def obstacle() -> str | None:
    """Why no pod can be made here; None when one can."""
    if os.geteuid() != 0:
        return "namespaces with mounts need root"
    missing = [tool for tool in TOOLS if shutil.which(tool, path=_SYSTEM) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


class Network:
    """A bridge in a namespace of its own, so that no firewall of this machine is in the way.

    Args:
        folder: where roots and the file of host names are kept.
        names: host names of each pod; a pod's address is known before it starts, like a service's.
    """

    def __init__(self, folder: Path, names: Mapping[str, tuple[str, ...]]) -> None:
        self.folder = folder
        self._tag = secrets.token_hex(3)
        self._prefix = f"10.{secrets.randbelow(100) + 100}.{secrets.randbelow(256)}"
        self._addresses = {pod: f"{self._prefix}.{number}" for number, pod in enumerate(names, start=10)}
        lines = ["127.0.0.1 localhost"]
        lines += [f"{self._addresses[pod]} {pod} {' '.join(known)}" for pod, known in names.items()]
        self.hosts = folder / "hosts"
        self.hosts.write_text("\n".join(lines) + "\n")
        self._namespaces: list[str] = []

    def address(self, pod: str) -> str:
        """The pod's address; this machine reaches it too."""
        return self._addresses[pod]

    def open(self) -> None:
        """Make the bridge and this machine's way to it."""
        switch, here = self._namespace("switch"), f"th{self._tag}"
        _ip(f"-n {switch} link add bridge type bridge")
        _ip(f"-n {switch} link set bridge up")
        _ip(f"link add {here} type veth peer name host netns {switch}")
        _ip(f"-n {switch} link set host master bridge up")
        _ip(f"addr add {self._prefix}.1/24 dev {here}")
        _ip(f"link set {here} up")

    def join(self, pod: str) -> str:
        """A namespace whose `eth0` has the pod's address; gives its name."""
        namespace, port = self._namespace(pod), f"p{self._addresses[pod].rsplit('.', 1)[1]}"
        _ip(f"-n {self._name('switch')} link add {port} type veth peer name eth0 netns {namespace}")
        _ip(f"-n {self._name('switch')} link set {port} master bridge up")
        _ip(f"-n {namespace} addr add {self._addresses[pod]}/24 dev eth0")
        _ip(f"-n {namespace} link set eth0 up")
        _ip(f"-n {namespace} link set lo up")
        # As in a cluster: programs ask which address leads out to learn their own.
        _ip(f"-n {namespace} route add default via {self._prefix}.1")
        return namespace

    def unplug(self, pod: str) -> None:
        """Cut the pod off: no packet leaves it, so its peers do not see that its connections closed."""
        _ip(f"-n {self._name('switch')} link del p{self._addresses[pod].rsplit('.', 1)[1]}")

    def close(self) -> None:
        """Remove all namespaces, and with them the links."""
        while self._namespaces:
            _ip(f"netns del {self._namespaces.pop()}")

    def _name(self, pod: str) -> str:
        return f"tide-{self._tag}-{pod}"

    def _namespace(self, pod: str) -> str:
        name = self._name(pod)
        _ip(f"netns add {name}")
        self._namespaces.append(name)
        return name


@dataclass
class Pod:
    """One container, running.

    Attributes:
        process: the first of the pod's; killing it kills all.
        log: what its command wrote.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    _members: dict[int, psutil.Process] = field(default_factory=dict)

    def members(self) -> list[psutil.Process]:
        """All living processes of the pod, as this machine sees them."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            found = []
        self._members |= {each.pid: each for each in found}
        return [each for each in self._members.values() if _lives(each)]

    def kill(self) -> None:
        """As a power cut does: no process of the pod gets to do anything any more."""
        members = self.members()
        assert members, f"{self.name} runs no more: {self.tail()}"
        with contextlib.suppress(psutil.NoSuchProcess):
            members[0].kill()  # the first process of its namespace takes all others along
        self.process.wait(20)
        psutil.wait_procs(members, timeout=20)

    def tail(self) -> str:
        """The last of the log."""
        return self.log.read_text(errors="replace")[-4000:]


def start(
    network: Network,
    name: str,
    image: str,
    container: Container,
    *,
    volumes: Mapping[str, Any],
    secret_values: Mapping[str, Mapping[str, str]],
    user: str | None = None,
) -> Pod:
    """Run a container of a manifest.

    Args:
        network: where the pod's name has an address.
        name: of the pod.
        image: of which Dockerfile the environment, user and folder are taken.
        container: with command, arguments, environment and mounts.
        volumes: of the pod by name: a folder of this machine, or the manifest's `emptyDir`.
        secret_values: what `secretKeyRef` names.
        user: `uid:gid` instead of the image's.
    """
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    uid = user or last(image, "USER")
    variables = environment(image) | {"HOME": "/home/tide", "PYTHONPATH": str(ROOT), "HOSTNAME": name}
    variables |= {each["name"]: _value(each, secret_values) for each in container["env"]}
    root = network.folder / "roots" / name
    root.mkdir(parents=True)
    workdir = last(image, "WORKDIR")
    script = [
        *_root(root, network.hosts, workdir),
        *(
            line
            for mount in container["volumeMounts"]
            for line in _volume(root, name, mount, volumes, network.folder, uid)
        ),
        f"mount -o remount,ro,bind {root} {root}",
        # What a container's runtime does last: the user, no capabilities, no way to get any.
        f"exec chroot --userspec={uid} --groups={uid.split(':')[1]} {root} /usr/bin/env --chdir={workdir} "
        '/usr/bin/setpriv --no-new-privs /usr/bin/env -i "$@"',
    ]
    command = [
        *(f"{key}={value}" for key, value in variables.items()),
        *container["command"],
        *container.get("args", ()),
    ]
    isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts"]
    shell = ["bash", "-euc", "\n".join(script), "pod"]
    mortal = ["setpriv", "--pdeathsig", "KILL"]
    log = network.folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            # Nothing outlives the tests, however they end.
            [*mortal, "ip", "netns", "exec", network.join(name), *isolated, *shell, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={"PATH": _SYSTEM},
            start_new_session=True,
        )
    return Pod(name, process, log)


def _value(variable: Mapping[str, Any], secret_values: Mapping[str, Mapping[str, str]]) -> str:
    if "value" in variable:
        return str(variable["value"])
    reference = variable["valueFrom"]["secretKeyRef"]
    return secret_values[reference["name"]][reference["key"]]


def _root(root: Path, hosts: Path, workdir: str) -> Iterator[str]:
    """The shell lines that make a root like the image's."""
    yield f"mount -t tmpfs -o mode=755 root {root}"
    for link in ("bin", "sbin", "lib", "lib64"):
        target = Path("/", link)
        if target.is_symlink():
            yield f"ln -s {os.readlink(target)} {root}/{link}"
        elif target.is_dir():
            yield from _bound(root, target, target)
    shown = {Path(sys.base_prefix), Path(sys.prefix), ROOT, Path("/usr"), Path("/etc")}
    for folder in sorted(shown):
        if not shown & set(folder.parents):
            yield from _bound(root, folder, folder)
    yield from _bound(root, Path(sys.prefix), Path("/opt/tide"))
    passwd = hosts.with_name("passwd")
    users = (
        "root:x:0:0::/root:/bin/sh",
        "tide:x:10001:10001::/home/tide:/bin/sh",
        "postgres:x:999:999::/:/bin/sh",
    )
    passwd.write_text("\n".join(users) + "\n")
    resolver = hosts.with_name("resolv.conf")
    resolver.write_text("")  # no server: what is not in the file of hosts is refused at once
    for source, name in ((hosts, "hosts"), (passwd, "passwd"), (resolver, "resolv.conf")):
        yield f"mount --bind {source} {root}/etc/{name}"
    yield f"mkdir -p {root}/proc {root}/sys {root}/dev {root}/tmp {root}/home/tide {root}{workdir}"
    yield f"mount -t proc proc {root}/proc; mount -t sysfs -o ro sysfs {root}/sys"
    yield f"mount -t tmpfs -o mode=755 dev {root}/dev; mkdir {root}/dev/shm"
    for device in ("null", "zero", "full", "random", "urandom"):
        yield f"touch {root}/dev/{device}; mount --bind /dev/{device} {root}/dev/{device}"
    yield f"ln -s /proc/self/fd {root}/dev/fd; mount -t tmpfs -o size=64m,mode=1777 shm {root}/dev/shm"


def _bound(root: Path, source: Path, target: Path) -> Iterator[str]:
    place = shlex.quote(f"{root}{target}")
    yield f"mkdir -p {place}; mount --rbind {shlex.quote(str(source))} {place}"
    yield f"mount -o remount,bind,ro {place}"


def _volume(
    root: Path, pod: str, mount: Mapping[str, str], volumes: Mapping[str, Any], folder: Path, uid: str
) -> Iterator[str]:
    place = f"{root}{mount['mountPath']}"
    source = volumes[mount["name"]]
    yield f"mkdir -p {place}"
    if isinstance(source, Path):
        yield f"mount --bind {source} {place}"
    elif source.get("medium") == "Memory":
        yield f"mount -t tmpfs -o size={quantity(source['sizeLimit'])},mode=1777 {mount['name']} {place}"
    else:
        scratch = folder / "scratch" / pod / mount["name"]
        scratch.mkdir(parents=True)
        yield f"chown {uid} {scratch}; chmod 1777 {scratch}; mount --bind {scratch} {place}"


def _ip(arguments: str) -> None:
    done = subprocess.run(["ip", *arguments.split()], capture_output=True, text=True, env={"PATH": _SYSTEM})
    assert done.returncode == 0, f"ip {arguments}: {done.stderr}"


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
