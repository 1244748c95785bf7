"""Let the tests run the commands that this tree declares, also where an older tree was installed.

`importlib.metadata` reads what is installed; the code under test comes from this folder. When the two
disagree about the commands, a description of this tree is put before the installed one.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).parents[2]
GROUP = "tide.commands"


def install_entry_points() -> None:
    """Make the declared commands known to this process and to those that it starts."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared: dict[str, str] = project["entry-points"][GROUP]
    if {entry.name: entry.value for entry in entry_points(group=GROUP)} == declared:
        return
    folder = Path(tempfile.mkdtemp(prefix="tide-entry-points-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    described = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"{name} = {value}" for name, value in declared.items()]
    (described / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
    sys.path.insert(0, str(folder))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *([before] if before else [])])
