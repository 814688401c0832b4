"""Running agents: the runner, the adapters of frameworks, skills, and the record of each run."""
