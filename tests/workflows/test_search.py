"""What a search says of its process, and groups that start at weights of their own, through the command line."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import load_file

from distpro_cli.workflows.search import collapse
from tests.conftest import Run
from tests.process.examples import make_process

GROUPS = (
    "pathways=[{connections: same, transform: conv1, weight: 4}, "
    "{connections: same, transform: identity, distance: kl, alpha_start: 2}]"
)


def test_a_search_that_collapses_says_so() -> None:
    process = make_process(11)
    assert collapse(process) is None
    weights = process.weights.copy()
    weights[4:, 3] = 30 * weights[4:].sum(axis=1)
    object.__setattr__(process, "weights", weights)
    message = collapse(process)
    assert message is not None and process.pathways[3].id in message
    assert f"from {100 * process.progress[4]:.0f} % of the search on" in message and "alpha_decay" in message


def test_groups_start_where_the_recipe_says(distpro: Run) -> None:
    result = distpro("search", "tiny.yaml", GROUPS, "search.epochs=1", "search.weight=0.5", "--json", "-q")
    assert result.status == 0, result.err
    table = load_file(result.json["process"])
    np.testing.assert_array_equal(table["alpha"][0], [1, 1, 1, 1, 2])
    # K κ exp(α) / (e^b + Σ exp α), times the group's weight
    exponentials = np.exp([1, 1, 1, 1, 2])
    expected = 5 * 0.5 * exponentials / (np.e + exponentials.sum()) * [4, 4, 4, 4, 1]
    np.testing.assert_allclose(table["weights"][0], expected, rtol=1e-5)
    uniform = distpro("transfer", "tiny.yaml", GROUPS, "-p", "uniform", "schemes.uniform.weight=1", "--json", "-q")
    assert uniform.status == 0, uniform.err
    weights = load_file(f"{uniform.json['run_dir']}/process.safetensors")["weights"]
    np.testing.assert_array_equal(weights, [[4, 4, 4, 4, 1]] * 2)


def test_alpha_is_pulled_back_and_sees_no_learning_rate(distpro: Run) -> None:
    """`tiny.yaml` asks for the paper's search; the outer batch may have a size of its own."""
    pulled = [
        "search.alpha_decay=0.5",
        "search.alpha_memory=",
        "search.lr_in_hypergradient=false",
        "search.outer_batch_size=8",
    ]
    for name, overrides in (("paper", []), ("pulled", pulled)):
        result = distpro("search", "tiny.yaml", *overrides, "search.epochs=2", "-o", f"{name}.safetensors", "-q")
        assert result.status == 0, result.err
    ours, theirs = (load_file(f"{name}.safetensors")["alpha"] for name in ("pulled", "paper"))
    np.testing.assert_allclose(np.abs(theirs[1] - 1), 0.1, rtol=1e-3)
    np.testing.assert_allclose(np.abs(ours[1] - 1), 0.1 * (1 - 0.1 * 0.5), rtol=1e-3)


def test_an_optimiser_that_is_passed_as_sgd_is_named(distpro: Run) -> None:
    result = distpro("search", "tiny.yaml", "search.epochs=1", "distill.optimizer.name=radam")
    assert result.status == 0, result.err
    assert "passes RAdam" in result.err and "as if it were plain SGD" in result.err
