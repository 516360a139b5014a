"""The family file: one YAML document that says everything a build needs."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kinfolk.family.base import Named, Spec, check_names
from kinfolk.family.card import CardFields
from kinfolk.family.data import Data, Tokenizer, TrainedTokenizer, Version
from kinfolk.family.faults import MisfitError
from kinfolk.family.patch import Patch
from kinfolk.family.peak_rules import PeakRule, Size, peak_ratio
from kinfolk.family.rate_transfer import Factors, parameter_factors
from kinfolk.family.recipe import Growth, Recipe, halves
from kinfolk.family.shapes import Architecture, Shape, growth_misfits, parameter_count


class Model(Spec):
    """What all members share and growth never changes."""

    architecture: Architecture = "llama"
    context_length: int = Field(default=256, ge=8, le=10**9)
    vocab_size: int | None = Field(default=None, ge=1, le=10**9)
    """Rows of the embedding; by default as many as the tokenizer has entries. More is padding."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    rms_norm_eps: float = Field(default=1e-5, gt=0)


class Member(Named):
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


class Family(Named):
    """A family of language models: what it is made of, what it is trained on, and how."""

    model: Model = Model()
    tokenizer: Tokenizer = TrainedTokenizer()
    data: Data = Data()
    members: Annotated[list[Member], Field(min_length=1)]
    tokens_per_parameter: float = Field(default=20.0, ge=1e-9, le=1e9)
    counted_parameters: Literal["total", "non_embedding"] = "total"
    """The N of 6ND and of `tokens_per_parameter`."""
    recipe: Recipe = Recipe()
    strategy: Literal["independent", "progressive", "trunk"] = "progressive"
    parent_credit: float = Field(default=1.0, ge=0, le=1)
    """Share of the parent's FLOPs that a grown stage is spared: the budget rule of arXiv 2504.00623 is 1."""
    growth: Growth = Growth()
    patch: Patch | None = None
    """A first part of the training at patch level; none by default."""
    card: CardFields = CardFields()
    """What model cards state; it changes nothing that is trained."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_names([member.name for member in self.members], "members", "member")
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
        self._check_recipe()
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
        self._check_schedule()
        if self.recipe.rate_transfer.rule != "none":
            self._check_rate_transfer()
        if self.patch is not None:
            self._check_patch(self.patch)
        return self

    def _check_recipe(self) -> None:
        """What the recipe asks for must fit the context, the patches and the growth."""
        warmup, row = self.recipe.batch_warmup, self.model.context_length
        if self.patch is not None and self.patch.optimizer == "reset":
            row *= self.patch.size
        if warmup is not None and warmup.start % row:
            wholes = [half for half in halves(self.recipe.tokens_per_step) if half % row == 0]
            raise MisfitError(
                f"{warmup.start} tokens are not a whole number of rows of {row}",
                field="recipe.batch_warmup.start",
                fix=f"use {wholes[-1]}" if wholes else f"use a recipe.tokens_per_step of {2 * row} or more",
            )
        by_muon = self.recipe.optimizer.matrices == "muon"
        if by_muon and self.growth.rates == "inherit" and self.strategy != "independent":
            raise MisfitError(
                "Muon moves a matrix as a whole, whatever the scale of its rows and columns, and coordinates have no "
                "rates to inherit",
                field="growth.rates",
                fix="use uniform or rewarm_new, or set recipe.optimizer.matrices to adamw",
            )

    def _check_schedule(self) -> None:
        """A state from before the decay can only grow, or be branched from, if there is one worth it.

        The trunk of a single member does not grow, and may hold its rate for as little as arXiv 2410.04103 does.
        """
        held = 1 - self.recipe.schedule.decay_share
        is_undecayed = self.strategy == "progressive" and self.growth.start == "undecayed"
        least = 0.4 if self.strategy == "trunk" and len(self.members) == 1 else 0.5
        if (is_undecayed or self.strategy == "trunk") and held < least:
            other = "growth.start to finished" if is_undecayed else "strategy to progressive"
            raise MisfitError(
                f"members would grow from a state that has seen only {held:.0%} of its tokens, before the decay",
                field="recipe.schedule.decay_share",
                fix=f"set {other}, or use decay_share 0.3",
            )
        if self.strategy == "trunk" and held == 1:
            raise MisfitError(
                "a member of a trunk is what its decay makes of it, and there is none",
                field="recipe.schedule.decay_share",
                fix="use for example 0.2",
            )

    def _check_rate_transfer(self) -> None:
        """What would set rates a second time is refused."""
        base = self.recipe.rate_transfer.base
        if base is not None and base not in {member.name for member in self.members}:
            raise MisfitError(
                f"there is no member {base!r}",
                field="recipe.rate_transfer.base",
                fix="name a member, or give base_shape instead",
            )
        if self.recipe.peak_exponent:
            raise MisfitError(
                "rate transfer keeps one peak for all sizes, and an exponent would lower it a second time",
                field="recipe.peak_exponent",
                fix="set it to 0, or recipe.rate_transfer.rule to none",
            )
        if self.recipe.peak_rule != "exponent":
            raise MisfitError(
                f"rate transfer keeps one peak for all sizes, and {self.recipe.peak_rule} would lower it a second time",
                field="recipe.peak_rule",
                fix="set it to exponent, or recipe.rate_transfer.rule to none",
            )
        if self.recipe.optimizer.matrices == "muon":
            raise MisfitError(
                "the factors of rate transfer are Adam's, and a matrix that Muon moves scales by other ones",
                field="recipe.optimizer.matrices",
                fix="use adamw, or set recipe.rate_transfer.rule to none",
            )
        if self.growth.rates == "inherit" and self.strategy != "independent":
            raise MisfitError(
                "rate transfer gives a grown member the rates of its own shape, and inherit those of its parent's",
                field="growth.rates",
                fix="use uniform or rewarm_new, or set recipe.rate_transfer.rule to none",
            )

    def _check_patch(self, patch: Patch) -> None:
        unknown = [name for name in patch.members if name not in {member.name for member in self.members}]
        if unknown and not isinstance(patch.members, str):
            raise MisfitError(f"there is no member {unknown[0]!r}", field="patch.members", fix="name members, or all")
        schedule = self.recipe.schedule
        one_schedule = patch.optimizer == "carry" or self.strategy == "trunk"
        if one_schedule and schedule.decay_share > 1 - patch.position_share + 1e-9:
            raise MisfitError(
                f"the learning rate would begin to decay in the patch part, which takes {patch.position_share:.1%} of "
                "the steps; the switch comes before the decay",
                field="recipe.schedule.decay_share",
                fix=f"use {math.floor(1000 * (1 - patch.position_share)) / 1000} or less",
            )
        if patch.optimizer == "carry" and schedule.warmup_share > patch.position_share:
            raise MisfitError(
                f"the warm-up is longer than the patch part, which takes {patch.position_share:.1%} of the steps",
                field="recipe.schedule.warmup_share",
                fix=f"use {math.floor(1000 * patch.position_share) / 1000} or less",
            )
        row = self.model.context_length * patch.size
        if patch.optimizer == "reset" and self.recipe.tokens_per_step % row:
            raise MisfitError(
                f"{self.recipe.tokens_per_step} tokens are not a whole number of rows of {self.model.context_length} "
                f"patches of {patch.size}",
                field="recipe.tokens_per_step",
                fix=f"use {max(1, round(self.recipe.tokens_per_step / row)) * row}",
            )

    def _check_step(self, index: int) -> None:
        smaller, larger = self.members[index - 1], self.members[index]
        is_larger = self.parameters(larger) > self.parameters(smaller)
        if smaller.shape and larger.shape and self.strategy != "independent":
            misfits = growth_misfits(smaller.shape, larger.shape, self.model.architecture)
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

    def version_tokens(self, version: Version) -> float:
        """Tokens that a version of the data adds to the training of the largest member."""
        return version.tokens if version.tokens is not None else self.tokens(self.members[-1])

    def size(self, member: Member) -> Size:
        """What rules for the peak know of a member."""
        counted = self.parameters(member)
        if member.shape is None:
            return Size(counted, counted, self.tokens(member))
        count = parameter_count(member.shape, self.embedding_rows, self.model.architecture)
        return Size(counted, count.non_embedding, self.tokens(member))

    def peak_learning_rate(self, member: Member) -> float:
        """The member's own peak, or the recipe's carried over from the first member by the recipe's rule."""
        if member.peak_learning_rate is not None:
            return member.peak_learning_rate
        return self.peak_by(self.recipe.peak_rule, member)

    def peak_by(self, rule: PeakRule, member: Member) -> float:
        """What a rule makes of the recipe's peak for a member."""
        ratio = peak_ratio(rule, self.size(member), self.size(self.members[0]), self.recipe.peak_exponent)
        return self.recipe.peak_learning_rate * ratio

    @property
    def base_shape(self) -> Shape | None:
        """The shape that rates transfer from, whose peak the recipe's is; None where members have no shapes."""
        transfer = self.recipe.rate_transfer
        if transfer.base_shape is not None:
            return transfer.base_shape
        return next(member.shape for member in self.members if transfer.base in (None, member.name))

    def factors(self, shape: Shape | None) -> dict[str, Factors] | None:
        """How every parameter of a shape differs from the base's; None without rate transfer or without a shape."""
        rule, base = self.recipe.rate_transfer.rule, self.base_shape
        if rule == "none" or base is None or shape is None:
            return None
        return parameter_factors(shape, base, rule, self.model.architecture)
