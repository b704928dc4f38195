"""The whole way of a study whose conditions are texts: digits with captions, from tokens to an official file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cca_ray.config import Pretrain, ResolvedStudy, StudyConfig
from cca_ray.data.labelled_images import LabelledImages
from cca_ray.data.pairs import gather, plan_epoch
from cca_ray.data.tokens import TokenMeta, TokenSet, encode_images, read_token_set
from cca_ray.models.condition import nulled
from cca_ray.models.files import digest_of_weights, read_checkpoint, write_atomically
from cca_ray.models.likelihood import Scorer
from cca_ray.models.llamagen_family import FAMILY
from cca_ray.models.official import build, save_official
from cca_ray.models.parallel import Group
from cca_ray.space_file import parse
from cca_ray.training.checkpoint import Progress
from cca_ray.training.fitting import Hooks
from cca_ray.training.job import Job
from cca_ray.training.loop import fine_tune
from cca_ray.training.small_networks import Making, feature_settings, reference_of, train_features, train_tokenizer
from tests.captioned import WIDTH, WORDS, captioned, write_captioned
from tests.commands import verb
from tests.conftest import some_digits, tiny_space
from tests.official_studies import assert_official_and_moved

EPOCHS = 60
SETTINGS = Pretrain(image_size=16, downsample=4, codebook_size=32, tokenizer_width=8, tokenizer_epochs=4,
                    feature_epochs=2)  # fmt: skip


def token_set(folder: Path, data: LabelledImages) -> TokenSet:
    """Tokenizer, feature network, reference and token set of images whose classes are captions."""
    making = Making(Hooks(lambda step, steps: None))
    tokenizer = train_tokenizer(data, FAMILY, SETTINGS, making)
    save_official(tokenizer, folder / "tokenizer.pt")
    network = train_features(data, SETTINGS, making)
    write_atomically({"model": network.state_dict(), "config": feature_settings(data)}, folder / "features.pt")
    reference_of(network, data.images).save(folder / "reference.npz")
    codes = np.concatenate(list(encode_images(tokenizer, data.images)))
    meta = TokenMeta(
        tokenizer=digest_of_weights(tokenizer), codebook_size=32, length=16, crops=1, image_size=16,
        augmentations=("centre",), class_names=(),
    )  # fmt: skip
    write_captioned(folder / "tokens", data.labels, codes, data.class_names, meta)
    return read_token_set(folder / "tokens")


def gain(model: torch.nn.Module, data: TokenSet) -> tuple[float, float]:
    """Nats that the true caption tells of an image more than another image's, and more than the null condition."""
    plan = plan_epoch(data.labels, 1, -1, 0.0, seed=5, epoch=0)
    batch = gather(data, plan, np.flatnonzero(plan.labels != plan.negative_labels))
    condition, tokens, places = batch.both()
    with torch.inference_mode():
        positive, negative = Scorer(model)(condition, tokens, None, places).chunk(2)
        null = Scorer(model)(nulled(batch.condition, -1), batch.tokens)
    return (positive - negative).mean().item(), (positive - null).mean().item()


def base(folder: Path, data: TokenSet) -> None:
    """A model that has learned what captions tell of their images."""
    model = build("llamagen_t2i", "S", vocab_size=32, block_size=16, cls_token_num=WORDS, caption_dim=WIDTH)
    optimizer, scorer = torch.optim.AdamW(model.parameters(), 1e-2), Scorer(model)
    for epoch in range(EPOCHS):
        plan = plan_epoch(data.labels, 1, model.null_label, 0.1, seed=0, epoch=epoch)
        for part in plan.order.reshape(-1, 60):
            batch = gather(data, plan, part)
            loss = -scorer(batch.condition, batch.tokens).mean() / 16
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    than_another, than_none = gain(model, data)
    assert than_another > 0.5
    assert than_none > 0.2
    save_official(model, folder / "model.pt")


def space(folder: Path) -> Path:
    content = tiny_space()
    content["base"] = {"family": "llamagen_t2i", "size": "S", "checkpoint": str(folder / "model.pt"),
                       "tokenizer": str(folder / "tokenizer.pt")}  # fmt: skip
    content["data"] = {"tokens": str(folder / "tokens")}
    content["score"] |= {"features": str(folder / "features.pt"), "reference": str(folder / "reference.npz"),
                         "finalists": 1, "blocks": 1}  # fmt: skip
    content["search"]["trials"] = 2
    path = folder / "captioned.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    base(folder, token_set(folder, captioned(some_digits())))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_fine_tuning_on_captions_is_the_same_however_the_batch_is_cut(files: Path, tmp_path: Path):
    """CCA pulls true captions and other images' apart; the samples of its rungs are scored."""
    content = yaml.safe_load(space(files).read_text())
    content["train"] |= {"reference": "live"}
    rows, fids = [], []
    for size in (24, 8):
        content["placement"] = {"micro_batch": size}
        config, progress = parse(content, "captioned", "captioned.yaml"), Progress()
        assert isinstance(config, StudyConfig)
        resolved = ResolvedStudy.of(config, config.paths())
        train = resolved.train_with({"lambda": 1.0, "learning_rate": 1e-3})
        fine_tune(Job(resolved, train, tmp_path / str(size), None), progress.add, Group())
        rows.append(np.array([row for report in progress.reports for row in report.history]))
        fids.append([report.score.values["fid"] for report in progress.reports if report.score])
    np.testing.assert_allclose(rows[1], rows[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(fids[1], fids[0], rtol=1e-4)
    assert len(fids[0]) == 2
    margins = rows[0][:, 3]
    assert margins[0] == pytest.approx(0, abs=1e-3)
    assert margins[-3:].mean() > 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_of_texts_is_tuned_and_comes_out_as_an_official_file(files: Path, tmp_path: Path):
    before, _ = read_checkpoint(files / "model.pt")
    path = space(files)
    verb("tune", path, "--name", "texts", "--storage", tmp_path / "runs", "--max-concurrent", "1")
    (size,) = json.loads((tmp_path / "runs" / "texts" / "summary.json").read_text())["sizes"]
    assert (size["family"], size["trials"]) == ("llamagen_t2i", 2)
    for role in ("base", "guided", "control", "tuned"):
        assert np.isfinite(size["models"][role]["values"]["fid"])
    winner = tmp_path / "runs" / "texts" / "captioned" / "winner.pt"
    assert_official_and_moved(winner, before)
    verb("sample", path, "--checkpoint", winner, "--count", "12", "--npz", tmp_path / "samples.npz")
    assert np.load(tmp_path / "samples.npz")["arr_0"].shape == (12, 16, 16, 3)
