"""wait_until: the first true result, at least one call, never for ever."""

from supersam.runtime.waiting import wait_until


def test_waiting_returns_the_first_true_result():
    results = iter([None, 0, "here", "later"])
    assert wait_until(lambda: next(results), timeout_s=60, poll_s=0) == "here"


def test_waiting_looks_once_even_without_time():
    assert wait_until(lambda: 7, timeout_s=0) == 7


def test_waiting_without_success_returns_the_last_false_result():
    calls = []
    assert wait_until(lambda: calls.append(1), timeout_s=0.05, poll_s=0.01) is None
    assert calls
