"""kinfolk plan FAMILY --cluster: memory, communication, utilisation and time on a cluster"""

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kinfolk.family.load import LoadedFamily


def plan_cluster(
    loaded: "LoadedFamily",
    cluster: str,
    efficiency: float,
    price: float | None,
    unique: int | None,
    law: list[str],
    bytes_per_token: float | None,
    json_: bool,
) -> None:
    """Plan a family on a cluster and show what comes out."""
    from kinfolk.growth.claims import refuse_plan
    from kinfolk.laws.choose import choose_law
    from kinfolk.plan.cluster.description import load_cluster, with_price
    from kinfolk.plan.cluster.document import cluster_document
    from kinfolk.plan.cluster.question import Question
    from kinfolk.plan.forecast import forecast_document
    from kinfolk.plan.machines import check_utilisation
    from kinfolk.plan.strategies import plan_family

    check_utilisation(efficiency)
    described = with_price(load_cluster(cluster), price)
    family = loaded.family
    plan = plan_family(family, loaded.origin)
    refuse_plan(plan, family.model.architecture)
    forecast = forecast_document(family, plan, choose_law(law, bytes_per_token), unique)
    losses = {member["member"]: member["loss"] for member in forecast["members"]}
    document = cluster_document(Question(family, plan, loaded.origin, described, efficiency, losses))
    if json_:
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    from kinfolk.cli.plan_cluster_tables import print_cluster_plan

    print_cluster_plan(document)
