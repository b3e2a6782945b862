"""A study's gauges on Ray's own metrics endpoint, where a team's Prometheus finds them beside those of the nodes."""

from ray.util import metrics

from aae_ray.search.gauges import GAUGES, STUDY, Observed, samples

PREFIX = "ray_"  # that Ray puts before the name of each metric


class StudyMetrics:
    """Ray must have been started, or joined."""

    def __init__(self) -> None:
        self.gauges = {
            gauge.name: metrics.Gauge(gauge.name, gauge.text, (STUDY, *([gauge.label] if gauge.label else ())))
            for gauge in GAUGES
        }

    def tell(self, observed: Observed) -> None:
        """Set all gauges. Ray's agent on this node gets them within ten seconds."""
        for sample in samples(observed):
            self.gauges[sample.gauge.name].set(sample.value, dict(sample.labels))
