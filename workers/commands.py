"""Commands that need torch or Ray, added to ``tide`` by entry points when this side is installed.

Importing this module costs nothing: what a command needs is imported when it runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tide.cli.failures import clear_errors
from tide_core.contracts.families import SDAR

OUTPUT_HELP = "text, or json for one JSON object on standard output."


def sample(
    checkpoint: Annotated[
        str, typer.Argument(help="Model folder, URL or hub name of a student (or a teacher).")
    ],
    prompt: Annotated[str, typer.Argument(help="What to answer; '-' reads it from standard input.")],
    *,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate, at most.")] = 256,
    steps: Annotated[int | None, typer.Option(help="Forwards in all. Default: one for each token.")] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Take every token that is surer than this, instead of a number of steps."),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token.")] = 0.0,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    block_size: Annotated[
        int | None, typer.Option(help="Tokens of a block. Default: the model's own, else 32.")
    ] = None,
    schedule: Annotated[
        str,
        typer.Option(
            help="Where steps do not divide: even (the remainder first), or dllm (as the dLLM tools, with a "
            "short last block)."
        ),
    ] = "even",
    pad_prompt: Annotated[
        bool | None,
        typer.Option(
            help="Pad the prompt to whole blocks, or count blocks from token 0. Default: as the model's own "
            "tools do."
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: as stored.")] = "auto",
    stream: Annotated[bool, typer.Option("--stream", help="Print text as soon as it is decided.")] = False,
    output: Annotated[str, typer.Option("--output", "-o", help=OUTPUT_HELP)] = "text",
) -> None:
    """Sample an answer from a checkpoint."""
    with clear_errors(output):
        from tide_core.contracts.errors import InvalidInputError
        from tide_core.samplers.settings import Schedule
        from workers.sampling import SamplingRequest, sample_text

        require_output(output)
        if schedule not in set(Schedule):
            raise InvalidInputError(f"--schedule takes {' or '.join(Schedule)}.", param="schedule")
        if stream and output == "json":
            raise InvalidInputError("--stream prints text: leave out -o json.", param="stream")
        request = SamplingRequest(
            checkpoint=checkpoint,
            prompt=typer.get_text_stream("stdin").read() if prompt == "-" else prompt,
            max_new_tokens=max_new_tokens,
            steps=steps,
            threshold=threshold,
            temperature=temperature,
            guidance=guidance,
            seed=seed,
            block_size=block_size,
            schedule=Schedule(schedule),
            pads_prompt=pad_prompt,
            is_raw=raw,
            device=device,
            dtype=dtype,
        )
        answer = sample_text(request, on_text=_print_piece if stream else None)
        if output == "json":
            typer.echo(json.dumps(answer.to_json(), ensure_ascii=False))
            return
        typer.echo("" if stream else answer.text)
        typer.echo(answer.summary(), err=True)


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A causal Qwen3, Qwen2 or Llama model, a student, or a model of the dLLM tools; with "
            "--from-config a config.json."
        ),
    ],
    target: Annotated[Path, typer.Argument(help="Folder to write; it must not exist yet.")],
    *,
    add_mask_token: Annotated[
        bool, typer.Option("--add-mask-token", help="Add a mask token where the tokenizer has none.")
    ] = False,
    from_config: Annotated[
        bool, typer.Option("--from-config", help="Make new weights for a config.json.")
    ] = False,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="With --from-config: folder of the tokenizer. Default: the config's own."),
    ] = None,
    seed: Annotated[int, typer.Option(help="With --from-config: seed of the weights.")] = 0,
    block_size: Annotated[
        int | None, typer.Option(help="Tokens of a block, written into the student's config for samplers.")
    ] = None,
    to: Annotated[
        str,
        typer.Option(
            help="Layout to write: student (Tide's), dllm (the a2d models of the dLLM tools), or "
            f"{SDAR.model_type} (what sglang and lmdeploy serve as SDAR)."
        ),
    ] = "student",
    state: Annotated[
        str | None,
        typer.Option(help="Training state (.../step-00000100) whose weights replace the source's."),
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help=OUTPUT_HELP)] = "text",
) -> None:
    """Make a block-diffusion student from a causal checkpoint, or a new one from a config; or rewrite a
    student for the dLLM tools (--to dllm) and back.
    """
    with clear_errors(output):
        from workers.conversion import ConversionRequest, convert_model

        require_output(output)
        report = convert_model(
            ConversionRequest(
                source=source,
                target=target,
                adds_mask_token=add_mask_token,
                is_from_config=from_config,
                tokenizer=tokenizer,
                seed=seed,
                block_size=block_size,
                layout=to,
                state=state,
            )
        )
        typer.echo(json.dumps(report.to_json()) if output == "json" else report.summary())


def demo(
    folder: Annotated[
        Path, typer.Option(help="Where the corpus, the report and the data of the demo's own service go.")
    ] = Path(".tide/demo"),
    url: Annotated[
        str | None,
        typer.Option(
            help="Address of a running Tide that can read this machine's files (its token: TIDE_TOKEN). "
            "Default: the demo starts one."
        ),
    ] = None,
    all_variants: Annotated[
        bool, typer.Option("--all-variants", help="Run all four variants in both pipelines: eight jobs.")
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Optimiser steps of each job. Default: the number that the demo was made for."
        ),
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help=OUTPUT_HELP)] = "text",
) -> None:
    """Run a whole distillation on this machine: two teachers, students, controls, and a table that compares
    them.

    Takes less than ten minutes on two cores. Nothing is downloaded.
    """
    with clear_errors(output):
        from workers.demo.main import DemoRequest, run
        from workers.demo.setting import STEPS

        require_output(output)
        report = run(DemoRequest(folder, url, all_variants, steps or STEPS), is_for_programs=output == "json")
        if output == "json":
            typer.echo(json.dumps(report))


def measure(
    file: Annotated[
        Path | None, typer.Argument(help="Where to write the cluster file; default: standard output.")
    ] = None,
    *,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="On a CPU: threads of a process; default: torch's own.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Devices (on a CPU: processes) of the cluster.")] = 1,
) -> None:
    """Measure what this machine's device can do, as a cluster file for `tide plan --cluster`."""
    with clear_errors("text"):
        import torch

        from tide_core.contracts.errors import InvalidInputError
        from tide_core.contracts.plan import Cluster, DeviceGroup
        from workers.device_figures import measure_device

        chosen = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        if chosen not in ("cpu", "cuda") or (chosen == "cuda" and not torch.cuda.is_available()):
            raise InvalidInputError(
                f"--device is {chosen!r}: give cpu, or cuda where there is one.", param="device"
            )
        kind = measure_device(torch.device(chosen), threads=threads)
        text = Cluster(devices=(DeviceGroup(kind=kind, count=count),)).model_dump_json(indent=2)
        if file is None:
            typer.echo(text)
        else:
            file.write_text(text + "\n", encoding="utf-8")
            typer.echo(f"Wrote {file}. Plan with: tide plan SPEC --cluster {file}", err=True)


def require_output(output: str) -> None:
    """Raise InvalidInputError unless the output form is known."""
    from tide_core.contracts.errors import InvalidInputError

    if output not in ("text", "json"):
        raise InvalidInputError(f"-o takes text or json, not {output!r}.", param="output")


def _print_piece(piece: str) -> None:
    typer.echo(piece, nl=False)
