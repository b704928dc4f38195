"""Names of metrics in MLflow, whose charts fall into sections by what stands before `/`.

`train/loss`, `eval/inception_score`, `final/fid`, `system/…`; FID at the rungs is `fid`, by which runs are sorted.
Version 0.1.0 had none of these sections; a run that it began keeps the names that it has.
"""

FID = "fid"
OLD_INCEPTION_SCORE = "is"


def trained(name: str) -> str:
    """What a step of training logs."""
    return f"train/{name}"


def evaluated(metric: str) -> str:
    """A score at a rung."""
    return metric if metric == FID else f"eval/{metric}"


def final(metric: str, model: str = "") -> str:
    """A score on fresh noise: of the run's own model, or on the size's run of this one."""
    return f"final/{metric}" + f"_{model}" * bool(model)


def as_before(name: str) -> str:
    """The name that version 0.1.0 had for it."""
    section, _, own = name.rpartition("/")
    if section not in ("train", "eval", "final"):
        return name
    short = OLD_INCEPTION_SCORE if own == "inception_score" else own
    return f"{short}_final" if section == "final" else short
