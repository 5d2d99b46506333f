"""The deploy's tasks, one module and one concern each."""
