"""Breaks the method on purpose, one small change at a time, and sees whether the tests notice.

Run as a script from the repository's root: it prints one Markdown table row a mutant, and ends with status 1
when a mutant survived. Golden values are left out of the run: they notice every change and prove nothing.
A fast test (test_mutants_apply.py) keeps the list in step with the code.
"""

import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutant:
    """One change: in ``module``, the first occurrence of ``before`` becomes ``after``."""

    module: str
    before: str
    after: str
    tests: str


def _mutants(module: str, tests: str, *changes: tuple[str, str]) -> list[Mutant]:
    return [Mutant(f"tide_core/{module}.py", before, after, tests) for before, after in changes]


MUTANTS = [
    *_mutants(
        "schedules/noise",
        "schedules",
        ("return 1.0 - t", "return t"),
        ("return t * 0.0 - 1.0", "return t * 0.0 + 1.0"),
        ("return 1.0 / t", "return 1.0 / (t + 1e-6)"),
        ("return 1.0 - _sine(t * (math.pi / 2))", "return 1.0 - _sine(t * math.pi)"),
        ("_sine((1.0 - t) * (math.pi / 2)) * (-math.pi / 2)", "_sine((1.0 - t) * (math.pi / 2)) * -1.0"),
        ("return -self.alpha_derivative(t) / _sine(", "return self.alpha_derivative(t) / _sine("),
        ("(t > 0) & (t <= 1)", "(t >= 0) & (t <= 1)"),
    ),
    *_mutants(
        "schedules/tidal",
        "schedules",
        ("lambda_init + (lambda_max - lambda_init)", "lambda_init + lambda_max"),
        ("return trained * (1.0 - t)", "return trained * t"),
        ("return lambda_max * (1.0 - t)", "return lambda_init * (1.0 - t)"),
        ("(1.0 - math.cos(math.pi * progress)) / 2.0", "1.0 - math.cos(math.pi * progress / 2.0)"),
        ("MIDRANGE_CENTRE = 0.5", "MIDRANGE_CENTRE = 0.45"),
        ("(2 * MIDRANGE_WIDTH**2)", "MIDRANGE_WIDTH**2"),
        ("_lambda(schedule, progress.adaptive, t,", "_lambda(schedule, progress.linear, t,"),
    ),
    *_mutants(
        "schedules/adaptive",
        "schedules",
        ("(previous - loss) / (previous + 1e-15)", "(loss - previous) / (previous + 1e-15)"),
        ("(1.0 - momentum_decay) * relative_fall", "relative_fall"),
        ("* (1.0 - state.progress)", "* state.progress"),
        ("max(linear_progress, state.progress + stride)", "state.progress + stride"),
    ),
    *_mutants(
        "masks/streams",
        "masks",
        ("{int(seed)}/{int(epoch)}", "{int(seed)}{int(epoch)}"),
        ("/{int(sample_index)}/", "/"),
        ("/{stream}", ""),
        ("* 2.0**-53", "* 2.0**-54"),
        ("words = raw_words(seed, epoch, 0,", "words = raw_words(seed, 0, 0,"),
    ),
    *_mutants(
        "masks/corruption",
        "masks",
        ("min_t + (1.0 - min_t) *", "min_t +"),
        ("is_maskable & (draws < 1.0 - noise.alpha(t))", "draws < 1.0 - noise.alpha(t)"),
        ("draws < 1.0 - noise.alpha(t)", "draws < noise.alpha(t)"),
        ("is_masked |= _of_chunks(is_active, chunk_ids)", "is_masked &= _of_chunks(is_active, chunk_ids)"),
        ("return has_masked & ~has_ignored", "return has_masked"),
        ("np.append(per_chunk, np.uint8(0))", "np.append(per_chunk, np.uint8(1))"),
        ("in_b.astype(np.uint8) * np.uint8(FIRST_VIEW)", "in_b.astype(np.uint8) * np.uint8(SECOND_VIEW)"),
        (
            "groups[teacher_positions[has_teacher]] = student_groups[has_teacher]",
            "groups[np.maximum(teacher_positions, 0)] = student_groups",
        ),
        ("is_masked.sum()) / maskable if", "is_masked.sum()) / labels.size if"),
    ),
    *_mutants(
        "masks/compdemo",
        "masks",
        ("is_masked.shape) < ratio", "is_masked.shape) > ratio"),
        ("return is_masked & draws, is_masked & ~draws", "return is_masked & draws, ~draws"),
    ),
    *_mutants(
        "masks/block_attention",
        "masks",
        (
            "(key_copy == CLEAN) & (key_block < query_block)",
            "(key_copy == CLEAN) & (key_block <= query_block)",
        ),
        ("(query_block == key_block) & (query_copy == key_copy)", "query_block == key_block"),
        (
            "(key_copy == CLEAN) & (key_block <= query_block)",
            "(key_copy == CLEAN) & (key_block >= query_block)",
        ),
        ("[0, 1] if x0_first else [1, 0]", "[1, 0] if x0_first else [0, 1]"),
        (
            "return (is_key[:, None, :] | is_self)[:, None]",
            "return (is_key[:, None, :] & torch.ones_like(is_self))[:, None]",
        ),
        ("(blocks[None, :] <= blocks[:, None])", "(blocks[None, :] < blocks[:, None])"),
        ("masked_fill(self.is_mask_token, mask_token_id)", "masked_fill(self.copy > 0, mask_token_id)"),
        ("(blocks < last_kept) & is_token", "(blocks < last_kept - 1) & is_token"),
        ("(blocks < last_kept) & is_token", "(blocks <= last_kept) & is_token"),
        ("is_kept_block.gather(1, blocks) & is_token", "is_kept_block.gather(1, blocks)"),
        ("last_kept = torch.maximum(last_kept, last)", "last_kept = last"),
        ("return [*kept, (blocks < last_kept) & is_token]", "return [*kept, is_token]"),
        ("order % seq_len", "order % (seq_len + 1)"),
        ("return row[by_source], column[by_source]", "return row, column"),
        ("+ is_clean.int())", "+ (~is_clean).int())"),
        ("torch.where(is_padding, own_place, number * 4 + copy.int())", "number * 4 + copy.int()"),
        ("number * 4 + copy.int()", "number * 4"),
        (".masked_fill(is_padding, 0)\n    own", "\n    own"),
    ),
    *_mutants(
        "losses/cross_entropy",
        "losses",
        ("return -target_log_probs(", "return target_log_probs("),
        (".log_softmax(dim=-1)", ".log_softmax(dim=0)"),
    ),
    *_mutants(
        "losses/kl",
        "losses",
        (
            "return temperature**2 * kl_of_log_probs(teacher, student)",
            "return temperature * kl_of_log_probs(teacher, student)",
        ),
        ("kl_of_log_probs(teacher, student)", "kl_of_log_probs(student, teacher)"),
        (
            "return temperature**2 * kl_of_log_probs(student, teacher)",
            "return kl_of_log_probs(student, teacher)",
        ),
        ("(log_p - log_q) - p + q", "(log_p - log_q) + p + q"),
        ("teacher_logits.detach()", "teacher_logits"),
        ("(student_logits.to(dtype) / temperature)", "(student_logits.to(dtype) * temperature)"),
    ),
    *_mutants(
        "losses/tidal",
        "losses",
        (
            "(1.0 - share) * student.detach() + share * teacher",
            "share * student.detach() + (1.0 - share) * teacher",
        ),
        ("student.detach()", "student"),
        ("temperature**2 * kl_of_log_probs(target, student)", "kl_of_log_probs(target, student)"),
        ("+ share * teacher).log_softmax(dim=-1)", "+ share * teacher)"),
    ),
    *_mutants(
        "losses/calm",
        "losses",
        ("torch.where(chunk_ids < 0, n_chunks, chunk_ids)", "torch.where(chunk_ids < 0, 0, chunk_ids)"),
        (
            "_cross_entropy(teacher.yes.exp(), teacher.no.exp(), student)",
            "_cross_entropy(student.yes.exp(), student.no.exp(), student)",
        ),
        (
            "(1.0 - share) * student.yes.detach().exp() + share * teacher.yes.exp()",
            "share * student.yes.detach().exp() + (1.0 - share) * teacher.yes.exp()",
        ),
        ("student.no.detach()", "student.no"),
        (
            "_cross_entropy(student.yes.exp(), student.no.exp(), teacher)",
            "_cross_entropy(student.yes.detach().exp(), student.no.detach().exp(), teacher)",
        ),
        (
            "yes + student.no.exp() * (student.no - teacher.no)",
            "yes - student.no.exp() * (student.no - teacher.no)",
        ),
        ("return -(yes * model.yes + no * model.no)", "return yes * model.yes + no * model.no"),
        ("(chunk_lp / temperature)", "(chunk_lp * temperature)"),
        ("math.log(floor) if floor > 0.0 else None", "None"),
        ("min(math.log1p(-floor), -torch.finfo(chunk_lp.dtype).eps / 2)", "math.log1p(-floor)"),
        ("x.clamp(max=-math.log(2.0))", "x"),
        ("teacher_chunk_lp.detach()", "teacher_chunk_lp"),
        ("share = share[:, None]", "share = share[None, :]"),
    ),
    *_mutants(
        "losses/debiasing",
        "losses",
        ("return inside - scores.logsumexp(dim=-1)", "return inside"),
        ("masked_fill(~is_boundary,", "masked_fill(is_boundary,"),
        ("return chunk_lp + boundary_lp", "return chunk_lp - boundary_lp"),
        (".exp() >= threshold", ".exp() < threshold"),
        (
            "inside.add(logits.masked_fill(~is_boundary,",
            "inside.add(logits.masked_fill(is_boundary,",
        ),
        (
            "(self._inside.log_total - self._everything.log_total)",
            "(self._everything.log_total - self._inside.log_total)",
        ),
        (".mul_(is_boundary)", ""),
        ("share -= (logits - everything.to(logits.dtype)[:, None]).exp_()", "pass"),
        ("share.mul_(grad[:, None])", "share"),
    ),
    *_mutants(
        "losses/fused_linear",
        "losses",
        ("probs.mul_(-grad[:, None])", "probs.mul_(grad[:, None])"),
        ("(grad * is_here)[:, None]", "grad[:, None]"),
        ("torch.where(is_here, found.double(), self._target_logits)", "found.double()"),
        (
            "self._share[:, 0] * self._target_side.expected - lifted",
            "self._target_side.expected - lifted",
        ),
        (
            "self._temperature**2 * divergence).to(dtype)",
            "self._temperature * divergence).to(dtype)",
        ),
        ("student_probs.sub_(target_probs)", "target_probs.sub_(student_probs)"),
        ("mul_((grad * self._temperature)[:, None])", "mul_(grad[:, None])"),
        ("product = shelf.take(start)", "product = shelf.take(0)"),
        (
            "(self._student_side.expected - lifted)",
            "(self._student_side.expected + lifted)",
        ),
        (
            "student.sub_(teacher).sub_(self._student_side.expected.to(dtype)[:, None])",
            "student.sub_(teacher)",
        ),
    ),
    *_mutants(
        "losses/head_pass",
        "losses",
        ("self.expected = faded + here * (peak - grown).exp()", "self.expected = faded + here"),
        ("self.expected * (self.log_total - grown).exp()", "self.expected"),
        ("start + width, vocab", "start + width - 1, vocab"),
        ("self._hidden_sum += grad_logits", "self._hidden_sum = grad_logits"),
        ("slice_size // max(1, rows)", "slice_size"),
        ("torch.where(is_here, ids - start, 0)", "torch.where(is_here, ids, 0).clamp(max=width - 1)"),
        ("columns.index_add_(0, statistic.rows, part)", "columns[: part.shape[0]] += part"),
        ("part if total is None else total.add_(part)", "part"),
        ("logits[:, : statistic.columns - start]", "logits"),
        ("self._kept[start] = product", "self._kept[start] = product * 2"),
        ("if size <= self._left:", "if True:"),
        ("left = max(0, left - wanted)", "pass"),
        ("self.head[start:stop] = 0.0", "pass"),
    ),
    *_mutants(
        "losses/sparse",
        "losses",
        (
            'log_tail = log_probs.scatter(1, ids, float("-inf")).logsumexp(dim=-1)',
            "log_tail = log_probs.logsumexp(dim=-1)",
        ),
        ("log_probs.gather(1, ids.long()), log_tail]", "log_probs.gather(1, ids.long()), -log_tail]"),
        ("grad[:, -1:] * tail_share - grad_sum", "grad[:, -1:] * tail_share + grad_sum"),
        ("tail_share[row, column] = 0.0", "tail_share[row, column] = 1.0"),
        ("grad_logits.div_(self._temperature)", "grad_logits"),
        ('logits[row, column] = float("-inf")', "logits[row, column] = 0.0"),
        ("student_buckets[:, k:].clamp(min=lowest)", "student_buckets[:, k:]"),
        ("fits = scale * shares <= cap", "fits = scale * shares >= cap"),
        ("scale = (1.0 - capped * cap) /", "scale = 1.0 /"),
        ("(1.0 - before).clamp(min=1e-300)", "1.0"),
        ("torch.where(capped < first, cap,", "torch.where(capped <= first, cap,"),
        ("teacher_log_probs[:, -1], teacher_log_tail", "teacher_log_probs[:, 0], teacher_log_tail"),
        ("return filled.log() + mass", "return filled.log()"),
        ("place + start], dim=1)", "place], dim=1)"),
        ("temperature**2 * tidal_kl(student", "tidal_kl(student"),
    ),
    *_mutants(
        "objective/objective",
        "objective",
        ("total = total + term.weight * value", "total = total + value"),
        ("noise.weight(inputs.t)[inputs.masked_row]", "noise.weight(inputs.t)[0]"),
        ("max(1, counts.maskable_tokens)", "max(1, counts.masked_positions)"),
        ("max(1, inputs.normalisers.masked_positions)", "max(1, inputs.normalisers.active_chunks)"),
        ("max(1, inputs.normalisers.active_chunks)", "max(1, teacher.log_probs.shape[0])"),
        ("divergence = divergence * _at_aligned(weight, inputs, teacher)", "pass"),
        (
            "per_row[inputs.masked_row[teacher.aligned_masked_index]]",
            "per_row[inputs.masked_row][: teacher.aligned_masked_index.shape[0]]",
        ),
        (
            "teacher.shared_vocab, teacher.aligned_masked_index",
            "teacher.shared_vocab, torch.arange(len(teacher.aligned_masked_index))",
        ),
        ("share.sum() / _sequences(counts, term.normalisation)", "share.sum()"),
        ("inputs.progress, inputs.t)[row]", "inputs.progress, inputs.t)[:1]"),
        ("term.timestep_weight)[row]", "term.timestep_weight)[:1]"),
        ("teacher_lp[kept], teacher.chunk_row[kept]", "teacher_lp[kept], teacher.chunk_row[: len(kept)]"),
        ("own.masked_scatter(boundaries.student_next >= 0, read[BOUNDARIES])[kept]", "own[kept]"),
        ("read[BOUNDARIES])[kept]", "read[BOUNDARIES])[: len(kept)]"),
        ("rows=place[place >= 0]", "rows=place.clamp(min=0)[: int((place >= 0).sum())]"),
        (
            "debias(student_lp, own), debias(teacher_lp, theirs)",
            "debias(student_lp, theirs), debias(teacher_lp, own)",
        ),
        ("if not options.debias:", "if options.debias:"),
    ),
    *_mutants(
        "objective/inputs",
        "objective",
        ("tail = self.log_tails[:, self.temperatures.index(temperature)]", "tail = self.log_tails[:, 0] * 0"),
        ("scaled = self.logits / temperature", "scaled = self.logits"),
        ("scaled - total[:, None], tail - total", "scaled - total[:, None], tail"),
    ),
    *_mutants(
        "studies/statistics",
        "studies",
        (
            "gaps[chosen].sum(axis=1) / divisor[chosen].sum(axis=1)",
            "(gaps / divisor)[chosen].mean(axis=1)",
        ),
        ("gaps = first - second", "gaps = second - first"),
        (
            "widening * float(stats.t.ppf((1.0 + level) / 2.0, freedom))",
            "float(stats.norm.ppf((1.0 + level) / 2.0))",
        ),
        ("min(1.0, 2.0 * float(stats.t.sf(score, freedom)))", "min(1.0, float(stats.t.sf(score, freedom)))"),
        ("gaps.sum() / divisor.sum()", "(gaps / divisor).mean()"),
        ("total = max(of_seeds + of_items - of_rest, of_seeds, of_items, of_rest)", "total = of_items"),
        ("given.size - np.arange(given.size)", "given.size - np.zeros(given.size)"),
    ),
    *_mutants(
        "models/quantisation",
        "models/test_quantisation.py",
        ("lowest = -(1 << (bits - 1))", "lowest = -(1 << (bits - 1)) + 1"),
        ("groups.abs().argmax(2, keepdim=True)", "groups.argmax(2, keepdim=True)"),
        ("(extreme / lowest).bfloat16()", "(extreme / -lowest).bfloat16()"),
        ("steps = scales.float()", "steps = (extreme / lowest).float()"),
        (".round().clamp(lowest, -lowest - 1)", ".clamp(lowest, -lowest - 1)"),
        ("clamp(lowest, -lowest - 1)", "clamp(lowest + 1, -lowest - 1)"),
        ("clamp(lowest, -lowest - 1)", "clamp(lowest, -lowest)"),
        ("(multiples + 8).view(torch.uint8)", "(multiples + 7).view(torch.uint8)"),
        ("groups[..., _HALF:] << 4", "groups[..., _HALF:] << 3"),
        ("(halves & 15, halves >> 4)", "(halves >> 4, halves & 15)"),
        ("not bool(weight.isfinite().all())", "False"),
        ("codes if weight.ndim == 3 else codes[0]", "codes[:1] if weight.ndim == 3 else codes[0]"),
        ("return whole[..., : self.columns]", "return whole"),
        ("self.matrix.restore(inputs.dtype), self.bias", "self.matrix.restore(inputs.dtype)"),
        ("yield self.gate_up_matrix.restore(dtype, expert)", "yield self.gate_up_matrix.restore(dtype, 0)"),
        ("elif isinstance(child, Experts):", "elif isinstance(child, int):"),
        ("+ sum(quantised)", ""),
    ),
    *_mutants(
        "models/decoder",
        "models/test_quantisation.py",
        ('if self.quantisation != "none":', 'if self.quantisation == "never":'),
        ('if quantisation != "none":', 'if quantisation == "int4":'),
    ),
    *_mutants(
        "checkpoints/fingerprint",
        "models/test_quantisation.py",
        ('head["quantisation"] = quantisation', 'head["quantisation"] = "some"'),
    ),
    *_mutants(
        "checkpoints/special_tokens",
        "checkpoints/test_special_tokens.py",
        ("if text is None and ids:", "if ids:"),
        ("if mask is not None and ids:", "if False:"),
        ("token.content.lower() in", "token.content in"),
        ("in settings.items() if name is not None", "in settings.items()"),
        ('else SpecialToken("", ids[0])', "else None"),
    ),
    *_mutants(
        "checkpoints/mask_addition",
        "models/test_conversion.py",
        ("if found is not None and found.text:", "if False:"),
        ("token_id=None if found is None else found.id", "token_id=None"),
    ),
    *_mutants(
        "contracts/families",
        "contracts/test_families.py",
        ("family.becomes_student and not family.student_of else None", "not family.student_of else None"),
        ("self.default if value is None else bool(value)", "self.default"),
    ),
    *_mutants(
        "checkpoints/hub_names",
        "checkpoints/test_hub_names.py",
        ('"--" not in text', '"---" not in text'),
        ("{1,96}", "+"),
    ),
    *_mutants(
        "models/loading",
        "models/test_checkpoint_files.py",
        ("if not torch.equal(head.get_tensor(key)", "if False and not torch.equal(head.get_tensor(key)"),
        ("if missing or extra or wrong:", "if missing or extra:"),
    ),
    *_mutants(
        "models/dllm_layout",
        "models/test_dllm_layout.py",
        ("if mask.text != DEFAULT_MASK_TOKEN:", "if False:"),
        ('settings["mask_token"] = mask.text', 'settings["mask_token"] = None'),
        ("for token_id in eos_token_ids:", "for token_id in reversed(eos_token_ids):"),
    ),
    *_mutants(
        "masks/block_attention",
        "masks/test_block_masks.py",
        ("(order[row, key] < limit[row, query])", "(order[row, key] <= limit[row, query])"),
        ("(code[row, key] == code[row, query])", "(code[row, key] == code[row, key])"),
        ('device.type == "cuda" and kept >= BLOCK_MASK_FROM', "kept >= BLOCK_MASK_FROM"),
    ),
    *_mutants(
        "evaluation/noise",
        "evaluation/test_held_out.py",
        ("(np.arange(self.count) + offset)", "(np.arange(self.count) + 0.5)"),
        ("float(self.schedule.weight(float(t))) / self.count", "float(self.schedule.weight(float(t)))"),
        ("sample.student_chunk_ids if by_chunk else None", "None"),
        ("t * 0.0 + self.schedule.alpha(self.t)", "t * 0.0 + self.schedule.alpha(0.5)"),
    ),
    *_mutants(
        "evaluation/comparisons",
        "evaluation/test_held_out.py",
        ("teacher.exp() * (teacher - student)", "student.exp() * (teacher - student)"),
        ("student.exp() * (student - teacher)", "teacher.exp() * (student - teacher)"),
        ("student_head[:shared_vocab]", "student_head"),
        ("logits.argmax(dim=1) == target_ids[rows]", "logits.argmin(dim=1) == target_ids[rows]"),
        ("log_rest_p.exp() * (log_rest_p - log_rest_q)", "log_rest_q.exp() * (log_rest_p - log_rest_q)"),
    ),
    *_mutants(
        "evaluation/tally",
        "evaluation/test_held_out.py",
        ("if total > 0:", "if True:"),
        ("self.columns.get(column, np.zeros(self.sequences)) + sums", "sums"),
        ("Ratio(Column.CONTENT_NLL, Column.CONTENT_BYTES)", "Ratio(Column.NLL, Column.CONTENT_BYTES)"),
    ),
    *_mutants(
        "evaluation/passes",
        "evaluation/test_held_out.py",
        ("-_to_doubles(readout.log_probs) * batch.weight", "-_to_doubles(readout.log_probs)"),
        ("_to_doubles(readout.is_hit)[content]", "_to_doubles(~readout.is_hit)[content]"),
    ),
    *_mutants(
        "evaluation/exact_match",
        "evaluation/test_exact_match.py",
        ("answer.strip() == task.reference.strip()", "answer == task.reference"),
        ("if len(tasks) == spec.limit:", "if False:"),
    ),
    *_mutants(
        "evaluation/teacher_sampling",
        "evaluation/test_exact_match.py",
        ("logits[:, mask_token_id] = -torch.inf", "pass"),
        ("or number == surest", "or number == 0"),
        ("width = block_size - length % block_size", "width = block_size"),
        ("kept = list(tokens[:limit])", "kept = list(tokens)"),
    ),
]


def workspace(folder: Path) -> None:
    """A copy of the method and its tests."""
    shutil.copytree(ROOT / "tide_core", folder / "tide_core", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(
        ROOT / "tests",
        folder / "tests",
        ignore=shutil.ignore_patterns("__pycache__", "service", "workers", "end_to_end", "deploy", "faults"),
    )
    shutil.copy(ROOT / "pyproject.toml", folder)


def change(mutant: Mutant, folder: Path) -> None:
    """Make the mutant's change in a workspace."""
    target = folder / mutant.module
    text = target.read_text()
    assert mutant.before in text, f"{mutant.module} no longer holds {mutant.before!r}"
    target.write_text(text.replace(mutant.before, mutant.after, 1))


def run_tests(tests: str, folder: Path) -> int:
    """Exit status of one folder of tests, in a fork that already holds the heavy imports."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    with open(os.devnull, "w") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    import pytest

    options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--timeout=120"]
    status = pytest.main([*options, str(folder / "tests" / "tide_core" / tests)])
    os._exit(int(status))


def main() -> int:
    """Run all mutants (or those whose module contains the first argument) and print the table."""
    import beartype  # noqa: F401
    import hypothesis  # noqa: F401
    import jaxtyping  # noqa: F401
    import torch

    torch.set_num_threads(1)
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [mutant for mutant in MUTANTS if wanted in mutant.module]
    for tests in sorted({mutant.tests for mutant in chosen}):
        with tempfile.TemporaryDirectory() as folder:
            workspace(Path(folder))
            assert run_tests(tests, Path(folder)) == 0, f"the tests in {tests} fail without any mutant"
    survivors = 0
    print("| module | before | after | caught | seconds |\n| --- | --- | --- | --- | --- |")
    for mutant in chosen:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            workspace(Path(folder))
            change(mutant, Path(folder))
            # 1 is "tests failed"; anything else (collection error, nothing run) proves nothing.
            is_caught = run_tests(mutant.tests, Path(folder)) == 1
        survivors += not is_caught
        before, after = (" ".join(text.replace("|", "\\|").split()) for text in (mutant.before, mutant.after))
        verdict = "yes" if is_caught else "**no**"
        seconds = f"{time.monotonic() - started:.1f}"
        print(f"| {mutant.module} | `{before}` | `{after}` | {verdict} | {seconds} |", flush=True)
    print(f"\n{survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
