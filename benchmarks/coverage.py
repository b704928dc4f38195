"""Is the spread that a study reports true? Finalists' mean ± std against an independent re-score, over several studies.

    python -m benchmarks.search         # makes the studies, five search seeds of digits_m
    python -m benchmarks.coverage

The three best trials of every study are scored as its final comparison scores them, on three blocks of fresh noise:
mean and standard deviation of one block.  Then on ten blocks that nothing else has seen.
"""

import statistics
from pathlib import Path

import optuna

from benchmarks.common import TINY, Raw, options, some_ray
from cca_ray.cluster.stopping import Stop
from cca_ray.config import ResolvedStudy
from cca_ray.inputs import find_space
from cca_ray.search.arms import Arm
from cca_ray.search.blocks import Wanted
from cca_ray.search.final_comparison import finalists
from cca_ray.search.fresh_scores import Scores
from cca_ray.space_file import load_config
from cca_ray.training.small_base import resolve

SPACE, BLOCKS, INDEPENDENT = "digits_m", range(4, 7), range(9001, 9011)


def main(words: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--studies", nargs="+", default=[f"way0-seed{seed}" for seed in range(5)])
    arguments = parser.parse_args(words)
    tiny: tuple[str, ...] = ()
    storage, names, independent = arguments.storage.resolve(), arguments.studies, INDEPENDENT
    if arguments.smoke:  # of what `search --smoke` leaves
        tiny, names, independent = TINY, ["way0-seed0"], INDEPENDENT[:2]
    config = resolve(load_config(find_space(SPACE), tiny), storage, lambda what, done, total: None)
    raw = Raw(arguments.raw, "study", "finalist", "blocks", "block", "fid")
    with some_ray():
        compare(config, storage, names, independent, raw)


def compare(config: ResolvedStudy, storage: Path, names: list[str], independent: range, raw: Raw) -> None:
    print("| study | finalist | reported | re-scored, ten blocks | of ten blocks within ± std | mean within ± std |")
    print("|---|---|---|---|---|---|")
    within, blocks_within, stds, true_stds = [], [], [], []
    for name in names:
        database = optuna.storages.RDBStorage(f"sqlite:///{storage / name / 'study.db'}")
        memory, search = (
            optuna.load_study(study_name=f"{name}/{SPACE}/{arm}", storage=database) for arm in ("control", "search")
        )
        arm, kept = Arm("search", search, database, {}, 0), memory.user_attrs["id"]
        best = finalists(arm, config.score.finalists, storage / name, lambda trial: 0, kept)
        scores = Scores(config, storage / name, Stop(), "coverage")
        both = (BLOCKS, independent)
        found = [scores.standings([Wanted([contender], blocks) for contender in best]) for blocks in both]
        for reported, again in zip(*found, strict=True):
            mean, std, fids = reported.mean("fid"), reported.std("fid"), again.values["fid"][0]
            inside = [abs(fid - mean) <= std for fid in fids]
            for blocks, standing in ((BLOCKS, reported), (independent, again)):
                for block, fid in zip(blocks, standing.values["fid"][0], strict=True):
                    raw.add(name, reported.contender.number, "reported" if blocks is BLOCKS else "again", block, fid)
            within.append(abs(again.mean("fid") - mean) <= std)
            blocks_within += inside
            stds.append(std)
            spread = float(fids.std(ddof=1))
            true_stds.append(spread)
            print(
                f"| {name} | {reported.contender.number} | {mean:.2f} ± {std:.2f} | "
                f"{again.mean('fid'):.2f} ± {spread:.2f} | {sum(inside)} | {'yes' if within[-1] else 'no'} |",
                flush=True,
            )
    print(f"\nmeans within ± std: {sum(within)} of {len(within)}; blocks: {sum(blocks_within)} of {len(blocks_within)}")
    print(f"std as reported {statistics.mean(stds):.3f}, of ten blocks {statistics.mean(true_stds):.3f}")


if __name__ == "__main__":
    main()
