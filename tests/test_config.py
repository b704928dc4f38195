import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from cca_ray.config import CONTROL_OBJECTIVE, Train, without_others
from cca_ray.errors import ConfigError
from cca_ray.inputs import SPACES, find_space
from cca_ray.space_file import load_config
from tests.conftest import tiny_space


def write(folder: Path, content: Any) -> Path:
    path = folder / "space.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def changed(path: str, value: Any) -> dict[str, Any]:
    """The tiny space with one value replaced; `path` is dotted."""
    content = copy.deepcopy(tiny_space())
    *sections, key = path.split(".")
    inner = content
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[key] = value
    return content


def without(key: str) -> dict[str, Any]:
    content = tiny_space()
    del content[key]
    return content


BAD: dict[str, tuple[Any, str]] = {
    "not yaml": ("base: [", "line 1"),
    "a list": ("- 1", "not a search space"),
    "empty": ("", "not a search space"),
    "a key twice": ("train: {beta: 1, beta: 2}", "'beta' is given twice"),
    "a name": (changed("name", "x"), "name: unknown key"),
    "unknown section": (changed("trian", {}), "trian: unknown key; allowed: plugins, base, data, train, search"),
    "unknown key": (changed("train.betta", 1.0), "train.betta: unknown key; allowed: objective, lambda"),
    "unknown key in a list": (changed("rungs", [{"at": 1.0, "sample": 3}]), "rungs.0.sample"),
    "text for a number": (changed("train.beta", "big"), "train.beta: input should be a valid number, not 'big'"),
    "a fraction for a count": (changed("train.epochs", 1.5), "train.epochs: input should be a valid integer"),
    "unknown key in a section that may be left out": (
        changed("search.stop_when", {"expected_gain": 0.01, "expected": 1}),
        "search.stop_when.expected: unknown key; allowed: expected_gain",
    ),
    "unknown key of a range": (
        changed("search.space.lambda", {"low": 1, "high": 5, "step": 1}), "search.space.lambda.step: unknown key",
    ),
    "truth for a count": (changed("train.epochs", True), "train.epochs: input should be a valid integer"),
    "negative beta": (changed("train.beta", -1.0), "train.beta: input should be greater than 0, not -1.0"),
    "infinite beta": (changed("train.beta", float("inf")), "train.beta: input should be a finite number"),
    "null ratio of one": (changed("train.null_ratio", 1.0), "train.null_ratio: input should be less than 1"),
    "no base": (without("base"), "base: field required"),
    "no rungs": (without("rungs"), "rungs: field required"),
    "no source of the base": (changed("base.embedded", None), "base: needs embedded: digits, or both checkpoint"),
    "unknown family": (
        changed("base.family", "dalle"), "base.family: unknown family 'dalle': one of llamagen, var, rar",
    ),
    "unknown size": (
        changed("base.size", "XS"),
        "base: size 'XS' of llamagen: one of S, M, tiny, mini, small, medium, large, B, L, XL, XXL, 3B",
    ),
    "unknown metric": (changed("score.metrics", ["fid", "lpips"]), "score.metrics: unknown metric 'lpips': one of fid"),
    "a metric twice": (changed("score.metrics", ["fid", "fid"]), "score.metrics: names fid twice"),
    "no metric": (changed("score.metrics", []), "score.metrics: tuple should have at least 1 item"),
    "search of what is not scored": (changed("search.metric", "kid"), "search.metric: expected one or more of"),
    "search of a metric twice": (changed("search.metric", ["fid", "fid"]), "search.metric: expected one or more of"),
    "a rate twice": (changed("control.learning_rates", [1e-3, 3e-3, 3e-3]), "control.learning_rates: 0.003 is given"),
    "too few whole numbers": (
        changed("search.space", {"epochs": {"low": 1.2, "high": 1.9}}), "expected at least two whole numbers from",
    ),
    "range upside down": (changed("search.space.lambda", {"low": 5, "high": 1}), "low (5) must be below high (1)"),
    "log range from zero": (changed("search.space.lambda", {"low": 0, "high": 1}), "low must be above 0"),
    "unknown search name": (changed("search.space.gamma", {"low": 1, "high": 2}), "cannot search 'gamma'"),
    "impossible range": (changed("search.space.null_ratio", {"low": 0.1, "high": 3}), "null_ratio: 3 is not allowed"),
    "first point outside": (
        changed("search.first_points", [{"lambda": 99.0, "learning_rate": 1e-3}]),
        "first_points[0].lambda = 99 is outside 0.5..10",
    ),
    "first point not whole": (
        changed("search", {"space": {"epochs": {"low": 1, "high": 3}}, "first_points": [{"epochs": 1.5}]}),
        "search.first_points[0].epochs: expected a whole number from 1 to 3, not 1.5",
    ),
    "first point between an end and its whole number": (
        changed("search", {"space": {"global_batch": {"low": 15.5, "high": 24}},
                           "first_points": [{"global_batch": 24}, {"global_batch": 15.7}]}),
        "search.first_points[1].global_batch: expected a whole number from 16 to 24, not 15.7",
    ),
    "first point incomplete": (changed("search.first_points", [{"lambda": 1.0}]), "must give exactly lambda"),
    "no trials": (changed("search.trials", 0), "search.trials: input should be greater than or equal to 1"),
    "rungs out of order": (changed("rungs", [{"at": 1.0, "samples": 9}, {"at": 0.5, "samples": 9}]), "rungs must rise"),
    "rungs without an end": (changed("rungs", [{"at": 0.5, "samples": 9}]), "end at 1"),
    "a field without effect": (changed("train.objective", "dpo"), "lambda has no effect on objective dpo"),
    "a parameter of another objective": (
        changed("train", {"objective": "dpo", "lambda": 3.0}),
        "train.lambda: unknown key; allowed: objective, beta, learning_rate",
    ),
    "an unknown objective": (
        changed("train.objective", "ppo"),
        "train.objective: unknown objective 'ppo': one of cca, dpo, unlearning, finetune",
    ),
    "guidance scale of one": (changed("score.guidance_scales", [1.0]), "every scale must be above 1"),
    "top-p above one": (changed("score.top_p", 1.5), "score.top_p: input should be less than or equal to 1"),
    "checkpoint without data": (
        changed("base", {"family": "llamagen", "size": "B", "checkpoint": "b.pt", "tokenizer": "vq.pt"}),
        "data.tokens, score.features and score.reference must be given",
    ),
    "an order that a family does not know": (
        changed("data", {"order": "random"}), "data.order: random: llamagen supports raster order only",
    ),
    "downsample of three": (changed("pretrain.downsample", 3), "power of two"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_with_file_key_and_what_is_allowed(tmp_path: Path, case: str):
    content, message = BAD[case]
    path = write(tmp_path, content)
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}.*{re.escape(message)}") as error:
        load_config(path)
    assert "\n" not in str(error.value)


def test_a_date_for_a_key_is_one_line(tmp_path: Path):
    with pytest.raises(ConfigError, match="every key must be a word"):
        load_config(write(tmp_path, "2026-01-01: {}"))


def test_a_file_name_that_cannot_name_a_study_is_refused(tmp_path: Path):
    path = tmp_path / "bob's.yaml"
    path.write_text(yaml.safe_dump(tiny_space()))
    with pytest.raises(ConfigError, match="the file's name is the study's"):
        load_config(path)


def test_paths_are_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    content = changed("base", {"family": "llamagen", "size": "B", "checkpoint": "b.pt", "tokenizer": "/vq.pt"})
    content["data"] = {"tokens": "tokens"}
    content["score"] |= {"features": "f.pt", "reference": "r.npz"}
    config = load_config(write(tmp_path, content))
    assert config.base.checkpoint == str(tmp_path / "b.pt")
    assert config.base.tokenizer == "/vq.pt"
    assert config.data.tokens == str(tmp_path / "tokens")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such search-space file"):
        load_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("name", sorted(path.stem for path in SPACES.glob("*.yaml")))
def test_shipped_spaces_are_valid(name: str):
    config = load_config(find_space(name))
    assert config.name == name
    assert config.search.trials >= 8


def test_numbers_may_be_written_as_people_write_them(tmp_path: Path):
    content = yaml.safe_dump(tiny_space()).replace("beta: 0.1", "beta: 1e-1")
    assert "beta: 1e-1" in content
    assert load_config(write(tmp_path, content)).train.parameters.beta == 0.1


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("train.beta=0.3", lambda c: c.train.parameters.beta == 0.3),
        ("train.lambda=1e2", lambda c: c.train.parameters.lambda_ == 100),
        ("search.space.lambda.high=20", lambda c: c.search.space["lambda"].high == 20),
        ("control.learning_rates=[1e-3, 2e-3]", lambda c: c.control.learning_rates == (1e-3, 2e-3)),
        ("placement.workers=2", lambda c: c.placement.workers == 2),
    ],
)
def test_a_setting_overrides_the_file(tmp_path: Path, setting: str, read):
    assert read(load_config(write(tmp_path, tiny_space()), [setting]))


def test_a_setting_changes_one_place_of_those_that_share_an_alias(tmp_path: Path):
    content = tiny_space()
    content["search"]["space"] = {"lambda": "&r {low: 0.001, high: 1.0}", "learning_rate": "*r"}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content).replace("'", ""))
    space = load_config(tmp_path / "tiny.yaml", ["search.space.lambda.high=5"]).search.space
    assert (space["lambda"].high, space["learning_rate"].high) == (5.0, 1.0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        *((setting, f"--set {setting}: expected KEY.KEY=VALUE") for setting in ("train.beta", "=3", "train..beta=3")),
        ("train.beta.x=3", "--set train.beta.x=3: beta holds no keys"),
        ("rungs.0.at=0.5", "--set rungs.0.at=0.5: rungs holds no keys"),
        ("train.beta=[", "--set train.beta=[: line 1"),
        ("train.bet=1", "train.bet: unknown key"),
        ("search.space.learning_rate.low=0", "low"),
        ("train.learning_rate=0", "train.learning_rate: input should be greater than 0"),
        ("train.learning_rate=-1e-3", "train.learning_rate: input should be greater than 0"),
        ("control.learning_rates=[1e-3, 0]", "control.learning_rates"),
    ],
)
def test_a_bad_setting_is_one_line(tmp_path: Path, setting: str, message: str):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        load_config(write(tmp_path, tiny_space()), [setting])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["- 1", "5", ""])
def test_a_setting_on_a_file_that_is_no_mapping_is_one_line(tmp_path: Path, content: str):
    with pytest.raises(ConfigError, match=re.escape("--set train.beta=1: the file holds no keys")):
        load_config(write(tmp_path, content), ["train.beta=1"])


def test_any_numeric_field_of_train_may_be_searched(tmp_path: Path):
    content = changed("search.space.beta", {"low": 0.01, "high": 1.0})
    config = load_config(write(tmp_path, content))
    assert config.train_with({"beta": 0.5, "lambda": 3.0}).parameters.beta == 0.5
    assert config.train_with({"epochs": 2.7}).epochs == 3


def test_with_another_objective_the_parameters_that_it_lacks_fall_away(tmp_path: Path):
    config = load_config(write(tmp_path, tiny_space()))
    assert config.train_with({"objective": "dpo"}).model_dump().get("beta") == 0.1
    control = config.train_with({"objective": CONTROL_OBJECTIVE, "learning_rate": 3e-3})
    assert control.learning_rate == 3e-3
    assert control.global_batch == config.train.global_batch
    assert not {"beta", "lambda"} & set(control.model_dump())
    with pytest.raises(ValidationError, match="lambda"):
        config.train_with({"objective": "dpo", "lambda": 3.0})


def test_the_keys_of_train_stay_flat(tmp_path: Path):
    train = load_config(write(tmp_path, tiny_space())).train
    content = train.model_dump(by_alias=True)
    assert (content["objective"], content["lambda"], content["beta"]) == ("cca", 1.0, 0.1)
    assert Train.model_validate_json(train.model_dump_json(by_alias=True)) == train
    assert without_others({**content, "objective": "unlearning"}) == {
        key: value for key, value in {**content, "objective": "unlearning"}.items() if key != "beta"
    }


@pytest.mark.parametrize(
    ("metric", "names"),
    [
        ("fid", ("fid",)),
        ("kid", ("kid",)),
        ("both", ("fid", "inception_score")),
        (["kid", "recall"], ("kid", "recall")),
    ],
)
def test_a_study_may_search_any_of_its_metrics_or_several(metric: Any, names: tuple[str, ...], tmp_path: Path):
    content = changed("score.metrics", ["fid", "inception_score", "kid", "recall"])
    content["search"]["metric"] = metric
    assert load_config(write(tmp_path, content)).search.metrics == names
