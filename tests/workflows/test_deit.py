"""DeiT's distillation token as a scheme, through the command line and against its formula."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F

from distpro_cli.process.file import load_process
from distpro_cli.recipe.load import load_recipe
from distpro_cli.tasks.task import Batch
from distpro_cli.training.hypergradients.base import outer_gradient
from distpro_cli.workflows.session import Session
from distpro_cli.workflows.sources import SchemeSource
from tests.conftest import Run
from tests.helpers import CONTEXT

SMALL = "patch_size: 4, depth: 2, num_heads: 3"
PAIR = (
    f"teacher={{name: vit_tiny_patch16_224, options: {{{SMALL}, embed_dim: 24}}, train: {{epochs: 1}}}}",
    f"student={{name: deit_tiny_distilled_patch16_224, options: {{{SMALL}, embed_dim: 12}}}}",
    "pathways=[{}]",
    "distill.optimizer={name: adamw, lr: 0.001}",
)


def test_the_loss_is_deits(workplace: Path) -> None:
    session = Session(load_recipe("tiny.yaml", PAIR), CONTEXT)
    pair, process = SchemeSource("deit").set_up(session)
    assert [(info.id, info.transform, info.distance) for info in process.pathways] == [
        ("1-1", "identity", "hard-label")
    ]
    assert process.at(0.5) == [1.0]
    distiller = session.distiller(pair, session.recipe.distill)
    pair.student.train()
    pair.teacher.eval().requires_grad_(False)
    batch = Batch(torch.rand(8, 3, 16, 16), torch.arange(8))
    distiller.backward(batch, [1.0], 0)
    found = [p.grad.clone() for p in pair.student.parameters() if p.grad is not None]
    distiller.optimizer.zero_grad()
    model = pair.student.model
    of_class, of_distillation = model((batch.images_bchw - pair.student.mean) / pair.student.std)
    labels = pair.teacher(batch.images_bchw)[0].argmax(1)
    loss = 0.5 * F.cross_entropy(of_class, batch.targets) + 0.5 * F.cross_entropy(of_distillation, labels)
    loss.backward()
    for gradient, p in zip(found, pair.student.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(gradient, 2 * p.grad, rtol=1e-4, atol=1e-7)


def test_it_runs_and_reviewkd_beside_it(distpro: Run) -> None:
    for name in ("deit", "reviewkd"):
        result = distpro(
            "transfer", "tiny.yaml", *PAIR, "-p", name, "distill.epochs=1", "--run-dir", name, "--json", "-q"
        )
        assert result.status == 0, result.err
        process = load_process(Path(name) / "process.safetensors")
        row = json.loads((Path(name) / "metrics.jsonl").read_text().splitlines()[0])
        assert len(row["distances"]) == len(process.pathways)
        again = distpro("transfer", "-p", f"{name}/process.safetensors", "distill.epochs=1", "--json", "-q")
        assert again.status == 0, again.err
        assert again.json["student"]["top1_last"] == result.json["student"]["top1_last"]
    assert {info.distance_options["prefix"] for info in process.pathways} == {False}


def test_a_student_without_the_token(distpro: Run) -> None:
    result = distpro("transfer", "tiny.yaml", "-p", "deit", "-q")
    assert result.status == 2
    assert "there is no level distillation-logits, because it has no distillation token" in result.err


def test_a_search_judges_by_plain_labels(workplace: Path) -> None:
    session = Session(load_recipe("tiny.yaml", [*PAIR, "distill.label_smoothing=0.2"]), CONTEXT)
    pair, _ = SchemeSource("deit").set_up(session)
    distiller = session.distiller(pair, session.recipe.distill)
    batch = Batch(torch.rand(8, 3, 16, 16), torch.arange(8))
    losses, gradients = outer_gradient(distiller, batch, 0)
    output, _ = pair.student(batch.images_bchw)
    loss = F.cross_entropy(output, batch.targets)
    torch.testing.assert_close(losses.task, loss.detach())
    expected = torch.autograd.grad(loss, distiller.student_parameters)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other)
