"""Features of captions: of files as others leave them, and of a T5 (a stand-in, for it is not installed with us)."""

import io
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from cca_ray.data.captioned import Caption
from cca_ray.data.text_features import T5, FeatureFiles, T5Features, features_of
from cca_ray.errors import ConfigError

CAPTIONS = (Caption("one dog", "a/y"), Caption("two cats", "a/x"))
RNG = np.random.default_rng(0)
PADDED, MASK = RNG.standard_normal((5, 8)).astype(np.float16), np.array([1, 1, 0, 1, 0])


def packed(**arrays: np.ndarray) -> io.BytesIO:
    np.savez_compressed(made := io.BytesIO(), **arrays)
    return io.BytesIO(made.getvalue())


def npy(array: np.ndarray) -> io.BytesIO:
    np.save(made := io.BytesIO(), array)
    return io.BytesIO(made.getvalue())


def test_features_are_read_as_llamagens_and_as_pixarts_scripts_leave_them():
    one = PADDED.astype(np.float32)
    np.testing.assert_array_equal(features_of(npy(one[None]), "x.npy"), one)
    for mask in (MASK, MASK.astype(bool), MASK[None].astype(np.int64)):
        found = features_of(packed(features=PADDED, mask=mask), "x.npz")
        np.testing.assert_array_equal(found, PADDED[[0, 1, 3]])
        assert found.dtype == np.float16
    pixarts = packed(caption_feature=PADDED[None].astype(np.float64), attention_mask=MASK[None])
    found = features_of(pixarts, "x.npz")
    np.testing.assert_array_equal(found, PADDED[[0, 1, 3]])
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("content", "path", "message"),
    [
        (npy(PADDED), "x.npy", r"float16 \[5, 8\]; expected features \[1, words, width\]"),
        (npy(np.ones((1, 2, 8), np.int64)), "x.npy", r"int64 \[2, 8\]; expected at least one word, in floating point"),
        (npy(np.full((1, 2, 8), np.nan)), "x.npy", "holds what is no number"),
        (packed(features=PADDED), "x.npz", "holds features; expected 'features' and 'mask'"),
        (packed(features=PADDED, mask=MASK[1:]), "x.npz", r"features \[5, 8\] and mask \[4\]; expected"),
        (packed(features=PADDED, mask=np.zeros(5)), "x.npz", r"float16 \[0, 8\]; expected at least one word"),
    ],
)
def test_what_are_no_features_is_an_error(content: io.BytesIO, path: str, message: str):
    with pytest.raises(ValueError, match=message):
        features_of(content, path)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.npz").write_bytes(packed(features=PADDED, mask=MASK).getvalue())
    (tmp_path / "a" / "y.npy").write_bytes(npy(PADDED[None, :2]).getvalue())
    return tmp_path


def test_features_that_would_be_those_of_two_captions_are_refused(files: Path):
    """Of images `a/y.jpg` and `a/y.png`: both had the same, and nothing said so."""
    captions = (*CAPTIONS, Caption("one cat", "a/y"))
    with pytest.raises(ConfigError, match=r"a/y\.npy: would be the features of two captions, 'one dog' and 'one cat'"):
        FeatureFiles(str(files), captions)


def test_files_give_the_features_in_the_order_of_captions(files: Path):
    first, second = FeatureFiles(str(files), CAPTIONS).features(CAPTIONS, files)
    np.testing.assert_array_equal(first, PADDED[:2])
    np.testing.assert_array_equal(second, PADDED[[0, 1, 3]])
    digest = FeatureFiles(str(files), CAPTIONS).digest
    (files / "a" / "y.npy").write_bytes(npy(PADDED[None, :3]).getvalue())
    longer = FeatureFiles(str(files), CAPTIONS).digest
    (files / "a" / "y.npy").write_bytes(npy(2 * PADDED[None, :3]).getvalue())  # of another encoder, as many bytes
    assert len({digest, longer, FeatureFiles(str(files), CAPTIONS).digest}) == 3


def test_files_that_are_missing_or_damaged_are_one_line(files: Path):
    (files / "a" / "y.npy").write_bytes(b"no")
    with pytest.raises(ConfigError, match=r"a/y.npy: not the features of a caption \("):
        list(FeatureFiles(str(files), CAPTIONS).features(CAPTIONS, files))
    (files / "a" / "y.npy").unlink()
    with pytest.raises(ConfigError, match=r"a/y.npy: no such file, nor .* features of the caption 'one dog'$"):
        FeatureFiles(str(files), CAPTIONS)
    (files / "a" / "x.npz").unlink()
    with pytest.raises(ConfigError, match=r"'one dog' and 1 more$"):
        FeatureFiles(str(files), CAPTIONS)
    with pytest.raises(ConfigError, match=r"--text-features .*none: no such folder"):
        FeatureFiles(str(files / "none"), CAPTIONS)


class Given(dict[str, torch.Tensor]):
    def to(self, device: torch.device) -> "Given":
        return self


def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Of `transformers`: the features of a word are its letter's number. What it was asked to load."""
    asked: list[object] = []

    def words(text: str, max_length: int, truncation: bool, return_tensors: str) -> Given:
        assert (truncation, return_tensors) == (True, "pt")
        ids = torch.tensor([[*(ord(word[0]) for word in text.split()[: max_length - 1]), 1]])
        return Given(input_ids=ids, attention_mask=torch.ones_like(ids))

    class Model:
        def to(self, device: torch.device) -> "Model":
            return self

        def eval(self) -> "Model":
            return self

        def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"last_hidden_state": input_ids[..., None].expand(-1, -1, 4).float()}

    def loader(made: object) -> SimpleNamespace:
        def load(folder: Path, local_files_only: bool, **options: object) -> object:
            asked.append((folder, local_files_only, options))
            return made

        return SimpleNamespace(from_pretrained=load)

    module = ModuleType("transformers")
    module.__spec__ = ModuleSpec("transformers", None)
    module.AutoTokenizer, module.T5EncoderModel = loader(words), loader(Model())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", module)
    return asked


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "flan-t5-xl").mkdir()
    (tmp_path / "flan-t5-xl" / "config.json").write_text("{}")
    return tmp_path / "flan-t5-xl"


def test_a_t5_reads_a_caption_at_a_time_and_nothing_is_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked = stand_in(monkeypatch)
    encoder = T5(str(folder), positions=3)
    one, two = encoder.features(["A b", "c d e f"])
    assert (one.dtype, one.shape) == (np.float32, (3, 4))
    assert one[:, 0].tolist() == [ord("a"), ord("b"), 1]
    assert two[:, 0].tolist() == [ord("c"), ord("d"), 1]  # cut to the positions of the models
    encoder.features(["g"])
    assert asked == [(folder, True, {}), (folder, True, {"dtype": torch.float32})]


def test_what_a_t5_has_computed_is_not_computed_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_here: None
):
    """Neither `transformers` nor a T5 is there any more."""
    stand_in(monkeypatch)
    source = T5Features(folder, 3)
    assert source.name == "flan-t5-xl"
    np.savez(tmp_path / "text-00000.npz", PADDED, PADDED[:2])
    found = list(source.features(CAPTIONS, tmp_path))
    for array, expected in zip(found, (PADDED, PADDED[:2]), strict=True):
        np.testing.assert_array_equal(array, expected)
    (folder / "model.safetensors").write_bytes(b"weights")
    assert T5Features(folder, 3).digest != source.digest


def test_a_t5_that_cannot_run_is_told_before_anything_starts(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"needs the package transformers: pip install 'cca_ray\[text\]'"):
        T5Features(folder, 3)
    stand_in(monkeypatch)
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"no T5 here; expected a folder with config\.json"):
        T5Features(folder, 3)


@pytest.mark.nightly
def test_a_true_t5_gives_the_same_features_beside_padding(tmp_path: Path, ray_here: None):
    """As LlamaGen's script has them, which fills every caption up to the positions of the model."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "one": 3, "dog": 4},
                                                             unk_token="<unk>"))  # fmt: skip
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>",
                                                unk_token="<unk>")  # fmt: skip
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=8, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
    model = transformers.T5EncoderModel(config).eval()
    fast.save_pretrained(tmp_path / "t5")
    model.save_pretrained(tmp_path / "t5")
    found = list(T5Features(tmp_path / "t5", 120).features(CAPTIONS, tmp_path))
    for caption, features in zip(CAPTIONS, found, strict=True):
        padded = fast(caption.text, max_length=120, padding="max_length", truncation=True, return_tensors="pt")
        with torch.inference_mode():
            expected = model(padded["input_ids"], padded["attention_mask"])["last_hidden_state"][0]
        np.testing.assert_allclose(features, expected[: len(features)].numpy(), rtol=1e-5, atol=1e-6)
        assert len(features) == padded["attention_mask"].sum() == 3
