import json
import shutil
from pathlib import Path

import pytest
from micro import LARGE, RecordingView, family

from kinfolk.build.build import build
from kinfolk.build.probe import DEPTHS, WIDTHS, candidates_between, probe_growth
from kinfolk.build.run import open_run
from kinfolk.errors import KinfolkError
from kinfolk.family.recipe import Growth
from kinfolk.family.shapes import Shape
from kinfolk.plan.probe import probe
from kinfolk.plan.stages import Grow


def test_candidates_share_one_parent_and_end_in_one_stage_each(tmp_path: Path) -> None:
    loaded = family(tmp_path)
    candidates = {"plain": Growth(), "stacked": Growth(depth="stack"), "early": Growth(start="undecayed")}
    plan = probe(loaded.family, candidates)
    parents = {stage.name for stage in plan.stages if stage.member}
    assert parents == {"small"}
    children = [stage for stage in plan.stages if isinstance(stage.source, Grow)]
    assert [stage.name for stage in children] == ["large-plain", "large-stacked", "large-early"]
    assert len({stage.steps for stage in children}) == 1
    assert all(stage.member is None for stage in children)
    short = probe(loaded.family, candidates, steps=3)
    assert {stage.steps for stage in short.stages if isinstance(stage.source, Grow)} == {3}


def test_a_probe_ranks_what_it_has_trained_from_a_checkpoint(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    source = Path("members/small")
    loaded = family(tmp_path)
    view = RecordingView()
    ranked = probe_growth(loaded, source, {"intermediate_size": 64}, 4, tmp_path / "probe", view)
    assert [each.loss for each in ranked] == sorted(each.loss for each in ranked)
    assert {each.name for each in ranked} == {"default", *WIDTHS}
    assert all(max(each.losses) == 4 for each in ranked)
    # Candidates that keep the function begin at the source's loss, and training has changed them apart.
    assert len({each.loss for each in ranked}) > 1
    # From elsewhere, and so by another path.
    monkeypatch.chdir(tmp_path)
    again = probe_growth(loaded, finished / source, {"intermediate_size": 64}, 4, tmp_path / "probe", view)
    assert [each.losses for each in again] == [each.losses for each in ranked]


def test_a_probe_trains_with_the_rates_of_the_familys_base(finished: Path, tmp_path: Path) -> None:
    """The base is a member that the probe does not have."""
    loaded = family(tmp_path, "recipe.rate_transfer={rule: mup, base: large}")
    source = finished / "members" / "small"
    probe_growth(loaded, source, {"num_attention_heads": 4}, 1, tmp_path / "probe", RecordingView())
    document = json.loads((tmp_path / "probe" / "plan.json").read_text())
    assert document["rate_transfer"]["base_shape"]["hidden_size"] == LARGE["hidden_size"]
    assert {stage["factors"]["q_proj"]["rate"] for stage in document["stages"]} == {2.0}


def test_what_cannot_be_probed(finished: Path, tmp_path: Path) -> None:
    source = finished / "members" / "small"
    with pytest.raises(KinfolkError, match="same shape"):
        probe_growth(family(tmp_path), source, {}, 4, tmp_path / "probe", RecordingView())
    baseless = shutil.copytree(source, tmp_path / "baseless")
    fields = json.loads((baseless / "config.json").read_text())
    rope = {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    (baseless / "config.json").write_text(json.dumps(fields | {"model_type": "qwen3", "rope_parameters": rope}))
    # transformers 5.17 already takes the config for a fault, later ones do not
    with pytest.raises(KinfolkError, match=r"rope_theta|config\.json: cannot be used"):
        probe_growth(family(tmp_path), baseless, {"intermediate_size": 64}, 4, tmp_path / "probe", RecordingView())
    assert not (tmp_path / "probe").exists()


def test_only_what_grows_is_varied() -> None:
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    parent = Shape.model_validate(sizes)
    deeper = candidates_between(parent, Shape.model_validate(sizes | {"num_hidden_layers": 4}))
    assert set(deeper) == {"default", *DEPTHS}
    wider = candidates_between(parent, Shape.model_validate(sizes | {"intermediate_size": 96}))
    assert set(wider) == {"default", *WIDTHS}
    assert set(candidates_between(parent, parent)) == {"default"}


def test_another_strategy_walks_the_same_executor(tmp_path: Path) -> None:
    loaded = family(tmp_path)

    def strategy(each: object) -> object:
        return probe(loaded.family, {"a": Growth(), "b": Growth(noise=0.0)}, steps=2)

    build(loaded, tmp_path / "run", RecordingView(), strategy)  # type: ignore[arg-type]
    run = open_run(loaded, tmp_path / "run", strategy)  # type: ignore[arg-type]
    finished = [event["stage"] for event in run.ledger.events("stage_finished")]
    assert finished == ["small", "large-a", "large-b"]
