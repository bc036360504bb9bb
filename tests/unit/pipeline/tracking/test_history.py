"""What was told of a step is not told again."""

from pipeline.tracking.history import History


def report(step: int, **values: object) -> dict[str, object]:
    named = {name.replace("_", "/", 1): value for name, value in values.items()}
    return {"kind": "metrics", "step": step, "time_ms": 7, "values": named}


def test_a_step_of_the_same_loss_repeats_whatever_its_speed() -> None:
    history = History()
    history.add(report(3, train_loss=0.5, train_samples=10.0))
    assert history.repeats(3, {"train/loss": 0.5, "train/samples": 99.0})
    assert not history.repeats(3, {"train/loss": 0.6})
    assert not history.repeats(4, {"train/loss": 0.5})
    # A validation of the step is another report.
    assert not history.repeats(3, {"validation/loss": 0.5})
    history.add(report(3, validation_loss="nan"))
    assert history.repeats(3, {"validation/loss": "nan"})
    assert history.at(3) == {
        "train/loss": (0.5, 7),
        "train/samples": (10.0, 7),
        "validation/loss": ("nan", 7),
    }


def test_the_oldest_steps_are_forgotten() -> None:
    history = History()
    for step in range(3_000):
        history.add(report(step, train_loss=0.5))
    assert not history.at(0)
    assert history.at(2_999)
