"""The families of models that Tide knows: one entry a family, from which everything else reads.

In: a ``model_type`` of a ``config.json``. Out: the family behind it, with its roles, names and switches.

The spec's validation, the control plane's checks, the loaders, the planner, the conversion and the page
docs/model-families.md read this table. A new family takes one entry here, one module with the names of its
weights (``model_class``) where no class has them yet, and one test file. Nothing else spells a family's name:
a test checks it. The table needs no torch and stands below everything: the job spec is validated by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

AttentionName = Literal["bidirectional", "block_staircase", "block_causal", "causal"]
"""What a teacher may see; ``contracts.scores.Layout`` describes each."""
ALL_ATTENTION: tuple[AttentionName, ...] = get_args(AttentionName)
USUAL_ATTENTION: tuple[AttentionName, ...] = ("bidirectional", "block_staircase", "block_causal")
"""What a family may see unless its entry says otherwise."""
WHOLE_SEQUENCE: tuple[AttentionName, ...] = ("bidirectional",)
"""What a family may see that was trained with full attention alone."""

FolderLayout = Literal["student", "dllm", "sdar"]
"""Whose folder of a student is written. ``student``: what jobs and ``tide sample`` take; ``dllm``: what the
dLLM tools load, and jobs too; ``sdar``: what the engines that serve SDAR load (sglang, lmdeploy), and jobs
too."""

STUDENT_PREFIX = "a2d-"
"""A block-diffusion student made of a causal family carries the family's name behind this prefix, as the dLLM
tools write it ("A2D": autoregressive to diffusion)."""
EMBEDDING_KEY, NORM_KEY, HEAD_KEY = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
"""Names of embedding, final norm and LM head in the weights of most families."""


@dataclass(frozen=True, slots=True)
class Switch:
    """A yes or no of an architecture: settled by the family, or named by a field of ``config.json``.

    Attributes:
        default: the value without a field, or where the file leaves the field out.
        field: name of the field; empty: the family settles it.
    """

    default: bool
    field: str = ""

    def read(self, config: Mapping[str, Any]) -> bool:
        """The value for a ``config.json``."""
        value = config.get(self.field) if self.field else None
        return self.default if value is None else bool(value)


NEVER, ALWAYS = Switch(False), Switch(True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """What differs between decoders of one shape.

    Attributes:
        qk_norm: queries and keys are normalised per head.
        qkv_bias: the projections to queries, keys and values have a bias.
        output_bias: attention's output projection has one.
        mlp_bias: the feed-forward has biases.
    """

    qk_norm: Switch = NEVER
    qkv_bias: Switch = NEVER
    output_bias: Switch = NEVER
    mlp_bias: Switch = NEVER

    @property
    def fields(self) -> frozenset[str]:
        """The fields of ``config.json`` that name a switch."""
        switches = (self.qk_norm, self.qkv_bias, self.output_bias, self.mlp_bias)
        return frozenset(switch.field for switch in switches if switch.field)


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureFields:
    """Fields of ``config.json`` that size a mixture of experts.

    Attributes:
        width: inner width of one expert.
        experts: routed experts of a layer; null: every layer is dense.
        chosen: of those, how many a token takes.
        shared: experts that see every token; 1 where the file leaves it out, 0 where it says null. Empty:
            there is no such field.
        shared_width: inner width of the experts that see every token, together; none where it is null. Empty:
            the width of ``shared`` experts.
        dense_layers: leading layers with a dense feed-forward; 0 where the file leaves it out. Empty: there
            is no such field.
        layer_pattern: a number for each layer, 0 where its feed-forward is dense. Empty: ``dense_layers``
        says.
        has_selection_bias: the choice of experts is biased, by one number an expert.
    """

    width: str
    experts: str
    chosen: str
    shared: str = ""
    shared_width: str = ""
    dense_layers: str = ""
    layer_pattern: str = ""
    has_selection_bias: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFamily:
    """One family.

    Attributes:
        model_type: its name in ``config.json``.
        title: what people call it.
        architecture: name of the class in ``architectures`` of ``config.json``.
        model_class: ``module:Class`` that holds the names of its weights and loads them as a teacher.
        switches: what its ``config.json`` may switch.
        becomes_student: a checkpoint of it can be the start of a block-diffusion student.
        student_of: ``model_type`` of the family whose student it becomes, where that is not its own: the
            weights have that family's shape and names.
        attention: what it may see as a teacher; the first is taken where a job leaves the choice to Tide and
            its usual choice is not among them.
        is_shifted: the logits at a position are of the **next** token, as in the causal model it comes from.
            The decoder turns them into answers at the token's own position, once, for all who ask.
        counts_from_start: its own tools count the blocks of a sequence from token 0; others pad the prompt to
            whole blocks.
        block_size: tokens of a block in its own tools.
        block_size_field: field of ``config.json`` that names the block size.
        published_as: other values of ``model_type`` under which it is found.
        shared_type: its ``model_type`` is one that other models use too; it is this family's where
            ``architectures`` says so, or is missing.
        other_classes: further names of its class in ``architectures``.
        embedding_key, norm_key, head_key: names of embedding, final norm and LM head in the weights.
        own_names: fields of ``config.json`` that the family calls otherwise: the usual name, and its own.
        mixture: where its layers are mixtures of experts, the fields that size them.
        explicit_fields: fields that ``config.json`` must name even when they are null.
    """

    model_type: str
    title: str
    architecture: str
    model_class: str
    switches: Switches
    becomes_student: bool = False
    student_of: str = ""
    attention: tuple[AttentionName, ...] = USUAL_ATTENTION
    is_shifted: bool = False
    counts_from_start: bool = False
    block_size: int | None = None
    block_size_field: str = "block_size"
    published_as: tuple[str, ...] = ()
    shared_type: bool = False
    other_classes: tuple[str, ...] = ()
    embedding_key: str = EMBEDDING_KEY
    norm_key: str = NORM_KEY
    head_key: str = HEAD_KEY
    own_names: tuple[tuple[str, str], ...] = ()
    mixture: MixtureFields | None = None
    explicit_fields: tuple[str, ...] = ()

    @property
    def student_type(self) -> str:
        """``model_type`` of a student made of it."""
        return STUDENT_PREFIX + (self.student_of or self.model_type)

    @property
    def knows_blocks(self) -> bool:
        """Whether it was trained with blocks; without, every token sees every other, later masks included."""
        return self.attention != WHOLE_SEQUENCE

    def standard_fields(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a ``config.json``, its sizes under their usual names too."""
        named = {usual: config[own] for usual, own in self.own_names if config.get(own) is not None}
        return {**config, **named}

    @property
    def class_stem(self) -> str:
        """What the names of its classes in transformers begin with."""
        return self.architecture.removesuffix("ForCausalLM")


DENSE_CLASS = "tide_core.models.dense:DenseDecoder"
STUDENT_CLASS = "tide_core.models.student:BlockDiffusionStudent"

LLADA2_MOE = ModelFamily(
    model_type="llada2_moe",
    title="LLaDA2",
    architecture="LLaDA2MoeModelLM",
    model_class="tide_core.models.teachers.llada2_moe:LLaDA2MoeModel",
    switches=Switches(
        qk_norm=Switch(True, "use_qk_norm"),
        qkv_bias=Switch(False, "use_qkv_bias"),
        output_bias=Switch(False, "use_bias"),
    ),
    counts_from_start=True,
    embedding_key="model.word_embeddings.weight",
    mixture=MixtureFields(
        width="moe_intermediate_size",
        experts="num_experts",
        chosen="num_experts_per_tok",
        shared="num_shared_experts",
        dense_layers="first_k_dense_replace",
    ),
)
LLADA2_VEOMNI = replace(
    LLADA2_MOE,
    model_type="llada2_moe_veomni",
    title="LLaDA2 of dFactory",
    model_class="tide_core.models.teachers.llada2_veomni:LLaDA2VeomniModel",
)
LLADA = ModelFamily(
    model_type="llada",
    title="LLaDA",
    architecture="LLaDAModelLM",
    model_class="tide_core.models.teachers.llada:LLaDAModel",
    switches=Switches(qkv_bias=Switch(False, "include_qkv_bias")),
    attention=WHOLE_SEQUENCE,
    shared_type=True,
    embedding_key="model.transformer.wte.weight",
    norm_key="model.transformer.ln_f.weight",
    head_key="model.transformer.ff_out.weight",
    own_names=(
        ("vocab_size", "embedding_size"),
        ("hidden_size", "d_model"),
        ("intermediate_size", "mlp_hidden_size"),
        ("num_hidden_layers", "n_layers"),
        ("num_attention_heads", "n_heads"),
        ("num_key_value_heads", "n_kv_heads"),
        ("max_position_embeddings", "max_sequence_length"),
        ("initializer_range", "init_std"),
        ("tie_word_embeddings", "weight_tying"),
    ),
)
LLADA_MOE = ModelFamily(
    model_type="llada_moe",
    title="LLaDA-MoE",
    architecture="LLaDAMoEModelLM",
    model_class="tide_core.models.teachers.llada_moe:LLaDAMoeModel",
    switches=Switches(
        qk_norm=Switch(False, "qk_layernorm"),
        qkv_bias=Switch(False, "attention_bias"),
        output_bias=Switch(False, "attention_bias"),
    ),
    attention=WHOLE_SEQUENCE,
    published_as=(LLADA.model_type, "lladamoe"),
    shared_type=True,
    other_classes=("LLaDAMoEModel",),
    own_names=(("intermediate_size", "dense_intermediate_size"),),
    mixture=MixtureFields(
        width="expert_intermediate_size",
        experts="num_experts",
        chosen="num_experts_per_tok",
        shared_width="shared_expert_intermediate_size",
        layer_pattern="moe_layer_freq",
        has_selection_bias=False,
    ),
)
WEDLM = ModelFamily(
    model_type="wedlm",
    title="WeDLM",
    architecture="WeDLMForCausalLM",
    model_class="tide_core.models.teachers.wedlm:WeDLMModel",
    # The defaults are the published class's own: the Qwen2.5-based 7B.
    switches=Switches(qk_norm=Switch(False, "qk_norm"), qkv_bias=Switch(True, "attention_bias")),
    # Its own order too: causal, what is known of a block before what is masked.
    attention=ALL_ATTENTION,
)
QWEN3 = ModelFamily(
    model_type="qwen3",
    title="Qwen3",
    architecture="Qwen3ForCausalLM",
    model_class=DENSE_CLASS,
    switches=Switches(
        qk_norm=ALWAYS,
        qkv_bias=Switch(False, "attention_bias"),
        output_bias=Switch(False, "attention_bias"),
    ),
    becomes_student=True,
)
QWEN2 = ModelFamily(
    model_type="qwen2",
    title="Qwen2",
    architecture="Qwen2ForCausalLM",
    model_class=DENSE_CLASS,
    switches=Switches(qkv_bias=ALWAYS),
    becomes_student=True,
)
LLAMA = ModelFamily(
    model_type="llama",
    title="Llama",
    architecture="LlamaForCausalLM",
    model_class=DENSE_CLASS,
    switches=Switches(
        qkv_bias=Switch(False, "attention_bias"),
        output_bias=Switch(False, "attention_bias"),
        mlp_bias=Switch(False, "mlp_bias"),
    ),
    becomes_student=True,
    # Where they are missing, transformers' Llama takes 1 and 2 for them.
    explicit_fields=("bos_token_id", "eos_token_id"),
)

SDAR = ModelFamily(
    model_type="sdar",
    title="SDAR",
    architecture="SDARForCausalLM",
    model_class=DENSE_CLASS,
    switches=QWEN3.switches,
    becomes_student=True,
    student_of=QWEN3.model_type,
    counts_from_start=True,
    block_size=4,
)
DREAM = ModelFamily(
    model_type="Dream",
    title="Dream",
    architecture="DreamModel",
    model_class=DENSE_CLASS,
    switches=QWEN2.switches,
    attention=WHOLE_SEQUENCE,
    is_shifted=True,
    shared_type=True,
)
FAST_DLLM_V2 = ModelFamily(
    model_type="Fast_dLLM_Qwen",
    title="Fast-dLLM v2",
    architecture="Fast_dLLM_QwenForCausalLM",
    model_class=DENSE_CLASS,
    switches=QWEN2.switches,
    is_shifted=True,
    counts_from_start=True,
    block_size=32,
    block_size_field="bd_size",
)

FAMILIES: dict[str, ModelFamily] = {
    family.model_type: family
    for family in (
        LLADA2_MOE,
        LLADA2_VEOMNI,
        LLADA,
        LLADA_MOE,
        WEDLM,
        SDAR,
        DREAM,
        FAST_DLLM_V2,
        QWEN3,
        QWEN2,
        LLAMA,
    )
}


def read_model_type(config: Mapping[str, Any]) -> str:
    """The ``model_type`` by which the table knows the family of a ``config.json``.

    Where several models use one name, ``architectures`` decides; what it names and no family has is given
    behind the ``model_type``, which makes a name that is not known.
    """
    name = str(config.get("model_type"))
    classes = config.get("architectures")
    named = set(map(str, classes)) if isinstance(classes, list) else set()
    known = [each for each in FAMILIES.values() if name in (each.model_type, *each.published_as)]
    for family in known:
        own = {family.architecture, *family.other_classes}
        if not named or not family.shared_type or own & named:
            return family.model_type
    return f"{name} ({', '.join(sorted(named))})" if known else name


def find_family(model_type: object) -> ModelFamily | None:
    """The family behind a ``model_type``, be it a student's or its own; None for what is not known."""
    name = str(model_type)
    if not name.startswith(STUDENT_PREFIX):
        return FAMILIES.get(name)
    family = FAMILIES.get(name.removeprefix(STUDENT_PREFIX))
    return family if family is not None and family.becomes_student and not family.student_of else None


def is_student_type(model_type: object) -> bool:
    """Whether a ``model_type`` is that of a block-diffusion student."""
    return str(model_type).startswith(STUDENT_PREFIX) and find_family(model_type) is not None


def causal_types() -> tuple[str, ...]:
    """``model_type`` of every family of which a student can be made."""
    return tuple(family.model_type for family in FAMILIES.values() if family.becomes_student)


def student_types() -> tuple[str, ...]:
    """``model_type`` of every block-diffusion student."""
    students = (family.student_type for family in FAMILIES.values() if family.becomes_student)
    return tuple(dict.fromkeys(students))


def teacher_types() -> tuple[str, ...]:
    """``model_type`` of every model that can be a teacher: all families, and students."""
    return (*FAMILIES, *student_types())


def class_path(model_type: str) -> str:
    """``module:Class`` that loads a ``model_type``.

    Raises:
        KeyError: it is not known.
    """
    if is_student_type(model_type):
        return STUDENT_CLASS
    return FAMILIES[model_type].model_class


def architecture_name(model_type: str) -> str:
    """What ``architectures`` in ``config.json`` says for a ``model_type``.

    Raises:
        KeyError: it is not known.
    """
    family = find_family(model_type)
    if family is None:
        raise KeyError(model_type)
    return f"A2D{family.class_stem}LMHeadModel" if is_student_type(model_type) else family.architecture
