"""The tables of docs/results-transfer.md, from the figures that benchmarks/transfer.py has kept."""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from transfer_arms import ARMS, run_folder
from transfer_family import BASES, MEMBERS

Figures = dict[str, Any]
LEAST_GAIN = 0.05
"""Of a score, below which shares of full fine-tuning's gain say nothing."""


def show(work: Path, seeds: Sequence[int]) -> None:
    """Print what is there of every table."""
    found = {seed: json.loads(path.read_text()) for seed in seeds if (path := _path(work, seed)).exists()}
    if not found:
        print(f"nothing measured yet in {work}")
        return
    print(f"\nseeds {', '.join(map(str, found))}; mean, and ± standard deviation over the seeds that have it\n")
    show_bases(found)
    for base in BASES:
        show_methods(found, base)
    show_acceptance(found)
    show_by_template(found)
    show_costs(work, seeds)


def _path(work: Path, seed: int) -> Path:
    return work / "results" / f"seed{seed}.json"


def show_bases(found: dict[int, Figures]) -> None:
    print("| base | | seeds | loss, templated | loss, real | exact | format | calibration error | bits per byte |")
    print("|---|---|---|---|---|---|---|---|---|")
    for base in BASES:
        for method in ("base", "tuned"):
            rows = [figures[method][base] for figures in found.values() if base in figures.get(method, {})]
            if rows:
                cells = [
                    spread(value(row) for row in rows)
                    for value in (
                        *(_loss(each) for each in ("templated", "real")),
                        *(_item(name) for name in ("exact", "format", "calibration error", "bits per byte")),
                    )
                ]
                print(f"| {base} | {method} | {len(rows)} | " + " | ".join(cells) + " |")


def show_methods(found: dict[int, Figures], base: str) -> None:
    """Shares of full fine-tuning's gain, one line for each method."""
    methods = list(dict.fromkeys(method for figures in found.values() for method in figures if base in figures[method]))
    methods = [method for method in methods if method not in ("base", "tuned")]
    if not methods:
        return
    print(f"\n**{base}**: share of full fine-tuning's gain, at the alpha of the development demonstrations\n")
    print(
        "| method | seeds | alpha | loss, templated | loss, real | exact | format | loss, templated, alpha 1 | exact, "
        "alpha 1 | calibration error | bits per byte: more than base, and tuned | mapped |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for method in methods:
        rows = [
            (figures["base"][base], figures["tuned"][base], figures[method][base])
            for figures in found.values()
            if all(base in figures.get(each, {}) for each in ("base", "tuned", method))
        ]
        if not rows:
            continue
        at_one = [(before, tuned, pair["at alpha 1"]) for before, tuned, pair in rows]
        damages = [
            (pair["bits per byte"] - before["bits per byte"], tuned["bits per byte"] - before["bits per byte"])
            for before, tuned, pair in rows
            if "bits per byte" in pair
        ]
        cells = [
            method,
            str(len(rows)),
            " ".join(f"{pair['alpha']:g}" for *_, pair in rows),
            recovered(rows, _loss("templated")),
            recovered(rows, _loss("real")),
            recovered(rows, _item("exact")),
            recovered(rows, _item("format")),
            recovered(at_one, _loss("templated")),
            recovered(at_one, _item("exact")),
            spread(pair["calibration error"] for *_, pair in rows),
            f"{spread(pair for pair, _ in damages)}, {spread(tuned for _, tuned in damages)}" if damages else "",
            spread(pair["coverage"]["mapped"] for *_, pair in rows if "coverage" in pair),
        ]
        print("| " + " | ".join(cells) + " |")


def recovered(rows: Iterable[tuple[Figures, Figures, Figures]], value: Callable[[Figures], float]) -> str:
    """(pair - base) / (tuned - base) over the seeds; nothing where tuning itself gains next to nothing."""
    shares = []
    for before, tuned, pair in rows:
        gain = value(tuned) - value(before)
        if abs(gain) >= LEAST_GAIN:
            shares.append((value(pair) - value(before)) / gain)
    return spread(shares)


def show_acceptance(found: dict[int, Figures]) -> None:
    """The smallest member as the draft, both sides post-trained in the same way."""
    print(
        f"\nExpected acceptance of drafts by {MEMBERS[0]} at test responses, both sides post-trained in the same way\n"
    )
    print("| target | method | seeds | templated | real |")
    print("|---|---|---|---|---|")
    for base in BASES:
        for method in ("base", "tuned", "proxy-tuning", *ARMS):
            rows = [figures[method][base] for figures in found.values() if base in figures.get(method, {})]
            rows = [row["acceptance"] for row in rows if "acceptance" in row]
            if rows and base != MEMBERS[0]:
                cells = [spread(row[each] for row in rows) for each in ("templated", "real")]
                print(f"| {base} | {method} | {len(rows)} | " + " | ".join(cells) + " |")


def show_by_template(found: dict[int, Figures]) -> None:
    """Exact answers by kind of instruction."""
    some = next(iter(found.values()))["base"]
    templates = list(next(iter(some.values()))["exact by template"])
    print("\nExact answers by template\n")
    print("| base | method | " + " | ".join(templates) + " |")
    print("|---|---|" + "---|" * len(templates))
    for base in BASES:
        for method in ("tuned", "proxy-tuning", *ARMS):
            rows = [figures[method][base] for figures in found.values() if base in figures.get(method, {})]
            if rows:
                cells = [spread(row["exact by template"][each] for row in rows) for each in templates]
                print(f"| {base} | {method} | " + " | ".join(cells) + " |")


def show_costs(work: Path, seeds: Sequence[int]) -> None:
    """FLOPs of every training, by the ledgers."""
    print("\n| trained | seeds | FLOPs | steps, best at |")
    print("|---|---|---|---|")
    for name in (*(f"tuned {base}" for base in BASES), *ARMS):
        records = []
        for seed in seeds:
            ledger = run_folder(work, seed, name) / "ledger.jsonl"
            events = [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.exists() else []
            records += [event for event in events if event["event"] == "finished"]
        if records:
            flops = statistics.mean(record["flops"]["total"] for record in records)
            steps = ", ".join(f"{record['steps']}, {record['best_step']}" for record in records)
            print(f"| {name} | {len(records)} | {flops:.3g} | {steps} |")


def _item(name: str) -> Callable[[Figures], float]:
    return lambda figures: float(figures[name])


def _loss(name: str) -> Callable[[Figures], float]:
    return lambda figures: float(figures["loss"][name])


def spread(values: Iterable[float]) -> str:
    found = list(values)
    if not found:
        return ""
    if len(found) == 1:
        return f"{found[0]:.3f}"
    return f"{statistics.mean(found):.3f} ± {statistics.stdev(found):.3f}"
