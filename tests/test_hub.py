"""Teachers from a hub: a server on this machine that speaks as the hub does, and lists of files."""

import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from command import hsivi, refusal
from conftest import edit_json
from huggingface_hub import constants

from hsivi_cli.errors import HsiviError
from hsivi_cli.files.network import is_offline
from hsivi_cli.models.hub import descriptions, weights_of
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.teacher import digest_of

NAME, COMMIT = "someone/teacher", "c" * 40
STEM = "diffusion_pytorch_model"
# of a Stable Diffusion's size: what nobody needs
MORE = ["vae/diffusion_pytorch_model.bin", "checkpoint-10000/optimizer.bin", "images/0.png"]
MORE += ["vae/config.json", "logs/train.json", "unet/diffusion_pytorch_model_old.bin"]


@pytest.fixture
def hub(save_teacher, tmp_path, monkeypatch):
    """A folder that a hub serves as NAME, and the list of the files that were asked of it."""
    folder, asked = save_teacher(folder="served"), []
    for name in MORE:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"{}")

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(self.path.partition(f"/{NAME}/resolve/{COMMIT}/")[2], False)

        def do_GET(self):
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            names = [path.relative_to(folder).as_posix() for path in files]
            if self.path.startswith(f"/api/models/{NAME}/tree/"):
                rows = zip(names, files, strict=True)
                self.json([
                    {"type": "file", "path": n, "size": f.stat().st_size, "oid": digest(f)}
                    for n, f in rows
                ])  # fmt: skip
            elif self.path.startswith(f"/api/models/{NAME}"):
                listed = [{"rfilename": name} for name in names]
                self.json({"id": NAME, "sha": COMMIT, "siblings": listed})
            else:
                self.answer(self.path.partition(f"/{NAME}/resolve/{COMMIT}/")[2], True)

        def json(self, content):
            self.reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def answer(self, name, whole):
            if not name or not (folder / name).is_file():
                return self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
            content = (folder / name).read_bytes()
            if whole:
                asked.append(name)
            told = {"ETag": f'"{digest(folder / name)}"', "X-Repo-Commit": COMMIT}
            self.reply(200, content, told, whole)

        def reply(self, status, content, headers, whole=True):
            self.send_response(status)
            for key, value in (headers | {"Content-Length": len(content)}).items():
                self.send_header(key, str(value))
            self.end_headers()
            if whole:
                self.wfile.write(content)

        def log_message(self, *words):
            pass

    def digest(file):
        return hashlib.sha1(file.read_bytes()).hexdigest()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", place)
    template = f"{place}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    yield folder, asked
    server.shutdown()
    server.server_close()


NEEDED = ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json"]


def test_a_teacher_is_fetched_with_what_it_needs_alone_and_once(hub, tiny_unet, monkeypatch):
    _, asked = hub
    assert load_teacher(NAME).digest == digest_of(tiny_unet())
    assert sorted(asked) == sorted([*NEEDED, f"unet/{STEM}.safetensors"])
    asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for word in ("0", "1"):  # the hub cannot be reached, then it must not be
        monkeypatch.setenv("HF_HUB_OFFLINE", word)
        assert load_teacher(NAME).digest == digest_of(tiny_unet())
    assert load_teacher(NAME, revision=COMMIT).origin == {"revision": COMMIT}
    assert asked == []


def test_of_another_pipeline_no_weights_are_fetched(hub):
    folder, asked = hub
    edit_json(folder / "model_index.json", _class_name="StableDiffusionPipeline")
    with pytest.raises(HsiviError, match="someone/teacher is a StableDiffusionPipeline"):
        load_teacher(NAME)
    assert sorted(asked) == NEEDED


def test_a_variant_that_the_hub_does_not_have_is_told_before_anything_large(hub):
    _, asked = hub
    with pytest.raises(HsiviError, match="no weights of --variant fp16: give no --variant"):
        load_teacher(NAME, variant="fp16")
    with pytest.raises(HsiviError, match="on the hub holds no diffusers teacher in nowhere"):
        load_teacher(NAME, subfolder="nowhere")
    assert sorted(asked) == NEEDED


def test_a_name_that_the_hub_does_not_have_is_refused_with_the_reason(hub):
    with pytest.raises(HsiviError, match=r"could not fetch someone/other from the hub \("):
        load_teacher("someone/other")


def test_a_hub_name_offline_is_one_clear_line():
    told = refusal("info", "someone/teacher")  # conftest sets HF_HUB_OFFLINE
    assert "someone/teacher is neither a folder here nor in the hub's cache" in told
    assert "--offline, or HF_HUB_OFFLINE, forbids to fetch it" in told
    for none in ("neither/a/hub/id", "runs/my student", "runs/a--b", "runs/-2"):
        assert "there is no teacher at" in refusal("info", none)
    with pytest.raises(HsiviError, match="there is no teacher at"):  # no line can name it
        load_teacher("runs/\udcff")


def test_the_flag_forbids_the_network_too(hub):
    _, asked = hub
    assert "forbids to fetch it" in refusal("--offline", "info", NAME)
    assert asked == [] and is_offline()


@pytest.mark.parametrize("how", ["flag", "variable", "neither"])
def test_what_wandb_logs_stays_here_where_the_network_is_forbidden(monkeypatch, how):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if how == "variable" else "0")
    hsivi(*(["--offline"] if how == "flag" else []), "info")
    assert os.environ["WANDB_MODE"] == ("online" if how == "neither" else "offline")


PIPELINE = [*NEEDED, *MORE, "README.md", f"unet/{STEM}.bin"]


@pytest.mark.parametrize(
    ("names", "folder", "variant", "weights"),
    [
        (PIPELINE, "unet", None, [f"unet/{STEM}.bin"]),
        ([*PIPELINE, f"unet/{STEM}.safetensors"], "unet", None, [f"unet/{STEM}.safetensors"]),
        (
            [*PIPELINE, f"unet/{STEM}.fp16.safetensors", f"unet/{STEM}.fp16.bin"],
            "unet",
            None,
            [f"unet/{STEM}.bin"],
        ),
        (
            [*PIPELINE, f"unet/{STEM}.fp16.safetensors", f"unet/{STEM}.fp16.bin"],
            "unet",
            "fp16",
            [f"unet/{STEM}.fp16.safetensors"],
        ),
        ([f"{STEM}.bin", f"unet/{STEM}.bin"], ".", None, [f"{STEM}.bin"]),
    ],
)
def test_of_a_repositorys_weights_those_are_fetched_that_are_read(names, folder, variant, weights):
    assert weights_of(names, folder, variant, "it") == weights


def test_of_a_repositorys_descriptions_those_are_fetched_that_tell_of_the_teacher():
    assert descriptions([*PIPELINE, "config.json"]) == sorted([*NEEDED, "config.json"])
    parts = ("unet", "unet_ema")
    training = [f"checkpoint-{n}/{part}/config.json" for n in (1, 2) for part in parts]
    told = descriptions([*PIPELINE, *training], "checkpoint-2/unet_ema")
    assert told == ["checkpoint-2/unet_ema/config.json", "scheduler/scheduler_config.json"]
    assert descriptions([*PIPELINE, *training], "checkpoint-2") == [
        *(f"checkpoint-2/{part}/config.json" for part in parts),
        "scheduler/scheduler_config.json",
    ]
