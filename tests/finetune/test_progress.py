import json

from finetune.progress import Progress


def test_candidates_follow_each_other_and_the_best_is_kept():
    progress = Progress((0.1, 0.2, 0.3, 0.4), steps_each=5)
    progress.step = 5
    assert progress.finish_candidate(0.5) is True
    assert (progress.candidate, progress.step, progress.total_step, progress.peak) == (1, 0, 5, 0.2)
    assert progress.finish_candidate(None) is False  # diverged
    assert progress.finish_candidate(0.5) is False  # of equals the first stays
    assert progress.finish_candidate(0.6) is True
    assert progress.is_done and progress.chosen == 3
    assert progress.total_step == progress.total_steps == 20


def test_a_first_candidate_that_diverged_does_not_win():
    progress = Progress((0.1, 0.2), steps_each=5)
    progress.finish_candidate(None)
    assert progress.chosen is None
    assert progress.finish_candidate(0.0) is True


def test_progress_survives_json():
    progress = Progress((0.1, 0.2), 5, candidate=1, step=3, validation=[0.25], chosen=0)
    progress.broken["7"] = {"row": 7, "shard": "a", "key": "b", "reason": "c"}
    assert Progress.from_json(json.loads(json.dumps(progress.to_json()))) == progress
