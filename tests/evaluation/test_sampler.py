from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from weakref import ReferenceType, ref

import numpy as np
import pytest
import torch

from cca_ray.evaluation import sampler
from cca_ray.evaluation.decoder import Decoder, GraphDecoder, NoGraphs
from cca_ray.evaluation.sampler import (
    Decoding,
    decode_images,
    draw,
    filter_logits,
    image_grid,
    labels_of,
    pick,
    sample_tokens,
    to_pixels,
    uniforms,
)
from cca_ray.models.base import channels_last
from cca_ray.models.llamagen import LlamaGen
from cca_ray.models.official import build, build_tokenizer
from cca_ray.testing.fake_graphs import FakeRecorder
from tests.peak import peak_bytes


@pytest.fixture(scope="module")
def model() -> LlamaGen:
    """Random weights, the output layer too, so that its samples differ."""
    model = build("llamagen", "S", num_classes=10, vocab_size=32, block_size=16)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.output.weight, std=0.5)
    return model.requires_grad_(False)


def sample(model: LlamaGen, index: np.ndarray, decoding: Decoding = Decoding(), seed: int = 0) -> torch.Tensor:  # noqa: B008
    return sample_tokens(model, labels_of("balanced", 0, index, 10), uniforms(seed, index, 16), decoding)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_an_image_is_the_same_whatever_the_batch(model: LlamaGen, scale: float):
    whole = sample(model, np.arange(30), Decoding(scale))
    parts = [sample(model, np.arange(start, start + 6), Decoding(scale)) for start in range(0, 30, 6)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole[7:8], sample(model, np.array([7]), Decoding(scale)))


def test_another_seed_or_index_is_another_image(model: LlamaGen):
    assert not torch.equal(sample(model, np.array([7])), sample(model, np.array([7]), seed=1))
    assert not torch.equal(sample(model, np.array([7])), sample(model, np.array([17])))


def test_guidance_of_one_is_no_guidance(model: LlamaGen):
    index = np.arange(20)
    assert torch.equal(sample(model, index, Decoding(1.0)), sample(model, index, Decoding(1.0 + 1e-12)))
    assert not torch.equal(sample(model, index, Decoding(1.0)), sample(model, index, Decoding(3.0)))


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38])
def test_logits_that_are_no_numbers_are_an_error(value: float, scale: float):
    """Of weights that are finite too: products of large ones are not."""
    model = build("llamagen", "S", num_classes=10, vocab_size=32, block_size=16).requires_grad_(False)
    model.output.weight.fill_(value)
    for cut in ({}, {"top_k": 5}, {"top_p": 0.9}, {"top_k": 5, "top_p": 0.9}):
        with pytest.raises(ValueError, match="the model gives numbers that are not finite"):
            sample(model, np.arange(4), Decoding(scale, **cut))


@pytest.mark.parametrize("new_decoder", [Decoder, lambda model: GraphDecoder(model, FakeRecorder)])
def test_there_are_never_two_caches_at_once(
    model: LlamaGen, new_decoder: Callable[[LlamaGen], Decoder], monkeypatch: pytest.MonkeyPatch
):
    """And none while images are decoded, but where graphs need it."""
    caches, alive = list[ReferenceType[torch.Tensor]](), list[int]()
    decoder, new_cache = new_decoder(model), LlamaGen.new_cache

    def watched(self: LlamaGen, batch: int) -> Any:
        alive.append(sum(cache() is not None for cache in caches))
        made = new_cache(self, batch)
        caches.append(ref(made[0][0]))
        return made

    monkeypatch.setattr(LlamaGen, "new_cache", watched)
    for count in (4, 4, 6, 2):
        index = np.arange(count)
        sample_tokens(model, torch.arange(count), uniforms(0, index, 16), Decoding(), decoder=decoder)
        kept = sum(cache() is not None for cache in caches)
        assert kept == isinstance(decoder, GraphDecoder)
    assert alive == [0] * (2 if isinstance(decoder, GraphDecoder) else 4)


class Wrong(FakeRecorder):
    """Its replays write something else."""

    def record(self, run: Callable[[], object]) -> Callable[[], None]:
        replay, written = super().record(run), list[torch.Tensor]()

        def wrongly() -> None:
            replay()
            written[0].mul_(1.1)

        logits = run()
        assert isinstance(logits, torch.Tensor)
        written.append(logits)
        return wrongly


def test_a_recorded_step_that_gives_other_logits_is_not_used(model: LlamaGen):
    labels, noise = torch.arange(4), uniforms(0, np.arange(4), 16)
    with pytest.raises(NoGraphs, match="step 0 gives other logits than it does without them"):
        sample_tokens(model, labels, noise, Decoding(), decoder=GraphDecoder(model, Wrong))


def test_memory_that_runs_out_while_a_step_is_recorded_is_no_reason_to_do_without(
    model: LlamaGen, monkeypatch: pytest.MonkeyPatch
):
    def too_much(self: FakeRecorder, run: Callable[[], object]) -> Callable[[], None]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(FakeRecorder, "record", too_much)
    decoder = GraphDecoder(model, FakeRecorder)
    decoder.begin(torch.arange(4))
    with pytest.raises(torch.OutOfMemoryError):
        decoder.step(0, None)


def test_tokens_are_drawn_from_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch):
    generator, decoding = torch.Generator().manual_seed(0), Decoding(2.0, top_k=20, top_p=0.9)
    logits, noise = torch.randn(20, 7, 50, generator=generator), torch.rand(10, 7, dtype=torch.float64)
    whole = pick(logits, noise, decoding, 1.7)
    peak = peak_bytes(lambda: pick(logits, noise, decoding, 1.7))
    monkeypatch.setattr(sampler, "DRAWN", 3 * 7 * 50)
    assert peak_bytes(lambda: pick(logits, noise, decoding, 1.7)) < 0.4 * peak
    for some, expected in zip(pick(logits, noise, decoding, 1.7), whole, strict=True):
        assert torch.equal(some, expected)


def test_draws_follow_the_probabilities():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(40_000, 4)
    tokens = draw(logits, torch.rand(40_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    frequency = torch.bincount(tokens, minlength=4) / 40_000
    torch.testing.assert_close(frequency, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.01, rtol=0)


def test_impossible_tokens_are_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, 5)
    noise = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits, noise).tolist() == [1, 3, 3]


def test_top_k_and_top_p_keep_what_the_official_filter_keeps():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert filter_logits(logits, 2, 1.0).isfinite().tolist() == [[True, True, False, False]]
    assert filter_logits(logits, 0, 0.6).isfinite().tolist() == [[True, True, False, False]]  # the one that crosses too
    assert filter_logits(logits, 0, 0.01).isfinite().tolist() == [[True, False, False, False]]
    assert torch.equal(filter_logits(logits, 0, 1.0), logits)


@pytest.mark.parametrize(("top_k", "top_p"), [(900, 0.96), (900, 1.0), (0, 0.9), (5000, 0.5), (1, 0.5)])
def test_filters_keep_what_the_official_ones_keep(top_k: int, top_p: float):
    """VAR's sample_with_top_k_top_p_, by a whole sort."""
    logits = 3 * torch.randn(4, 7, 4096, generator=torch.Generator().manual_seed(0))
    wanted = logits.clone()
    if top_k:
        wanted[wanted < wanted.topk(min(top_k, 4096)).values[..., -1:]] = -torch.inf
    ascending, order = wanted.sort(dim=-1)
    outside = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    outside[..., -1] = False
    if top_p < 1:
        wanted[torch.zeros_like(outside).scatter(-1, order, outside)] = -torch.inf
    assert torch.equal(filter_logits(logits, top_k, top_p), wanted)


def test_every_prefix_of_the_labels_is_balanced():
    counts = torch.bincount(labels_of("balanced", 0, np.arange(25), 10), minlength=10)
    assert counts.tolist() == [3] * 5 + [2] * 5


def test_a_grid_shows_images_row_after_row():
    images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1) * np.ones((3, 24, 24, 3), dtype=np.uint8)
    grid = image_grid(images, columns=2)
    assert grid.shape == (51, 51, 3)
    assert [grid[5, 5, 0], grid[5, 30, 0], grid[30, 5, 0], grid[30, 30, 0]] == [0, 1, 2, 255]


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_little_room_for_keys_and_values_changes_no_image(model: LlamaGen, scale: float):
    labels, noise = labels_of("balanced", 0, np.arange(10), 10), uniforms(3, np.arange(10), 16)
    whole = sample_tokens(model, labels, noise, Decoding(scale))
    assert torch.equal(sample_tokens(model, labels, noise, Decoding(scale), cache=3 * model.cache_bytes), whole)


def test_the_cache_is_as_large_as_it_says(model: LlamaGen):
    assert sum(t.numel() * t.element_size() for layer in model.new_cache(3) for t in layer) == 3 * model.cache_bytes


def test_random_labels_are_drawn_by_seed_and_index():
    whole = labels_of("random", 3, np.arange(2000), 10)
    assert torch.equal(labels_of("random", 3, np.arange(1000, 1100), 10), whole[1000:1100])
    assert not torch.equal(labels_of("random", 4, np.arange(2000), 10), whole)
    assert torch.bincount(whole, minlength=10).min() > 150


def test_images_are_resized_before_they_are_rounded():
    tokenizer = build_tokenizer("llamagen", codebook_size=32, ch=8, ch_mult=(1, 2), z_channels=16, norm_groups=8)
    tokens = torch.randint(32, (2, 36))
    raw = tokenizer.decode(tokens)
    expected = torch.nn.functional.interpolate(raw, size=(8, 8), mode="bicubic")
    expected = torch.clamp(127.5 * expected + 128.0, 0, 255).permute(0, 2, 3, 1).to(torch.uint8)
    assert torch.equal(decode_images(tokenizer, tokens, 8), expected)
    assert torch.equal(decode_images(tokenizer, tokens, 12), decode_images(tokenizer, tokens))


class Chain:
    """What the sampler needs of a model, in plain arithmetic: six tokens in steps of 1, 2 and 3, of five kinds."""

    null_label, cache_bytes, decode_steps = 7, 100, (1, 2, 3)

    def new_cache(self, batch: int) -> list[int]:
        return [batch]

    def decode(self, labels: torch.Tensor, last: torch.Tensor | None, step: int, cache: list[int]) -> torch.Tensor:
        assert cache == [len(labels)]
        assert (last is None) == (step == 0)
        before = torch.zeros(len(labels)) if last is None else last.sum(1) + 1.0
        count = self.decode_steps[step]
        kinds, places = torch.arange(5.0), torch.arange(count).view(1, -1, 1)
        phase = labels.view(-1, 1, 1) * (kinds + 1) + before.view(-1, 1, 1) * 0.7 * (kinds + 2) + places + step
        return 2 * torch.sin(phase)

    def guidance_at(self, scale: float, step: int) -> float:
        return 1 + (scale - 1) * step / 2


def tokens_by_hand(labels: list[int], noise: np.ndarray, decoding: Decoding) -> list[list[int]]:
    """One image and one token after the other; guidance on logits, then the temperature, then the filters."""
    model, found = Chain(), []
    for label, numbers in zip(labels, noise, strict=True):
        tokens: list[int] = []
        last: torch.Tensor | None = None
        for step, count in enumerate(model.decode_steps):
            with_class, without = (
                model.decode(torch.tensor([condition]), last, step, [1])[0].double().numpy() for condition in (label, 7)
            )
            scale, temperature = model.guidance_at(decoding.guidance_scale, step), decoding.temperature
            if decoding.guidance_power:
                grown = (1 - np.cos(np.pi * (step / 3) ** decoding.guidance_power)) / 2
                scale = (1 - grown) + grown * decoding.guidance_scale
            if decoding.last_temperature is not None:
                temperature += (decoding.last_temperature - temperature) * step / 2
            logits = (scale * with_class + (1 - scale) * without) / temperature
            for row in logits:
                odds = np.exp(row - row.max())
                if decoding.top_k:
                    odds[odds < np.sort(odds)[-decoding.top_k]] = 0
                total, target = odds.sum(), numbers[len(tokens)]
                tokens.append(next(k for k in range(5) if odds[: k + 1].sum() / total > target))
            last = torch.tensor([tokens[-count:]])
        found.append(tokens)
    return found


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(),
        Decoding(3.0),
        Decoding(2.0, temperature=0.5),
        Decoding(temperature=2.0),
        Decoding(1.5, top_k=2),
        Decoding(4.0, guidance_power=1.0),
        Decoding(16.0, guidance_power=2.75),
        Decoding(1.0, guidance_power=2.75),
        Decoding(temperature=1.5, last_temperature=0.3),
        Decoding(3.0, 1.02, last_temperature=2.0, guidance_power=0.5),
    ],
)
def test_tokens_are_those_drawn_by_hand(decoding: Decoding):
    labels, noise = torch.arange(12) % 7, uniforms(0, np.arange(12), 6)
    found = sample_tokens(Chain(), labels, noise, decoding)  # type: ignore[arg-type]
    assert found.tolist() == tokens_by_hand(labels.tolist(), noise.numpy(), decoding)


def test_decoding_is_free_of_guidance_and_filters_unless_asked_for():
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    plain = Decoding()
    assert (plain.guidance_scale, plain.temperature) == (1.0, 1.0)
    assert torch.equal(filter_logits(logits, plain.top_k, plain.top_p), logits)


class Counting(Decoder):
    """Remembers how many sequences it was given at a time."""

    def __init__(self) -> None:
        super().__init__(Chain())  # type: ignore[arg-type]
        self.sizes: list[int] = []

    def begin(self, labels: torch.Tensor) -> None:
        self.sizes.append(len(labels))
        super().begin(labels)


class Watching(Decoder):
    """Remembers which attention of the GPU's libraries may be taken."""

    def step(self, step: int, last: torch.Tensor | None) -> torch.Tensor:
        cuda = torch.backends.cuda
        self.allowed = cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()
        return super().step(step, last)


def test_no_step_is_planned_by_cudnn():
    watching = Watching(Chain())  # type: ignore[arg-type]
    before = torch.backends.cuda.cudnn_sdp_enabled()
    sample_tokens(Chain(), torch.arange(2), uniforms(0, np.arange(2), 6), Decoding(), decoder=watching)  # type: ignore[arg-type]
    assert watching.allowed == (True, True, False)
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


@pytest.mark.parametrize(
    ("batch", "room", "scale", "sizes"),
    [
        (10, 1000, 1.0, [10]),
        (10, 999, 1.0, [5, 5]),  # nine fit, but fives are all of one size
        (10, 399, 1.0, [2] * 5),  # three fit: twos are alike, and not much smaller
        (11, 499, 1.0, [4, 4, 3]),  # ones would be alike, but too small
        (10, 2000, 2.0, [20]),  # guided, each takes room for two
        (9, 799, 2.0, [6, 6, 6]),
        (2, 1, 2.0, [2, 2]),  # one at least
    ],
)
def test_as_many_are_decoded_at_a_time_as_there_is_room_for(batch: int, room: int, scale: float, sizes: list[int]):
    counting, noise = Counting(), uniforms(0, np.arange(batch), 6)
    found = sample_tokens(Chain(), torch.arange(batch) % 7, noise, Decoding(scale), room, counting)  # type: ignore[arg-type]
    assert counting.sizes == sizes
    assert torch.equal(found, sample_tokens(Chain(), torch.arange(batch) % 7, noise, Decoding(scale)))  # type: ignore[arg-type]


def test_streams_are_those_of_every_version():
    """Recorded once: an image of a seed stays the same image."""
    first, sixth = [0.9342820204007575, 0.07916148013208679], [0.08910064623458391, 0.33189185276481004]
    assert uniforms(3, np.array([0, 5]), 2).tolist() == [first, sixth]
    assert labels_of("random", 3, np.arange(8), 10).tolist() == [9, 3, 1, 3, 0, 2, 3, 3]
    assert uniforms(3, np.array([], dtype=int), 4).shape == (0, 4)
    assert uniforms(3, np.array([], dtype=int), 4).dtype == torch.float64


def test_equals_stay_together():
    logits = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    assert filter_logits(logits, 2, 1.0).isfinite().tolist() == [[True, True, True, False]]
    assert filter_logits(logits, 1, 1.0).isfinite().tolist() == [[True, False, False, False]]
    assert filter_logits(logits, 4, 1.0).isfinite().all()
    assert filter_logits(logits, 3, 0.7).isfinite().tolist() == [[True, True, True, False]]


def test_a_pixel_is_rounded_down_and_held_within_a_byte():
    """As the official samplers do: 127.5 x and the family's grey."""
    images = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert to_pixels(images, 128.0, None)[0, 0, :, 0].tolist() == [0, 0, 128, 191, 255, 255]
    assert to_pixels(images, 127.5, None)[0, 0, :, 2].tolist() == [0, 0, 127, 191, 255, 255]


@pytest.mark.parametrize(("pixels", "sizes"), [(64, [1] * 5), (63, [1] * 5), (128, [2, 2, 1]), (191, [2, 2, 1])])
def test_as_many_images_are_decoded_at_a_time_as_there_is_room_for(pixels: int, sizes: list[int]):
    """Sixteen tokens of 2 x 2 pixels an image."""
    given: list[int] = []

    def decode(tokens: torch.Tensor) -> torch.Tensor:
        given.append(len(tokens))
        return tokens.view(-1, 1, 4, 4).expand(-1, 3, -1, -1) / 16

    tokenizer: Any = SimpleNamespace(decode=decode, grey=128.0, config=SimpleNamespace(downsample=2))
    tokens = torch.arange(80.0).view(5, 16) % 16
    found = decode_images(tokenizer, tokens, None, pixels)
    assert given == sizes
    assert torch.equal(found[..., 1], (127.5 * tokens / 16 + 128).to(torch.uint8).view(5, 4, 4))


@pytest.mark.parametrize(("side", "zoom"), [(24, 1), (25, 1), (23, 2), (10, 3), (1, 24)])
def test_a_grid_enlarges_small_images_and_leaves_white_between_them(side: int, zoom: int):
    images = np.random.default_rng(0).integers(0, 255, size=(7, side, side, 3), dtype=np.uint8)
    grid, size = image_grid(images, columns=3, gap=2), side * zoom
    expected = np.full((3 * (size + 2) + 2, 3 * (size + 2) + 2, 3), 255)
    for i, image in enumerate(images):
        top, left = 2 + i // 3 * (size + 2), 2 + i % 3 * (size + 2)
        expected[top : top + size, left : left + size] = np.kron(image, np.ones((zoom, zoom, 1)))
    np.testing.assert_array_equal(grid, expected)
    assert image_grid(images[:6], columns=3).shape == (2 * (size + 1) + 1, 3 * (size + 1) + 1, 3)


def test_the_limits_leave_room_for_the_largest_models():
    """48 guided images of 3B at 384 pixels: keys and values of 24 layers, 3200 wide, 576 tokens, in bfloat16."""
    assert sampler.CACHE_BYTES // (2 * 24 * 2 * 3200 * 576 * 2) == 48


def test_keys_and_values_take_what_is_free_on_a_card_and_no_more_than_is_planned(monkeypatch: pytest.MonkeyPatch):
    def gib(device: str, free: int) -> list[float]:
        """Without graphs, and with them, where so many GiB are free."""
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * 2**30, 80 * 2**30))
        return [sampler.room_for_cache(torch.device(device), graphs) / 2**30 for graphs in (False, True)]

    assert gib("cpu", 0) == [16, 14]
    assert [gib("cuda", free) for free in (60, 19, 10, 3)] == [[16, 14], [15, 14], [6, 6], [2, 2]]


CONVOLUTIONS = dict(ch=16, ch_mult=(1, 2))
SMALL_TOKENIZERS = {
    "llamagen": dict(codebook_size=32, z_channels=32, **CONVOLUTIONS),
    "var": dict(patch_nums=(1, 2, 4), vocab_size=32, z_channels=8, **CONVOLUTIONS),
    "rar": dict(codebook_size=32, z_channels=8, hidden_channels=16, channel_mult=(1, 2)),
}


@pytest.mark.parametrize("family", SMALL_TOKENIZERS)
def test_a_tokenizer_in_channels_last_decodes_the_same_images(family: str):
    torch.manual_seed(0)
    own = SMALL_TOKENIZERS[family]
    plain = build_tokenizer(family, num_res_blocks=1, norm_groups=8, **own).requires_grad_(False)
    tokens = torch.randint(32, (3, 21 if family == "var" else 16))
    images, seen = plain.decode(tokens), list[bool]()
    last = [module for module in plain.decoder.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    last.register_forward_hook(
        lambda module, given, out: seen.append(out.is_contiguous(memory_format=torch.channels_last))
    )
    channels_last(plain)
    torch.testing.assert_close(plain.decode(tokens), images, rtol=1e-4, atol=1e-5)
    assert seen == [True]
