"""Whether a machine, a cluster and the models of a manifest are ready, before anything slow starts."""
