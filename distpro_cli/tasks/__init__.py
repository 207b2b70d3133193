"""What is learnt: data, task loss and metric. A task is one file with one `@register_task`."""
