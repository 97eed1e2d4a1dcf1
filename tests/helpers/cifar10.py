"""A CIFAR-10 archive in the official format, with a few random images."""

import hashlib
import io
import pickle
import tarfile

import numpy as np

from cifar_lit.data.cifar10 import CLASSES, Archive

NAMES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]


def small_files(num_images: int = 4) -> dict[str, bytes]:
    """Make the files of the archive, with a few random images each."""
    rng = np.random.default_rng(0)
    files = {}
    for name in NAMES:
        data = rng.integers(0, 256, (num_images, 3072), dtype=np.uint8)
        labels = rng.integers(0, 10, num_images).tolist()
        files[name] = pickle.dumps({b"data": data, b"labels": labels}, protocol=2)
    files["batches.meta"] = pickle.dumps({b"label_names": [name.encode() for name in CLASSES]}, protocol=2)
    return files


def pack(files: dict[str, bytes], extra: list[tarfile.TarInfo] | None = None) -> tuple[bytes, Archive]:
    """Pack files into an archive; return it with the checksums of ``small_files``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in extra or []:
            tar.addfile(member)
    md5 = hashlib.md5(buffer.getvalue()).hexdigest()
    sums = {name: hashlib.md5(content).hexdigest() for name, content in small_files().items()}
    return buffer.getvalue(), Archive("cifar.tar.gz", md5, (), "cifar-10-batches-py", sums)
