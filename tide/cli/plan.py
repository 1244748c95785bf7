"""`tide plan`: what a job would need of a cluster, before anything is spent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tide.cli.failures import clear_errors
from tide.cli.options import Output, OutputOption, UrlOption

if TYPE_CHECKING:
    from tide_core.contracts.plan import Placement, Plan, StepCost

_GIB = 2**30


def plan_job(
    spec: Annotated[str, typer.Argument(help="Job spec, a YAML or JSON file; '-' reads standard input.")],
    *,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Cluster, a YAML or JSON file: devices: [{kind: h100-80g, count: 8}]. A kind is a name, or "
            "the figures that `tide measure` writes."
        ),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, max=65536, help="Instead of --cluster: the number of GPUs of one --kind."),
    ] = None,
    kind: Annotated[
        str, typer.Option(help="With --gpus: h100-80g, h200-141g, a100-80g or a100-40g.")
    ] = "h100-80g",
    rows: Annotated[
        int | None, typer.Option(min=1, help="Sequences of an epoch: needed to say steps and hours.")
    ] = None,
    student_tokens: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a sequence; default: data.student_length.")
    ] = None,
    prompt_share: Annotated[
        float, typer.Option(min=0, max=0.999, help="Share of a sequence that is prompt, from 0 to 1.")
    ] = 0.5,
    teacher_tokens_per_token: Annotated[
        float, typer.Option(min=0.01, max=16, help="Teacher tokens for each student token.")
    ] = 1.0,
    teacher_config: Annotated[
        str | None,
        typer.Option(help="The teacher's config.json, when the server has no folder of the model."),
    ] = None,
    student_config: Annotated[
        str | None, typer.Option(help="The student's config.json, in the same case.")
    ] = None,
    simulate: Annotated[
        bool,
        typer.Option(
            "--simulate/--no-simulate", help="Simulate the requests to the teacher, event by event."
        ),
    ] = True,
    url: UrlOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Say what a job would need: memory, work of a step, the best split of the GPUs, steps and hours.

    Nothing is stored and nothing runs. Exit status 1 when the job does not fit, with what to change.
    """
    with clear_errors(output):
        from tide.cli.opening import open_client
        from tide.cli.output import print_json
        from tide.cli.spec_file import read_spec

        data = {
            "rows": rows,
            "student_tokens": student_tokens,
            "prompt_share": prompt_share,
            "teacher_tokens_per_token": teacher_tokens_per_token,
        }
        body = {
            "spec": read_spec(spec),
            "cluster": _cluster(cluster, gpus, kind),
            "data": data,
            "teacher_config": read_spec(teacher_config) if teacher_config else None,
            "student_config": read_spec(student_config) if student_config else None,
            "simulate": simulate,
        }
        with open_client(url) as client:
            plan = client.jobs.plan(body)
        if output is Output.JSON:
            print_json(plan)
        else:
            _print(plan)


def _cluster(file: str | None, gpus: int | None, kind: str) -> dict[str, Any]:
    from tide.cli.spec_file import read_spec
    from tide_core.contracts.errors import InvalidInputError

    if (file is None) == (gpus is None):
        raise InvalidInputError(
            "Say where the job would run: either --cluster FILE or --gpus N (with --kind).",
            code="no_cluster",
            param="cluster",
        )
    return read_spec(file) if file is not None else {"devices": [{"kind": kind, "count": gpus}]}


def _print(plan: Plan) -> None:
    from tide.cli.output import print_table

    asked = {} if plan.asked is None else {"asked": plan.asked}
    placements = {**asked, "best": plan.best}
    columns = [_figures(plan, placement) for placement in placements.values()]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    print_table(["", *(name.upper() for name in placements)], rows, when_empty="")
    typer.echo()
    _print_memory(plan.best)
    _print_facts(plan)
    for note in plan.notes:
        typer.echo(f"- {note}")


def _figures(plan: Plan, placement: Placement) -> dict[str, str]:
    """One column of the table."""
    from tide.cli.output import duration

    teacher, student, played = placement.teacher, placement.student, placement.simulated
    hours = placement.hours
    shared = " on the same device" if placement.shares_devices else ""
    figures = {
        "trainers": f"{placement.trainers} x {placement.trainer_kind}",
        "teacher replicas": f"{placement.teacher_replicas} x {placement.teacher_kind}{shared}"
        if teacher
        else "none",
        "devices": str(placement.devices),
        "seconds a step": f"{placement.seconds_per_step:.3g}",
        "  trainer": _seconds(student),
        "  teacher": _seconds(teacher),
        "  wire": f"{placement.wire_seconds:.2g} ({placement.wire_bytes_per_step / 1e6:.3g} MB)",
        "limited by": placement.limited_by,
        "teacher wait": f"{placement.teacher_wait_ratio:.1%}",
        "  simulated": f"{played.teacher_wait_ratio:.1%}, {played.seconds_per_step:.3g} s a step"
        if played
        else "-",
        "student tokens a second": f"{placement.tokens_per_second:,.0f}",
        "steps": f"{plan.steps:,}" if plan.steps else "?",
        "duration": duration(hours * 3600) if hours is not None else "?",
        "device hours": f"{placement.device_hours:,.1f}" if hours is not None else "?",
    }
    return figures


def _seconds(cost: StepCost | None) -> str:
    if cost is None:
        return "-"
    return f"{cost.process_seconds:.3g} ({cost.limited_by}, {cost.flops / 1e12:.3g} TFLOP)"


def _print_memory(placement: Placement) -> None:
    """Parts of each process, on its device and on the host."""
    from tide.cli.output import print_table

    rows = []
    for role, memory in (("trainer", placement.trainer_memory), ("teacher", placement.teacher_memory)):
        if memory is None:
            continue
        for place, parts in (("device", memory.device), ("host", memory.host)):
            rows += [[role, place, part.name, _gib(part.bytes)] for part in parts]
        rows.append([role, "device", "all", f"{_gib(memory.device_bytes)} of {_gib(memory.available_bytes)}"])
    print_table(["PROCESS", "WHERE", "MEMORY", "GIB"], rows, when_empty="")
    typer.echo()


def _print_facts(plan: Plan) -> None:
    for role, facts in (("student", plan.student), ("teacher", plan.teacher)):
        typer.echo(
            f"{role}: {facts.model_type}, {facts.parameters / 1e9:.3g} B parameters "
            f"({facts.active_parameters / 1e9:.3g} B a token), config from: {facts.source}"
        )
    noise = plan.noise
    typer.echo(
        f"a sequence: {noise.student_kept_tokens:.0f} tokens in the student's layout "
        f"({noise.student_padded_tokens:.0f} padded), {noise.student_masked_tokens:.0f} masked; "
        f"{noise.teacher_tokens:.0f} in the teacher's"
    )
    if plan.want is not None:
        ratio = plan.balanced_replicas_per_trainer
        typer.echo(
            f"on the wire: {plan.wire_bytes_per_masked_token} bytes a masked token ({plan.want}); "
            f"balanced at {ratio:.3g} replicas a trainer"
        )


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f}"
