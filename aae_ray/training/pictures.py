"""The pictures of a trial: reconstructions, samples, and the codes against their prior."""

from aae_ray.training import figures
from aae_ray.training.loop import Training

COUNT = 64  # images in a picture
CODES = 2000  # points in the scatter
FIGURES = ("reconstructions.png", "samples.png", "codes.png")


def trial_figures(training: Training) -> dict[str, bytes]:
    """File name and PNG of each picture, of held-out images."""
    evaluation, run = training.evaluation, training.run
    codes_NZ = evaluation.codes("val")[:CODES]
    labels = training.dataset.labels_N
    scatter = figures.code_scatter(
        codes_NZ,
        None if labels is None else labels[training.dataset.val][:CODES],
        evaluation.prior(len(codes_NZ)),
        title=f"held-out codes, {run.model.posterior} posterior, {run.model.prior} prior, epoch {training.epoch}",
    )
    return dict(
        zip(
            FIGURES,
            (
                figures.reconstructions(*evaluation.reconstructions("val", COUNT // 2)),
                figures.samples(evaluation.samples(COUNT)),
                scatter,
            ),
            strict=True,
        )
    )
