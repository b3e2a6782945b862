"""Published data sets: where they lie on the network, which files they are, and how these are read.

Licences, and where each checksum was published: docs/data.md.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aae_ray.datasets import cifar10, emnist, svhn
from aae_ray.datasets.download import Progress, download
from aae_ray.datasets.formats import Stored
from aae_ray.datasets.idx import IDX_FILES, read_idx
from aae_ray.datasets.image_stream import ImageStream
from aae_ray.datasets.pixels import Scale, arrange_block, located_faults
from aae_ray.errors import UserError
from aae_ray.settings import Data

Files = Mapping[str, Path]


@dataclass(frozen=True)
class Published:
    """A data set on the network.

    `mirrors` are addresses to try in turn, and `sha256` has the checksum of each file there. `forms` are the ways in
    which its files may lie in a folder, each by the names of all its files: as they are published, and unpacked, then
    perhaps in a folder of the name `unpacked`. Sets that share files share a `folder` of downloads.
    """

    folder: str
    homepage: str
    mirrors: tuple[str, ...]
    sha256: Mapping[str, str]
    forms: tuple[tuple[str, ...], ...]
    read: Callable[[Files, Data], ImageStream]
    unpacked: str | None = None

    def download(self, folder: Path, progress: Progress) -> Stored:
        """The files of the set in a folder, fetched where they are not there. Raises UserError."""
        return self._stored(download(self.mirrors, self.sha256, folder, self.homepage, progress))

    def find(self, folder: Path, key: str) -> Stored | None:
        """The files of the set in a folder, which the setting `key` names, in the first form that is complete; None
        where there is none of them.

        IDX files may be plain or .gz, also spelled `train-images.idx3-ubyte`. Raises UserError where some are missing.
        """
        locations = [folder, *([folder / self.unpacked] if self.unpacked else [])]
        by_form = [{name: file for name in form if (file := _find(name, locations)) is not None} for form in self.forms]
        form, files = max(zip(self.forms, by_form, strict=True), key=lambda pair: len(pair[1]) / len(pair[0]))
        if not files:
            return None
        if missing := [name for name in form if name not in files]:
            raise UserError(
                f"{key}: {folder} has no {missing[0]}, though {next(iter(files.values())).name} is there; the files of "
                f"the set are {', '.join(form)}, which {self.homepage} describes"
            )
        return self._stored(files)

    def _stored(self, files: Files) -> Stored:
        return Stored(tuple(files.values()), partial(self.read, _by_form(self.forms, files)))


def _by_form(forms: Sequence[Sequence[str]], files: Files) -> dict[str, Path]:
    """Files under the names that the forms have for them: those of IDX without .gz."""
    known = {name for form in forms for name in form}
    return {name if name in known else name.removesuffix(".gz"): file for name, file in files.items()}


def _find(name: str, locations: Sequence[Path]) -> Path | None:
    files = (location / spelling for location in locations for spelling in _spellings(name))
    return next((file for file in files if file.is_file()), None)


def _spellings(name: str) -> tuple[str, ...]:
    if "-idx" not in name:
        return (name,)
    dotted = name.replace("-idx", ".idx")
    return name, f"{name}.gz", dotted, f"{dotted}.gz"


def _named(stream: ImageStream, names: Mapping[int, str], source: Path) -> ImageStream:
    """The stream with labels from 0 and the names of its classes, in the order of their numbers."""
    import pyarrow as pa

    assert stream.labels is not None, "every published set has labels"
    numbers_N = stream.labels.to_numpy(zero_copy_only=False)
    classes = sorted(names)
    unnamed_N = ~np.isin(numbers_N, classes)
    if unnamed_N.any():
        row = int(np.argmax(unnamed_N))
        raise UserError(f"{source}: image {row} has label {numbers_N[row]}; the set has {classes[0]} to {classes[-1]}")
    labels = pa.array(np.searchsorted(classes, numbers_N))
    return replace(stream, labels=labels, label_names=tuple(names[number] for number in classes))


def _folder(files: Files) -> Path:
    return next(iter(files.values())).parent


def _read_named_idx(names: Sequence[str], files: Files, data: Data) -> ImageStream:
    return _named(read_idx(files, data), dict(enumerate(names)), _folder(files))


def _read_emnist(name: str, files: Files, data: Data) -> ImageStream:
    stream, names = emnist.read_emnist(name, files, data)
    return _named(stream, names, _folder(files))


def _read_pixels(read: Callable[[Files], ImageStream], files: Files, data: Data) -> ImageStream:
    """The images of a reader that knows nothing of the settings, scaled and arranged as these say."""
    stream, scale = read(files), Scale(data)

    def blocks() -> Iterator[NDArray[np.uint8]]:
        with located_faults(str(_folder(files))):
            if scale.needs_observing:
                for images_BCHW in read(files).blocks:
                    scale.observe(images_BCHW)
            for images_BCHW in stream.blocks:
                yield arrange_block(scale.to_bytes(images_BCHW).transpose(0, 2, 3, 1), data)
            scale.finish()

    return replace(stream, blocks=blocks(), value_range=lambda: scale.seen)


FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
HIRAGANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


def _emnist(name: str) -> Published:
    return Published(
        folder="emnist",
        homepage="https://www.nist.gov/itl/products-and-services/emnist-dataset",
        mirrors=(
            "https://biometrics.nist.gov/cs_links/EMNIST/",
            "https://www.itl.nist.gov/iaui/vip/cs_links/EMNIST/",
        ),
        sha256={emnist.ARCHIVE: "fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e"},
        forms=((emnist.ARCHIVE,), (*emnist.idx_files(name), emnist.mapping_file(name))),
        read=partial(_read_emnist, name),
        unpacked=emnist.UNPACKED,
    )


PUBLISHED: dict[str, Published] = {
    "mnist": Published(
        folder="mnist",
        homepage="http://yann.lecun.com/exdb/mnist/",
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        sha256={
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        forms=(IDX_FILES,),
        read=read_idx,
    ),
    "fashion-mnist": Published(
        folder="fashion-mnist",
        homepage="https://github.com/zalandoresearch/fashion-mnist",
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        sha256={
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        forms=(IDX_FILES,),
        read=partial(_read_named_idx, FASHION),
    ),
    "kmnist": Published(
        folder="kmnist",
        homepage="http://codh.rois.ac.jp/kmnist/",
        mirrors=(
            "https://codh.rois.ac.jp/kmnist/dataset/kmnist/",
            "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        ),
        sha256={
            "train-images-idx3-ubyte.gz": "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
            "train-labels-idx1-ubyte.gz": "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            "t10k-images-idx3-ubyte.gz": "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            "t10k-labels-idx1-ubyte.gz": "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
        },
        forms=(IDX_FILES,),
        read=partial(_read_named_idx, HIRAGANA),
    ),
    **{f"emnist-{name}": _emnist(name) for name in emnist.SETS},
    "svhn": Published(
        folder="svhn",
        homepage="http://ufldl.stanford.edu/housenumbers/",
        mirrors=("http://ufldl.stanford.edu/housenumbers/", "https://ufldl.stanford.edu/housenumbers/"),
        sha256={
            "train_32x32.mat": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
            "test_32x32.mat": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        },
        forms=(svhn.FILES,),
        read=partial(_read_pixels, svhn.read_svhn),
    ),
    "cifar10": Published(
        folder="cifar10",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        mirrors=(
            "https://www.cs.toronto.edu/~kriz/",
            "https://cave.cs.toronto.edu/kriz/",
            "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/",
        ),
        sha256={cifar10.ARCHIVE: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
        forms=((cifar10.ARCHIVE,), cifar10.BATCHES),
        read=partial(_read_pixels, cifar10.read_cifar10),
        unpacked=cifar10.UNPACKED,
    ),
}
