"""docs/paper.md: the tables of the paper that are to be reproduced, and the page that holds ours beside them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from aae_ray.settings import Settings, flatten

PER_CENT = 100


class Table(NamedTuple):
    """A row of the page: what the paper reports, and the study that stands for it."""

    title: str
    section: str
    paper: str  # the paper's number as it is quoted, in the unit of the metric
    file: str  # in search_spaces/
    metric: str
    overrides: tuple[str, ...] = ()
    point: int = 0  # of the file's start points; the first is the paper's own
    beside: tuple[str, ...] = ()  # metrics without which this one cannot be read
    aim: float | None = None  # the error, in per cent, that is to be reached at least with some days of two cores


ERROR = "test/classification_error"
PARZEN = "quality/parzen_nats"
WARPED = "images warped, which the paper does not do"
CLUSTERING = ("model.discriminator_hidden=512-512",)  # beside the file's fourth point, which was found with it
CLUSTERS = ("test/hungarian_accuracy", "test/nmi", "test/ari", "test/clusters_used")  # beside the paper's own rule
TABLES = {
    "semi_supervised_100": Table(
        "semi-supervised, 100 labels",
        "5, table 2",
        "1.90 ± 0.10; 3.40 at 50 epochs",
        "semi_supervised",
        ERROR,
        aim=2.5,
    ),
    "semi_supervised_100_warped": Table(
        f"semi-supervised, 100 labels, {WARPED}",
        "5, table 2",
        "1.90 ± 0.10; 3.40 at 50 epochs",
        "semi_supervised",
        ERROR,
        point=1,
        aim=1.9,
    ),
    "semi_supervised_all": Table(
        "semi-supervised, all labels", "5, table 2", "0.85 ± 0.02", "semi_supervised", ERROR, ("data.labels=null",)
    ),
    "semi_supervised_1000": Table(
        "semi-supervised, 1000 labels",
        "5, table 2",
        "1.60 ± 0.08; 2.40 at 50 epochs",
        "semi_supervised",
        ERROR,
        ("data.labels=1000",),
        aim=1.8,
    ),
    "clustering_16": Table(
        f"clustering, 16 clusters, {WARPED}",
        "6",
        "9.55 ± 2.05",
        "clustering",
        ERROR,
        ("model.clusters=16", *CLUSTERING),
        point=3,
        beside=CLUSTERS,
        aim=16,
    ),
    "clustering_30": Table(
        f"clustering, 30 clusters, {WARPED}",
        "6",
        "4.10 ± 1.13",
        "clustering",
        ERROR,
        ("model.clusters=30", *CLUSTERING),
        point=3,
        beside=CLUSTERS,
        aim=10,
    ),
    "reduction_1000": Table(
        "reduction to 2 dimensions, 1000 labels",
        "7, figure 11",
        "4.20 (recalled)",
        "semi_supervised_reduction",
        ERROR,
        ("data.labels=1000",),
        aim=4.5,
    ),
    "reduction_100": Table(
        "reduction to 2 dimensions, 100 labels",
        "7, figure 11",
        "6.08 (recalled)",
        "semi_supervised_reduction",
        ERROR,
        ("data.labels=100",),
    ),
    "reduction_20": Table(
        "reduction to 2 dimensions, 20 clusters, no labels",
        "7, figure 11",
        "13.95 (recalled)",
        "reduction",
        ERROR,
        ("model.clusters=20",),
        beside=CLUSTERS,
    ),
    "likelihood": Table(
        "likelihood, 8 dimensions, prior of standard deviation 5, 10,000 samples",
        "3, table 1",
        "340 ± 2",
        "paper_likelihood",
        PARZEN,
        beside=(
            "quality/parzen_anchor_nats",
            "quality/parzen_sigma",
            "quality/fid_local",
            "quality/fid_local_floor",
            "quality/coverage",
            "test/scaled_sliced_wasserstein",
        ),
    ),
}


class Comparison(NamedTuple):
    """Sides of a question on the digits, each tuned by a study of its own with as many trials."""

    title: str
    text: str  # what is asked, and what a reader must know of the table
    file: str  # in search_spaces/
    sides: Mapping[str, tuple[str, ...]]  # by title, what is settled of the file's space
    overrides: tuple[str, ...] = ()
    picture: bool = False  # of the codes of every side's first seed


UNDISTURBED = ("study.budget.wall_clock=24h",)  # trials are counted, and not what else the machine does
COMPARISONS = {
    "aae_vs_vae": Comparison(
        "The VAE beside the adversarial autoencoder",
        "Two-dimensional codes of the digits, the same networks and Gaussian posterior. The negative ELBO weighs for "
        "every image the KL of its own posterior from the prior, `test/kl_posterior_nats`: the sum of what codes tell "
        "of their images and of how far all codes together are from the prior, the next two rows. The adversarial "
        "match asks for the last of these alone.",
        "aae_vs_vae",
        {
            f"{told}, {prior} prior": (f"task={task}", f"model.prior={prior}")
            for prior in ("gaussian", "mixture")
            for told, task in (("AAE", "unsupervised"), ("VAE", "vae"))
        },
        ("model.latent_dim=2", *UNDISTURBED),
        picture=True,
    ),
    "adversarial_loss": Comparison(
        "What the encoder minimises: minimax or non-saturating",
        "Codes of eight dimensions with a Gaussian prior. log(1 - D(z)), as the paper's objective is written, whose "
        "optimum is a Jensen-Shannon divergence, beside -log D(z), which nearly everybody trains.",
        "adversarial_loss",
        {told: (f"train.adversarial_loss={told}",) for told in ("minimax", "non_saturating")},
        UNDISTURBED,
    ),
}
COMPARED = (
    "test/reconstruction_mse",
    "test/kl_posterior_nats",
    "test/mutual_information_nats",
    "test/kl_aggregate_nats",
    "test/jsd_nats",
    "test/scaled_sliced_wasserstein",
    "quality/imq_mmd",
    "quality/fid_local",
    "quality/kid_local",
    "quality/coverage",
    "quality/parzen_nats",
    "quality/parzen_anchor_nats",
)


def page(kept: Mapping[str, Mapping[str, Any]]) -> str:
    """docs/paper.md: the paper's numbers beside ours; a table that was not run has no number."""
    results = {name: kept[name] for name in TABLES if name in kept}
    columns = "`TABLE` | section | paper | our aim | ours | seeds | epochs | hours | date |"
    lines = [
        "# The paper's tables, measured",
        "",
        "The paper's numbers (Makhzani et al. 2015) on MNIST beside ours, as the mean and standard deviation over",
        "seeds, which also draw the labels, and in brackets every seed. The command below a row reproduces it by",
        "confirm runs of the platform and writes this page; without its settings, `python benchmarks/paper.py TABLE`",
        "is of the length in the file of its study. A row that was not run says so. Our aims are for some days of two",
        "CPU cores; the paper trained for thousands of epochs, and a mean above its number misses it.",
        "",
        "## Errors on the test images, in per cent",
        "",
        f"| table | {columns}",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_row(name, results.get(name), PER_CENT) for name, table in TABLES.items() if table.metric == ERROR),
        "",
        "## Likelihood of the test images under samples, in nats",
        "",
        "Parzen windows by the paper's protocol. Beside the score stands its anchor, that of as many real images: a",
        "score above the anchor is not evidence of better samples, for blurred samples score higher than real ones.",
        "",
        f"| table | {columns}",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_row(name, results.get(name), 1) for name, table in TABLES.items() if table.metric != ERROR),
    ]
    for name, found in results.items():
        lines += ["", f"## {name}", ""]
        beside = [key for key in TABLES[name].beside if any(key in test for test in found["tests"].values())]
        if beside:
            lines += ["| metric | mean and seeds |", "|---|---|"]
            lines += [f"| `{key}` | {_told(_values(found, key), 4)} |" for key in beside]
            lines += [""]
        lines += [
            f"{told_machine(found['machine'])}. What differs from the defaults (all",
            f"settings are in [paper/{name}.json](paper/{name}.json)):",
            "",
            told_settings(found["settings"]),
        ]
        if found.get("remark"):  # written by hand: what a reader must know of how it ran
            lines += ["", found["remark"]]
        lines += ["", f"    {found['command']}"]
    for name in COMPARISONS:
        if name in kept:
            lines += comparison_lines(name, kept[name])
    return "\n".join(lines) + "\n"


def _row(name: str, found: Mapping[str, Any] | None, scale: float) -> str:
    table = TABLES[name]
    told = f"| {table.title} | `{name}` | {table.section} | {table.paper} |"
    aim = "" if table.aim is None else f" at most {table.aim:g}"
    if not found:
        return f"{told}{aim} | not run | | | | |"
    values = [scale * value for value in _values(found, found["metric"])]
    missing = len(found["tests"]) - len(values)  # a Parzen score is refused where its window is at the grid's edge
    seeds = ", ".join(found["tests"]) + (f"; {missing} without a score" if missing else "")
    if table.aim is not None and values:
        aim += ": reached" if np.mean(values) <= table.aim else ": missed"
    return (
        f"{told}{aim} | {_told(values)} | {seeds} | "
        f"{found['settings']['train.epochs']} | {found['hours']:.1f} | {found['date']} |"
    )


def _values(found: Mapping[str, Any], metric: str) -> list[float]:
    return [test[metric] for test in found["tests"].values() if metric in test]


def _told(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation (every value)."""
    if not values:
        return "no score"
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread} ({', '.join(f'{value:.{digits}f}' for value in values)})"


def told_settings(settings: Mapping[str, Any]) -> str:
    """Those that differ from the defaults."""
    defaults = flatten(Settings())
    return ", ".join(
        f"`{key}={value}`"
        for key, value in settings.items()
        if key in defaults and value != defaults[key] and value not in (None, "")
    )


def told_machine(info: Mapping[str, Any]) -> str:
    return f"{info['cores']} cores of {info['processor']}, torch {info['torch']}"


def comparison_lines(name: str, found: Mapping[str, Any]) -> list[str]:
    comparison, rows, sides = COMPARISONS[name], found["rows"], found["tuned"]
    seeds = ", ".join(map(str, found["seeds"]))
    names = [key for key in COMPARED if any(row[key] for row in rows.values())]
    trials = ", ".join(sorted({str(side["trials"]) for side in sides.values()}))
    lines = [
        "",
        f"## {comparison.title}",
        "",
        f"{comparison.text} Each side has the settings that a study of {trials} trials chose for it by",
        f"`search_spaces/{comparison.file}.yaml`; mean ± standard deviation over seeds {seeds}, on the test images",
        f"({found['date']}, {told_machine(found['machine'])}, {found['hours']:.2f} hours).",
        "FID and KID are local ones, by a judge trained on the same data. A Parzen score above its anchor, that of as",
        "many real images, is not evidence of better samples.",
        "",
        f"    {found['command']}",
        "",
        f"| metric | {' | '.join(rows)} |",
        f"|---|{'---|' * len(rows)}",
        *(f"| `{key}` | {' | '.join(_told_short(row[key]) for row in rows.values())} |" for key in names),
        "",
        *(f"* {title}: {told_settings(side['settings'])}" for title, side in sides.items()),
    ]
    return [*lines, "", f"![codes of every side, one seed]({name}.png)"] if comparison.picture else lines


def _told_short(values: Sequence[float]) -> str:
    if not values:
        return "has none"
    return f"{np.mean(values):.3g} ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else f"{values[0]:.3g}"
