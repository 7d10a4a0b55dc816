"""Start or join a Ray cluster, quietly, and say where its dashboard is."""
