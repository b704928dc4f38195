"""Delete what no later run of a study needs: checkpoints of trials that have ended, weights that cannot win any more.

cca-ray clean digits                             show it, and ask
cca-ray clean digits --yes                       delete it
cca-ray clean digits --storage s3://my/runs      of a study in a bucket
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import optuna
import typer

from cca_ray.reporting.results import SizeResults, read_study
from cca_ray.search.cleaning import WEIGHTS, Progress, needed_weights, unneeded
from cca_ray.storage.files import fingerprint
from cca_ray.storage.lease import leased
from cca_ray.storage.lock import alone
from cca_ray.storage.mirror import pull, remove, sizes_below
from cca_ray.storage.uris import to_uri
from cca_ray.terminal.console import StorageOption, complete_study, run


def progress_of(size: SizeResults, folder: Path, weights: set[Path]) -> Progress:
    """How far a size is. `weights`: those that there are of trials."""
    known = size.finished_at is not None  # else trials may have been begun since
    finished = known and size.finished and "RUNNING" not in [trial.state for trial in size.trials]
    winner, best = folder / size.name / "winner.pt", size.best
    if not finished or best is None:
        return Progress(size.settings.score.finalists, finished)
    own = folder / "trials" / best.frozen.user_attrs["key"] / WEIGHTS
    same = own in weights and pull(winner) and pull(own) and fingerprint(winner) == fingerprint(own)
    return Progress(size.settings.score.finalists, finished, best.number if same else None)


def waiting_files(folder: Path) -> str:
    """What still has to be sent to MLflow, in which files are named."""
    return "".join(path.read_text(encoding="utf-8", errors="replace") for path in folder.glob("*.journal"))


def unneeded_files(storage: Path, name: str) -> tuple[dict[Path, int], int]:
    """The files that no later run of a study needs, and their bytes; and the bytes of the trials' other files."""
    study = read_study(storage, name)
    files, waiting = sizes_below(study.folder / "trials"), waiting_files(study.folder)
    found = set[Path]()
    for size in study.sizes:
        progress = progress_of(size, study.folder, {file for file in files if file.name == WEIGHTS})
        for arm in dict.fromkeys(trial.arm for trial in size.trials):
            trials = {t.frozen.user_attrs["key"]: t.frozen for t in size.of(arm) if "key" in t.frozen.user_attrs}
            needed = needed_weights(arm, list(trials.values()), progress)
            mine = (file for file in files if file.parent.name in trials)
            found |= {file for file in mine if unneeded(trials[file.parent.name], file, needed)}
    found = {file for file in found if json.dumps(str(file.resolve()))[1:-1] not in waiting}
    return {file: files[file] for file in sorted(found)}, sum(files[file] for file in files.keys() - found)


def readable_size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"


def agreed() -> bool:
    """Whether the person at the terminal says yes. typer.Abort at Ctrl-C or Ctrl-D."""
    try:
        return typer.confirm("Delete them?")
    except typer.Abort:
        print("\nnothing was deleted")
        raise


def main(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the study.", autocompletion=complete_study)],
    storage: StorageOption = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking for confirmation.")] = False,
) -> None:
    """Delete what no later run of a study needs; first show it.

    Without a terminal or --yes nothing is deleted.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = storage.resolve()
    folder = read_study(storage, name).folder  # whether there is one
    with alone(folder), leased(folder):
        found, kept = unneeded_files(storage, name)
        for file, size in found.items():
            print(f"{readable_size(size):>9}  {to_uri(file)}")
        total = f"{len(found)} files, {readable_size(sum(found.values()))}"
        if not found:
            print(f"{name}: nothing to delete; {readable_size(kept)} of the trials' files may still be needed")
            return
        print(f"{name}: no later run needs these {total}; {readable_size(kept)} of the trials stay")
        asked = sys.stdin.isatty() and sys.stdout.isatty()
        if not (yes or (asked and agreed())):
            print("nothing was deleted" + "; --yes deletes them" * (not asked))
            return
        for file in found:
            remove(file)
        print(f"deleted {total}")


if __name__ == "__main__":
    run(main)
