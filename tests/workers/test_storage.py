"""Model folders made local, results written whole."""

import threading
from pathlib import Path

import fsspec
import pytest

from tide_core.contracts.errors import CheckpointError, DataError, InvalidInputError
from workers import storage


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    return folder


@pytest.fixture
def remote_model(request: pytest.FixtureRequest) -> str:
    filesystem = fsspec.filesystem("memory")
    root = f"/{request.node.name}/model"
    for name, content in {"config.json": b"{}", "model.safetensors": b"weights", "evil.bin": b"x"}.items():
        filesystem.pipe_file(f"{root}/{name}", content)
    return f"memory:/{root}"


def test_a_local_folder_passes_through(model_folder: Path) -> None:
    assert storage.materialise_model(str(model_folder)) == model_folder
    assert storage.materialise_model(f"file://{model_folder}") == model_folder


def test_a_remote_folder_is_copied_once_without_pickles(remote_model: str, tmp_path: Path) -> None:
    first = storage.materialise_model(remote_model, cache=tmp_path)
    assert sorted(path.name for path in first.iterdir()) == ["config.json", "model.safetensors"]
    (first / "marker").touch()
    assert (storage.materialise_model(remote_model, cache=tmp_path) / "marker").exists()


def test_a_tokenizer_comes_without_the_weights(remote_model: str, tmp_path: Path) -> None:
    folder = storage.materialise_tokenizer(remote_model, cache=tmp_path)
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_changed_remote_content_gets_another_copy(remote_model: str, tmp_path: Path) -> None:
    first = storage.materialise_model(remote_model, cache=tmp_path)
    fsspec.filesystem("memory").pipe_file(remote_model.removeprefix("memory:/") + "/config.json", b"{ }")
    assert storage.materialise_model(remote_model, cache=tmp_path) != first


def test_an_interrupted_download_leaves_nothing(
    remote_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, source: str, target: str, **options: object) -> None:
        raise OSError("the wire was cut")

    with monkeypatch.context() as patch:
        patch.setattr(type(fsspec.filesystem("memory")), "get_file", fail)
        with pytest.raises(DataError, match="the wire was cut"):
            storage.materialise_model(remote_model, cache=tmp_path)
    assert not list((tmp_path / "folders").iterdir())
    assert storage.materialise_model(remote_model, cache=tmp_path).is_dir()


@pytest.mark.parametrize("location", ["/no/such/folder", "memory://nothing-here", "no such thing"])
def test_a_location_that_is_not_there_is_named(location: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as caught:
        storage.materialise_model(location, cache=tmp_path)
    assert caught.value.code == "model_not_found"
    assert location in caught.value.message


def test_an_unknown_file_system_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="nosuch://bucket"):
        storage.materialise_model("nosuch://bucket/model", cache=tmp_path)


def test_pickled_weights_alone_are_refused(model_folder: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        storage.materialise_model(str(model_folder))


def test_a_revision_needs_a_hub_name(model_folder: Path) -> None:
    with pytest.raises(InvalidInputError) as caught:
        storage.materialise_model(str(model_folder), "main")
    assert caught.value.param == "revision"


@pytest.mark.parametrize("is_local", [True, False])
def test_published_folders_and_files_come_back(is_local: bool, model_folder: Path, tmp_path: Path) -> None:
    root = str(tmp_path / "out") if is_local else f"memory://{tmp_path.name}/out"
    for _ in range(2):  # the second replaces the first
        assert storage.publish_folder(model_folder, f"{root}/model") == 15
    assert storage.read_bytes(f"{root}/model/model.safetensors") == b"weights"
    storage.write_bytes(f"{root}/report.json", b"{}")
    storage.write_bytes(f"{root}/report.json", b"[]")
    assert storage.read_bytes(f"{root}/report.json") == b"[]"
    assert storage.exists(f"{root}/model")
    assert not storage.exists(f"{root}/other")
    with pytest.raises(DataError, match=r"missing\.json"):
        storage.read_bytes(f"{root}/missing.json")


def test_many_writers_of_one_folder_leave_one_whole(model_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "shared"
    threads = [
        threading.Thread(target=storage.publish_folder, args=(model_folder, str(target))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (target / "model.safetensors").read_bytes() == b"weights"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".shared")]
