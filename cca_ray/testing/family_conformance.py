"""What every family promises to the sampler, the objective and the worker: tests to subclass.

    class TestRAR(FamilyConformance):
        family = FAMILY
        tokenizer_config = dict(codebook_size=32, ch=8)  # small: 32 codes, images of 8 x 8 pixels
        model_config = dict(num_classes=10, vocab_size=32, block_size=16)

`pytest --pyargs cca_ray.testing --family my_pkg.rar` runs them on the families of a module, by their small bases.
"""

import dataclasses
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cca_ray.config import Pretrain
from cca_ray.evaluation.decoder import Decoder, GraphDecoder
from cca_ray.evaluation.sampler import Decoding, decode_images, sample_tokens, uniforms
from cca_ray.models.base import Model, Tokenizer
from cca_ray.models.codebook import Codebook
from cca_ray.models.condition import Texts, nulled
from cca_ray.models.dropout import Dropout, dropout_keys
from cca_ray.models.family import Family, Fields
from cca_ray.models.likelihood import Scorer
from cca_ray.models.official import build, build_tokenizer, load_official, load_tokenizer, save_official, tied_in
from cca_ray.registry import FAMILIES
from cca_ray.testing.fake_graphs import FakeRecorder
from cca_ray.testing.family_pair import CLASSES, CODES, CPU, Computing, Pair, check_decoder, tensors_in
from cca_ray.testing.stranded import stranded


class FamilyConformance:
    """`tokenizer_config` and `model_config` replace fields of the configs of the official tokenizer and of `size`.

    They make `CODES` codes and `CLASSES` classes. Without them a small base's tokenizer and model are tested.
    """

    family: Family
    size = ""  # the smallest
    tokenizer_config: Mapping[str, Any] | None = None
    model_config: Mapping[str, Any] | None = None
    image_size = 8

    @classmethod
    def tokens_config(cls) -> Fields:
        """All fields of the tokenizer's config that are not the official ones."""
        if cls.tokenizer_config is not None:
            return dict(cls.tokenizer_config)
        settings = Pretrain(image_size=cls.image_size, codebook_size=CODES, tokenizer_width=8)
        config = cls.family.small_tokenizer(settings)
        return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}

    @classmethod
    def shape(cls, tokenizer: Tokenizer) -> Fields:
        """All fields of the model's config that are not those of its size."""
        if cls.model_config is not None:
            return dict(cls.model_config)
        more = cls.family.small_model(tokenizer, tokenizer.config.length(cls.image_size))
        return {"num_classes": CLASSES, "vocab_size": CODES, **more}

    @classmethod
    def smallest(cls) -> str:
        return cls.size or next(iter(cls.family.sizes))

    @pytest.fixture(scope="class")
    @classmethod
    def pair(cls) -> Pair:
        """Random weights, the head's and the gains' too, so that everything matters."""
        name = cls.family.name
        if cls.tokenizer_config is None and not cls.family.small_sizes:
            pytest.skip(f"{name} makes no small bases: expected a subclass with tokenizer_config and model_config")
        if name not in FAMILIES.names():
            FAMILIES.add(cls.family, type(cls.family).__module__)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            tokenizer = build_tokenizer(name, **cls.tokens_config()).requires_grad_(False).eval()
            model = build(name, cls.smallest(), tokenizer, **cls.shape(tokenizer)).requires_grad_(False).eval()
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=0.3)
        return Pair(model, tokenizer, tokenizer.config.length(cls.image_size))

    @pytest.fixture(params=["float32", "bfloat16"])
    def computing(self, request: pytest.FixtureRequest) -> Computing:
        return Computing(request.param)

    def counted(self, cache: Any) -> Any:
        """What of a cache `cache_bytes` counts."""
        return cache

    def images(self, count: int) -> Tensor:
        """[count, 3, H, W] in [-1, 1]."""
        generator = torch.Generator().manual_seed(2)
        return torch.rand(count, 3, self.image_size, self.image_size, generator=generator) * 2 - 1

    # What the family says of itself.

    def test_sizes_and_words_are_there(self) -> None:
        assert self.family.kind == "family"
        assert self.family.name.isidentifier()
        assert self.family.sizes
        assert self.family.passes
        assert set(self.family.small_sizes) <= set(self.family.sizes)

    def test_unknown_sizes_and_fields_are_refused(self) -> None:
        with pytest.raises(ValueError, match="unknown size 'none'"):
            self.family.configure("none")
        with pytest.raises(ValueError, match="unknown override 'nothing'"):
            self.family.configure(self.smallest(), nothing=1)

    # Model and tokenizer.

    def test_an_image_is_as_many_tokens_as_the_model_reads(self, pair: Pair) -> None:
        tokens = pair.tokenizer.encode(self.images(2))
        assert tokens.shape == (2, pair.length)
        assert (tokens >= 0).all()
        assert (tokens < CODES).all()
        assert sum(pair.model.decode_steps) == pair.length == pair.model.config.block_size
        assert pair.tokenizer.config.codebook_size == CODES == pair.model.config.vocab_size
        assert pair.tokenizer.decode(tokens).shape == (2, 3, self.image_size, self.image_size)
        assert decode_images(pair.tokenizer, tokens).dtype == torch.uint8

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_tokenizer_whose_weights_are_no_numbers_encodes_nothing(self, pair: Pair, value: float) -> None:
        """A NaN is nearest to the first code: pass the latents through `cca_ray.models.base.finite`."""
        tokenizer = deepcopy(pair.tokenizer)
        for parameter in tokenizer.parameters():
            torch.nn.init.constant_(parameter, value)
        with pytest.raises(ValueError, match="not finite"):
            tokenizer.encode(self.images(2))

    def test_both_move_as_a_whole(self, pair: Pair) -> None:
        """To a card: register as buffers what are no parameters."""
        assert not stranded(pair.model)
        assert not stranded(pair.tokenizer)

    def test_every_weight_has_one_name(self, pair: Pair) -> None:
        """A file has a tensor a name: tied weights would be untied by loading."""
        assert tied_in(pair.model) is None
        assert tied_in(pair.tokenizer) is None

    def test_logits_have_a_row_for_every_token(self, pair: Pair, computing: Computing) -> None:
        condition, tokens = pair.some()
        with computing.training():
            logits = pair.model(condition, tokens)
        assert logits.shape == (*tokens.shape, CODES)
        assert logits.dtype == torch.float32
        computing.assert_close(logits, pair.model(condition, tokens))

    def test_the_head_makes_the_logits_of_what_is_hidden(self, pair: Pair) -> None:
        condition, tokens = pair.some()
        assert isinstance(pair.model.head, nn.Linear)
        torch.testing.assert_close(pair.model.head(pair.model.hidden(condition, tokens)), pair.model(condition, tokens))

    def test_a_token_changes_no_logit_of_its_own_step_or_an_earlier_one(self, pair: Pair) -> None:
        condition, tokens = pair.some(1)
        before, begin = pair.model(condition, tokens), 0
        for count in pair.model.decode_steps[:-1]:
            changed = tokens.clone()
            changed[0, begin] = (changed[0, begin] + 1) % CODES
            after, begin = pair.model(condition, changed), begin + count
            torch.testing.assert_close(after[:, :begin], before[:, :begin])
            assert not torch.allclose(after[:, begin], before[:, begin])

    def test_tokens_come_in_raster_order_or_in_any(self, pair: Pair) -> None:
        """In any, logits of a token depend on where it lies and on those that came before it, with their places."""
        model, (condition, tokens) = pair.model, pair.some(2)
        raster = torch.arange(pair.length).expand(2, -1)
        if not self.family.any_order:
            with pytest.raises(NotImplementedError, match="raster order only"):
                model.hidden_in_order(raster, condition, tokens)
            return
        torch.testing.assert_close(model.hidden_in_order(raster, condition, tokens), model.hidden(condition, tokens))
        places, begin = raster.roll(1, 1), pair.length // 2
        before = model.hidden_in_order(places, condition, tokens)
        assert not torch.allclose(before[:, 0], model.hidden(condition, tokens)[:, 0])
        changed = tokens.clone()
        changed[:, begin] = (changed[:, begin] + 1) % CODES
        after = model.hidden_in_order(places, condition, changed)
        torch.testing.assert_close(after[:, : begin + 1], before[:, : begin + 1])
        assert not torch.allclose(after[:, begin + 1], before[:, begin + 1])
        expected = model.head(before).float().log_softmax(-1).gather(2, tokens[..., None]).sum((1, 2))
        torch.testing.assert_close(Scorer(model)(condition, tokens, None, places), expected)

    def test_the_null_condition_is_one_of_its_own(self, pair: Pair) -> None:
        condition, tokens = pair.some(1)
        assert not isinstance(condition, Tensor) or pair.model.null_label == CLASSES
        assert pair.model.null_label not in range(CLASSES)
        null = nulled(condition, pair.model.null_label)
        assert len(null) == 1
        assert not torch.allclose(pair.model(null, tokens), pair.model(condition, tokens))

    def test_log_likelihoods_are_those_of_the_logits(self, pair: Pair, computing: Computing) -> None:
        condition, tokens = pair.some()
        with computing.training():
            expected = pair.model(condition, tokens).log_softmax(-1).gather(2, tokens[..., None]).sum((1, 2))
            logps = Scorer(pair.model)(condition, tokens)
        assert logps.dtype == torch.float32
        torch.testing.assert_close(logps, expected)  # the same logits, whatever made them

    def test_dropout_is_the_rows_own(self, pair: Pair, computing: Computing) -> None:
        condition, tokens = pair.some()
        keys = dropout_keys(np.arange(4), 0)
        with computing.training():
            whole = pair.model(condition, tokens, Dropout(0.3, keys))
            part = pair.model(condition[2:], tokens[2:], Dropout(0.3, keys[2:]))
        computing.assert_close(part, whole[2:])
        assert not torch.allclose(whole, pair.model(condition, tokens), rtol=0.1, atol=0.1)

    def test_every_parameter_learns(self, pair: Pair, computing: Computing) -> None:
        condition, tokens = pair.some()
        model = deepcopy(pair.model).requires_grad_(True)
        with computing.training():
            logps = Scorer(model)(condition, tokens)
        logps.sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.dtype == torch.float32
            assert parameter.grad.isfinite().all(), name

    # Sampling.

    def test_the_weights_are_sampled_in_the_precision_that_is_asked_for(self, pair: Pair, computing: Computing) -> None:
        model = computing.sampled(pair.model)
        state = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        exact = {name for name in state if name.endswith(model.exact)}
        assert {state[name].dtype for name in exact} <= {torch.float32}
        assert {state[name].dtype for name in state.keys() - exact} == {getattr(torch, computing.precision)}
        assert all(any(name.endswith(ending) for name in exact) for ending in model.exact)

    def test_decoding_with_the_cache_equals_the_whole_sequence(self, pair: Pair, computing: Computing) -> None:
        condition, tokens = pair.some()
        model = computing.sampled(pair.model)
        cache, logits, begin, last = model.new_cache(len(condition)), list[Tensor](), 0, None
        for step, count in enumerate(model.decode_steps):
            logits.append(model.decode(condition, last, step, cache))
            last, begin = tokens[:, begin : begin + count], begin + count
        assert logits[0].dtype == torch.float32
        computing.assert_close(torch.cat(logits, dim=1), pair.model(condition, tokens))
        computing.assert_close(model(condition, tokens), pair.model(condition, tokens))

    def test_guidance_of_scale_1_is_no_guidance(self, pair: Pair) -> None:
        condition, noise = pair.some(8)[0], uniforms(0, np.arange(8), pair.length)
        free = sample_tokens(pair.model, condition, noise, Decoding(1.0))
        assert torch.equal(sample_tokens(pair.model, condition, noise, Decoding(1.0 + 1e-12)), free)
        assert not torch.equal(sample_tokens(pair.model, condition, noise, Decoding(3.0)), free)

    def test_without_guidance_one_branch_is_run(self, pair: Pair) -> None:
        rows: list[int] = []
        handle = pair.model.stack[0].register_forward_hook(lambda block, inputs, output: rows.append(len(inputs[0])))
        sample_tokens(pair.model, pair.some(3)[0], uniforms(0, np.arange(3), pair.length), Decoding(1.0))
        handle.remove()
        assert set(rows) == {3}

    @pytest.mark.parametrize("scale", [1.0, 2.0])
    def test_an_image_is_the_same_whatever_the_batch_and_the_room(self, pair: Pair, scale: float) -> None:
        condition, noise = pair.some(9)[0], uniforms(0, np.arange(9), pair.length)
        decoding = Decoding(scale, 1.0, 20, 0.9)
        whole = sample_tokens(pair.model, condition, noise, decoding)
        little = sample_tokens(pair.model, condition, noise, decoding, cache=4 * pair.model.cache_bytes)
        assert torch.equal(little, whole)
        assert torch.equal(sample_tokens(pair.model, condition[4:5], noise[4:5], decoding), whole[4:5])

    @pytest.mark.parametrize("scale", [1.0, 2.0])
    def test_a_decoder_is_used_for_batch_after_batch(self, pair: Pair, computing: Computing, scale: float) -> None:
        model = computing.sampled(pair.model)
        check_decoder(model, Decoder(model), CPU.device, pair.length, scale)

    @pytest.mark.parametrize("scale", [1.0, 2.0])
    def test_recorded_steps_change_no_image(self, pair: Pair, computing: Computing, scale: float) -> None:
        """A step may read its cache, its condition, the tokens before it, and the model's own: see `new_cache`."""
        model = computing.sampled(pair.model)
        check_decoder(model, GraphDecoder(model, FakeRecorder), CPU.device, pair.length, scale)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs want a GPU")
    @pytest.mark.parametrize("scale", [1.0, 2.0])
    def test_cuda_graphs_change_no_image(self, pair: Pair, computing: Computing, scale: float) -> None:
        device = torch.device("cuda")
        model = computing.sampled(pair.model).to(device)
        check_decoder(model, GraphDecoder(model), device, pair.length, scale)

    def test_the_cache_is_as_large_as_it_says(self, pair: Pair, computing: Computing) -> None:
        model = computing.sampled(pair.model)
        tensors = tensors_in(self.counted(model.new_cache(3)))
        assert sum(t.numel() * t.element_size() for t in tensors) == 3 * model.cache_bytes

    @pytest.mark.parametrize("scale", [1.0, 2.0])
    def test_samples_are_images(self, pair: Pair, computing: Computing, scale: float) -> None:
        noise = uniforms(0, np.arange(3), pair.length)
        tokens = sample_tokens(computing.sampled(pair.model), pair.some(3)[0], noise, Decoding(scale))
        assert tokens.shape == (3, pair.length)
        assert (tokens < CODES).all()
        assert decode_images(pair.tokenizer, tokens).shape == (3, self.image_size, self.image_size, 3)

    # Files.

    @pytest.mark.parametrize("ending", ["pth", "safetensors"])
    def test_what_is_saved_is_loaded(self, pair: Pair, tmp_path: Path, ending: str) -> None:
        save_official(pair.model, tmp_path / f"model.{ending}")
        save_official(pair.tokenizer, tmp_path / f"tokenizer.{ending}")
        again = self.load(tmp_path / f"model.{ending}", tmp_path / f"tokenizer.{ending}")
        condition, tokens = pair.some()
        assert again.config == pair.model.config
        assert torch.equal(again(condition, tokens), pair.model(condition, tokens))
        codes = load_tokenizer(self.family.name, tmp_path / f"tokenizer.{ending}").encode(self.images(2))
        assert torch.equal(codes, pair.tokenizer.encode(self.images(2)))

    def test_what_is_loaded_makes_of_an_image_the_same_whatever_is_beside_it(self, pair: Pair, tmp_path: Path) -> None:
        save_official(pair.model, tmp_path / "model.pth")
        save_official(pair.tokenizer, tmp_path / "tokenizer.pth")
        model = self.load(tmp_path / "model.pth", tmp_path / "tokenizer.pth").requires_grad_(False)
        tokenizer = load_tokenizer(self.family.name, tmp_path / "tokenizer.pth")
        (condition, tokens), images = pair.some(), self.images(4)
        assert torch.equal(tokenizer.encode(images[1:2]), tokenizer.encode(images)[1:2])
        torch.testing.assert_close(tokenizer.decode(tokens[1:2]), tokenizer.decode(tokens)[1:2], rtol=1e-4, atol=1e-4)
        alone, together = model(condition[1:2], tokens[1:2]), model(condition, tokens)[1:2]
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)

    def test_the_official_code_finds_the_weights_in_what_is_saved(self, pair: Pair, tmp_path: Path) -> None:
        """As the file itself, or under "model"; strictly."""
        for network in (deepcopy(pair.model), deepcopy(pair.tokenizer)):
            save_official(network, tmp_path / "saved.pth")
            content = torch.load(tmp_path / "saved.pth", map_location="cpu", weights_only=True)
            network.load_state_dict(content if network.bare_file else content["model"], strict=True)

    def test_a_bare_official_file_says_what_it_is(self, pair: Pair, tmp_path: Path) -> None:
        torch.save(pair.model.state_dict(), tmp_path / "model.pth")
        save_official(pair.tokenizer, tmp_path / "tokenizer.pth")
        again = self.load(tmp_path / "model.pth", tmp_path / "tokenizer.pth", length=pair.length)
        condition, tokens = pair.some()
        assert torch.equal(again(condition, tokens), pair.model(condition, tokens))
        field, value = ("vocab_size", CODES) if isinstance(again.takes, Texts) else ("num_classes", CLASSES)
        with pytest.raises(ValueError, match=rf"model\.pth: its {field} is {value}, not the 7"):
            self.load(tmp_path / "model.pth", tmp_path / "tokenizer.pth", **{field: 7})

    def test_a_file_of_another_size_is_refused(self, pair: Pair, tmp_path: Path) -> None:
        torch.save(pair.model.state_dict(), tmp_path / "model.pth")
        for size in [size for size in self.family.sizes if size != self.smallest()]:
            with pytest.raises(ValueError, match=rf"model\.pth: its \w+ is .* of {self.family.name} {size}"):
                load_official(self.family.name, size, tmp_path / "model.pth")

    def test_a_tokenizer_that_does_not_fit_is_refused(self, pair: Pair, tmp_path: Path) -> None:
        save_official(pair.model, tmp_path / "model.pth")
        config = self.tokens_config()
        other = next(
            made for key, value in config.items() if value == CODES
            if (made := build_tokenizer(self.family.name, **{**config, key: 16})).config.codebook_size == 16
        )  # fmt: skip
        save_official(other, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=r"other\.pth: .*16 codes") as error:
            self.load(tmp_path / "model.pth", tmp_path / "other.pth")
        assert "\n" not in str(error.value)

    def load(self, checkpoint: Path, tokenizer: Path, **more: Any) -> Model:
        return load_official(self.family.name, self.smallest(), checkpoint, tokenizer, **more)

    # Small bases.

    def test_a_small_tokenizers_training_goes_past_its_codes(self, pair: Pair) -> None:
        if not self.family.small_sizes:
            return  # pretrain makes no base of this family
        tokenizer = deepcopy(pair.tokenizer).requires_grad_(True)
        codes = self.family.codebook_of(tokenizer)
        codebook, latents = Codebook(codes, 100, 0), tokenizer.latents(self.images(4))
        quantised, loss = self.family.quantised(tokenizer, latents, codebook, 1)
        assert len(codes.weight) == CODES
        assert codebook.used.sum() >= 4
        assert tokenizer.decode_latents(quantised).shape == (4, 3, self.image_size, self.image_size)
        (through,) = torch.autograd.grad(quantised.sum(), latents, retain_graph=True)
        assert through.any()
        loss.backward()
        assert codes.weight.grad is not None
