"""Ctrl-C: a notice and a flag at first, an end at once at second."""

import signal

import pytest

from supersam.runtime.signals import stop_requested


def test_the_first_ctrl_c_is_acknowledged_at_once_and_the_second_ends(capfd):
    with stop_requested("stopping after this step") as flag:
        assert not flag
        signal.raise_signal(signal.SIGINT)
        assert capfd.readouterr().err == "\nstopping after this step\n"
        assert flag
        assert flag.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_from_slurm_sets_the_flag_without_a_notice(capfd):
    with stop_requested("stopping after this step") as flag:
        signal.raise_signal(signal.SIGUSR2)
    assert flag.number == signal.SIGUSR2
    assert capfd.readouterr().err == ""
