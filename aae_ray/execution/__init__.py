"""Ray: the cluster, gangs of workers, and Ray Tune over them."""
