"""What the console says."""

import io
import logging
import sys
import warnings

import pytest

from training import console
from training.console import ProgressLine, format_duration, setup_logging


@pytest.fixture(autouse=True)
def logging_as_before():
    """The root logger's handlers and our levels, back after each test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with warnings.catch_warnings():
        yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in (*console.OUR_PACKAGES, *console._NOISY_LOGGERS):
        logging.getLogger(name).setLevel(logging.NOTSET)
        logging.getLogger(name).filters.clear()


class Terminal(io.StringIO):
    def isatty(self):
        return True


METRICS = {
    "train/loss": 2.34567,
    "train/lr": 3e-4,
    "train/grad_norm": 0.9876,
    "throughput/images_per_second": 12345.6,
    "throughput/data_wait_fraction": 0.0123,
    "system/memory_gib": 3.25,
    "train/unknown": 1.0,
}


def test_a_line_holds_everything_asked_for(capsys):
    now = [0.0]
    setup_logging(None, True)
    progress = ProgressLine(1000, start_step=100, clock=lambda: now[0])
    now[0] = 60.0
    progress.log(200, METRICS)
    line = capsys.readouterr().out.strip()
    for part in (
        "step  200/1000",
        "loss 2.3457",
        "lr 3.00e-04",
        "grad norm 0.988",
        "12,346 images/s",
        "data wait 1.2%",
        "memory 3.2 GiB",
        "8m00s left",  # 100 of 900 steps took a minute, 800 are left
    ):
        assert part in line
    assert "unknown" not in line
    assert line.count("\n") == 0


def test_a_line_says_that_it_is_of_validation(capsys):
    setup_logging(None, True)
    ProgressLine(10).log(5, {"validation/top1": 0.123, "validation/loss": 2.0})
    assert "step  5/10 | validation | loss 2.0000 | top-1 12.30%" in capsys.readouterr().out
    ProgressLine(10).log(
        5, {"validation/real_top1": 0.25, "validation/mean_average_precision": 0.5}
    )
    told = "validation | ReaL top-1 25.00% | mean average precision 50.00%"
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(("count", "is_shown"), [(0.0, False), (3.0, True)])
def test_broken_images_are_shown_where_there_are_any(capsys, count, is_shown):
    setup_logging(None, True)
    ProgressLine(10).log(5, {"train/loss": 2.0, "train/broken_images": count})
    out = capsys.readouterr().out
    assert ("| 3 broken |" in out) is is_shown and ("broken" in out) is is_shown


def test_the_run_folder_keeps_the_log_of_every_start(tmp_path, capsys):
    for word in ("first", "second"):
        setup_logging(tmp_path, True)
        logging.getLogger("training.x").info(word)
    log = (tmp_path / "train.log").read_text()
    assert "first" in log and "second" in log
    assert len(log.splitlines()) == 2


def test_other_ranks_speak_only_of_errors(tmp_path, capsys):
    setup_logging(tmp_path, False)
    logging.getLogger("training.x").warning("not this")
    logging.getLogger("DeepSpeed").warning("nor this")
    logging.getLogger("training.x").error("but this")
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: but this" in err and "this" not in err.replace("but this", "")
    assert not (tmp_path / "train.log").exists()


@pytest.mark.parametrize("is_main", [True, False])
def test_what_is_told_at_exit_goes_into_the_log_alone(tmp_path, capsys, is_main):
    setup_logging(tmp_path, is_main)
    logging.getLogger("training.x").error("refused", extra=console.TOLD_AT_EXIT)
    assert capsys.readouterr() == ("", "")
    log = tmp_path / "train.log"
    assert ("error: refused" in log.read_text()) if is_main else not log.exists()


@pytest.mark.parametrize("name", console._NOISY_LOGGERS)
def test_known_noise_is_dropped_and_other_warnings_are_not(name):
    setup_logging(None, True)
    library, said = logging.getLogger(name), io.StringIO()
    handler = logging.StreamHandler(said)  # libraries have handlers of their own, too
    library.addHandler(handler)
    try:
        library.warning("No CUDA runtime is found, using CUDA_HOME='%s'", "/usr/local/cuda")
        library.warning("something real")
    finally:
        library.removeHandler(handler)
    assert said.getvalue() == "something real\n"


def test_known_warnings_are_dropped():
    setup_logging(None, True)
    with pytest.warns(FutureWarning) as seen:
        warnings.warn("something else", FutureWarning, stacklevel=1)
    assert len(seen) == 1
    message = "torch.distributed._all_gather_base is deprecated"
    applies = [f for f in warnings.filters if f[1] and f[1].match(message)]
    assert applies and applies[0][0] == "ignore"


def test_library_chatter_below_warnings_is_not_shown(capsys):
    setup_logging(None, True)
    logging.getLogger("some.library").info("chatter")
    logging.getLogger("pretrain.loop").info("news")
    out = capsys.readouterr().out
    assert "chatter" not in out and "news" in out


def test_a_bar_on_a_terminal_and_none_in_a_pipe(monkeypatch):
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        monkeypatch.setattr(sys, "stdout", stream)
        setup_logging(None, True)
        progress = ProgressLine(10)
        progress.advance(3)
        progress.log(5, {"loss": 1.0})
        progress.close()
    assert "5/10" in terminal.getvalue() and "\r" in terminal.getvalue()
    assert "\r" not in pipe.getvalue()
    assert len(pipe.getvalue().splitlines()) == 1


def test_no_bar_where_nothing_is_logged(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    setup_logging(None, False)
    progress = ProgressLine(10)
    progress.log(5, {"loss": 1.0})
    progress.close()
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (200, "3m20s"), (7500, "2h05m"), (273600, "3d04h")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text
