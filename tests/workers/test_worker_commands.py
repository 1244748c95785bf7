"""``tide sample`` and ``tide convert`` as a person calls them."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from tokenizers import Tokenizer
from typer.testing import CliRunner, Result

from tide_core.models.conversion import initialise
from tide_core.models.dense import DenseDecoder
from tide_core.models.student import BlockDiffusionStudent
from tide_core.models.teachers.adapter import load_teacher
from tide_core.samplers.block import sample
from tide_core.samplers.settings import CommittedTokens, SamplerSettings, Schedule
from workers import commands
from workers.sampling import SamplingRequest, TextStream, sample_text
from workers.student.checkpoint import CheckpointStore, TrainingState
from workers.teachers.tiny import write_tiny_teacher

CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": True,
    "initializer_range": 0.4,
    "block_size": 8,
}


def run(*arguments: str | Path, stdin: str | None = None) -> Result:
    app = typer.Typer()
    app.command("sample")(commands.sample)
    app.command("convert")(commands.convert)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture(scope="module")
def checkpoint(qwen_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "student"
    vocab = Tokenizer.from_file(str(qwen_folder / "tokenizer.json")).get_vocab_size()
    initialise(CONFIG | {"vocab_size": vocab}, qwen_folder, folder, seed=1)
    return folder


def test_the_module_imports_nothing_heavy() -> None:
    heavy = "('torch', 'ray', 'transformers')"
    probe = f"import sys, workers.commands; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_sampling_prints_text_and_cost(checkpoint: Path) -> None:
    plain = run("sample", checkpoint, "Hello", "--max-new-tokens", "12")
    assert plain.exit_code == 0, plain.output
    assert "forwards" in plain.stderr
    answer = run("sample", checkpoint, "-", "--max-new-tokens", "12", "-o", "json", stdin="Hello")
    body = json.loads(answer.stdout)
    assert body["text"] == plain.stdout.rstrip("\n") or body["text"].strip() == plain.stdout.strip()
    assert body["forwards"] >= 1
    raw = json.loads(
        run("sample", checkpoint, "Hello", "--max-new-tokens", "12", "--raw", "-o", "json").stdout
    )
    assert raw["text"] != body["text"]


def test_streamed_text_is_the_whole_text(checkpoint: Path) -> None:
    options = ("--max-new-tokens", "16", "--steps", "5", "--temperature", "1", "--seed", "4")
    whole = json.loads(run("sample", checkpoint, "Hi", *options, "-o", "json").stdout)["text"]
    streamed = run("sample", checkpoint, "Hi", *options, "--stream")
    assert streamed.exit_code == 0, streamed.output
    assert streamed.stdout == whole + "\n"


def test_streaming_waits_for_what_comes_before_and_for_whole_characters(qwen_folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(qwen_folder / "tokenizer.json"))
    ids = tokenizer.encode("a日b", add_special_tokens=False).ids
    assert len(ids) > 3
    pieces: list[str] = []
    stream = TextStream(tokenizer, (), pieces.append)
    last = len(ids) - 1
    stream.accept(CommittedTokens(0, [last], [ids[last]], 1))
    assert pieces == []
    for place in range(last):
        stream.accept(CommittedTokens(0, [place], [ids[place]], place + 2))
        assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == "a日b"
    assert len(pieces) >= 2


def test_conversion_of_a_causal_model(qwen_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "causal"
    shutil.copytree(qwen_folder, source)
    vocab = Tokenizer.from_file(str(qwen_folder / "tokenizer.json")).get_vocab_size()
    DenseDecoder.from_config(CONFIG | {"vocab_size": vocab}).save_pretrained(source)
    done = run("convert", source, tmp_path / "student", "-o", "json", "--block-size", "4")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["model_type"] == "a2d-qwen3"
    assert json.loads((tmp_path / "student" / "config.json").read_text())["block_size"] == 4
    again = run("convert", source, tmp_path / "student")
    assert again.exit_code == 1
    assert again.stderr.startswith("error [target]: ")
    assert "exists already" in again.stderr


def test_a_student_goes_to_the_dllm_tools_and_back(checkpoint: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    done = run("convert", checkpoint, there, "--to", "dllm")
    assert done.exit_code == 0
    # Their samplers do not read it from config.json.
    assert "sample with block_size=8 there" in done.stdout
    assert run("convert", there, back).exit_code == 0
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (back / name).read_bytes() == (checkpoint / name).read_bytes()


def test_a_training_state_becomes_a_model(checkpoint: Path, tmp_path: Path) -> None:
    student = BlockDiffusionStudent.from_pretrained(checkpoint)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.1)
    student(torch.arange(8).view(1, 8)).square().sum().backward()
    optimizer.step()
    saved = CheckpointStore(str(tmp_path / "states"), keep=1).save(
        student, optimizer, TrainingState(step=3, total_steps=9, spec_digest="x")
    )
    options = ("--state", saved.location, "--to", "dllm", "-o", "json")
    done = run("convert", checkpoint, tmp_path / "there", *options)
    assert done.exit_code == 0, done.output
    found = BlockDiffusionStudent.from_pretrained(tmp_path / "there")
    before = BlockDiffusionStudent.from_pretrained(checkpoint).checkpoint_tensors()
    for key, tensor in student.checkpoint_tensors().items():
        assert torch.equal(found.checkpoint_tensors()[key], tensor)
        assert not torch.equal(before[key], tensor)
    assert "weights of a training state" in (tmp_path / "there" / "README.md").read_text()
    (Path(saved.location) / "model.safetensors").write_bytes(b"junk")
    assert (
        "training state" in run("convert", checkpoint, tmp_path / "again", "--state", saved.location).stderr
    )


def test_conversion_from_a_config(qwen_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 700}))
    options = ("--from-config", "--tokenizer", qwen_folder, "--seed", "3", "--block-size", "4")
    done = run("convert", tmp_path / "config.json", tmp_path / "fresh", *options)
    assert done.exit_code == 0, done.output
    assert "mask token" in done.stdout
    assert json.loads((tmp_path / "fresh" / "config.json").read_text())["block_size"] == 4


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("sample", "/nowhere", "Hi"), "/nowhere"),
        (("sample", "CHECKPOINT", "Hi", "--steps", "0"), "steps"),
        (("sample", "CHECKPOINT", "Hi", "--device", "cuda:99"), "device"),
        (("sample", "CHECKPOINT", "Hi", "--dtype", "int4"), "dtype"),
        (("sample", "CHECKPOINT", "", "--raw"), "prompt is empty"),
        (("sample", "CHECKPOINT", "Hi", "-o", "xml"), "text or json"),
        (("sample", "CHECKPOINT", "Hi", "--schedule", "cosine"), "even or dllm"),
        (("sample", "CHECKPOINT", "Hi", "-o", "json", "--stream"), "--stream"),
        (("convert", "CHECKPOINT", "TARGET", "--tokenizer", "x"), "--from-config"),
        (("convert", "/nowhere", "TARGET"), "/nowhere"),
        (("convert", "CHECKPOINT", "TARGET", "--to", "onnx"), "student or dllm"),
        (("convert", "CHECKPOINT", "TARGET", "--to", "sdar"), "expect Qwen3's tokenizer"),
        (("convert", "CHECKPOINT", "TARGET", "--from-config", "--to", "dllm"), "leave out"),
        (("convert", "CHECKPOINT", "TARGET", "--state", "/nowhere/step-00000001"), "training state"),
        (("convert", "CHECKPOINT", "TARGET", "--state", "CHECKPOINT"), "training state"),
    ],
)
def test_mistakes_get_one_line_and_no_trace(
    checkpoint: Path, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    names = {"CHECKPOINT": str(checkpoint), "TARGET": str(tmp_path / "target")}
    done = run(*(names.get(argument, argument) for argument in arguments))
    assert done.exit_code == 1
    assert expected in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / "target").exists()


def test_errors_are_json_where_json_was_asked_for() -> None:
    done = run("sample", "/nowhere", "Hi", "-o", "json")
    assert json.loads(done.stderr)["error"]["code"]


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("sdar", {"block_size": 4, "pads_prompt": False}),
        ("Fast_dLLM_Qwen", {"block_size": 8, "pads_prompt": False}),
        ("llada2_moe", {"block_size": 32, "pads_prompt": False}),
        ("llada", {"block_size": 32, "is_bidirectional": True}),
        ("Dream", {"block_size": 32, "is_bidirectional": True}),
        ("wedlm", {"block_size": 32}),
    ],
)
def test_a_familys_own_way_of_sampling_is_the_default(
    model_type: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    folder = write_tiny_teacher(tmp_path / "teacher", model_type)
    request = SamplingRequest(
        checkpoint=str(folder), prompt="one two three", max_new_tokens=10, is_raw=True, device="cpu"
    )
    model = load_teacher(folder)
    settings = SamplerSettings(max_new_tokens=10, **expected)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompt = tokenizer.encode("one two three", add_special_tokens=False).ids
    assert sample_text(request).text == tokenizer.decode(sample(model, [prompt], settings).ids[0])
    other = replace(request, pads_prompt=not settings.pads_prompt, schedule=Schedule.DLLM, steps=3)
    theirs = replace(settings, pads_prompt=not settings.pads_prompt, schedule=Schedule.DLLM, steps=3)
    assert sample_text(other).text == tokenizer.decode(sample(model, [prompt], theirs).ids[0])
