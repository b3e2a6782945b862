"""Published data sets: where they lie on the network, which files they are, and how these are read.

Licences, and where each checksum was published: docs/data.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from aae_ray.datasets import cifar10, emnist, svhn
from aae_ray.datasets.download import Progress, download
from aae_ray.datasets.idx import IDX_FILES, read_idx
from aae_ray.datasets.image_stream import ImageStream
from aae_ray.errors import UserError

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
    read: Callable[[Files], ImageStream]
    unpacked: str | None = None

    def download(self, folder: Path, progress: Progress) -> dict[str, Path]:
        """The files of the set by name, in a folder, fetched where they are not there. Raises UserError."""
        download(self.mirrors, self.sha256, folder, self.homepage, progress)
        return self.find(folder)

    def find(self, folder: Path) -> dict[str, Path]:
        """The files of the set in a folder by name, of the first form that is complete: IDX files plain or as .gz, also
        spelled `train-images.idx3-ubyte`. Raises UserError with the name of a missing file where none is complete."""
        places = [folder, *([folder / self.unpacked] if self.unpacked else [])]
        found = [{name: file for name in form if (file := _find(name, places)) is not None} for form in self.forms]
        for form, files in zip(self.forms, found, strict=True):
            if len(files) == len(form):
                return files
        nearest = max(range(len(found)), key=lambda index: len(found[index]))
        missing = next(name for name in self.forms[nearest] if name not in found[nearest])
        others = [form[0] for form in self.forms if form is not self.forms[nearest] and not found[nearest]]
        raise UserError(
            f"data.path: {folder} has no {' and no '.join([missing, *others])}, of the files that "
            f"{self.homepage} describes; for images of your own give another data.name"
        )


def _find(name: str, places: Sequence[Path]) -> Path | None:
    files = (place / spelling for place in places for spelling in _spellings(name))
    return next((file for file in files if file.is_file()), None)


def _spellings(name: str) -> tuple[str, ...]:
    if "-idx" not in name:
        return (name,)
    dotted = name.replace("-idx", ".idx")
    return name, f"{name}.gz", dotted, f"{dotted}.gz"


def _named(stream: ImageStream, names: Mapping[int, str], source: Path) -> ImageStream:
    """The stream with the names of its classes for labels, as an Arrow dictionary in the order of their numbers."""
    import pyarrow as pa

    assert stream.labels is not None, "every published set has labels"
    numbers_N = stream.labels.to_numpy(zero_copy_only=False)
    classes = sorted(names)
    unnamed_N = ~np.isin(numbers_N, classes)
    if unnamed_N.any():
        row = int(np.argmax(unnamed_N))
        raise UserError(f"{source}: image {row} has label {numbers_N[row]}; the set has {classes[0]} to {classes[-1]}")
    indices = pa.array(np.searchsorted(classes, numbers_N).astype(np.int32))
    ordered = pa.DictionaryArray.from_arrays(indices, [names[number] for number in classes], ordered=True)
    return replace(stream, labels=ordered)


def _folder(files: Files) -> Path:
    return next(iter(files.values())).parent


def _read_named_idx(names: Sequence[str], files: Files) -> ImageStream:
    return _named(read_idx(files), dict(enumerate(names)), _folder(files))


def _read_cifar10(files: Files) -> ImageStream:
    return _named(cifar10.read_cifar10(files), dict(enumerate(cifar10.CLASSES)), _folder(files))


def _read_emnist(name: str, files: Files) -> ImageStream:
    stream, names = emnist.read_emnist(name, files)
    return _named(stream, names, _folder(files))


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
        read=svhn.read_svhn,
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
        read=_read_cifar10,
        unpacked=cifar10.UNPACKED,
    ),
}
