from pathlib import Path

import numpy as np
import pytest
import torch

from cca_ray.data import gather, plan_epoch
from cca_ray.models import load_official
from cca_ray.objective import Scorer
from cca_ray.pretrain import BaseFiles
from cca_ray.reference import ReferenceTable, compute_table, pair_logps, read_table, table_key, write_table
from cca_ray.tokens import TokenSet, read_token_set


@pytest.fixture(scope="module")
def scorer(base_files: BaseFiles) -> Scorer:
    return Scorer(load_official("llamagen", "S", base_files.checkpoint))


@pytest.fixture(scope="module")
def data(base_files: BaseFiles) -> TokenSet:
    return read_token_set(base_files.tokens)


@pytest.fixture(scope="module")
def table(scorer: Scorer, data: TokenSet) -> ReferenceTable:
    return compute_table(scorer, data, "key", null_ratio=0.1, seed=3, epochs=2, batch=50)


def test_the_table_holds_what_the_frozen_model_says(scorer: Scorer, data: TokenSet, table: ReferenceTable):
    plan = plan_epoch(data.labels, 1, scorer.model.null_label, 0.1, seed=3, epoch=1)
    batch = gather(data, plan, np.array([7, 100, 3]))
    for found, live in zip(table.of(1, batch), pair_logps(scorer, batch), strict=True):
        torch.testing.assert_close(found, live, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(table.positive[0], table.negative[0])


def test_a_table_is_read_as_it_was_written(tmp_path: Path, table: ReferenceTable):
    write_table(table, tmp_path / "table.parquet")
    again = read_table(tmp_path / "table.parquet", "key")
    assert torch.equal(again.positive, table.positive)
    assert torch.equal(again.negative, table.negative)
    assert [p.name for p in tmp_path.iterdir()] == ["table.parquet"]


def test_another_key_is_an_error_never_used(tmp_path: Path, table: ReferenceTable):
    write_table(table, tmp_path / "table.parquet")
    with pytest.raises(ValueError, match=r"made for other weights, tokens or pairs \(key key, want other\)"):
        read_table(tmp_path / "table.parquet", "other")


def test_a_torn_table_is_an_error_that_names_it(tmp_path: Path, table: ReferenceTable):
    path = tmp_path / "table.parquet"
    write_table(table, path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"table\.parquet: not a reference table; delete it"):
        read_table(path, "key")


def test_the_key_follows_all_it_depends_on(data: TokenSet):
    arguments = [("w", 0.1, 0, 1), ("v", 0.1, 0, 1), ("w", 0.2, 0, 1), ("w", 0.1, 1, 1), ("w", 0.1, 0, 2)]
    keys = {table_key(weights, data, *pairing) for weights, *pairing in arguments}
    assert len(keys) == 5
