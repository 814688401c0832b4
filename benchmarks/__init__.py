"""Side by side with peers: each block runs all of its rivals in one process, on one server, in one run."""
