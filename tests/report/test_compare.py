"""Families side by side: what is matched, what is compared, what is told from chance, and what the page says."""

import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from browsing import visit
from micro import RecordingView, family
from synthetic_run import Maker, make_plan
from test_report_page import HOSTILE, Page, events
from typer.testing import CliRunner

from kinfolk.build.auto import build_family
from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError
from kinfolk.report.compare.comparison import Comparison, compare
from kinfolk.report.compare.corpus import common_documents
from kinfolk.report.compare.differences import paired
from kinfolk.report.compare.page import document, write_comparison
from kinfolk.report.compare.specs import spec_differences
from kinfolk.report.compare.verdict import against_reference, comparable, headline
from kinfolk.report.numbers import percent


def quietly(*_: object) -> None: ...


def compared(*runs: Path, pairs: bool = False) -> Comparison:
    return compare(runs, pairs, quietly)


def page_of(comparison: Comparison, tmp_path: Path) -> Page:
    return Page(write_comparison(comparison, tmp_path / "compare.html"))


def finished(run: Path, kind: str, name: str) -> dict[str, Any]:
    key = "member" if kind == "member_finished" else "stage"
    return next(event for event in events(run) if event["event"] == kind and event[key] == name)


def test_figures_are_the_ledgers(make_run: Maker, tmp_path: Path) -> None:
    chain, alone = make_run("chain"), make_run("alone", "independent")
    page = page_of(compared(alone, chain), tmp_path)
    spent = dict.fromkeys(("six_nd", "matmul", "tokens", "seconds"), 0.0)
    for member in ("small", "medium", "large"):
        for run, name in ((chain, "chain"), (alone, "alone")):
            held_out = finished(run, "member_finished", member)["held_out"]
            assert page.figures[f"{member}/{name}", "loss"] == held_out["loss"]
            assert page.figures[f"{member}/{name}", "bits-per-byte"] == held_out["bits_per_byte"]
        stage = finished(chain, "stage_finished", member)
        grown = [event["seconds"] for event in events(chain) if event["event"] == "grown" and event["stage"] == member]
        for key, value in (*stage["flops"].items(), ("tokens", stage["tokens"]), ("seconds", stage["seconds"])):
            spent[key] += value + (sum(grown) if key == "seconds" else 0)
        own = finished(alone, "stage_finished", member)["flops"]
        for figure, key in (("six-nd", "six_nd"), ("matmul", "matmul"), ("tokens", "tokens"), ("seconds", "seconds")):
            assert page.figures[f"{member}/chain/lineage", figure] == pytest.approx(spent[key], rel=1e-12)
        assert page.figures[f"{member}/alone/lineage", "six-nd"] == own["six_nd"]
        difference = page.figures[f"{member}/chain", "difference"]
        pair = [page.figures[f"{member}/{name}", "bits-per-byte"] for name in ("alone", "chain")]
        assert difference == pytest.approx(pair[1] - pair[0], abs=1e-12)
    plan = json.loads((chain / "plan.json").read_text("utf-8"))
    assert page.figures["chain", "more-six-nd"] == pytest.approx(-plan["saving"]["six_nd"], rel=1e-9)
    assert page.figures["chain", "six-nd"] == pytest.approx(plan["total"]["six_nd"])
    assert len(page.source.encode()) < 8e6 and len(page.ids) == len(set(page.ids))
    for _, found in page.tags:
        assert not {"src", "srcset", "onclick", "onerror"} & set(found)


def test_ledgers_alone_cannot_tell_small_differences(make_run: Maker) -> None:
    def better(by: float) -> Any:
        def edit(ledger: list[dict[str, Any]]) -> None:
            for event in ledger:
                if event["event"] == "member_finished":
                    for key in ("bits_per_byte", "bits_per_byte_low", "bits_per_byte_high"):
                        event["held_out"][key] -= by
                    event["sha256"] = "f" * 64

        return edit

    alone, near, far = make_run("alone"), make_run("near", edit=better(0.015)), make_run("far", edit=better(0.025))
    found = compared(alone, near, far)
    assert [[each and each.verdict for each in line] for line in found.differences] == [
        [None, "undecided", "better"]
    ] * 3
    assert found.differences[0][2] and found.differences[0][2].mean == pytest.approx(-0.025)
    assert "better in all 3 members" in against_reference(found)[1].sentence
    assert "far has the lowest bits per byte in 3 of 3 members" in headline(found)
    worse = compared(far, alone)
    assert "is worse in all 3 members" in headline(worse) and "costs the same compute" in headline(worse)
    same = compared(alone, make_run("again"))
    assert "the very same weights in all 3 members" in headline(same)


def test_other_held_out_text_is_not_compared(make_run: Maker, tmp_path: Path) -> None:
    def other_text(ledger: list[dict[str, Any]]) -> None:
        for event in ledger:
            if event["event"] == "member_finished":
                event["held_out"]["bytes"] += 1

    found = compared(make_run("one"), make_run("two", "independent", edit=other_text))
    assert not found.agreement.comparable and not any(any(line) for line in found.differences)
    more = make_plan("progressive")["independent"]["six_nd"] / make_plan("progressive")["total"]["six_nd"] - 1
    assert "cannot be told better or worse" in headline(found) and f"costs {percent(more)} more" in headline(found)
    page = page_of(found, tmp_path)
    assert "different held-out text" in page.text and "not comparable" in page.text
    assert not [name for _, name in page.figures if name in ("loss", "difference")]


def test_unfinished_runs_are_shown_with_what_is_there(make_run: Maker, tmp_path: Path) -> None:
    begun = make_run("begun", stop_at=(0, 0))
    (begun / "ledger.jsonl").write_text("", "utf-8")
    (begun / "family.yaml").write_text("a: [", "utf-8")
    found = compared(make_run("whole", "independent"), make_run("half", stop_at=(1, 300)), begun)
    assert [[bool(entry) for entry in row.entries] for row in found.rows] == [
        [True, True, False], [True, False, False], [True, False, False]
    ]  # fmt: skip
    sentences = [each.sentence for each in against_reference(found)]
    assert "no finished member in common" in sentences[1] and "less compute as planned" in sentences[1]
    page = page_of(found, tmp_path)
    assert "Stage medium is not finished: 300 of 687 steps are done." in page.text
    nothing = page_of(compared(begun, make_run("also", stop_at=(0, 0))), tmp_path)
    assert "No member is finished in any of the runs yet." in nothing.text


def test_members_are_matched_by_name_and_then_by_size(make_run: Maker) -> None:
    def renamed(names: dict[str, str]) -> Any:
        def edit(ledger: list[dict[str, Any]]) -> None:
            for event in ledger:
                if event["event"] == "member_finished":
                    event["member"] = names.get(event["member"], event["member"])

        return edit

    plan = make_plan("independent")
    for stage in plan["stages"]:
        stage["parameters"]["total"] += 7 * (stage["name"] == "large")
    one = make_run("one", edit=renamed({"small": "mini"}))
    two = make_run("two", plan=plan, edit=renamed({"medium": "middle"}))
    found = compared(one, two)
    assert [(row.name, [bool(entry) for entry in row.entries]) for row in found.rows] == [
        ("mini", [True, True]), ("medium", [True, True]), ("large", [True, True])
    ]  # fmt: skip
    assert [row.same_size for row in found.rows] == [True, True, False]
    assert any("large does not have the same number" in caution.text for caution in found.cautions)


def seeded(make_run: Maker, name: str, seed: int, shift: float, **spec: Any) -> Path:
    def edit(ledger: list[dict[str, Any]]) -> None:
        for event in ledger:
            if event["event"] == "member_finished":
                event["held_out"]["bits_per_byte"] += shift
                event["sha256"] = f"{seed}{name[0]}" * 32

    run = make_run(f"{name}-seed{seed}", edit=edit)
    (run / "family.yaml").write_text(yaml.safe_dump({"name": "demo", **spec, "recipe": {"seed": seed}}), "utf-8")
    return run


def test_runs_that_differ_by_their_seed_are_one_family(make_run: Maker, tmp_path: Path) -> None:
    shifts = [0.01, -0.02, 0.04]
    one = [seeded(make_run, "one", seed, shift) for seed, shift in enumerate(shifts)]
    two = [seeded(make_run, "two", seed, 0.3 + shift, strategy="trunk") for seed, shift in enumerate(shifts[:2])]
    found = compared(one[0], two[0], one[1], two[1], one[2])
    assert [(side.name, side.seeds) for side in found.sides] == [("one", (0, 1, 2)), ("two", (0, 1))]
    first, second = found.rows[0].entries
    assert first and second
    base = finished(one[0], "member_finished", "small")["held_out"]["bits_per_byte"] - shifts[0]
    assert first.bits_per_byte == pytest.approx(base + np.mean(shifts))
    assert first.spread == pytest.approx(np.std(shifts, ddof=1))
    difference = found.differences[0][1]
    assert difference and difference.seed_interval and difference.verdict == "worse"
    # Welch's interval by its textbook formula.
    parts = [np.var(sample, ddof=1) / len(sample) for sample in (shifts, shifts[:2])]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 1)
    from scipy.stats import t as student

    reach = student.ppf(0.95, freedom) * math.sqrt(sum(parts))
    mean = 0.3 + np.mean(shifts[:2]) - np.mean(shifts)
    assert difference.seed_interval == pytest.approx((mean - reach, mean + reach))
    # With the same seeds the spread that they share does not count.
    paired_by_seed = compared(one[0], one[1], two[0], two[1]).differences[0][1]
    assert paired_by_seed and paired_by_seed.seed_interval == pytest.approx((0.3, 0.3))
    assert [each.field for each in found.specs] == ["recipe.seed", "strategy"]
    page = page_of(found, tmp_path)
    assert "seeds 0, 1, 2" in page.text and "3 seeds" in page.text
    # The same seed twice is no second seed.
    again = tmp_path / "runs" / "again"
    shutil.copytree(one[0], again)
    assert len(compared(one[0], again).sides) == 2


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_level_members_count_for_no_family_in_any_order(make_run: Maker, order: tuple[int, ...]) -> None:
    def shifted(letter: str, shifts: dict[str, float]) -> Any:
        def edit(ledger: list[dict[str, Any]]) -> None:
            for event in ledger:
                if event["event"] == "member_finished":
                    event["held_out"]["bits_per_byte"] += shifts.get(event["member"], 0.0)
                    event["sha256"] = letter * 64

        return edit

    # Small is level in the first two; the first has the best medium, the second the best large.
    runs = [
        make_run("first", edit=shifted("a", {"medium": -0.2})),
        make_run("second", edit=shifted("b", {"large": -0.2})),
        make_run("third", edit=shifted("c", {"small": 0.1, "medium": 0.1})),
    ]
    said = headline(compared(*(runs[place] for place in order)))
    assert "of 3 members" in said and "(in 1 several families share the lowest)" in said
    assert "first in 1" in said and "second in 1" in said and "third" not in said
    assert "all cost the same compute" in said


def test_copies_of_one_run_have_no_best(make_run: Maker) -> None:
    said = headline(compared(make_run("a"), make_run("b"), make_run("c")))
    assert said.startswith("Several families share the lowest bits per byte in all of 3 members; all cost the same")


def test_seeds_of_one_family_are_shown_as_such(make_run: Maker, tmp_path: Path) -> None:
    shifts = [0.01, -0.02, 0.04]
    runs = [seeded(make_run, "chain-linear", seed, shift) for seed, shift in enumerate(shifts)]
    found = compared(*runs, pairs=True)
    assert [side.name for side in found.sides] == ["chain-linear"]
    assert headline(found) == "All 3 runs are one family, chain-linear, with the seeds 0, 1 and 2."
    assert headline(compared(*runs[:2])) == "Both runs are one family, chain-linear, with the seeds 0 and 1."
    assert not found.not_paired and document(found)["against_first"] == []
    page = page_of(found, tmp_path)
    assert "One family, 3 seeds" in page.text and "families side by side" not in page.text
    assert "against-caption" not in page.ids and "against" not in page.ids
    assert not re.search("[Hh]eld against|Difference|the reference|Against the first", page.text)
    base = finished(runs[0], "member_finished", "small")["held_out"]["bits_per_byte"] - shifts[0]
    assert page.figures["small/chain-linear", "bits-per-byte"] == pytest.approx(base + np.mean(shifts))
    assert "differ by their seed alone" in page.text
    assert re.search(rf"± {np.std(shifts, ddof=1):.4f} ?, 3 seeds", page.text)
    told = CliRunner().invoke(app, ["compare", *map(str, runs), "-o", str(tmp_path / "c.html")])
    assert told.exit_code == 0 and "over seeds" in told.stdout and "difference" not in told.stdout


def record_data(run: Path, tokenizer: str) -> None:
    """What a run records of its data; other tokenizers make other tokens of the same text."""
    names = ("train.bin", "held_out.bin", "held_out_documents.bin", "tokenizer/tokenizer.json")
    manifest = {
        "files": {name: {"sha256": f"{name} by {tokenizer}"} for name in names},
        "parts": {part: {"documents": 5, "tokens": 70, "bytes": 900} for part in ("train", "held_out")},
    }
    (run / "data").mkdir()
    (run / "data" / "data.json").write_text(json.dumps(manifest), "utf-8")


@pytest.mark.parametrize("tokenizers", ["ab", "aa", ""])
def test_nothing_is_said_of_text_before_a_member_is_measured(make_run: Maker, tmp_path: Path, tokenizers: str) -> None:
    runs = [make_run(name, stop_at=(0, 50)) for name in ("one", "two")]
    for run, tokenizer in zip(runs, tokenizers, strict=False):
        record_data(run, tokenizer)
    found = compared(*runs, pairs=True)
    level, verdict, consequence = comparable(found)
    assert level == "hint" and verdict == "No member has been measured yet."
    assert ("shows once one is" in consequence) == (tokenizers != "aa")
    page = page_of(found, tmp_path)
    assert "different held-out text" not in page.text and "same held-out text" not in page.text
    assert document(found)["comparable"]["held_out_text"] in ("unknown", "same", "same size")


@pytest.mark.parametrize(
    "text",
    [
        "x: 2001-13-01",
        "x: !!bool maybe",
        f"x: 1{5000 * '0'}",
        f"x: 0x{5000 * 'f'}",
        "recipe: {seed: [1]}",
        "x: &a [*a]",
        "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(40)),
        "2001-01-01: 1",
    ],
    ids=["date", "tag", "digits", "hexadecimal", "seeds", "alias", "flood", "key"],
)
def test_family_files_that_no_build_wrote_do_no_harm(make_run: Maker, tmp_path: Path, text: str) -> None:
    runs = [make_run(name) for name in ("one", "two", "three")]
    for run in runs:
        (run / "family.yaml").write_text(text, "utf-8")
    told = CliRunner().invoke(app, ["compare", *map(str, runs), "-o", str(tmp_path / "c.html"), "--json"])
    assert told.exception is None and len(json.loads(told.stdout)["families"]) == 3


@pytest.mark.parametrize("value", ["0", "0.0", "-1.5", "NaN", "1e999"])
def test_bits_per_byte_that_cannot_be_are_refused(make_run: Maker, tmp_path: Path, value: str) -> None:
    runs = [make_run("one"), make_run("two")]
    rewrite_ledger(runs[0], r'"bits_per_byte": [\d.]+', f'"bits_per_byte": {value}')
    told = CliRunner().invoke(app, ["compare", *map(str, runs), "-o", str(tmp_path / "c.html")])
    assert isinstance(told.exception, KinfolkError) and "bits_per_byte" in str(told.exception)


@pytest.mark.parametrize(
    ("file", "field"), [("plan.json", "total"), ("plan.json", "independent"), ("ledger.jsonl", "flops")]
)
@pytest.mark.parametrize("value", ["0", "-1e15", "NaN"])
def test_compute_that_cannot_be_is_refused(make_run: Maker, tmp_path: Path, file: str, field: str, value: str) -> None:
    runs = [make_run("one"), make_run("two")]
    text = (runs[0] / file).read_text("utf-8")
    changed = re.sub(rf'("{field}": {{\s*"six_nd": )[-+.\de]+', rf"\g<1>{value}", text)
    assert changed != text
    (runs[0] / file).write_text(changed, "utf-8")
    told = CliRunner().invoke(app, ["compare", *map(str, runs), "-o", str(tmp_path / "c.html")])
    assert isinstance(told.exception, KinfolkError), told.output
    assert "six_nd" in str(told.exception) and not (tmp_path / "c.html").exists()


def test_fields_that_differ() -> None:
    one = {"members": [{"name": "a", "tokens": 5}], "recipe": {"betas": [0.9, 0.95]}, "strategy": "trunk"}
    two = {"members": [{"name": "b", "tokens": 5}, {"name": "a", "tokens": 6}], "recipe": {"betas": [0.9, 0.95]}}
    assert [(each.field, each.values) for each in spec_differences([one, two])] == [
        ("members[a].tokens", ("5", "6")), ("strategy", ("trunk", None)), ("members[b].tokens", (None, "5"))
    ]  # fmt: skip
    assert spec_differences([one, one, one]) == []


def test_common_documents_keep_their_places() -> None:
    assert common_documents([["a", "b", "c", "b"], ["b", "x", "a"]]) == [[0, 1], [2, 0]]
    assert common_documents([["a"], ["b"]]) == [[], []]


def test_pairing_sees_what_two_intervals_do_not() -> None:
    draw = np.random.default_rng(3)
    sizes = draw.integers(500, 5000, 40)
    first = sizes * draw.uniform(1.5, 3.0, 40)
    second = first * 0.995
    found = paired([first, first], [second], sizes, None)
    assert found.verdict == "better" and found.better_share == 1.0 and found.documents == 40
    assert found.mean == pytest.approx(-0.005 * first.sum() / sizes.sum())
    assert found.relative == pytest.approx(-0.005) and found.interval and found.interval[1] < 0
    noisy = first * (1 + draw.normal(0, 0.05, 40))
    assert paired([first], [noisy], sizes, None).verdict == "undecided"
    assert paired([first], [second], sizes, (-0.1, 0.1)).verdict == "undecided"
    assert paired([first[:4]], [second[:4]], sizes[:4], None).verdict == "undecided"


@pytest.mark.parametrize("times", [1, 2])
def test_fewer_than_two_runs_are_refused(make_run: Maker, times: int) -> None:
    result = CliRunner().invoke(app, ["compare", *[str(make_run())] * times])
    assert isinstance(result.exception, KinfolkError) and "1 run to compare" in str(result.exception)


def test_hostile_text_is_inert(make_run: Maker, tmp_path: Path) -> None:
    plan = make_plan("progressive")
    plan["strategy"] = HOSTILE

    def edit(ledger: list[dict[str, Any]]) -> None:
        ledger[0]["machine"][HOSTILE] = ledger[0]["command"] = HOSTILE
        for event in ledger:
            if event["event"] == "member_finished":
                event.update(member=HOSTILE, path="../../../etc", sha256=HOSTILE)

    runs = [make_run(name, plan=plan, edit=edit) for name in ("<b>one", "<b>two")]
    (runs[0] / "family.yaml").write_text(yaml.safe_dump({"recipe": {HOSTILE: HOSTILE}}), "utf-8")
    page = page_of(compared(*runs), tmp_path)
    assert not {"img", "b", "i"} & {tag for tag, _ in page.tags}
    assert sum(tag == "script" for tag, _ in page.tags) == page.source.count("<script")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Real micro families: two seeds, another strategy, and one with another tokenizer and some other held-out text."""
    folder = tmp_path_factory.mktemp("built")
    cache, os.environ["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME"), str(folder / "cache")
    runs = {}
    for name, changes in {
        "chain": {"strategy": "progressive"},
        "alone": {"strategy": "independent"},
        "other": {"strategy": "progressive", "tokenizer": {"vocab_size": 290}, "data": {"held_out": {"share": 0.3}}},
    }.items():
        runs[name] = folder / name
        build_family(family(folder, **changes), runs[name], RecordingView())
    yield runs
    if cache is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = cache


def test_real_families_are_paired_by_document(built: dict[str, Path], tmp_path: Path) -> None:
    found = compared(built["alone"], built["chain"], pairs=True)
    assert found.agreement.text == "same" and found.agreement.tokenizer and not found.not_paired
    assert not [caution for caution in found.cautions if caution.level == "fault"]
    small, large = (line[1] for line in found.differences)
    assert small and small.verdict == "same" and small.mean == 0
    assert large and large.interval and large.interval[0] <= large.mean <= large.interval[1]
    # The sum over documents is what the ledgers say.
    bits = [finished(built[name], "member_finished", "large")["held_out"] for name in ("alone", "chain")]
    assert large.documents == bits[0]["documents"]
    assert large.mean == pytest.approx(bits[1]["bits_per_byte"] - bits[0]["bits_per_byte"], abs=1e-6)
    again = compared(built["alone"], built["chain"], pairs=True)
    assert again.known == 4 and again.differences == found.differences
    result = CliRunner().invoke(
        app, ["compare", str(built["alone"]), str(built["chain"]), "-o", str(tmp_path / "c.html"), "--json"]
    )
    told = json.loads(result.stdout)
    assert told["answer"] == headline(found) == document(again)["answer"]
    assert told["members"][1]["families"]["chain"]["difference"]["interval"] == list(large.interval)
    table = CliRunner().invoke(
        app, ["compare", str(built["alone"]), str(built["chain"]), "-o", str(tmp_path / "c.html")]
    )
    assert headline(found) in table.stdout and "strategy" in table.stdout and "large, chain" in table.stdout


def test_other_tokenizer_and_partly_other_text(built: dict[str, Path]) -> None:
    found = compared(built["chain"], built["other"], pairs=True)
    assert found.agreement.text == "in part" and found.agreement.tokenizer is False and not found.per_token
    ours = finished(built["chain"], "member_finished", "large")["held_out"]["documents"]
    assert found.agreement.documents and found.agreement.documents <= ours
    difference = found.differences[1][1]
    assert difference and difference.documents == found.agreement.documents
    assert "compare bits per byte only" in " ".join(comparable(found))
    unpaired = compared(built["chain"], built["other"])
    assert unpaired.differences == ((None, None), (None, None)) and unpaired.not_paired == "--no-pairs was given"
    assert "No member was measured on them alone" in comparable(unpaired)[2]
    assert "not measured on these alone" in headline(unpaired) and "different held-out text" not in headline(unpaired)


def rewrite_ledger(run: Path, what: str, by: str) -> None:
    """Alter a ledger; its checksums, which would give that away, go."""
    path = run / "ledger.jsonl"
    text = re.sub(r', "crc32": "[0-9a-f]{8}"}', "}", path.read_text("utf-8"))
    path.write_text(re.sub(what, by, text), "utf-8")


def test_data_that_cannot_be_read_are_judged_by_their_size(built: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "moved"
    shutil.copytree(built["other"], run)
    (run / "data" / "train.bin").unlink()
    size = finished(built["chain"], "member_finished", "large")["held_out"]["bytes"]
    rewrite_ledger(run, r'"bytes": \d+', f'"bytes": {size}')
    found = compared(built["chain"], run, pairs=True)
    assert found.agreement.text == "same size" and found.agreement.tokenizer is False and not found.per_token
    assert "train.bin is missing" in found.not_paired
    assert "cannot be checked" in " ".join(comparable(found))


def test_weights_that_are_not_the_ledgers_are_reported(built: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "mixed"
    shutil.copytree(built["chain"], run)
    small, large = (run / "members" / name / "model.safetensors" for name in ("small", "large"))
    rewrite_ledger(run, '"bits_per_byte": ', '"bits_per_byte": 1')
    found = compared(built["alone"], run, pairs=True)
    assert any("when measured again" in caution.text for caution in found.cautions)
    small.unlink()
    large.unlink()
    assert compared(built["alone"], run, pairs=True).not_paired
    shutil.rmtree(run / "members")
    assert "is not on disk" in compared(built["alone"], run, pairs=True).not_paired


@pytest.mark.parametrize("missing", ["small", "large"])
def test_a_member_that_is_gone_keeps_no_other_from_being_paired(
    built: dict[str, Path], tmp_path: Path, missing: str
) -> None:
    run = tmp_path / "gone"
    shutil.copytree(built["chain"], run)
    shutil.rmtree(run / "members" / missing)
    reason = f"gone/members/{missing} is not on disk"
    found = compared(built["alone"], run, pairs=True)
    assert not found.not_paired
    assert [(each.member, each.family, each.reason) for each in found.unpaired] == [(missing, "gone", reason)]
    for row, (_, difference) in zip(found.rows, found.differences, strict=True):
        assert difference and (difference.documents is None) == (row.name == missing)
    page = page_of(found, tmp_path)
    assert f"Not so {missing} of gone ({reason})" in page.text and "were not held against" not in page.text
    assert "the 90 % interval of the difference over documents" in page.text
    command = ["compare", str(built["alone"]), str(run), "-o", str(tmp_path / "c.html")]
    told = " ".join(CliRunner().invoke(app, command).stdout.split())
    assert f"not compared document by document: {missing} of gone ({reason})" in told
    told = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)["comparable"]
    assert told["not_paired"] is None
    assert told["members_not_paired"] == [{"member": missing, "family": "gone", "reason": reason}]
    # Where the text is shared in part, there is no figure of the ledgers to go by.
    found = compared(built["other"], run, pairs=True)
    assert found.agreement.text == "in part"
    assert [bool(line[1]) for line in found.differences] == [row.name != missing for row in found.rows]
    assert page_of(found, tmp_path).text.count("not comparable") == 1


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_the_page_in_a_browser(browser: Any, make_run: Maker, tmp_path: Path, width: int, scheme: str) -> None:
    runs = [make_run("alone", "independent"), make_run("chain"), make_run("half", stop_at=(1, 300))]
    seen = visit(browser, write_comparison(compared(*runs), tmp_path / "compare.html"), width, scheme)
    tab = seen.page
    tab.wait_for_selector("figure[data-plot=members] .main-svg")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.locator("main > section > h2").all_inner_texts() == [
        "The answer", "Quality", "Loss at equal cost", "Cost", "What differs", "Data", "Warnings", "Environment"
    ]  # fmt: skip
    curves = tab.locator("figure[data-plot=curves]")
    assert curves.locator(".scatterlayer .js-line").count() == 8
    assert curves.locator(".legend button").all_inner_texts() == ["alone", "chain", "half"]
    curves.get_by_role("button", name="time").press("Enter")
    axis = "document.querySelector('figure[data-plot=curves] .plot')._fullLayout.xaxis.title.text"
    assert "time" in tab.evaluate(axis)
    curves.locator(".legend button").first.click()
    assert curves.locator(".scatterlayer .js-line").count() == 5
    tab.locator("figure[data-plot=members]").get_by_role("button", name="parameters").click()
    assert tab.evaluate(axis.replace("curves", "members")) == "parameters"
    assert tab.locator("figure[data-plot=differences] .errorbar").count() >= 3
    assert not seen.problems
