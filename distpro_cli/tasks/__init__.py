"""What is learnt: data, task loss and metric. A task is one class with one `@register_task`; see `task.py`."""
