"""Plans as a whole: properties that must hold, refusals, and agreement of averages with the simulation."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.planned_pairs import CROSS, SHARED, plan, spec_of
from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.objective import Pipeline
from tide_core.contracts.plan import DataExpectations, Plan
from tide_core.contracts.scores import Want
from tide_core.planning.kinds import KINDS
from tide_core.planning.noise import draw_sequences


class TestProperties:
    @settings(max_examples=25)
    @given(
        st.sampled_from([CROSS, SHARED]),
        st.sampled_from(sorted(set(KINDS) - {"a100-40g"})),
        st.integers(1, 600),
        st.integers(0, 300),
    )
    def test_more_devices_are_never_slower(
        self, spec: ResolvedJobSpec, kind: str, count: int, more: int
    ) -> None:
        few, many = plan(spec, (kind, count)), plan(spec, (kind, count + more))
        assert many.best.seconds_per_step <= few.best.seconds_per_step * (1 + 1e-9)
        assert few.best.devices <= count

    @settings(max_examples=25)
    @given(st.sampled_from([CROSS, SHARED]), st.integers(20, 200), st.integers(0, 200), st.integers(1, 16))
    def test_more_memory_never_refuses(self, spec: ResolvedJobSpec, gib: int, more: int, count: int) -> None:
        def attempt(size: int) -> Plan | None:
            kind = KINDS["h100-80g"].model_copy(update={"memory_bytes": size * 2**30})
            try:
                return plan(spec, (kind, count))
            except InvalidInputError as error:
                if error.code != "does_not_fit":
                    raise
                return None

        small, large = attempt(gib), attempt(gib + more)
        if small is not None:
            assert large is not None
            assert large.best.seconds_per_step <= small.best.seconds_per_step * (1 + 1e-9)

    @settings(max_examples=20)
    @given(
        st.sampled_from(["float32_flops", "bfloat16_flops", "memory_bandwidth", "link_bandwidth"]),
        st.floats(1, 100),
        st.sampled_from([CROSS, SHARED]),
    )
    def test_a_faster_device_is_never_slower(self, name: str, factor: float, spec: ResolvedJobSpec) -> None:
        kind = KINDS["a100-80g"]
        faster = kind.model_copy(update={name: getattr(kind, name) * factor})
        before, after = plan(spec, (kind, 8)), plan(spec, (faster, 8))
        assert after.best.seconds_per_step <= before.best.seconds_per_step * (1 + 1e-9)

    def test_a_longer_teacher_sequence_costs_more(self) -> None:
        short, long = (
            plan(CROSS, ("h100-80g", 8), data=DataExpectations(teacher_tokens_per_token=ratio))
            for ratio in (1.0, 1.6)
        )
        assert long.best.teacher is not None
        assert short.best.teacher is not None
        assert long.best.teacher.flops > 1.5 * short.best.teacher.flops

    def test_a_second_group_of_devices_is_used_or_left(self) -> None:
        alone = plan(SHARED, ("a100-40g", 4))
        both = plan(SHARED, ("a100-40g", 4), ("h200-141g", 4))
        assert both.best.seconds_per_step < alone.best.seconds_per_step
        assert both.best.teacher_kind == "h200-141g"


class TestWire:
    @pytest.mark.parametrize(
        ("spec", "want", "size"),
        [
            (CROSS, Want.TARGET_LOG_PROB, 4),
            (SHARED, Want.HIDDEN, 2 * 4096),
            (
                spec_of(Pipeline.SHARED_TOKENIZER, "baseline", teacher={"top_k": 64}),
                Want.TOP_K,
                64 * 6 + 4,
            ),
            (
                spec_of(
                    Pipeline.CROSS_TOKENIZER,
                    [{"type": "calm", "chunk_filter": {}}, {"type": "cross_entropy"}],
                ),
                Want.TARGET_AND_BOUNDARY,
                8,
            ),
        ],
        ids=["log-prob", "hidden", "top-k", "boundary"],
    )
    def test_bytes_of_a_masked_token(self, spec: ResolvedJobSpec, want: Want, size: int) -> None:
        found = plan(spec, ("h100-80g", 8))
        assert (found.want, found.wire_bytes_per_masked_token) == (want, size)
        expected = 64 * (found.noise.teacher_masked_tokens * size + 5 * 512 + 8)
        assert found.best.wire_bytes_per_step == pytest.approx(expected)

    def test_a_slow_wire_is_named_as_the_limit(self) -> None:
        slow = KINDS["h100-80g"].model_copy(update={"link_bandwidth": 1e6, "name": "far apart"})
        resources = {"student_workers": 1, "teacher_replicas": 2, "prefetch_steps": 4}
        found = plan(spec_of(Pipeline.SHARED_TOKENIZER, "baseline", resources=resources), (slow, 8))
        assert found.asked is not None
        assert found.asked.limited_by == "wire"
        # The replicas' two links carry half each, the trainer's one takes all.
        assert found.asked.seconds_per_step == pytest.approx(found.asked.wire_bytes_per_step / 1e6)

    def test_a_control_asks_nothing(self) -> None:
        found = plan(spec_of(Pipeline.SHARED_TOKENIZER, "none"), ("h100-80g", 4))
        assert found.want is None
        assert found.best.teacher is None
        assert found.best.teacher_replicas == found.best.wire_bytes_per_step == 0
        assert found.best.trainers == 4


class TestRefusals:
    def test_a_teacher_that_fits_no_device_is_refused_with_what_to_change(self) -> None:
        spec = spec_of(Pipeline.CROSS_TOKENIZER, "tide_cross", teacher={"dtype": "float32"})
        with pytest.raises(
            InvalidInputError, match=r"teacher replica needs .* narrower teacher.dtype"
        ) as caught:
            plan(spec, ("a100-40g", 8))
        assert (caught.value.code, caught.value.param) == ("does_not_fit", "cluster")

    def test_a_trainer_that_fits_no_device_is_told_what_would_fit(self) -> None:
        hyper = {"micro_batch_size": 128, "global_batch_size": 128}
        spec = spec_of(Pipeline.CROSS_TOKENIZER, "tide_cross", hyperparameters=hyper)
        with pytest.raises(
            InvalidInputError, match=r"It fits with hyperparameters.micro_batch_size: (\d+)"
        ) as caught:
            plan(spec, ("h100-80g", 2))
        fitting = int(caught.value.message.split("micro_batch_size: ")[1].split(".")[0].split(" ")[0])
        again = spec_of(
            Pipeline.CROSS_TOKENIZER, "tide_cross", hyperparameters=hyper | {"micro_batch_size": fitting}
        )
        assert plan(again, ("h100-80g", 2)).best.trainers == 1

    def test_a_quantised_teacher_fits_where_the_whole_does_not(self) -> None:
        small = KINDS["a100-40g"].model_copy(update={"memory_bytes": 34 * 2**30})
        with pytest.raises(InvalidInputError, match=r"teacher\.quantisation"):
            plan(CROSS, (small, 2))
        spec = spec_of(Pipeline.CROSS_TOKENIZER, "tide_cross", teacher={"quantisation": "int8"})
        found = plan(spec, (small, 2)).best
        assert found.teacher_memory is not None
        assert found.teacher_memory.device_bytes < 30 * 2**30

    def test_one_device_that_cannot_hold_both_is_told_to_take_two(self) -> None:
        small = KINDS["h100-80g"].model_copy(update={"memory_bytes": 50 * 2**30})
        with pytest.raises(InvalidInputError, match="at least two"):
            plan(CROSS, (small, 1))
        assert plan(CROSS, (small, 2)).best.devices == 2

    def test_an_unknown_kind_is_named_with_the_known_ones(self) -> None:
        with pytest.raises(InvalidInputError, match=r"'b200'.*h100-80g") as caught:
            plan(CROSS, ("h100-80g", 1), ("b200", 8))
        assert (caught.value.code, caught.value.param) == ("unknown_device_kind", "cluster.devices.1.kind")


class TestAsked:
    def test_the_specs_own_numbers_are_planned_too(self) -> None:
        spec = spec_of(
            Pipeline.CROSS_TOKENIZER,
            "tide_cross",
            resources={
                "student_workers": 4,
                "gpus_per_worker": 1,
                "teacher_replicas": 2,
                "gpus_per_teacher": 1,
            },
        )
        found = plan(spec, ("h100-80g", 8))
        assert found.asked is not None
        assert (found.asked.trainers, found.asked.teacher_replicas, found.asked.devices) == (4, 2, 6)
        assert found.asked.seconds_per_step >= found.best.seconds_per_step
        assert plan(spec, ("h100-80g", 5)).asked is None
        assert "6 devices; the cluster has 5" in plan(spec, ("h100-80g", 5)).notes[-1]

    def test_more_trainers_than_sequences_are_not_planned(self) -> None:
        spec = spec_of(
            Pipeline.CROSS_TOKENIZER,
            "tide_cross",
            hyperparameters={"global_batch_size": 4},
            resources={"student_workers": 8},
        )
        found = plan(spec, ("h100-80g", 64))
        assert found.asked is None
        assert "global_batch_size" in found.notes[-1]
        assert found.best.trainers <= 4

    def test_two_halves_share_one_device(self) -> None:
        spec = spec_of(
            Pipeline.CROSS_TOKENIZER,
            "tide_cross",
            resources={"gpus_per_worker": 0.5, "gpus_per_teacher": 0.5},
        )
        found = plan(spec, ("h100-80g", 1))
        assert found.asked is not None
        assert found.asked.shares_devices
        assert found.asked.devices == 1


class TestForwards:
    def test_a_bound_of_tokens_bounds_memory(self) -> None:
        hyper = {"micro_batch_size": 64}
        bound = hyper | {"micro_batch_tokens": 4096}
        free, bounded = (
            plan(spec_of(Pipeline.CROSS_TOKENIZER, "none", hyperparameters=each), ("h200-141g", 1)).best
            for each in (hyper | {"micro_batch_size": 16}, bound)
        )
        assert bounded.trainer_memory.device_bytes < free.trainer_memory.device_bytes

    def test_a_larger_share_sorted_by_length_needs_less_padding(self) -> None:
        sizes = draw_sequences(CROSS, DataExpectations())
        kept = float(sizes.kept.mean())
        assert kept <= sizes.padded_kept(8, 64) <= sizes.padded_kept(8, 8)
        assert sizes.padded_kept(1, 64) == pytest.approx(kept)

    def test_a_student_in_parts_needs_less_memory_and_more_exchange(self) -> None:
        resources = {"student_workers": 8, "teacher_replicas": 1}
        whole, parts = (
            plan(spec_of(Pipeline.CROSS_TOKENIZER, "none", resources=resources | more), ("h100-80g", 8))
            for more in ({}, {"sharding": "fsdp"})
        )
        assert whole.asked is not None
        assert parts.asked is not None
        assert parts.asked.trainer_memory.device_bytes < whole.asked.trainer_memory.device_bytes
        # What the exchange costs, the update of an eighth of the weights may win back, and little more.
        assert parts.asked.seconds_per_step >= 0.95 * whole.asked.seconds_per_step
        assert any("not compared with runs" in note for note in parts.notes)


class TestLengthOfTheRun:
    def test_steps_of_epochs_over_rows(self) -> None:
        found = plan(CROSS, ("h100-80g", 8), data=DataExpectations(rows=1001))
        assert found.steps == -(-10 * 1001 // 64)
        assert found.best.hours == pytest.approx(found.steps * found.best.seconds_per_step / 3600)
        assert found.best.device_hours == pytest.approx(found.best.devices * found.best.hours)

    def test_without_rows_it_is_unknown(self) -> None:
        found = plan(CROSS, ("h100-80g", 8))
        assert found.steps is None
        assert any("--rows" in note for note in found.notes)

    def test_max_steps_need_no_rows(self) -> None:
        spec = spec_of(Pipeline.CROSS_TOKENIZER, "tide_cross", hyperparameters={"max_steps": 77})
        assert plan(spec, ("h100-80g", 8)).steps == 77


class TestSimulationAgrees:
    @pytest.mark.parametrize("depth", [2, 8])
    def test_where_the_trainer_is_the_limit(self, depth: int) -> None:
        spec = spec_of(
            Pipeline.CROSS_TOKENIZER,
            "tide_cross",
            resources={"student_workers": 1, "teacher_replicas": 2, "prefetch_steps": depth},
        )
        asked = plan(spec, ("h100-80g", 8), is_simulated=True).asked
        assert asked is not None
        assert asked.simulated is not None
        assert asked.limited_by == "trainer"
        assert asked.simulated.seconds_per_step == pytest.approx(asked.seconds_per_step, rel=0.01)
        assert asked.simulated.teacher_wait_ratio < 0.01

    def test_where_the_teacher_is_the_limit(self) -> None:
        spec = spec_of(
            Pipeline.SHARED_TOKENIZER,
            "tide_shared",
            resources={"student_workers": 4, "teacher_replicas": 1, "prefetch_steps": 4},
        )
        asked = plan(spec, ("h100-80g", 8), is_simulated=True).asked
        assert asked is not None
        assert asked.simulated is not None
        assert asked.limited_by == "teacher"
        assert asked.simulated.seconds_per_step == pytest.approx(asked.seconds_per_step, rel=0.03)
        assert asked.simulated.teacher_wait_ratio == pytest.approx(asked.teacher_wait_ratio, abs=0.03)
        assert asked.simulated.teacher_busy_ratio == pytest.approx(1.0, abs=0.02)

    def test_a_very_large_step_is_not_simulated(self) -> None:
        hyper = {"global_batch_size": 10_000}
        spec = spec_of(Pipeline.CROSS_TOKENIZER, "tide_cross", hyperparameters=hyper)
        found = plan(spec, ("h100-80g", 8), is_simulated=True)
        assert found.best.simulated is None
        assert any("Not simulated" in note for note in found.notes)


def test_the_balanced_ratio_balances() -> None:
    found = plan(SHARED, ("h100-80g", 64))
    best, ratio = found.best, found.balanced_replicas_per_trainer
    assert best.teacher is not None
    assert ratio is not None
    own = best.student.process_seconds
    theirs = best.teacher.process_seconds * best.teacher_replicas / (ratio * best.trainers)
    assert theirs == pytest.approx(own)
