"""What a study would take, before it runs: trials, hours by card, wall time, disk space and money.

cca-ray plan                                                  the default study on this machine
cca-ray plan llamagen_b llamagen_l --price H100=2.5           two sizes on H100s
cca-ray plan llamagen_b --trials 32 --price 2.5               any card at that price
RAY_ADDRESS=auto cca-ray plan llamagen_b                      the wall time on the cluster as it is now

Nothing is created, and no weights are needed. Times come from trials of the same size in this storage, or else from
arithmetic.
"""

import math
from pathlib import Path
from typing import Annotated

import typer

from cca_ray.errors import ConfigError
from cca_ray.reporting.plan import Prices, plan_of
from cca_ray.terminal.console import StorageOption, run
from cca_ray.terminal.ray_session import nodes_to_plan_for
from cca_ray.tune import SpacesArgument, default_name, read_spaces, settings_of


def prices_of(given: list[str]) -> Prices:
    """By type of card; of any other card under the empty name. ConfigError if one is not a price."""
    prices: dict[str, float] = {}
    for text in given:
        card, _, number = text.rpartition("=")
        try:
            prices[card] = float(number)
        except ValueError:
            prices[card] = math.nan
        if not (math.isfinite(prices[card]) and prices[card] >= 0):
            raise ConfigError(f"--price {text}: expected what an hour of a GPU costs, such as 2.5 or H100=2.5")
    return prices


def main(
    spaces: SpacesArgument = None,
    name: Annotated[
        str,
        typer.Option(
            help="Name of the study; for an existing one, the plan is for what is left.", show_default="as of tune"
        ),
    ] = "",
    storage: StorageOption = Path("runs"),
    trials: Annotated[
        int | None, typer.Option(min=1, help="Number of trials per size.", show_default="search.trials")
    ] = None,
    replicates: Annotated[
        int | None,
        typer.Option(
            min=0, help="Number of further training seeds for each finalist.", show_default="search.replicates"
        ),
    ] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, help="Number of concurrent trials.", show_default="search.max_concurrent")
    ] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[TYPE=]NUMBER",
            help="Price of an hour of a GPU: H100=2.5 for one type, 2.5 for all others; repeatable.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting, such as train.epochs=2; repeatable.")
    ] = None,
) -> None:
    """Say what a study would take: trials, hours by card, wall time, disk space, money."""
    given = {"trials": trials, "replicates": replicates, "max_concurrent": max_concurrent}
    configs = read_spaces(spaces or [], [*(set_ or []), *settings_of(given, None)])
    prices, study = prices_of(price or []), name or default_name(configs, bool(spaces), None)
    print(*plan_of(configs, storage.resolve(), study, nodes_to_plan_for(), prices=prices), sep="\n")


if __name__ == "__main__":
    run(main)
