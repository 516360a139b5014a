"""What is asked of a cluster: a family's plan, and where it is to run."""

from collections.abc import Mapping
from dataclasses import dataclass

from kinfolk.errors import KinfolkError
from kinfolk.family.spec import Family
from kinfolk.plan.cluster.description import Cluster
from kinfolk.plan.cluster.step import Work
from kinfolk.plan.stages import Plan, Stage


@dataclass(frozen=True)
class Question:
    """A family's plan, and the cluster that it is to run on."""

    family: Family
    plan: Plan
    origin: str
    cluster: Cluster
    efficiency: float
    """Share of the peak that kernels reach while nothing waits."""
    losses: Mapping[str, float | None]
    """Forecast losses of the members."""

    @property
    def stages(self) -> list[Stage]:
        """Those that train."""
        return [stage for stage in self.plan.stages if stage.steps]

    @property
    def smallest_rows(self) -> list[int]:
        """Rows of the smallest step of each stage, of which every other step has a multiple."""
        context = self.family.model.context_length
        return [stage.rows_per_step(context) // stage.part_at(0).parts for stage in self.stages]

    def work(self, stage: Stage) -> Work:
        family = self.family
        assert stage.shape is not None
        return Work(
            stage.shape,
            family.embedding_rows,
            family.model.architecture,
            family.model.context_length,
            stage.rows_per_step(family.model.context_length),
            family.recipe.optimizer.matrices == "muon",
        )


def refuse_family(question: Question) -> None:
    """KinfolkError for a family whose memory and time nobody can tell."""
    family = question.family
    for index, member in enumerate(family.members):
        if member.shape is None:
            raise KinfolkError(
                f"{member.name} has no shape, only a number of parameters, and memory depends on its shape",
                where=f"{question.origin}: members[{index}]",
                fix="give every member a shape",
            )
    if family.recipe.precision == "float32":
        raise KinfolkError(
            "a cluster is described by its speed in bfloat16, and this family trains in float32",
            where=f"{question.origin}: recipe.precision",
            fix="use auto or bfloat16",
        )
