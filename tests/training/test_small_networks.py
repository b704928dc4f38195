"""What the model of a small base is trained on, and that an embedded one is trained as ever."""

import numpy as np
import torch
import torch.nn.functional as F

from cca_ray.data.tokens import TokenSet, read_token_set
from cca_ray.models.dropout import Dropout, dropout_keys
from cca_ray.models.family import family_of
from cca_ray.models.official import load_tokenizer
from cca_ray.training.fitting import Hooks
from cca_ray.training.small_base import BaseFiles
from cca_ray.training.small_networks import Making, blank_model, split, train_model
from tests.conftest import TINY


def test_an_embedded_base_is_trained_as_it_always_was(base_files: BaseFiles):
    """The loop written down anew: nothing held out, nothing averaged, the same draws in the same order."""
    settings = TINY.model_copy(update={"epochs": 3, "dropout": 0.2})
    data, tokenizer = read_token_set(base_files.tokens), load_tokenizer("llamagen", base_files.tokenizer)
    model = blank_model(family_of("llamagen"), "S", tokenizer, 10, 16)
    model.initialize(torch.Generator().manual_seed(0))
    codes, labels = torch.from_numpy(data.tokens[:, 0].astype(np.int64)), torch.from_numpy(data.labels)
    order, null = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    batches = [index for _ in range(3) for index in torch.randperm(240, generator=order).split(48)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05)
    for step, index in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 20) * (1 - step / 15)
        conditions = torch.where(torch.rand(48, generator=null) < 0.1, 10, labels[index])
        logits = model(conditions, codes[index], Dropout(0.2, dropout_keys(index.numpy(), 0, step)))
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), codes[index].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    making = Making(Hooks(lambda done, total: None))
    made = train_model(data, tokenizer, family_of("llamagen"), "S", settings, making)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), model.parameters(), strict=True))


def test_what_is_held_out_is_decided_by_the_seed_and_its_variants_are_too():
    settings = TINY.model_copy(update={"variants": 3, "validation": 0.1})
    used, left_out = split(60, settings)
    assert len(left_out) == 2
    assert set(left_out) < set(range(20))
    assert sorted(used) == sorted(set(range(60)) - {i + n for i in left_out for n in (0, 20, 40)})
    assert [*left_out] == [*split(60, settings)[1]]
    assert any([*left_out] != [*split(60, settings.model_copy(update={"seed": seed}))[1]] for seed in (1, 2, 3))
    assert len(split(60, TINY)[0]) == 60
    assert len(split(3, TINY.model_copy(update={"validation": 0.9}))[0]) == 1


def test_no_gradient_comes_from_what_is_held_out(base_files: BaseFiles):
    settings = TINY.model_copy(update={"epochs": 1, "validation": 0.25})
    tokens, tokenizer = read_token_set(base_files.tokens), load_tokenizer("llamagen", base_files.tokenizer)

    def trained(data: TokenSet) -> tuple[list[torch.Tensor], list[str]]:
        notes: list[str] = []
        making = Making(Hooks(lambda done, total: None, notes.append))
        model = train_model(data, tokenizer, family_of("llamagen"), "S", settings, making)
        return [p.detach() for p in model.parameters()], notes

    def changed(index: np.ndarray) -> TokenSet:
        other = tokens.tokens.copy()
        other[index] = 31 - other[index]
        return TokenSet(tokens.labels, other, tokens.meta, "")

    used, left_out = split(len(tokens.labels), settings)
    (plain, said), (same, said_of_others), (other, _) = map(trained, (tokens, changed(left_out), changed(used[:9])))
    assert all(torch.equal(a, b) for a, b in zip(plain, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))
    assert len(said) == 1
    assert said != said_of_others


def test_a_validated_base_tells_held_out_digits_and_ends_before_it_knows_its_own_by_heart(base_files: BaseFiles):
    """A held-out token costs it less than the codes' own frequencies would."""
    settings = TINY.model_copy(update={"epochs": 500, "validation": 0.1, "learning_rate": 2e-2})
    data, tokenizer = read_token_set(base_files.tokens), load_tokenizer("llamagen", base_files.tokenizer)
    notes: list[str] = []
    steps: list[int] = []
    making = Making(Hooks(lambda done, total: steps.append(done), notes.append))
    train_model(data, tokenizer, family_of("llamagen"), "M", settings, making)
    frequencies = np.bincount(data.tokens.ravel(), minlength=32) / data.tokens.size
    entropy = -sum(f * np.log(f) for f in frequencies if f)
    assert min(float(note.split()[2].rstrip(",")) for note in notes) < entropy - 0.1
    assert notes[-1].endswith("ends early")
    assert steps[-1] < 500 * 4
