"""The rules that keep the repository readable, checked by machine."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tide", "tide_core", "service", "workers", "tools")

FACE = ROOT / "tide" / "__init__.py"
"""What users import: the one `__init__.py` that names things; `test_face` holds it."""


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_keeps_the_sizes_and_rules(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    if path.name == "__init__.py" and path != FACE:
        assert not text.strip(), "an __init__.py is empty: imports do no work"
    assert path.name not in {"utils.py", "helpers.py"}
    assert len(text.splitlines()) <= 500, "a module has at most 500 lines"
    for function in functions(tree):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if "migrations" not in path.parts:  # a migration is a list of tables, not a design
            assert length <= 80, f"{function.name} has {length} lines"
        positional = len(function.args.posonlyargs) + len(function.args.args)
        assert positional <= 6, f"{function.name} takes {positional} positional parameters"
    assert "trust_remote_code=True" not in text
    assert not re.search(r"\btorch\.load\(|\bpickle\.loads?\(", text)


def test_the_method_draws_no_global_randomness() -> None:
    """Masks, timesteps and splits come from counter streams; a global generator breaks repeatability."""
    pattern = re.compile(
        r"torch\.(rand|randn|randint|randperm|manual_seed)\(|np\.random\.(seed|rand|randn)\("
    )
    for path in modules():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not pattern.search(line) or "generator=" in line, f"{path}:{number}: {line.strip()}"


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("tide_core.contracts.job", ("torch", "ray", "transformers", "pyarrow")),
        ("tide_core.contracts.scores", ("torch", "ray")),
        ("tide.cli.main", ("torch", "ray", "sqlalchemy", "fastapi")),
        ("service.app", ("torch", "ray", "transformers")),
    ],
)
def test_importing_stays_light(module: str, banned: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(','.join(m for m in {banned!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == ""


def test_commit_is_called_in_one_place() -> None:
    for path in (ROOT / "service").rglob("*.py"):
        if path.relative_to(ROOT) != Path("service/db/session.py"):
            assert ".commit(" not in path.read_text(), f"{path} commits by itself"


def test_only_the_state_machine_sets_a_jobs_state() -> None:
    for path in (ROOT / "service").rglob("*.py"):
        if path.relative_to(ROOT) != Path("service/jobs/state_machine.py"):
            assert not re.search(r"\bjob\.state\s*=[^=]", path.read_text()), f"{path} sets a job's state"


def test_no_two_test_modules_share_a_name() -> None:
    """pytest imports them by their base name: a second one would stop the whole run."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))
