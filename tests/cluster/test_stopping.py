"""The wish to stop, as signals bring it."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from cca_ray.cluster.stopping import Stop, heeding_signals, interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_and_the_second_interrupts_who_called_us(number: signal.Signals):
    before = signal.getsignal(number)
    if before == signal.SIG_IGN:  # as of SIGHUP under nohup, which is heeded
        signal.signal(number, signal.SIG_DFL)
    stop, set_here = Stop(), signal.getsignal(number)
    with heeding_signals(stop, interrupt):
        signal.raise_signal(number)
        assert stop.wished.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) == set_here
    signal.signal(number, before)


def test_a_thread_leaves_signals_to_the_main_one():
    before = signal.getsignal(signal.SIGINT)

    def heed() -> object:
        with heeding_signals(Stop()):
            return signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(heed).result() == before
