"""What a cluster is: GPUs in nodes, how fast they compute and talk, and what they write to."""

import re
from importlib import resources
from typing import Any

from pydantic import Field, ValidationError

from kinfolk.errors import KinfolkError
from kinfolk.family.base import Spec
from kinfolk.family.faults import did_you_mean, first_fault, shown
from kinfolk.family.yaml_text import parse_mapping, read_text

MOST_GPUS = 1_000_000

_LAYOUT = "begin with `like: h200`; see docs/cluster.md"


class Cluster(Spec):
    """Nodes of GPUs that are all alike. Bandwidths are line rates, one way, of one GPU but for storage."""

    gpu: str = Field(min_length=1, max_length=64)
    """What the GPU is called."""
    gpus: int | None = Field(default=None, ge=1, le=MOST_GPUS)
    """How many there are; None for any number."""
    gpus_per_node: int = Field(ge=1, le=1024)
    memory_gb: float = Field(gt=0, le=1e5)
    """Of a GPU, in 10^9 bytes."""
    bf16_tflops: float = Field(gt=0, le=1e6)
    """Dense bfloat16 matrix products of a GPU at their peak, in 10^12 FLOP/s."""
    nvlink_gb_per_second: float = Field(gt=0, le=1e6)
    """Between the GPUs of a node."""
    network_gb_per_second: float = Field(gt=0, le=1e6)
    """Between nodes: a GPU's part of its node's."""
    node_memory_gb: float = Field(gt=0, le=1e6)
    """Of a node's processors."""
    node_storage_gb_per_second: float = Field(gt=0, le=1e6)
    """What one node can read or write."""
    storage_gb_per_second: float = Field(gt=0, le=1e7)
    """What all of them together can."""
    price: float | None = Field(default=None, gt=0, lt=1e6)
    """Money for a GPU-hour."""

    @property
    def memory(self) -> float:
        """Bytes of a GPU."""
        return self.memory_gb * 1e9

    @property
    def peak(self) -> float:
        """FLOP/s of a GPU."""
        return self.bf16_tflops * 1e12

    def nodes(self, gpus: int) -> int:
        """Nodes that so many GPUs fill."""
        return -(-gpus // self.gpus_per_node)

    def storage(self, gpus: int) -> float:
        """Bytes a second that so many GPUs together read or write."""
        return 1e9 * min(self.storage_gb_per_second, self.nodes(gpus) * self.node_storage_gb_per_second)


def preset_clusters() -> dict[str, dict[str, Any]]:
    """The clusters that come with kinfolk, as their data file holds them."""
    text = (resources.files("kinfolk.plan.cluster") / "presets.yaml").read_text("utf-8")
    return parse_mapping(text, "presets.yaml", _LAYOUT)


def load_cluster(name: str) -> Cluster:
    """A preset (`h200`), one with a number of GPUs (`h200x64`), or a YAML file with the fields of `Cluster`.

    A file may begin with `like: PRESET` and give only what differs. KinfolkError for anything else.
    """
    presets = preset_clusters()
    match = re.fullmatch(r"([A-Za-z0-9-]+?)(?:x([0-9]{1,9}))?", name)
    if match and match[1].lower() in presets:
        document = presets[match[1].lower()]
        return _validated(document | ({"gpus": int(match[2])} if match[2] else {}), f"--cluster {shown(name)}")
    missing = KinfolkError(
        f"no preset and no file {shown(name, 200)}",
        where="--cluster",
        fix=did_you_mean(match[1].lower() if match else name, presets, "give a YAML file, or one of")
        + (" (with a number of GPUs as in h200x64)" if match else ""),
    )
    document = parse_mapping(read_text(name, missing), name, _LAYOUT)
    like = document.pop("like", None)
    if like is not None and like not in presets:
        fix = did_you_mean(str(like), presets, "use one of")
        raise KinfolkError(f"no preset {shown(like)}", where=f"{name}: like", fix=fix)
    return _validated(presets.get(like, {}) | document, name)


def with_price(cluster: Cluster, price: float | None) -> Cluster:
    """The cluster with the price of --price, if one was given."""
    if price is None:
        return cluster
    return _validated(cluster.model_dump() | {"price": price}, "--price")


def _validated(document: dict[str, Any], origin: str) -> Cluster:
    try:
        return Cluster.model_validate(document)
    except ValidationError as error:
        fault = first_fault(error, Cluster)
    raise KinfolkError(fault.problem, where=f"{origin}: {fault.field}", fix=fault.fix)
