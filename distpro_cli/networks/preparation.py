"""What becomes of a network's weights before it teaches or is trained: taken as they are, fine-tuned, or refused."""

from __future__ import annotations

from torch import nn

from distpro_cli.errors import DistproError
from distpro_cli.files import expand_path
from distpro_cli.networks.heads import NewHead, pretrained_new_head
from distpro_cli.networks.weights import fitting_weights
from distpro_cli.recipe.schema import Network, Teacher


def is_trained_first(spec: Teacher, new_head: NewHead | None) -> bool:
    """Says whether a teacher is trained before it teaches: without weights, with a new head, or if only its head is."""
    return spec.weights is None or spec.freeze is not None or new_head is not None


def refusal(new_head: NewHead) -> str:
    """Says why weights whose head does not fit cannot teach, and the ways out."""
    return (
        f"its weights need {new_head}, and a random head teaches noise; to fine-tune it on these data first, set "
        "teacher.train; to train its head alone, set teacher.train and teacher.freeze: backbone; to let it teach "
        "through its features alone, set teacher.head: false; or take weights whose head fits"
    )


def describe_preparation(spec: Network, model: nn.Module) -> str:
    """Says what becomes of the weights; nothing is downloaded, a file of weights is read where it is there.

    Args:
        spec: The network's section; of a teacher, a `Teacher`.
        model: Built from it, with any weights.
    """
    teacher = spec if isinstance(spec, Teacher) else None
    if spec.weights is None:
        if teacher is None:
            return "random weights"
        ways = "teacher.weights or .train" if spec.head else "teacher.weights"
        return f"trained first{_epochs(teacher)}" if teacher.train else f"no weights: set {ways}"
    try:
        new_head = _planned_head(spec, model)
    except DistproError as error:
        return f"refused: {error}"
    source = f"weights {spec.weights}"
    if teacher is None:
        return f"{source}, with {new_head}" if new_head else source
    if new_head and teacher.train is None:
        return f"refused: {refusal(new_head)}"
    if not is_trained_first(teacher, new_head):
        as_they_are = f"{source}, as they are" if spec.head else f"{source}, without a head"
        return as_they_are + (" (train is not used: their head fits)" if teacher.train else "")
    part = "its head alone is trained first" if teacher.freeze else "fine-tuned first"
    return f"{source}, with {new_head or 'their head'}; {part}{_epochs(teacher)}"


def _planned_head(spec: Network, model: nn.Module) -> NewHead | None:
    if spec.weights == "pretrained":
        new_head = pretrained_new_head(model)
    else:
        _, new_head = fitting_weights(model, expand_path(str(spec.weights)), new_head=True, head=spec.head)
    return new_head if spec.head else None


def _epochs(teacher: Teacher) -> str:
    return "" if teacher.train is None else f" by teacher.train ({teacher.train.epochs} epochs)"
