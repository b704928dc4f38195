"""Trials at work, as the driver of a study tells of them."""

from cca_ray.terminal.snapshot import AtWork

NOW = 1000.0


def at_work(number: int, step: int = 50, settings: str = "λ=312 lr=1.4e-05") -> AtWork:
    return AtWork(
        arm="search", number=number, trials=14, settings=settings, step=step, total=100, images_per_second=1234.5,
        values={"fid": 17.25}, accelerator="A40", workers=2, seconds_left=90.0, reported=NOW - 10,
    )  # fmt: skip
