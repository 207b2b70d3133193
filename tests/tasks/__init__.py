"""Tests of the tasks; the shared suite reports its failed assertions as a test module does."""

import pytest

pytest.register_assert_rewrite("tests.tasks.suite")
