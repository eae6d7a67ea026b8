"""Ray: where it is, how one is started, a session on it."""
