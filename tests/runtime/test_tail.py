"""The ends of log files."""

from supersam.runtime.tail import LogTail, read_tail


def test_each_look_shows_what_is_new(tmp_path):
    log = tmp_path / "task.log"
    tail = LogTail(log)
    assert tail.read_new() == ""  # before the file appears
    log.write_text("one\n")
    assert tail.read_new() == "one\n"
    assert tail.read_new() == ""
    with log.open("a") as file:
        file.write("two\n")
    assert tail.read_new() == "two\n"


def test_a_letter_whose_bytes_come_in_two_looks_stays_whole(tmp_path):
    log = tmp_path / "task.log"
    tail = LogTail(log)
    log.write_bytes("ü".encode()[:1])
    first = tail.read_new()
    log.write_bytes("ü".encode())
    assert first + tail.read_new() == "ü"


def test_a_file_that_was_cut_short_is_shown_from_its_start(tmp_path):
    log = tmp_path / "task.log"
    log.write_text("a long line of an earlier attempt\n")
    tail = LogTail(log)
    tail.read_new()
    log.write_text("new\n")
    assert tail.read_new() == "new\n"


def test_what_was_there_before_can_be_left_out(tmp_path):
    log = tmp_path / "task.log"
    log.write_text("old line\n")
    assert LogTail(log, skip=True).read_new() == ""
    assert LogTail(log, skip=True, last_bytes=5).read_new() == "line\n"


def test_the_tail_is_the_end_of_the_file(tmp_path):
    log = tmp_path / "task.log"
    log.write_text("0123456789")
    assert read_tail(log, 4) == "6789"
    assert read_tail(log) == "0123456789"
    assert read_tail(tmp_path / "none.log") == ""
