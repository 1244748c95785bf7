"""`POST /v1/jobs/plan`, as a client meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from service.db.session import Database
from service.jobs.tables import JobRow

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2}
CLUSTER = {"devices": [{"kind": "h100-80g", "count": 4}]}


@pytest.fixture
def body(job_body: dict[str, Any]) -> dict[str, Any]:
    """A plan of the job that is accepted; its models' folders say their sizes."""
    for side, more in (("student", {}), ("teacher", EXPERTS)):
        path = Path(job_body[side]["model"]) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | SIZES | more))
    return {"spec": job_body, "cluster": CLUSTER, "data": {"rows": 1000}}


async def refused(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post("/v1/jobs/plan", json=body)
    assert answer.status_code == 422, answer.text
    return dict(answer.json()["error"])


async def test_a_plan_is_made_from_the_folders_and_nothing_is_stored(
    client: httpx.AsyncClient, body: dict[str, Any], database: Database
) -> None:
    answer = await client.post("/v1/jobs/plan", json=body)
    assert answer.status_code == 200, answer.text
    plan = answer.json()
    assert (plan["object"], plan["pipeline"], plan["want"]) == (
        "job.plan",
        "cross_tokenizer",
        "target_log_prob",
    )
    assert plan["student"]["source"] == plan["teacher"]["source"] == "folder"
    assert plan["steps"] == -(-10 * 1000 // 64)
    assert plan["best"]["trainers"] + plan["best"]["teacher_replicas"] <= 4
    assert plan["best"]["simulated"]["steps"] > 0
    assert plan["asked"]["trainers"] == plan["asked"]["teacher_replicas"] == 1
    async with database.read() as session:
        assert await session.scalar(select(func.count()).select_from(JobRow)) == 0


async def test_well_known_models_need_no_folder(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    body["spec"] |= {
        "teacher": {"model": "inclusionAI/LLaDA2.0-mini"},
        "student": {"model": "Qwen/Qwen3-0.6B", "block_size": 4},
        "pipeline": "cross_tokenizer",
    }
    plan = (await client.post("/v1/jobs/plan", json=body)).json()
    assert plan["teacher"]["source"] == "published"
    assert plan["teacher"]["parameters"] == pytest.approx(16.26e9, rel=0.001)


async def test_an_unknown_model_is_asked_for_its_config(
    client: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    body["spec"] |= {"teacher": {"model": "some/teacher"}, "pipeline": "cross_tokenizer"}
    error = await refused(client, body)
    assert (error["code"], error["param"]) == ("model_sizes_unknown", "teacher_config")
    body["teacher_config"] = SIZES | {"model_type": "qwen3"}
    plan = (await client.post("/v1/jobs/plan", json=body)).json()
    assert (plan["teacher"]["source"], plan["teacher"]["model_type"]) == ("request", "qwen3")


async def test_a_fresh_student_is_planned_from_its_spec(
    client: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    folder = body["spec"]["student"]["model"]
    config = SIZES | {"model_type": "qwen3", "num_hidden_layers": 5}
    body["spec"]["student"] = {"config": config, "tokenizer": folder, "block_size": 4}
    plan = (await client.post("/v1/jobs/plan", json=body)).json()
    assert plan["student"]["source"] == "request"
    error = await refused(client, body | {"student_config": config})
    assert "student_config" in error["message"]


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"objective": "unheard_of"}, "invalid_value", "objective"),
        ({"colour": "red"}, "unknown_field", "colour"),
        ({"teacher": {"model": "/nowhere"}}, "path_not_found", "teacher.model"),
        (
            {"data": {"sources": [{"location": "/nowhere.jsonl"}]}},
            "path_not_found",
            "data.sources.0.location",
        ),
    ],
)
async def test_a_spec_is_refused_as_a_posted_one(
    client: httpx.AsyncClient, body: dict[str, Any], changes: dict[str, Any], code: str, param: str
) -> None:
    spec = body["spec"] | changes
    posted = (await client.post("/v1/jobs", json=spec)).json()["error"]
    planned = await refused(client, body | {"spec": spec})
    assert posted["code"] == planned["code"] == code
    assert posted["param"] == param
    assert planned["param"] in (param, f"spec.{param}")


@pytest.mark.parametrize(
    ("cluster", "code", "param"),
    [
        ({"devices": []}, "invalid_value", "cluster.devices"),
        ({"devices": [{"kind": "h100-80g", "count": 0}]}, "invalid_value", "cluster.devices.0.count"),
        ({"devices": [{"kind": "abacus", "count": 1}]}, "unknown_device_kind", "cluster.devices.0.kind"),
        ({"devices": [{"count": 1}]}, "missing_field", "cluster.devices.0.kind"),
        ({}, "missing_field", "cluster.devices"),
    ],
)
async def test_a_bad_cluster_is_refused_by_field(
    client: httpx.AsyncClient, body: dict[str, Any], cluster: dict[str, Any], code: str, param: str
) -> None:
    error = await refused(client, body | {"cluster": cluster})
    assert (error["code"], error["param"]) == (code, param)


async def test_a_kind_of_ones_own(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    kind = {
        "name": "two cores",
        "memory_bytes": 8 * 2**30,
        "float32_flops": 1e11,
        "bfloat16_flops": 1e11,
        "memory_bandwidth": 1e10,
        "link_bandwidth": 1e9,
        "is_accelerator": False,
    }
    plan = (
        await client.post("/v1/jobs/plan", json=body | {"cluster": {"devices": [{"kind": kind, "count": 2}]}})
    ).json()
    assert plan["best"]["trainer_kind"] == "two cores"
    assert plan["best"]["trainer_memory"]["host"] == []
    small = kind | {"memory_bytes": 2**28}
    error = await refused(client, body | {"cluster": {"devices": [{"kind": small, "count": 2}]}})
    assert (error["code"], error["param"]) == ("does_not_fit", "cluster")
    assert "two cores" in error["message"]


async def test_a_folder_without_sizes_is_named(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    path = Path(body["spec"]["teacher"]["model"]) / "config.json"
    path.write_text(json.dumps({"model_type": "llada2_moe"}))
    error = await refused(client, body)
    assert (error["code"], error["param"]) == ("bad_checkpoint", "teacher.model")
