"""Other projects' searches, as `contest` asks them: Syne Tune's schedulers and SMAC3. Neither is a dependency.

    pip install cmaes syne-tune smac    (in an environment of its own; cmaes is for Optuna's sampler)

Syne Tune 0.16 has no MOBSTER and no hyper-tune any more: they went with its own Gaussian processes.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from datetime import datetime
from importlib.util import find_spec
from io import StringIO
from typing import Any

import numpy as np

from benchmarks.simulator import NAMES, Task, Trial, best_observed

FID = "fid"
FIRST = 4  # trials before a peer's model is used, where its default would be most of a study
UNITS = 8  # of progress in a whole trial
OCTAVES = (0.125, 0.25, 0.5, 1.0)


def ends(task: Task) -> dict[str, tuple[float, float]]:
    return {
        name: (float(low), float(high)) for name, low, high in zip(NAMES, 10.0**task.low, 10.0**task.high, strict=True)
    }


class SyneTune:
    """One of its baselines, driven as its own tuner would. Multi-fidelity ones hear of every rung."""

    def __init__(self, task: Task, baseline: str, rungs: tuple[float, ...] = OCTAVES):
        from syne_tune.config_space import loguniform
        from syne_tune.optimizer import baselines

        np.random.seed(task.seed)
        space = {name: loguniform(low, high) for name, (low, high) in ends(task).items()}
        self.rungs = rungs
        options: dict[str, Any] = {"metric": FID, "do_minimize": True, "random_seed": task.seed}
        if task.known:
            options["points_to_evaluate"] = [dict(task.known.best)]
        if len(rungs) > 1:
            options |= {"time_attr": "units", "max_t": UNITS, "grace_period": 1, "reduction_factor": 2}
        self.scheduler: Any = getattr(baselines, baseline)(space, **options)
        self.begun = dict[int, Any]()

    def propose(self, trials: Sequence[Trial]) -> Mapping[str, float]:
        from syne_tune.backend.trial_status import Trial as Theirs

        config = self.scheduler.suggest().config
        self.begun[len(trials)] = Theirs(len(trials), config, datetime.min)
        self.scheduler.on_trial_add(self.begun[len(trials)])
        return {name: float(config[name]) for name in NAMES}

    def result(self, trial: Trial) -> dict[str, float]:
        at = self.rungs[len(trial.scores) - 1]
        return {FID: trial.scores[-1][0], "units": round(UNITS * at)}

    def goes_on(self, trials: Sequence[Trial], trial: Trial) -> bool:
        decision = self.scheduler.on_trial_result(self.begun[trial.number], self.result(trial))
        return bool(decision == "CONTINUE")

    def ended(self, trial: Trial) -> None:
        theirs = self.begun[trial.number]
        if trial.state == "complete":
            self.scheduler.on_trial_complete(theirs, self.result(trial))
        elif trial.state == "failed":
            self.scheduler.on_trial_error(theirs)
        else:
            self.scheduler.on_trial_remove(theirs)

    def incumbent(self, trials: Sequence[Trial]) -> Trial | None:
        return best_observed(trials)


class Smac:
    """Its facade for hyperparameters, with a random forest; whole trials only."""

    rungs = (1.0,)

    def __init__(self, task: Task):
        from ConfigSpace import ConfigurationSpace, Float
        from smac import HyperparameterOptimizationFacade, Scenario

        space = ConfigurationSpace(seed=task.seed)
        space.add([Float(name, bounds, log=True) for name, bounds in ends(task).items()])
        self.folder = tempfile.TemporaryDirectory()
        settings: dict[str, Any] = {"deterministic": True, "n_trials": 200, "seed": task.seed}
        scenario = Scenario(space, output_directory=self.folder.name, **settings)
        # Its default begins with 20 points of a Sobol sequence, more trials than a study has.
        first = HyperparameterOptimizationFacade.get_initial_design(scenario, n_configs=FIRST)
        with redirect_stdout(StringIO()):
            self.facade: Any = HyperparameterOptimizationFacade(
                scenario, lambda config, seed: 0.0, overwrite=True, logging_level=40, initial_design=first
            )
        self.asked = dict[int, Any]()

    def propose(self, trials: Sequence[Trial]) -> Mapping[str, float]:
        self.asked[len(trials)] = info = self.facade.ask()
        return {name: float(info.config[name]) for name in NAMES}

    def goes_on(self, trials: Sequence[Trial], trial: Trial) -> bool:
        return True

    def ended(self, trial: Trial) -> None:
        from smac.runhistory import StatusType, TrialValue

        done = trial.state == "complete"
        value = TrialValue(
            cost=trial.scores[-1][0] if done else float(np.finfo(float).max),
            status=StatusType.SUCCESS if done else StatusType.CRASHED,
        )
        self.facade.tell(self.asked[trial.number], value, save=False)

    def incumbent(self, trials: Sequence[Trial]) -> Trial | None:
        return best_observed(trials)


def installed(*modules: str) -> bool:
    return all(find_spec(module) for module in modules)
