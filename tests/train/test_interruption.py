import os
import signal

import pytest

from kinfolk.train.interruption import Interrupted, Interruption


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_once_unless_it_is_deferred(number: int) -> None:
    with Interruption().watched(), pytest.raises(Interrupted) as stop:
        send(number)
    assert stop.value.number == number
    interruption = Interruption()
    with interruption.watched(), interruption.deferred():
        send(number)
        assert interruption.requested == number
        with pytest.raises(Interrupted):
            send(number)


def test_under_torchrun_a_second_signal_is_passed_over() -> None:
    interruption = Interruption(second_stops=False)
    with interruption.watched(), interruption.deferred():
        send(signal.SIGINT)
        send(signal.SIGTERM)
    assert interruption.requested == signal.SIGINT
    with Interruption(second_stops=False).watched(), pytest.raises(Interrupted):
        send(signal.SIGINT)


def test_deferring_nests_and_handlers_are_put_back() -> None:
    former = signal.getsignal(signal.SIGTERM)
    interruption = Interruption()
    with interruption.watched(), interruption.deferred():
        with interruption.deferred():
            pass
        send(signal.SIGTERM)
    assert interruption.requested == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is former
