"""The prepare phase against real tokenizer folders, with and without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tide_core.contracts.errors import DataError, TokenizerError
from tide_core.contracts.job import DataSource, DataSpec, HeldOut, JobSpec, StudentSpec, TeacherSpec, resolve
from tide_core.contracts.objective import Pipeline, Variant
from tide_core.contracts.reporting import AttemptBrief, DatasetPrepared, Finished, Note, Progress
from tide_core.contracts.states import Phase
from tide_core.data.dataset_preparation import BATCH_ROWS, RowBatch, serial_map
from tide_core.data.shards import PreparedDataset
from tide_core.data.sources import SourceRow
from workers.main import deliver_last, phase_function, run_phase
from workers.preparation.driver import prepare_for_job, ray_map
from workers.preparation.location import open_prepared
from workers.reporting.fake_control import FakeControlPlane
from workers.reporting.recording import RecordingReporter

WriteLines = Callable[..., Path]


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"Say {n}"},
                {"role": "assistant", "content": f"It is {n}, {n * n}."},
            ]
        }
        for n in range(count)
    ]


def make_brief(storage: str, data: Path, student: Path, teacher: Path, **student_more: Any) -> AttemptBrief:
    spec = JobSpec(
        teacher=TeacherSpec(model=str(teacher)),
        student=StudentSpec(
            config={"model_type": "qwen3"}, tokenizer=str(student), block_size=16, **student_more
        ),
        objective=Variant.BASELINE,
        data=DataSpec(
            sources=(DataSource(location=str(data)),), held_out=HeldOut(fraction=0.2), student_length=128
        ),
    )
    return AttemptBrief(
        job_id="j",
        attempt=1,
        phase=Phase.PREPARE,
        spec=resolve(spec, pipeline=Pipeline.CROSS_TOKENIZER),
        storage=storage,
    )


def test_prepares_once_and_finds_it_again(
    tmp_path: Path, qwen_folder: Path, llada2_folder: Path, write_lines: WriteLines
) -> None:
    brief = make_brief(str(tmp_path / "store"), write_lines(rows(40)), qwen_folder, llada2_folder)
    reporter = RecordingReporter()
    first = prepare_for_job(brief, reporter, serial_map)
    assert not first.reused
    assert first.rows + first.held_out_rows == 40
    assert first.held_out_rows > 0
    assert 0.5 < first.coverage.share <= 1
    assert first.coverage.share == pytest.approx(
        first.coverage.chunk_bytes / first.coverage.content_bytes, 1e-5
    )
    assert sum(first.coverage.student_lengths.values()) == first.coverage.chunks > 0
    assert DatasetPrepared.model_validate_json(first.model_dump_json()) == first
    assert first.location.endswith(first.content_hash)
    assert reporter.of_type(Progress)[-1].completed == 40
    again = prepare_for_job(brief, RecordingReporter(), serial_map)
    assert again == first.model_copy(update={"reused": True})
    assert len(open_prepared(first.location).train) == first.rows


def test_rows_left_out_are_told_by_reason(
    tmp_path: Path, qwen_folder: Path, llada2_folder: Path, write_lines: WriteLines
) -> None:
    bad = [{"messages": [{"role": "user", "content": "no answer"}]}, {"other": 1}]
    brief = make_brief(str(tmp_path / "store"), write_lines([*rows(20), *bad]), qwen_folder, llada2_folder)
    reporter = RecordingReporter()
    report = prepare_for_job(brief, reporter, serial_map)
    assert sum(report.rejected.values()) == 2
    notes = reporter.of_type(Note)
    assert {note.code for note in notes} == {"data.rejected"}
    assert all(any(reason in note.message for note in notes) for reason in report.rejected)


def test_no_row_survives(
    tmp_path: Path, qwen_folder: Path, llada2_folder: Path, write_lines: WriteLines
) -> None:
    brief = make_brief(str(tmp_path / "store"), write_lines([{"other": 1}] * 3), qwen_folder, llada2_folder)
    with pytest.raises(DataError, match="3") as caught:
        prepare_for_job(brief, RecordingReporter(), serial_map)
    assert caught.value.code == "no_row_survived"
    assert not list((tmp_path / "store" / "prepared").glob("*")), "nothing half made is left"


def test_a_tokenizer_without_a_mask_is_refused_or_given_one(
    tmp_path: Path, qwen_folder: Path, llada2_folder: Path, write_lines: WriteLines
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (
            (qwen_folder / name).read_text().replace("<|mask|>", "<|other|>").replace('"mask_token"', '"x"')
        )
        (plain / name).write_text(text)
    data = write_lines(rows(20))
    with pytest.raises(TokenizerError):
        prepare_for_job(
            make_brief(str(tmp_path / "s"), data, plain, llada2_folder), RecordingReporter(), serial_map
        )
    given = make_brief(str(tmp_path / "s"), data, plain, llada2_folder, add_mask_token=True)
    assert prepare_for_job(given, RecordingReporter(), serial_map).rows > 0


def test_remote_storage(
    qwen_folder: Path,
    llada2_folder: Path,
    write_lines: WriteLines,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TIDE_CACHE", str(tmp_path / "cache"))
    brief = make_brief("memory://bucket/tide", write_lines(rows(20)), qwen_folder, llada2_folder)
    report = prepare_for_job(brief, RecordingReporter(), serial_map)
    assert report.location.startswith("memory://bucket/tide/prepared/")
    assert len(open_prepared(report.location).train) == report.rows
    assert prepare_for_job(brief, RecordingReporter(), serial_map).reused


@pytest.fixture
def cluster() -> Iterator[None]:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_many_batches_go_over_ray(
    tmp_path: Path,
    qwen_folder: Path,
    llada2_folder: Path,
    write_lines: WriteLines,
    cluster: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole phase by the entry point's functions; the shards are those of a serial preparation."""
    data = write_lines(rows(1200))
    brief = make_brief(str(tmp_path / "ray"), data, qwen_folder, llada2_folder)
    with FakeControlPlane(brief) as control:
        for name, value in control.environment.items():
            monkeypatch.setenv(name, value)
        last_word = run_phase(brief, phase_function(Phase.PREPARE))
        deliver_last(last_word)
        assert isinstance(last_word, Finished)
        report = control.of_type(DatasetPrepared)[0]
        assert control.bodies[-1] == last_word
    serial = prepare_for_job(
        make_brief(str(tmp_path / "serial"), data, qwen_folder, llada2_folder),
        RecordingReporter(),
        serial_map,
    )
    assert report.content_hash == serial.content_hash
    ours, theirs = PreparedDataset.open(report.location), PreparedDataset.open(serial.location)
    assert [s.student_ids.tolist() for s in ours.train] == [s.student_ids.tolist() for s in theirs.train]


def test_few_rows_do_not_need_ray() -> None:
    """Two splits of one batch's rows are done in this process; one row more goes over the cluster."""
    places: list[str] = []

    def on_cluster(function: Any, batches: Iterable[RowBatch], labels: Any) -> Iterator[Any]:
        places.append("cluster")
        return map(function, batches)

    row = SourceRow(0, 0, {"prompt": "Say 1", "response": "1"})

    def numbers(*sizes: int) -> list[int]:
        batches = [RowBatch(number, "train", [row] * size) for number, size in enumerate(sizes)]
        return list(ray_map(lambda batch: batch.number, batches, map_on=on_cluster))  # type: ignore[arg-type,return-value]

    assert numbers() == []
    assert numbers(BATCH_ROWS) == [0]
    assert numbers(BATCH_ROWS - 20, 20) == [0, 1]
    assert places == []
    assert numbers(BATCH_ROWS - 20, 21, 5) == [0, 1, 2]
    assert places == ["cluster"]
