"""Figures of images and codes as PNG bytes, and the sheet of images that `generate` writes.

Shapes: `N` images or codes, `Z` code, `C` channels (one grey, three RGB), `H` height, `W` width.
"""

import functools
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aae_ray.datasets.classes import UNKNOWN
from aae_ray.evaluation.confusion import Confusion

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

Pixels = NDArray[np.uint8]  # of a picture: (height, width), or (height, width, 3)

CELL_PIXELS = 64  # small images are enlarged to about this size
SHEET_PIXELS = 4096  # unless the whole sheet would grow beyond this
SEPARATOR = 2  # pixels between images
SEPARATOR_GREY = 128  # seen beside black and beside white images
MARGIN = 8
HEADING_PIXELS = 20  # height of the row of headings
TILE_PIXELS = 208  # of a side of a picture in an overview
MOST_COLUMNS = 8  # of these
COLOURS = 64  # of an overview, which has a third of the bytes then
MOST_POINTS = 3000  # in a scatter of codes: more hide each other
MOST_LEGEND_ROWS = 11  # of one column: the prior and ten classes
MOST_LEGEND_COLUMNS = 6  # with more classes their names get smaller
SHORT_NAME, LETTER_INCHES = 3, 0.14  # a longer name in the legend takes the figure so much wider for each letter
MOST_LETTERS = 14  # of a class's name in a legend; longer ones are cut short
MATRIX_INCHES = 14.0  # of a confusion matrix, at most
MOST_COUNTED, MOST_NAMES = 30, 60  # classes whose counts and whose names are written in it
MOST_CLASSES = 300  # that it is drawn of: of more, a class has less than five pixels
PRIOR_GREY = "#a0a0a0"
UNLABELLED_GREY = "#505050"
FONT = "DejaVu Sans"  # matplotlib's own: it is there wherever matplotlib is

# Nine colours of Paul Tol's "muted" scheme and the orange of his "vibrant" one: apart for colour-blind readers, and
# none of them grey, which is the prior's.
CLASS_COLOURS = (
    "#332288", "#ee7733", "#117733", "#cc6677", "#88ccee", "#882255", "#ddcc77", "#44aa99", "#aa4499", "#999933",
)  # fmt: skip

# ------------------------------------------------------------------------------------------------ sheets of images


def image_sheet(x_NCHW: Tensor, columns: int | None = None) -> "Image":
    """Images in rows, with thin separators; small ones are enlarged without smoothing. Pixels outside [0, 1] are cut.

    As many columns as rows when `columns` is not given. Raises ValueError for no images, or neither one nor three
    channels.
    """
    from PIL import Image

    return Image.fromarray(_grid(_to_pixels(x_NCHW), columns or math.ceil(math.sqrt(len(x_NCHW)))))


def picture(x_CHW: Tensor) -> bytes:
    """One image as PNG, in its own size."""
    from PIL import Image

    return _png(Image.fromarray(_to_pixels(x_CHW.unsqueeze(0))[0]))


def samples(x_NCHW: Tensor, columns: int | None = None, headings: Sequence[str] = ()) -> bytes:
    """A sheet of images as PNG, with the name of a class over each column where there are any, cut to fit."""
    images = image_sheet(x_NCHW, columns)
    headings = [written(heading, column) for column, heading in enumerate(headings)]
    return _png(_headed(images, headings, (images.width - SEPARATOR) / len(headings)) if headings else images)


def captioned(x_NCHW: Tensor, captions: Sequence[str], columns: int) -> bytes:
    """A sheet of images as PNG, each below its caption, cut to fit; without captions where there are none."""
    from PIL import Image

    if not captions:
        return samples(x_NCHW, columns)
    cell = image_sheet(x_NCHW[:1]).width - SEPARATOR
    strips = [
        _headed(image_sheet(x_NCHW[start : start + columns], columns), captions[start : start + columns], cell)
        for start in range(0, len(x_NCHW), columns)
    ]
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)), "white")
    for row, strip in enumerate(strips):
        sheet.paste(strip, (0, row * strips[0].height))
    return _png(sheet)


def _headed(images: "Image", headings: Sequence[str], step: float) -> "Image":
    """A sheet with headings over its columns, which are so many pixels apart."""
    from matplotlib.font_manager import findfont
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(findfont(FONT), size=12)
    sheet = Image.new("RGB", (images.width, images.height + HEADING_PIXELS), "white")
    sheet.paste(images, (0, HEADING_PIXELS))
    draw = ImageDraw.Draw(sheet)
    for column, heading in enumerate(headings):
        centre = (SEPARATOR + (column + 0.5) * step, HEADING_PIXELS // 2)
        draw.text(centre, _cut(heading, font.getlength, step - SEPARATOR), "black", font, anchor="mm")
    return sheet


def _cut(text: str, width: Callable[[str], float], room: float) -> str:
    """A text that is as wide as there is room, its end left out where it must be."""
    if width(text) <= room:
        return text
    return next((short for end in range(len(text) - 1, 0, -1) if width(short := f"{text[:end]}…") <= room), "")


def reconstructions(
    x_NCHW: Tensor, x_hat_NCHW: Tensor, texts: tuple[str, str] = ("original", "reconstruction")
) -> bytes:
    """Rows of pairs as PNG: each original above its reconstruction, at most eight pairs in a row.

    Raises ValueError when the two differ in shape.
    """
    from PIL import Image, ImageDraw, ImageFont

    if x_NCHW.shape != x_hat_NCHW.shape:
        raise ValueError(f"images have shape {tuple(x_NCHW.shape)}, reconstructions {tuple(x_hat_NCHW.shape)}")
    originals, answers = _to_pixels(x_NCHW), _to_pixels(x_hat_NCHW)
    rows = math.ceil(len(originals) / 8)
    columns = math.ceil(len(originals) / rows)
    strips = []
    for start in range(0, len(originals), columns):
        pair = [originals[start : start + columns], answers[start : start + columns]]
        strips.append([_grid(images, columns) for images in pair])
    height, width = strips[0][0].shape[:2]

    font = ImageFont.load_default(size=13)
    left = 2 * MARGIN + math.ceil(max(font.getlength(text) for text in texts))
    step = 2 * height - SEPARATOR + MARGIN
    sheet = Image.new("RGB", (left + width + MARGIN, MARGIN + len(strips) * step), "white")
    draw = ImageDraw.Draw(sheet)
    for row, strip in enumerate(strips):
        for below, (text, pixels) in enumerate(zip(texts, strip, strict=True)):
            top = MARGIN + row * step + below * (height - SEPARATOR)
            sheet.paste(Image.fromarray(pixels), (left, top))
            draw.text((left - MARGIN, top + height // 2), text, "black", font, anchor="rm")
    return _png(sheet)


def overview(pictures: Sequence[tuple[bytes, str]]) -> bytes:
    """Pictures side by side, made smaller, each above its caption of one or more lines; PNG."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=13)
    columns = min(MOST_COLUMNS, len(pictures))
    lines = max(caption.count("\n") + 1 for _, caption in pictures)
    across, down = TILE_PIXELS + 2 * MARGIN, TILE_PIXELS + 2 * MARGIN + 18 * lines
    sheet = Image.new("RGB", (columns * across, math.ceil(len(pictures) / columns) * down), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (png, caption) in enumerate(pictures):
        left, top = (index % columns) * across + MARGIN, (index // columns) * down + MARGIN
        with Image.open(io.BytesIO(png)) as image:
            smaller = image.convert("RGB")
        smaller.thumbnail((TILE_PIXELS, TILE_PIXELS))
        sheet.paste(smaller, (left, top))
        draw.multiline_text((left, top + TILE_PIXELS + 3), caption, "black", font)
    return _png(sheet.quantize(COLOURS))


def _to_pixels(x_NCHW: Tensor) -> Pixels:
    """Images as bytes, (N, H, W) or (N, H, W, 3); what is not a number is black."""
    if x_NCHW.ndim != 4 or len(x_NCHW) == 0 or x_NCHW.shape[1] not in (1, 3):
        raise ValueError(f"expected images of shape (N, 1 or 3, H, W), got {tuple(x_NCHW.shape)}")
    x_NCHW = x_NCHW.detach().cpu().float().nan_to_num(0.0).clamp(0, 1)
    bytes_NHWC = (x_NCHW * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return bytes_NHWC[..., 0] if bytes_NHWC.shape[3] == 1 else bytes_NHWC


def _grid(images: Pixels, columns: int) -> Pixels:
    """Images side by side and below each other, enlarged, framed by separators; cells left over stay grey."""
    count, height, width = images.shape[:3]
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    longest = max(rows * height, columns * width)
    enlarge = max(1, min(math.ceil(CELL_PIXELS / max(height, width)), SHEET_PIXELS // longest))
    images = images.repeat(enlarge, 1).repeat(enlarge, 2)
    down, across = height * enlarge + SEPARATOR, width * enlarge + SEPARATOR
    cells = np.full((rows * columns, down, across, *images.shape[3:]), SEPARATOR_GREY, np.uint8)
    cells[:count, SEPARATOR:, SEPARATOR:] = images
    cells = cells.reshape(rows, columns, down, across, *images.shape[3:]).swapaxes(1, 2)
    sheet = cells.reshape(rows * down, columns * across, *images.shape[3:])
    frame = ((0, SEPARATOR), (0, SEPARATOR), *((0, 0),) * (sheet.ndim - 2))
    return np.pad(sheet, frame, constant_values=SEPARATOR_GREY)


def _png(image: "Image") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


# ----------------------------------------------------------------------------------------------------------- codes


def code_scatter(
    codes_NZ: Tensor,
    labels_N: Tensor | NDArray[Any] | None,
    prior_NZ: Tensor,
    *,
    title: str,
    names: Sequence[str] | None = None,
) -> bytes:
    """The first two coordinates of codes, coloured by class where there are labels, over prior samples; PNG.

    Classes have their `names`, or their numbers where there are none; UNKNOWN is the label of an image without one.
    `title` says what the points are, e.g. "held-out codes, Gaussian posterior". The figure adds when only two of Z
    coordinates are shown, when points are left out (every k-th is drawn above 3000), and when codes are not finite.
    """
    from matplotlib.figure import Figure

    plane_N2 = codes_NZ[:, :2].detach().cpu().double().numpy()
    labels = None if labels_N is None else np.asarray(labels_N)
    finite = np.isfinite(plane_N2).all(axis=1)
    notes = [f"first two of {codes_NZ.shape[1]} coordinates"] if codes_NZ.shape[1] > 2 else []
    if not finite.all():
        notes.append(f"{(~finite).sum()} of {len(finite)} codes are not finite")
    shown = np.flatnonzero(finite)
    if len(shown) > MOST_POINTS:
        notes.append(f"{MOST_POINTS} of {len(shown)} codes drawn")
        shown = shown[np.linspace(0, len(shown) - 1, MOST_POINTS).astype(int)]

    heading = "\n".join([title, ", ".join(notes)]).strip()
    classes = {} if labels is None else _class_names(np.unique(labels), names)
    entries = 1 + max(1, len(classes))
    columns = min(math.ceil(entries / MOST_LEGEND_ROWS), MOST_LEGEND_COLUMNS)
    rows = max(math.ceil(entries / columns), MOST_LEGEND_ROWS)
    # Positions by hand: a layout engine draws every figure once more to measure it, and each trial has one.
    by_column = np.array_split([0, *(len(name) for name in classes.values())], columns)  # as the legend has it
    beyond = sum(max(0, int(letters.max()) - SHORT_NAME) for letters in by_column)
    wider = 1 + beyond * LETTER_INCHES * MOST_LEGEND_ROWS / rows / 6.6
    left, right, top = 0.115 / wider, (0.87 - 0.09 * (columns - 1)) / wider, 0.97 - 0.04 * len(heading.splitlines())
    figure = Figure(figsize=(6.6 * wider, 5.6), dpi=110)
    axes = figure.add_axes((left, 0.09, right - left, top - 0.09))
    size = 4.0 if len(shown) <= 1000 else 2.5
    prior_N2 = prior_NZ[:MOST_POINTS, :2].detach().cpu().double().numpy()
    _plot_points(axes, prior_N2, PRIOR_GREY, "prior", 2.5)
    if labels is None:
        _plot_points(axes, plane_N2[shown], CLASS_COLOURS[0], "codes", size)
    else:
        _plot_classes(axes, plane_N2[shown], labels[shown], classes, size)
    axes.set_title(heading, fontsize=11, loc="center" if columns == 1 else "left")  # over the legend, too
    axes.set_xlabel("z₁")
    axes.set_ylabel("z₂")
    axes.set_aspect("equal", adjustable="datalim")
    axes.ticklabel_format(scilimits=(-2, 3))  # codes that run away have no room for their zeros
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        ncols=columns,
        fontsize=9 * MOST_LEGEND_ROWS / rows,
        markerscale=7 / size * MOST_LEGEND_ROWS / rows,
        frameon=False,
        handletextpad=0.2,
        columnspacing=0.8,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _plot_points(axes: "Axes", plane_N2: NDArray[np.float64], colour: Any, label: str, size: float) -> None:
    axes.plot(*plane_N2.T, "o", color=colour, label=label, markersize=size, markeredgewidth=0, alpha=0.8)


def _plot_classes(
    axes: "Axes", plane_N2: NDArray[np.float64], labels_N: NDArray[Any], classes: Mapping[int, str], size: float
) -> None:
    """Codes in the colour of their class. Its name stands at its most central code: colour is not the only sign."""
    from matplotlib import colormaps
    from matplotlib.patheffects import withStroke

    if UNKNOWN in classes:
        _plot_points(axes, plane_N2[labels_N == UNKNOWN], UNLABELLED_GREY, classes[UNKNOWN], size)
    named = [(label, name) for label, name in classes.items() if label != UNKNOWN]
    many = len(named) > len(CLASS_COLOURS)
    colours = colormaps["viridis"](np.linspace(0, 1, len(named))) if many else CLASS_COLOURS
    for (label, name), colour in zip(named, colours, strict=False):
        own_N2 = plane_N2[labels_N == label]
        _plot_points(axes, own_N2, colour, name, size)
        if len(own_N2) and not many:
            x, y = own_N2[np.abs(own_N2 - np.median(own_N2, axis=0)).sum(axis=1).argmin()]
            axes.text(
                x,
                y,
                name,
                color=colour,
                fontsize=12 if len(name) <= SHORT_NAME else 9,
                fontweight="bold",
                ha="center",
                va="center",
                path_effects=[withStroke(linewidth=3, foreground="white")],
            )


def _class_names(labels: NDArray[Any], names: Sequence[str] | None) -> dict[int, str]:
    """What is written for each label in a legend, where a dollar would begin a formula."""
    shown: dict[int, str] = {}
    for label in map(int, labels):
        name = "unlabelled" if label == UNKNOWN else written(names[label], label) if names else str(label)
        shown[label] = on_one_line(name)
    return shown


def on_one_line(name: str, most: int = MOST_LETTERS) -> str:
    """A name as a figure has room for it, cut short; no formula."""
    return (name if len(name) <= most else f"{name[: most - 1]}…").replace("$", r"\$")


def written(name: str, label: int) -> str:
    """A class's name on one line, or its number where the font cannot write the name."""
    name = " ".join(name.split())
    return name if _letters().issuperset(name) else f"class {label}"


@functools.cache
def _letters() -> frozenset[str]:
    """The letters of the font that figures are written in."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(map(chr, get_font(findfont(FONT)).get_charmap()))


# ------------------------------------------------------------------------------------------------------------- classes


def confusion_matrix(confusion: Confusion) -> bytes:
    """Counts of images by class and by the label that they got, as PNG: shades are shares of the class.

    Names are cut short, and counts left out where there are too many classes for them.
    """
    from matplotlib.figure import Figure

    counts_CC, classes = confusion.counts_CC, len(confusion.names)
    shares_CC = counts_CC / np.maximum(counts_CC.sum(1, keepdims=True), 1)
    side = min(max(4.0, 0.42 * classes), MATRIX_INCHES)
    figure = Figure(figsize=(side + 1.6, side + 1.3), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares_CC, cmap="Blues", vmin=0, vmax=1)
    names = [on_one_line(written(name, index)) for index, name in enumerate(confusion.names)]
    step = math.ceil(classes / MOST_NAMES)
    axes.set_xticks(range(0, classes, step), names[::step], rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(range(0, classes, step), names[::step])
    if classes <= MOST_COUNTED:
        for row, column in zip(*counts_CC.nonzero(), strict=True):
            colour = "white" if shares_CC[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts_CC[row, column]), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xlabel("label that it got")
    axes.set_ylabel("class")
    axes.set_title(f"{confusion.error:.1%} of {counts_CC.sum()} images with another label than their own", fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
