"""The layout of the storage is a promise: a job of the version before resumes from it."""

from tide_core.contracts.job_folder import JobFolder, prepared_folder, spool_name
from tide_core.contracts.states import Phase


def test_everything_of_a_job_lies_where_the_version_before_put_it() -> None:
    folder = JobFolder.of("s3://bucket/tide/", "job-1")
    assert folder.root == "s3://bucket/tide/jobs/job-1"
    assert {
        "initial": folder.initial,
        "checkpoints/step-00000012": folder.state(12),
        "model": folder.model,
        "manifest.json": folder.manifest,
        "report.json": folder.report,
        "sequences.npz": folder.sequences,
        "spool": folder.spool,
    } == {
        name: f"{folder.root}/{name}"
        for name in (
            "initial",
            "checkpoints/step-00000012",
            "model",
            "manifest.json",
            "report.json",
            "sequences.npz",
            "spool",
        )
    }
    assert spool_name("job-1", 2, Phase.TRAIN) == "job-1-2-train.jsonl"
    assert prepared_folder("/storage", "abc") == "/storage/prepared/abc"
