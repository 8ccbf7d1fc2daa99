"""The loopback Hub of the tests, through huggingface_hub's own functions."""

import pytest
from hub_server import HubServer
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError


LARGE = bytes(range(256)) * 200
CARD = "---\nlicense: other\ntags: [a]\n---\n# Title\n"


@pytest.fixture
def hub(monkeypatch):
    with HubServer() as server:
        server.use_here(monkeypatch, server.token)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        yield server


def commit(repo_id: str, files: dict[str, bytes], **kwargs):
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return HfApi().create_commit(repo_id, operations, commit_message="a change", **kwargs)


def test_create_commit_and_download(hub):
    api = HfApi()
    assert api.create_repo("model").repo_id == "tester/model"
    assert api.create_repo("tester/model", exist_ok=True).repo_id == "tester/model"
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("model")
    files = {"config.json": b"{}", "README.md": CARD.encode(), "model.safetensors": LARGE, "figures/a.txt": b"x"}
    first = commit("tester/model", files)
    assert hub.files("tester/model") == files
    # One upload to the storage host, verified, and the token stayed away from that host.
    assert (hub.count("PUT", "/lfs/"), hub.count("POST", "objects/verify", 200)) == (1, 1)
    assert {request.user for request in hub.requests if request.path.startswith("/lfs/")} == {None}
    for path, content in files.items():
        with open(hf_hub_download("tester/model", path), "rb") as file:
            assert file.read() == content
    info = api.model_info("tester/model")
    assert info.sha == first.oid and info.card_data.license == "other" and info.tags == ["a"]
    assert {sibling.rfilename for sibling in info.siblings} == {*files, ".gitattributes"}
    tree = {entry.path: entry for entry in api.list_repo_tree("tester/model")}
    assert set(tree) == {".gitattributes", "README.md", "config.json", "figures", "model.safetensors"}
    assert tree["model.safetensors"].lfs.size == len(LARGE) and tree["config.json"].lfs is None
    assert api.file_exists("tester/model", "figures/a.txt") and not api.file_exists("tester/model", "b.txt")


def test_revisions(hub):
    api = HfApi()
    api.create_repo("model")
    first = commit("tester/model", {"a.txt": b"1", "weights": LARGE})
    second = commit("tester/model", {"a.txt": b"2", "weights": LARGE})
    assert hub.count("PUT", "/lfs/") == 1  # what is there is not sent again
    assert [entry.oid for entry in hub.commits("tester/model")] == [second.oid, first.oid]
    again = commit("tester/model", {"a.txt": b"2"})
    assert again.oid == second.oid and len(hub.commits("tester/model")) == 2
    api.create_branch("tester/model", branch="old", revision=first.oid)
    api.create_branch("tester/model", branch="old", exist_ok=True)
    commit("tester/model", {"b.txt": b"3"}, revision="old")
    assert set(hub.files("tester/model", "old")) == {"a.txt", "b.txt", "weights"}
    for revision, content in {first.oid: b"1", "old": b"1", "main": b"2", None: b"2"}.items():
        with open(hf_hub_download("tester/model", "a.txt", revision=revision), "rb") as file:
            assert file.read() == content
    api.create_commit("tester/model", [CommitOperationDelete("a.txt")], commit_message="less")
    assert set(hub.files("tester/model")) == {"weights"}
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("tester/model", "a.txt")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("tester/model", revision="none")
    request = commit("tester/model", {"c.txt": b"4"}, create_pr=True)
    assert request.pr_num == 1 and set(hub.files("tester/model", "refs/pr/1")) == {"weights", "c.txt"}
    assert set(hub.files("tester/model")) == {"weights"}


def test_who_may_what(hub):
    api = HfApi()
    api.create_repo("secret", private=True)
    api.create_repo("open")
    commit("tester/secret", {"a.txt": b"1"})
    assert api.model_info("tester/secret").private and not api.model_info("tester/open").private
    for token, status in ((hub.other_token, 404), (False, 401), ("hf_wrong", 401)):
        with pytest.raises(HfHubHTTPError) as error:
            api.model_info("tester/secret", token=token)
        assert error.value.response.status_code == status
        assert isinstance(error.value, RepositoryNotFoundError) == (token != "hf_wrong")
    assert api.model_info("tester/open", token=False).id == "tester/open"
    for token, status in ((hub.other_token, 403), (hub.read_token, 403), ("hf_wrong", 401), (False, 401)):
        with pytest.raises(HfHubHTTPError) as error:
            api.create_repo("tester/new", token=token)
        assert error.value.response.status_code == status
        with pytest.raises(HfHubHTTPError) as error:
            commit("tester/open", {"a.txt": b"1"}, token=token)
        assert error.value.response.status_code == status


def test_card_is_checked(hub):
    HfApi().create_repo("model")
    for broken in ("license: [a", "license: 3", "model-index:\n- name: x"):
        with pytest.raises(ValueError, match=r"Invalid metadata in README.md"):
            commit("tester/model", {"README.md": f"---\n{broken}\n---\n# Title\n".encode()})
    commit("tester/model", {"README.md": CARD.encode()})
    assert len(hub.commits("tester/model")) == 1
