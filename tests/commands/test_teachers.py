"""Teachers with weights through the command line: taken as they are, fine-tuned, refused; what files say of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from distpro_cli.networks.build import build_network
from distpro_cli.networks.weights import save_weights
from distpro_cli.recipe.load import load_recipe
from tests.conftest import Run, start_distpro
from tests.helpers import classification

NAME = "test_resnet.r160_in1k"
HALF = (0.5, 0.5, 0.5)


@pytest.fixture
def folder(workplace: Path) -> Path:
    """`own.yaml`: ten class folders of noise about a grey of their own, and a teacher with a head of 1,000."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for label in range(10):
            place = workplace / "data" / split / f"kind{label}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = generator.normal(25 * label, 20, (24, 24, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    torch.manual_seed(5)
    torch.save(timm.create_model(NAME).state_dict(), workplace / "thousand.pth")
    (workplace / "own.yaml").write_text(
        "data: {root: data, num_classes: 10, image_size: 32, workers: 0, augment: {crop: pad}}\n"
        f"teacher: {{name: {NAME}, weights: thousand.pth}}\n"
        "student: {name: wrn_10_1}\n"
        "pathways: [{connections: same, transform: conv1, distance: hcl}]\n"
        "search: {epochs: 1}\n"
        "distill: {epochs: 1, batch_size: 16, optimizer: {lr: 0.01}}\n"
    )
    return workplace


TRAIN = "teacher.train={epochs: 2, batch_size: 16, optimizer: {lr: 0.02}}"


def metadata(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "pt") as file:
        return dict(file.metadata())


def cached(folder: Path) -> Path:
    (path,) = (folder / "cache" / "teachers").glob("*.safetensors")
    return path


def test_a_teacher_of_a_thousand_classes_is_fine_tuned_and_teaches_ten(
    distpro: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTPRO_CACHE", str(folder / "cache"))
    shown = distpro("inspect", "own.yaml", TRAIN)
    assert "a new head of 10 outputs (theirs has 1000); fine-tuned first by teacher.train (2 epochs)" in shown.out
    result = distpro("search", "own.yaml", TRAIN, "--json")
    assert result.status == 0, result.err
    assert f"teacher {NAME}: weights thousand.pth, with a new head of 10 outputs" in result.err
    before, after = torch.load("thousand.pth"), load_file(cached(folder))
    assert after["fc.weight"].shape == (10, 96)
    # The backbone starts from the file and is trained on: near it, and not equal to it.
    start = before["conv1.0.weight"]
    assert 0 < (after["conv1.0.weight"] - start).norm() < 0.5 * start.norm()
    again = distpro("search", "own.yaml", TRAIN, "-o", "again.safetensors", "--run-dir", "again", "--json")
    assert "already trained, taken from" in again.err
    assert again.json["teacher"] == result.json["teacher"]
    assert Path("again.safetensors").read_bytes() == Path(result.json["process"]).read_bytes()


def test_a_frozen_backbone_keeps_its_bits(distpro: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTPRO_CACHE", str(folder / "cache"))
    shown = distpro("inspect", "own.yaml", TRAIN, "teacher.freeze=backbone")
    assert "its head alone is trained first" in shown.out
    result = distpro("search", "own.yaml", TRAIN, "teacher.freeze=backbone", "--json")
    assert result.status == 0, result.err
    before, after = torch.load("thousand.pth"), load_file(cached(folder))
    assert all(torch.equal(after[name], before[name]) for name in before if not name.startswith("fc."))
    # The head has moved from where the teacher's seed drew it: two epochs of ten steps with lr 0.02.
    assert after["fc.bias"].abs().max() > 1e-3


def test_without_train_a_head_that_does_not_fit_is_refused(distpro: Run, folder: Path) -> None:
    for command in (["search", "own.yaml"], ["transfer", "own.yaml", "--process", "uniform"]):
        result = distpro(*command)
        assert result.status == 2 and "theirs has 1000" in result.err
        assert "set teacher.train" in result.err and "teacher.freeze: backbone" in result.err
    assert not Path("runs").exists() or not any(Path("runs").iterdir())
    assert "refused" in distpro("inspect", "own.yaml").out
    result = distpro("search", "own.yaml", "teacher.freeze=backbone")
    assert result.status == 2 and "backbone needs train, which is not set" in result.err


def test_pretrained_weights_of_timm_are_treated_likewise(
    distpro: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTPRO_CACHE", str(folder / "cache"))
    fetched = torch.load("thousand.pth")

    def fetch(model: Any, **_: Any) -> None:
        kept = {name: tensor for name, tensor in fetched.items() if not name.startswith("fc.")}
        model.load_state_dict(kept, strict=False)

    monkeypatch.setattr("timm.models._builder.load_pretrained", fetch)
    refused = distpro("search", "own.yaml", "teacher.weights=pretrained")
    assert refused.status == 2 and "theirs has 1000" in refused.err
    result = distpro("search", "own.yaml", "teacher.weights=pretrained", TRAIN, "teacher.freeze=backbone", "--json")
    assert result.status == 0, result.err
    after = load_file(cached(folder))
    assert all(torch.equal(after[name], fetched[name]) for name in fetched if not name.startswith("fc."))


def test_a_head_that_fits_is_taken_as_it_is_and_train_is_not_used(distpro: Run, folder: Path) -> None:
    torch.manual_seed(6)
    save_weights(timm.create_model(NAME, num_classes=10), Path("ten.safetensors"), {})
    shown = distpro("inspect", "own.yaml", TRAIN, "teacher.weights=ten.safetensors")
    assert "as they are (train is not used: their head fits)" in shown.out
    one = distpro("search", "own.yaml", TRAIN, "teacher.weights=ten.safetensors", "--json")
    two = distpro("search", "own.yaml", "teacher.weights=ten.safetensors", "--json", "--run-dir", "two", "--force")
    assert one.status == two.status == 0, one.err + two.err
    assert one.json["teacher"] == two.json["teacher"]


def test_files_keep_the_normalisation_of_their_network(distpro: Run, folder: Path) -> None:
    """timm's configuration of a ViT of augreg says 0.5, whatever the weights come as."""
    recipe = load_recipe(
        "own.yaml",
        ["student.name=vit_tiny_patch16_224.augreg_in21k_ft_in1k", "data.mean=[0.1,0.2,0.3]", "data.std=[1,1,1]"],
    )
    config = timm.get_pretrained_cfg(recipe.student.name)
    assert config.mean == HALF
    model = timm.create_model(recipe.student.name, num_classes=10, img_size=32)
    torch.save(model.state_dict(), "vit.pth")
    spec = recipe.student.model_copy(update={"weights": "vit.pth"})
    network = build_network(spec, recipe.data, classification()).eval()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(network(images)[0], model.eval()((images - 0.5) / 0.5))


def test_what_is_written_says_how_it_is_used_and_is_read_back_so(distpro: Run, folder: Path) -> None:
    given = ["data.mean=[0.25,0.5,0.75]", "data.std=[0.2,0.3,0.4]"]
    result = distpro("train", "own.yaml", *given, "--json")
    assert result.status == 0, result.err
    path = Path(result.json["student"]["weights"])
    said = metadata(path)
    assert said["network"] == "wrn_10_1" and said["image_size"] == "32" and said["num_classes"] == "10"
    assert json.loads(said["mean"]) == [0.25, 0.5, 0.75] and json.loads(said["std"]) == [0.2, 0.3, 0.4]
    assert json.loads(said["class_names"]) == [f"kind{label}" for label in range(10)]
    assert json.loads(said["levels"]) == ["block1", "block2", "block3", "pooled"]
    assert json.loads(said["trained"])["by"] == "distpro train"
    as_teacher = [f"teacher.weights={path}", "teacher.name=wrn_10_1"]
    # The file's own mean counts, not the data's of another recipe: the teacher is as good as the student was.
    taught = distpro("transfer", "own.yaml", *as_teacher, "--process", "uniform", "--json")
    assert taught.status == 0, taught.err
    assert taught.json["teacher"]["top1"] == result.json["student"]["top1_last"]
    trained = json.loads(metadata(Path(taught.json["student"]["weights"]))["trained"])
    assert (trained["by"], trained["teacher"]) == ("distpro transfer", "wrn_10_1")
    network = build_network(load_recipe("own.yaml", as_teacher).teacher, load_recipe("own.yaml").data, classification())
    assert network.mean.flatten().tolist() == [0.25, 0.5, 0.75]
    (folder / "data/train/kind0").rename(folder / "data/train/zebra")
    (folder / "data/test/kind0").rename(folder / "data/test/zebra")
    warned = distpro("transfer", "own.yaml", *as_teacher, "--process", "uniform", "--run-dir", "other")
    assert warned.status == 0 and "trained on other classes, or in another order" in warned.err


def test_a_student_starts_from_weights_with_another_head(distpro: Run, folder: Path) -> None:
    given = [f"student.name={NAME}", "student.weights=thousand.pth"]
    assert "weights thousand.pth, with a new head of 10 outputs" in distpro("inspect", "own.yaml", *given).out
    result = distpro("train", "own.yaml", *given)
    assert result.status == 0 and "with a new head of 10 outputs (theirs has 1000)" in result.err


def test_outputs_of_several_parts_through_the_command_line(distpro: Run, folder: Path) -> None:
    Path("net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, num_classes)\n"
        "    def forward(self, x):\n"
        "        x = self.stem(x)\n"
        "        return {'map': x, 'scores': self.head(x.mean((2, 3)))}\n"
    )
    refused = distpro("train", "own.yaml", "student.name=net.py:Net")
    assert refused.status == 2 and "a dict with the parts map, scores; classification needs logits" in refused.err
    assert "key output" in refused.err
    result = distpro("train", "own.yaml", "student.name=net.py:Net", "student.output=scores")
    assert result.status == 0, result.err


def test_fastvit_is_trained_in_channels_last_recipes(folder: Path) -> None:
    """In a process of its own, since torch ends it where this goes wrong."""
    given = ["student.name=fastvit_t8", "data.image_size=96", "data.train_images=20", "distill.batch_size=4"]
    process = start_distpro("train", "own.yaml", *given, "--device", "cpu")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
