from pathlib import Path

import pytest

from kinfolk.family.recipe import Checkpoints
from kinfolk.train.saving_clock import SavingClock


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time

    def save(self, seconds: float) -> Path:
        self.time += seconds
        return Path()


@pytest.mark.parametrize("cost", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("guess", [0.0, 1.0])
def test_saving_by_the_clock_costs_two_percent_at_most(cost: float, guess: float) -> None:
    clock = Clock()
    saving = SavingClock(Checkpoints(seconds=30), guess * cost, clock)
    began, saves = clock.time, 0
    for step in range(1, 40_000):
        clock.time += 0.5
        if saving.due(step):
            saving.timed(lambda: clock.save(cost))
            saves += 1
            # Only the first save can be dearer than what was foreseen, when nothing was known of it.
            if saves > 1 or guess:
                assert saving.spent <= 0.02 * (clock.time - began)
    whole = clock.time - began
    assert saves == pytest.approx(min(whole / (30 + cost), 0.02 * whole / cost), rel=0.02, abs=1)


def test_a_dear_save_is_made_good_before_the_next() -> None:
    clock = Clock()
    saving = SavingClock(Checkpoints(seconds=30), 0.0, clock)
    clock.time += 30
    assert saving.due(1)
    saving.timed(lambda: clock.save(10))
    clock.time += 950
    assert not saving.due(2)  # 10 s spent and 10 s to come are 2 % of 1,000 s
    clock.time += 10
    assert saving.due(3)


def test_saving_by_steps_does_not_look_at_the_clock() -> None:
    saving = SavingClock(Checkpoints(steps=3), 1e9, Clock())
    assert [step for step in range(1, 10) if saving.due(step)] == [3, 6, 9]
