"""One module for each checkpointer that threads are read from; each imports the package of that one."""
