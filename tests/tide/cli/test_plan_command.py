"""`tide plan`, against a real control plane."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tide.cli import main as cli

SPEC = {
    "teacher": {"model": "tencent/WeDLM-8B-Instruct"},
    "student": {"model": "Qwen/Qwen3-0.6B"},
    "pipeline": "shared_tokenizer",
    "objective": "tide_shared",
    "data": {"sources": [{"location": "rows", "format": "hub"}]},
}


@pytest.fixture(autouse=True)
def at_the_control_plane(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDE_URL", url)


def invoke(*words: str, text: str | None = None) -> Any:
    return CliRunner().invoke(cli.build_app(words[0]), list(words), input=text)


def test_a_table_with_the_split_memory_and_notes() -> None:
    answer = invoke("plan", "-", "--gpus", "8", "--rows", "100000", "--no-simulate", text=json.dumps(SPEC))
    assert answer.exit_code == 0, answer.output
    for word in ("BEST", "ASKED", "trainers", "h100-80g", "teacher wait", "optimiser", "prefetched steps"):
        assert word in answer.output
    assert "8.19 B parameters" in answer.output
    assert "50% of them prompt" in answer.output


def test_json_is_the_servers_plan() -> None:
    answer = invoke("plan", "-", "--gpus", "8", "--kind", "h200-141g", "-o", "json", text=json.dumps(SPEC))
    plan = json.loads(answer.stdout)
    assert plan["object"] == "job.plan"
    assert plan["best"]["trainer_kind"] == "h200-141g"
    assert plan["best"]["simulated"] is not None


def test_a_cluster_file_and_a_config_file(tmp_path: Path) -> None:
    cluster, config = tmp_path / "cluster.yaml", tmp_path / "config.json"
    cluster.write_text("devices:\n  - {kind: a100-80g, count: 2}\n  - {kind: h200-141g, count: 2}\n")
    config.write_text(
        json.dumps(
            {
                "model_type": "wedlm",
                "vocab_size": 1000,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
            }
        )
    )
    spec = json.dumps(SPEC | {"teacher": {"model": "some/teacher"}})
    words = ["plan", "-", "--cluster", str(cluster), "-o", "json"]
    answer = invoke(*words, text=spec)
    assert answer.exit_code == 1
    assert json.loads(answer.stderr)["error"]["code"] == "model_sizes_unknown"
    answer = invoke(*words, "--teacher-config", str(config), text=spec)
    assert json.loads(answer.stdout)["teacher"]["source"] == "request"


@pytest.mark.parametrize("words", [[], ["--gpus", "2", "--cluster", "file"]])
def test_one_cluster_must_be_given(words: list[str]) -> None:
    answer = invoke("plan", "-", *words, text=json.dumps(SPEC))
    assert answer.exit_code == 1
    assert "either --cluster FILE or --gpus N" in answer.stderr


def test_what_does_not_fit_ends_with_what_to_change() -> None:
    spec = SPEC | {"hyperparameters": {"micro_batch_size": 64, "global_batch_size": 64}}
    answer = invoke("plan", "-", "--gpus", "2", "--kind", "a100-40g", text=json.dumps(spec))
    assert answer.exit_code == 1
    assert "It fits with hyperparameters.micro_batch_size" in answer.stderr


def test_help_says_what_is_needed() -> None:
    text = " ".join(invoke("plan", "--help").output.split())
    for word in ("--cluster", "--gpus", "--kind", "--rows", "--teacher-config", "Nothing is stored"):
        assert word in text
