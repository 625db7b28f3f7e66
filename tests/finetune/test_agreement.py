import pytest
from accelerate import Accelerator

from configs.errors import RefusedInput
from finetune import agreement
from finetune.agreement import agreed


def refuse():
    raise RefusedInput("no such folder")


@pytest.mark.parametrize("main_first", [False, True])
def test_alone_it_does_the_work_or_raises(main_first):
    accelerator = Accelerator(cpu=True)
    assert agreed(accelerator, lambda: 5, main_first=main_first) == 5
    with pytest.raises(RefusedInput, match="no such folder"):
        agreed(accelerator, refuse, main_first=main_first)


def test_another_process_refusal_is_obeyed(monkeypatch):
    monkeypatch.setattr(agreement, "gather_object", lambda mine: [*mine, "rank 1 cannot read it"])
    with pytest.raises(RefusedInput, match="rank 1 cannot read it"):
        agreed(Accelerator(cpu=True), lambda: 5)


def test_each_process_works_once_and_the_others_after_the_main_one(monkeypatch):
    """What a process that is not the main one does: wait for its answer, then work."""
    events = []
    monkeypatch.setattr(agreement, "gather_object", lambda mine: events.append("share") or mine)
    accelerator = type("Second", (), {"is_main_process": False})()
    assert agreed(accelerator, lambda: events.append("work") or 5, main_first=True) == 5
    assert events == ["share", "work", "share"]
