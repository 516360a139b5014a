"""Runs for a schedule law, and forecasts in the metrics of a synthetic run."""

import json
from pathlib import Path

from kinfolk.report.run import read_run

HEADER = "name,steps,warmup_steps,peak_lr,shape,decay_fraction,end_ratio,loss\n"


def table(folder: Path) -> Path:
    """Runs of two horizons whose losses follow the rate and its sum."""
    rows = []
    for peak in (5e-4, 2e-3):
        for share in (0.1, 0.4):
            for steps in (6_000, 10_000):
                for end in (0.0, 0.1) if share == 0.4 else (0.0,):
                    loss = 2.6 + (peak * steps * (1 - share / 2)) ** -0.6 + 0.2 * end + 0.02 / share * peak / 1e-3
                    rows.append(f"a<b>{peak:g}-{share},{steps},100,{peak},linear,{share},{end},{loss:.5f}")
    path = folder / "runs.csv"
    path.write_text(HEADER + "\n".join(rows) + "\n")
    return path


def end_measured(folder: Path, stage: str) -> float:
    """Measure the held-out loss after the last step too, as a build does."""
    path, planned = folder / "stages" / stage / "metrics.jsonl", read_run(folder).by_name[stage]
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": planned.plan.steps, "held_out_loss": 2.9}) + "\n")
    return 2.9


def with_forecasts(folder: Path, stage: str, came: float, advised: bool = False) -> None:
    """Write forecasts beside the held-out losses of a stage, of which all but the first hold what came."""
    path = folder / "stages" / stage / "metrics.jsonl"
    lines, first = [], True
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if "held_out_loss" in record and record["step"] > 60:
            middle = came * (1.08 if first else 1.01)
            first = False
            record |= {"forecast_loss": middle, "forecast_low": 0.95 * middle, "forecast_high": 1.05 * middle}
            record |= {"advised_decay_step": 120.0, "advised_gain": 0.05} if advised else {}
        lines.append(json.dumps(record))
    path.write_text("\n".join(lines) + "\n")
