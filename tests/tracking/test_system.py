from tracking import metric_names
from tracking.system import system_metrics


def test_system_metrics_are_numbers_of_a_plausible_size():
    metrics = system_metrics()
    assert 0.001 < metrics[metric_names.MEMORY_GIB] < 4096
    assert 0 < metrics[metric_names.HOST_MEMORY_PERCENT] <= 100
    assert all(isinstance(value, float) for value in metrics.values())
    assert all(name.startswith("system/") for name in metrics)


def test_names_are_unique():
    names = [value for key, value in vars(metric_names).items() if key.isupper()]
    assert len(names) == len(set(names)) > 15
