"""Opens arrays of HDF5 files without following their links to other files."""

import math

_MOST = 2**28  # maximum bytes per read; a header may claim more


def array(file, name):
    """Returns a dataset whose data lies in this file; refuses links to other files.

    HDF5 itself follows links, virtual datasets and external storage to any path.

    Args:
      file: an open h5py.File.
      name: the dataset's path within the file.

    Returns:
      An h5py.Dataset.

    Raises:
      ValueError: there is no such dataset, or its data is elsewhere or too large to read.
    """
    import h5py

    for prefix in name.split("/")[0], name:
        link = file.get(prefix, getlink=True)
        if link is None:
            raise ValueError(f"no dataset {name}")
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{prefix} is a link, which isn't followed")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{name} is not an array")
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{name} stores its data in other files, which aren't opened")
    size, chunks = dataset.dtype.itemsize, dataset.chunks
    if size * math.prod(chunks or ()) > _MOST:
        raise ValueError(f"{name} is too large: {size} bytes per item, chunks of {chunks}")
    return dataset
