"""Pushing to a Hub and pulling from it: the real huggingface_hub client against a server on loopback."""

import json
import threading

import huggingface_hub
import pytest
import torch
from helpers.hub_server import OWNER, READER, LoopbackHub, use
from helpers.models import FAMILIES, PROMPTS, prompt_inputs, stock_model
from helpers.processors import tiny_processor
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from packaging.version import Version
from transformers import AutoModelForImageTextToText, AutoProcessor

from cacovid_cli.main import main
from cacovid_hf import CaCoVidForConditionalGeneration, with_video_reader
from cacovid_hf.hub.custom_generate import stamp_of

REPO, BASE = "owner/cacovid-tiny", "owner/stock"
SETTINGS = dict(retention_ratio=0.25, max_new_tokens=4, do_sample=False)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client's backoff
    with LoopbackHub().running() as server:
        use(server, tmp_path / "cache", monkeypatch)
        yield server


def publish_stock(hub, family="llava_onevision", seed=0, **files):
    """The backbone's own repository; returns the commit."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        stock_model(family, seed=seed).save_pretrained(folder)
        tiny_processor(family).save_pretrained(folder)
        if BASE not in hub.repositories:
            hub.create(BASE)
        for path in sorted(Path(folder).iterdir()):
            commit = hub.edit(BASE, path.name, path.read_bytes())
    return commit


def wrapped(hub, family="llava_onevision", **options):
    commit = publish_stock(hub, family)
    backbone = AutoModelForImageTextToText.from_pretrained(BASE)
    options = dict(policy_trained=True, base_model_revision=commit) | options
    return CaCoVidForConditionalGeneration.from_backbone(backbone, **options)


def tokens(model):
    return model.generate(**prompt_inputs(model.backbone, PROMPTS["one video"]), **SETTINGS).tolist()


def reading(num_frames):
    """A processor that differs from others in the frames that it reads."""
    processor = with_video_reader(tiny_processor("llava_onevision"))
    processor.video_processor.num_frames = num_frames
    return processor


def push_two_revisions(hub):
    """Models whose policies differ, by branch; the processor on main reads four frames, that on v2 six."""
    models = {"main": wrapped(hub), "v2": wrapped(hub)}
    models["v2"].policy.load_state_dict(
        {name: tensor + 0.5 for name, tensor in models["v2"].policy.state_dict().items()}
    )
    models["main"].push_to_hub(REPO, processor=reading(4))
    models["v2"].push_to_hub(REPO, processor=reading(6), revision="v2")
    return models


def same_policy(model, other):
    pairs = zip(model.policy.state_dict().values(), other.policy.state_dict().values(), strict=True)
    return all(torch.equal(tensor, same) for tensor, same in pairs)


def cached_files(tmp_path, repo):
    return list((tmp_path / "cache" / f"models--{repo.replace('/', '--')}").glob("snapshots/*/*"))


@pytest.mark.spread(6)
@pytest.mark.parametrize("family", FAMILIES)
def test_policy_only_round_trip(hub, family, tmp_path):
    model = wrapped(hub, family)
    commit = model.push_to_hub(REPO)
    files = hub.files(REPO)
    policy = {"README.md", "cacovid_auto.py", "config.json", "model.safetensors"}
    assert policy < set(files)
    assert not any(path.startswith("backbone") for path in files)
    assert hub.files(REPO, commit.oid)["model.safetensors"] == files["model.safetensors"]
    assert hub.tokens_seen == {OWNER}
    loaded = CaCoVidForConditionalGeneration.from_pretrained(REPO)
    assert tokens(loaded) == tokens(model)
    assert type(AutoProcessor.from_pretrained(REPO).video_processor).__name__.startswith("CaCoVid")
    # The code for stock models names the commit of its policy, and a second push finds nothing to do.
    assert stamp_of(files["custom_generate/generate.py"].decode()) == (REPO, commit.oid)
    log = list(hub.repositories[REPO].log)
    model.push_to_hub(REPO)
    assert hub.repositories[REPO].log == log


def test_the_backbones_commit_is_pinned(hub):
    """Whichever version of transformers loaded it, as long as the cache leaves no doubt."""
    commit = publish_stock(hub)
    backbone = AutoModelForImageTextToText.from_pretrained(BASE)
    assert CaCoVidForConditionalGeneration.from_backbone(backbone).config.base_model_revision == commit


def test_merged_then_policy_only(hub):
    model = wrapped(hub, base_model_name_or_path=None)
    with pytest.raises(ValueError, match="not a repository on the Hub"):
        model.push_to_hub(REPO)
    assert REPO not in hub.repositories
    model.push_to_hub(REPO, include_backbone=True, max_shard_size="100KB", processor=tiny_processor("llava_onevision"))
    assert sum(path.startswith("backbone/model-0") for path in hub.files(REPO)) > 2
    del hub.repositories[BASE]
    assert tokens(CaCoVidForConditionalGeneration.from_pretrained(REPO)) == tokens(model)
    publish_stock(hub)
    model.config.base_model_name_or_path = BASE
    model.push_to_hub(REPO, processor=False)
    assert not any(path.startswith("backbone") for path in hub.files(REPO)), "the backbone of the earlier push is gone"
    assert tokens(CaCoVidForConditionalGeneration.from_pretrained(REPO)) == tokens(model)


@pytest.mark.parametrize("base", ["folder", "/absolute/folder", "../folder", "a/b/c", ""])
def test_local_backbone_is_refused_before_anything_happens(hub, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    model = CaCoVidForConditionalGeneration.from_backbone(
        stock_model("llava_onevision"), base_model_name_or_path=base or None
    )
    requests = len(hub.requests)
    with pytest.raises(ValueError, match=r"nobody could load a policy-only push: give base_model_name_or_path"):
        model.push_to_hub(REPO)
    with pytest.raises(ValueError, match=r"nobody could load a policy-only push"):
        model.save_pretrained(tmp_path / "m", push_to_hub=True)
    assert len(hub.requests) == requests
    assert not (tmp_path / "m").exists()


def test_save_pretrained_pushes(hub, tmp_path):
    model = wrapped(hub)
    model.save_pretrained(tmp_path / "named", push_to_hub=True, private=True, commit_message="First")
    assert hub.repositories["owner/named"].private
    assert "First" in hub.repositories["owner/named"].titles.values()
    model.save_pretrained(tmp_path / "other", push_to_hub=True, repo_id=REPO, processor=False)
    assert "processor_config.json" in hub.files("owner/named")
    assert "processor_config.json" not in hub.files(REPO)
    model.save_pretrained(tmp_path / "asked for", push_to_hub=True, repo_id=REPO, processor=True)
    assert "processor_config.json" in hub.files(REPO)


@pytest.mark.parametrize("load", [CaCoVidForConditionalGeneration, AutoModelForImageTextToText])
def test_the_processor_is_that_of_the_revision_that_the_model_was_loaded_from(hub, load, tmp_path):
    """And of the commit that it then was."""
    push_two_revisions(hub)
    pushed = {}
    for revision in ("main", "v2"):
        model = load.from_pretrained(REPO, revision=revision)
        hub.edit(REPO, "processor_config.json", b"{}", ref=revision)  # somebody else's, later
        model.push_to_hub(f"owner/{revision}-pushed")
        model.save_pretrained(tmp_path / f"{revision}-saved", push_to_hub=True)
        for way in ("pushed", "saved"):
            described = json.loads(hub.files(f"owner/{revision}-{way}")["processor_config.json"])
            pushed[revision, way] = described["video_processor"]["num_frames"]
    assert pushed == {("main", "pushed"): 4, ("main", "saved"): 4, ("v2", "pushed"): 6, ("v2", "saved"): 6}


def test_without_a_processor_the_repositorys_stays(hub):
    """And the card goes on to say so; where there is none it names the backbone's."""
    model = wrapped(hub)
    model.push_to_hub(REPO, processor=reading(4))
    before = hub.files(REPO)
    model.config.retention_ratio = 0.5
    model.push_to_hub(REPO, processor=False)
    after = hub.files(REPO)
    assert {path for path in before if before[path] != after[path]} >= {"config.json", "README.md"}
    assert after.keys() == before.keys()
    for path in ("processor_config.json", "chat_template.jinja", "tokenizer.json"):
        assert after[path] == before[path]
    assert f"processor = AutoProcessor.from_pretrained({REPO!r})" in after["README.md"].decode()
    model.push_to_hub("owner/bare", processor=False)
    assert f"with_video_reader(AutoProcessor.from_pretrained({BASE!r}" in hub.files("owner/bare")["README.md"].decode()


@pytest.mark.parametrize("way", ["push_to_hub", "save_pretrained"])
def test_nothing_else_of_this_machine_is_pushed(hub, tmp_path, way):
    """Not the path of a backbone, in whatever commit, and not what else lies in the folder of a save."""
    place = tmp_path / "secretplace"
    stock_model("llava_onevision").save_pretrained(place / "stock")
    backbone = AutoModelForImageTextToText.from_pretrained(place / "stock")
    model = CaCoVidForConditionalGeneration.from_backbone(backbone)
    assert model.config.base_model_name_or_path == str(place / "stock")
    how = dict(include_backbone=True, custom_generate=True, processor=False)
    if way == "push_to_hub":
        model.push_to_hub(REPO, **how)
    else:
        (place / "out" / "checkpoint-1").mkdir(parents=True)
        (place / "out" / "notes.txt").write_text("secretplace")
        (place / "out" / "checkpoint-1" / "optimizer.pt").write_text("secretplace")
        model.save_pretrained(place / "out", push_to_hub=True, repo_id=REPO, **how)
        assert (place / "out" / "notes.txt").exists()
    for commit in hub.repositories[REPO].log:
        for path, data in hub.files(REPO, commit).items():
            assert b"secretplace" not in data, path
    assert model.config.base_model_name_or_path == str(place / "stock")
    assert tokens(CaCoVidForConditionalGeneration.from_pretrained(REPO)) == tokens(model)


def test_a_processor_with_code_of_its_own_is_not_run(hub, monkeypatch):
    """Nor is the user asked whether it should be."""
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("asked"))
    model = wrapped(hub)
    described = json.loads(hub.files(BASE)["processor_config.json"])
    described |= {"processor_class": "Evil", "auto_map": {"AutoProcessor": "evil.Evil"}}
    hub.edit(BASE, "evil.py", b"raise SystemExit('run')")
    model.config.base_model_revision = hub.edit(BASE, "processor_config.json", json.dumps(described).encode())
    model.push_to_hub(REPO)
    assert not [request for request in hub.requests if "evil.py" in request]
    assert "model.safetensors" in hub.files(REPO)


def test_private_needs_the_token(hub, monkeypatch, tmp_path):
    model = wrapped(hub)
    model.push_to_hub(REPO, private=True)
    use(hub, tmp_path / "elsewhere", monkeypatch, token=None)
    for token in (None, READER):
        with pytest.raises(OSError, match=f"{REPO} is not a local folder and is not a valid model identifier"):
            CaCoVidForConditionalGeneration.from_pretrained(REPO, token=token)
    hub.repositories[BASE].private = True  # the token reaches the backbone too
    assert tokens(CaCoVidForConditionalGeneration.from_pretrained(REPO, token=OWNER)) == tokens(model)


def test_revisions(hub):
    """A branch, a tag-like old commit and main hold different policies; the backbone stays at its own revision whatever is asked of the policy."""
    first = wrapped(hub)
    commit = first.push_to_hub(REPO)
    second = wrapped(hub)
    second.policy.load_state_dict({name: tensor + 0.5 for name, tensor in second.policy.state_dict().items()})
    second.push_to_hub(REPO, revision="v2")
    publish_stock(hub, seed=7)  # the backbone's repository moves on
    for revision, model in (("v2", second), ("main", first), (commit.oid, first)):
        loaded = CaCoVidForConditionalGeneration.from_pretrained(REPO, revision=revision)
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor)
    assert stamp_of(hub.files(REPO, "v2")["custom_generate/generate.py"].decode())[1] in hub.repositories[REPO].log
    with pytest.raises(OSError, match="v3 is not a valid git identifier"):
        CaCoVidForConditionalGeneration.from_pretrained(REPO, revision="v3")


def test_pull_request(hub, monkeypatch, tmp_path, caplog):
    model = wrapped(hub)
    hub.create(REPO)
    before = hub.files(REPO)
    use(hub, tmp_path / "cache", monkeypatch, token=READER)
    model.push_to_hub(REPO, create_pr=True)  # may open one, may not add to it
    assert "is open, but custom_generate could not be added" in caplog.text
    assert "model.safetensors" in hub.files(REPO, "refs/pr/1")
    use(hub, tmp_path / "cache", monkeypatch)
    info = model.push_to_hub(REPO, create_pr=True, commit_message="Offer a policy")
    assert info.pr_revision == "refs/pr/2"
    assert hub.files(REPO) == before
    assert "custom_generate/generate.py" in hub.files(REPO, "refs/pr/2")
    loaded = CaCoVidForConditionalGeneration.from_pretrained(REPO, revision="refs/pr/2")
    assert tokens(loaded) == tokens(model)


# ------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(
    ("pattern", "action"),
    [
        ("PUT /storage", "drop"),
        ("PUT /storage", 503),
        ("POST /api/models/.*/preupload", 502),
        ("POST .*/commit/main", "drop"),
        ("POST .*/commit/main", 500),
        ("POST .*/objects/batch", 503),
    ],
)
def test_a_push_survives_one_failure(hub, pattern, action):
    model = wrapped(hub)
    hub.fail(pattern, action)
    model.push_to_hub(REPO)
    assert not hub.faults[0].times, "the failure happened"
    assert tokens(CaCoVidForConditionalGeneration.from_pretrained(REPO)) == tokens(model)


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub):
    model = wrapped(hub)
    commit, answers = hub.server.RequestHandlerClass.reply, []

    def reply(handler, value, status=200, headers=None):
        if isinstance(value, dict) and "commitOid" in value and not answers and handler.path.endswith("/commit/main"):
            answers.append(value["commitOid"])
            handler.drop()
            return
        commit(handler, value, status, headers)

    hub.server.RequestHandlerClass.reply = reply
    model.push_to_hub(REPO)
    assert len(answers) == 1
    assert list(hub.repositories[REPO].titles.values()) == [
        "initial commit",
        "Upload model",
        "Upload model: code for stock models",
    ]
    assert stamp_of(hub.files(REPO)["custom_generate/generate.py"].decode()) == (REPO, answers[0])


def test_a_push_that_dies_leaves_the_repository_as_it_was(hub):
    model = wrapped(hub)
    model.push_to_hub(REPO)
    before = hub.files(REPO)
    model.policy.load_state_dict({name: tensor + 1 for name, tensor in model.policy.state_dict().items()})
    hub.fail("PUT /storage", "drop", times=10**6)
    with pytest.raises(Exception, match=r"uploading 'model.safetensors'|disconnected|closed|Broken|reset"):
        model.push_to_hub(REPO)
    assert hub.files(REPO) == before
    hub.faults.clear()
    model.push_to_hub(REPO)  # and may be repeated
    assert tokens(CaCoVidForConditionalGeneration.from_pretrained(REPO)) == tokens(model)


def test_large_files_go_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with LoopbackHub(part_size=20_000).running() as hub:
        use(hub, tmp_path / "cache", monkeypatch)
        model = wrapped(hub)
        hub.fail("PUT /storage/.*/part/2", "drop")
        model.push_to_hub(REPO)
        assert sum("/part/" in request for request in hub.requests) > 3
        assert tokens(CaCoVidForConditionalGeneration.from_pretrained(REPO)) == tokens(model)


@pytest.mark.parametrize(
    ("pattern", "status", "kind"),
    [
        ("POST /api/repos/create", 401, HfHubHTTPError),
        ("POST /api/repos/create", 403, HfHubHTTPError),
        ("GET /api/models/owner/cacovid-tiny", 404, HfHubHTTPError),
        ("POST .*/preupload/main", 403, HfHubHTTPError),
        ("POST .*/commit/main", 400, HfHubHTTPError),
        ("POST .*/commit/main", 409, HfHubHTTPError),
        ("POST .*/commit/main", 503, HfHubHTTPError),
    ],
)
def test_refusals_reach_the_caller(hub, pattern, status, kind):
    model = wrapped(hub)
    hub.fail(pattern, status, times=10**6)
    with pytest.raises(kind, match=f"{status}|Bad request"):
        model.push_to_hub(REPO)
    assert REPO not in hub.repositories or set(hub.files(REPO)) == {".gitattributes"}


def test_wrong_token(hub, monkeypatch, tmp_path):
    model = wrapped(hub)
    use(hub, tmp_path / "cache", monkeypatch, token="hf_wrong")
    with pytest.raises(HfHubHTTPError, match="401"):
        model.push_to_hub(REPO)
    use(hub, tmp_path / "cache", monkeypatch, token=READER)
    with pytest.raises(HfHubHTTPError, match="403"):
        model.push_to_hub(REPO)
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info(REPO)


# ------------------------------------------------------------------ somebody else


def test_changes_in_between_are_kept(hub):
    """Somebody edits the card after it was read and before the commit: the push starts over, and both changes are there."""
    model = wrapped(hub)
    model.push_to_hub(REPO)
    model.policy.load_state_dict({name: tensor + 1 for name, tensor in model.policy.state_dict().items()})
    card = hub.files(REPO)["README.md"].decode().replace("## Limits", "## Limits\n\n- Not for cats.\n\n## More")
    hub.fail("POST .*/commit/main", lambda: hub.edit(REPO, "README.md", card.encode()))
    model.push_to_hub(REPO)
    assert "- Not for cats." in hub.files(REPO)["README.md"].decode()
    assert tokens(CaCoVidForConditionalGeneration.from_pretrained(REPO)) == tokens(model)


def test_two_writers(hub):
    """Two pushes at once: every state of main is one writer's whole checkpoint, and the code names the policy beside it."""
    models = [wrapped(hub), wrapped(hub)]
    models[1].policy.load_state_dict({name: tensor + 1 for name, tensor in models[1].policy.state_dict().items()})
    models[1].config.retention_ratio = 0.5
    threads = [
        threading.Thread(target=model.push_to_hub, args=(REPO,), kwargs={"processor": False}) for model in models
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    repository = hub.repositories[REPO]
    pairs = set()
    for sha in repository.log[1:]:
        files = hub.files(REPO, sha)
        pairs.add((files["model.safetensors"], json.loads(files["config.json"])["retention_ratio"]))
    assert {ratio for _, ratio in pairs} == {None, 0.5}
    assert len(pairs) == 2
    files = hub.files(REPO)
    stamp = stamp_of(files["custom_generate/generate.py"].decode())[1]
    assert hub.files(REPO, stamp)["model.safetensors"] == files["model.safetensors"]


def test_a_repository_that_changes_while_it_is_read(hub):
    """config.json and weights come from one commit."""
    model = wrapped(hub)
    model.push_to_hub(REPO)
    hub.fail("HEAD /.*/resolve/.*/model.safetensors", lambda: hub.edit(REPO, "model.safetensors", b"something else"))
    assert tokens(CaCoVidForConditionalGeneration.from_pretrained(REPO)) == tokens(model)
    assert not hub.faults[0].times


# ------------------------------------------------------------------ pulling


def test_offline_and_cached(hub, monkeypatch):
    model = wrapped(hub)
    model.push_to_hub(REPO)
    expected = tokens(CaCoVidForConditionalGeneration.from_pretrained(REPO))
    requests = len(hub.requests)
    assert tokens(CaCoVidForConditionalGeneration.from_pretrained(REPO, local_files_only=True)) == expected
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert tokens(CaCoVidForConditionalGeneration.from_pretrained(REPO)) == expected
    assert tokens(AutoModelForImageTextToText.from_pretrained(REPO)) == expected
    assert len(hub.requests) == requests
    with pytest.raises(OSError, match=r"owner/other|find them in the cached files"):
        CaCoVidForConditionalGeneration.from_pretrained("owner/other")


@pytest.mark.parametrize("revision", ["main", "v2"])
def test_the_server_takes_model_and_processor_of_a_revision(hub, monkeypatch, revision):
    """What it would serve is looked at: it listens until it is stopped."""
    pytest.importorskip("fastapi")
    pytest.importorskip("openai")
    models, served = push_two_revisions(hub), []
    monkeypatch.setattr("cacovid_cli.serve.server.serve", lambda *what: served.append(what))
    with pytest.raises(SystemExit) as ended:
        main(["serve", REPO, *([] if revision == "main" else ["--revision", revision])])
    assert not ended.value.code
    ((name, model, processor, *_),) = served
    assert name == REPO
    assert [same_policy(model, other) for other in models.values()] == [revision == other for other in models]
    assert processor.video_processor.num_frames == {"main": 4, "v2": 6}[revision]


@pytest.mark.skipif(
    Version(huggingface_hub.__version__) < Version("1.6"),
    reason="huggingface_hub 1.5 gives up where a connection closes half-way",
)
def test_a_download_that_breaks_off_is_resumed(hub, tmp_path):
    model = wrapped(hub)
    model.push_to_hub(REPO)
    hub.fail("SEND /storage", "drop")
    assert tokens(CaCoVidForConditionalGeneration.from_pretrained(REPO)) == tokens(model)
    assert not hub.faults[0].times


@pytest.mark.parametrize(
    ("status", "message"), [(401, REPO), (403, "403"), (404, REPO), (429, "429|connect"), (503, "503|connect")]
)
def test_errors_of_a_pull(hub, status, message, tmp_path):
    model = wrapped(hub)
    model.push_to_hub(REPO)
    hub.fail(f"(GET|HEAD) /(api/models/)?{REPO}", status, times=10**6)
    with pytest.raises(OSError, match=message):
        CaCoVidForConditionalGeneration.from_pretrained(REPO, cache_dir=tmp_path / "fresh")


def test_callers_cache_and_subfolder_reach_where_they_belong(hub, tmp_path):
    model = wrapped(hub)
    model.push_to_hub(REPO)
    for path, data in list(hub.files(REPO).items()):
        hub.edit(REPO, f"inner/{path}", data)
        hub.edit(REPO, path, None)
    loaded = CaCoVidForConditionalGeneration.from_pretrained(
        REPO, subfolder="inner", cache_dir=tmp_path / "mine", trust_remote_code=True, dtype=torch.bfloat16
    )
    assert loaded.dtype == torch.bfloat16
    assert sorted(path.name for path in (tmp_path / "mine").iterdir() if path.name.startswith("models")) == [
        "models--owner--cacovid-tiny",
        "models--owner--stock",
    ]
    assert "AutoConfig" in json.loads(hub.files(REPO)["inner/config.json"])["auto_map"]
    assert ModelCard(hub.files(REPO)["inner/README.md"].decode()).data.base_model == BASE
