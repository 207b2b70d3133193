"""Every task passes the shared suite; tasks are found by name and in a user's file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distpro_cli.errors import DistproError
from distpro_cli.metric import Metric
from distpro_cli.tasks.classification import Classification
from distpro_cli.tasks.task import TASKS, Batch, Task, find_task, register_task
from tests.tasks.suite import TOY, TaskSuite

DIGITS = {"name": "digits", "image_size": 32, "workers": 0, "train_images": 80, "test_images": 40}


class TestClassification(TaskSuite):
    task = "classification"
    data = DIGITS


class TestClassificationOfMixedImages(TaskSuite):
    task = "classification"
    data = DIGITS
    training = {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1}  # noqa: RUF012


class TestInk(TaskSuite):
    task = TOY
    data = DIGITS


def test_every_task_passes_the_suite() -> None:
    import tests.tasks.detection.test_task  # noqa: F401  # its suite

    assert set(TASKS.names()) <= {suite.task for suite in TaskSuite.__subclasses__()}


def test_tasks_are_found_by_name() -> None:
    assert find_task("classification") is Classification
    assert TASKS.names() == ["classification", "detection"]
    with pytest.raises(DistproError, match=r"unknown task 'clasification' \(did you mean 'classification'\?\)"):
        find_task("clasification")


def test_a_task_registers_with_one_decorator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TASKS, "_known", list(TASKS._known))

    @register_task("ink")
    class Registered(find_task(TOY)): ...  # type: ignore[misc]

    assert find_task("ink") is Registered


def test_a_task_is_found_in_a_users_file() -> None:
    ink = find_task(TOY)
    assert issubclass(ink, Task)
    assert ink.metric == Metric("ink_error", "ink error", higher_is_better=False)
    with pytest.raises(DistproError, match=r"regression.py has no class or function 'Imk' \(did you mean 'Ink'\?\)"):
        find_task(TOY.replace(":Ink", ":Imk"))


def test_what_is_no_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("class Own: ...\n")
    with pytest.raises(DistproError, match=r"own.py:Own: it is no subclass of distpro_cli.tasks.task.Task"):
        find_task(f"{tmp_path}/own.py:Own")


def test_ink_is_the_mean_of_the_pixels() -> None:
    data = TestInk().open(**{"augment": {"crop": "none"}, "image_size": 8})
    batch = next(iter(data.train_batches(16, 1)))
    assert torch.allclose(batch.images_bchw.mean((1, 2, 3))[:, None], batch.targets, atol=1e-6)


def test_the_page_on_tasks_shows_the_toy_as_it_is() -> None:
    page = Path(__file__).parents[2] / "docs" / "tasks.md"
    toy = Path(TOY.removesuffix(":Ink")).read_text()
    assert toy.partition("\n\n")[2] in page.read_text()


def test_a_batch_moves_with_nested_targets() -> None:
    targets = {"boxes": [torch.zeros(2, 4), torch.ones(1, 4)], "sizes": (torch.tensor([3]), "as it is")}
    batch = Batch(torch.rand(2, 3, 4, 4), targets).to(torch.device("meta"), torch.channels_last)
    assert batch.images_bchw.is_contiguous(memory_format=torch.channels_last)
    assert [batch.images_bchw.device.type, *(box.device.type for box in batch.targets["boxes"])] == ["meta"] * 3
    assert batch.targets["sizes"][0].is_meta and batch.targets["sizes"][1] == "as it is"
