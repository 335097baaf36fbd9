"""Reads lists of video files and of parts of them: FILE.txt, FILE.csv, FILE.parquet."""

import collections.abc
import math
import os
import posixpath
from typing import NamedTuple

import numpy as np

from lawm_jax.data import episodes

SUFFIXES = (".txt", ".csv", ".parquet")
COLUMNS = ("path", "start", "end")


class Part(NamedTuple):
    """A part of a video file, in seconds from its first frame; `end` may be infinite."""

    path: str
    start: float
    end: float

    def __str__(self):  # as in the W3C's media fragments
        end = "" if self.end == math.inf else f",{self.end:g}"
        return f"{self.path}#t={self.start:g}{end}"


class Listed(collections.abc.Sequence):
    """The items of a list file: paths, or `Part`s if a start or an end is given.

    The items are stored in columns, so that millions of them take little memory.
    """

    def __init__(self, folder, paths, starts, ends):
        """Takes the folder of relative paths, and columns: Arrow strings and float64 seconds."""
        self._folder, self._paths, self._starts, self._ends = folder, paths, starts, ends

    def __len__(self):
        return len(self._paths)

    def __getitem__(self, number):
        path = self._paths[int(number)].as_py()
        if "://" not in path:
            path = posixpath.join(self._folder, path)  # `path` itself if it is absolute
        start, end = float(self._starts[number]), float(self._ends[number])
        return path if (start, end) == (0, math.inf) else Part(path, start, end)

    def split(self, holdout):
        """Splits the items by file as `episodes.split` does; returns two `Listed`.

        Both are the same object if there is only one file. All spellings of a file's path count as
        one file; the first is hashed. Links are not resolved, since a list may be long or remote.
        """
        paths = self._paths.dictionary_encode()
        spellings = paths.dictionary.to_pylist()
        files = [self._file(path) for path in spellings]
        first = dict(zip(files[::-1], spellings[::-1], strict=True))
        train, test = episodes.split(list(first.values()), holdout)
        if train == test:
            return self, self
        names = list(first)
        tested = {names[number] for number in test}
        in_test = np.array([file in tested for file in files])[paths.indices.to_numpy()]
        return self._only(~in_test), self._only(in_test)

    def _file(self, path):
        return posixpath.normpath(path if "://" in path else posixpath.join(self._folder, path))

    def _only(self, mask):
        return Listed(self._folder, self._paths.filter(mask), self._starts[mask], self._ends[mask])


def read(where, file):
    """Reads a list file.

    Args:
      where: its path or URL; paths in it are relative to its folder.
      file: the open binary file. A text file has lines of a path and optionally a start and an end,
        in seconds, separated by tabs; empty lines are ignored. A table has a column `path` and
        optionally columns `start` and `end`, in which cells may be empty.

    Returns:
      `Listed`.

    Raises:
      ValueError: the list has an error; the message gives its line or row.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = os.path.splitext(where.lower())[1]
    try:
        columns = {".txt": _text, ".csv": _csv, ".parquet": _parquet}[kind](file)
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
    paths = columns["path"].cast(pa.large_string()).combine_chunks()
    line = "line" if kind == ".txt" else "row"
    starts = _seconds(f"{where}, {line}", columns.get("start"), len(paths), 0.0)
    ends = _seconds(f"{where}, {line}", columns.get("end"), len(paths), math.inf)
    named = pc.fill_null(pc.not_equal(paths, ""), False).to_numpy(zero_copy_only=False)
    empty = (kind == ".txt") & ~named & (starts == 0) & (ends == math.inf)  # an empty line
    ordered = (0 <= starts) & (starts < ends)
    for wrong, expected in (~named & ~empty, "a path"), (~ordered, "0 <= start < end"):
        if wrong.any():
            row = int(wrong.argmax())
            got = f"{paths[row].as_py()!r} from {starts[row]:g} to {ends[row]:g}"
            raise ValueError(f"{where}, {line} {row + 1}: expected {expected}, got {got}")
    if empty.all():
        raise ValueError(f"{where}: expected a list of videos, got an empty list")
    _check_systems(where, paths)
    items = Listed(posixpath.dirname(where), paths, starts, ends)
    items = items._only(~empty) if empty.any() else items
    pa.default_memory_pool().release_unused()  # otherwise it keeps several times the list's size
    return items


def _text(file):
    """Parses the columns of tab-separated lines."""
    import pyarrow as pa
    import pyarrow.compute as pc

    text = pa.array([file.read().decode("utf-8-sig")], pa.large_string())
    lines = pc.utf8_rtrim(pc.split_pattern(text, "\n").flatten(), "\r")
    fields = pc.split_pattern(lines, "\t")
    width = pc.list_value_length(fields).to_numpy()
    if width.max() > len(COLUMNS):
        row = int((width > len(COLUMNS)).argmax())
        raise ValueError(f"line {row + 1}: expected path, start and end, got {lines[row]}")
    fields = pc.list_slice(fields, 0, len(COLUMNS), return_fixed_size_list=True)
    columns = {name: pc.list_element(fields, i) for i, name in enumerate(COLUMNS)}
    return {name: pa.chunked_array([column]) for name, column in columns.items()}


def _csv(file):
    """Reads the known columns of a CSV file as strings."""
    import pyarrow as pa
    from pyarrow import csv

    data = pa.py_buffer(file.read())
    options = csv.ConvertOptions(
        include_columns=_known(csv.open_csv(pa.BufferReader(data)).schema.names),
        column_types=dict.fromkeys(COLUMNS, pa.large_string()),
    )
    table = csv.read_csv(pa.BufferReader(data), convert_options=options)
    return dict(zip(table.column_names, table.columns, strict=True))


def _parquet(file):
    """Reads the known columns of a parquet file."""
    from pyarrow import parquet

    source = parquet.ParquetFile(file)
    table = source.read(columns=_known(source.schema_arrow.names))
    return dict(zip(table.column_names, table.columns, strict=True))


def _known(names):
    if "path" not in names:
        raise ValueError(f"expected a column 'path', got {', '.join(names)}")
    return [name for name in COLUMNS if name in names]


def _seconds(where, column, count, default):
    """Returns a column as float64, with `default` for empty cells."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column is None:
        return np.full(count, default)
    if not pa.types.is_floating(column.type) and not pa.types.is_integer(column.type):
        column = column.cast(pa.large_string())
        column = pc.if_else(pc.equal(column, ""), None, column)
    try:
        numbers = column.cast(pa.float64())
    except pa.ArrowInvalid:
        for row, cell in enumerate(column):
            try:
                cell.cast(pa.float64())
            except pa.ArrowInvalid:
                text = f"expected a number of seconds, got {cell.as_py()!r}"
                raise ValueError(f"{where} {row + 1}: {text}") from None
        raise
    return pc.fill_null(numbers, default).to_numpy()


def _check_systems(where, paths):
    """Raises ValueError if the file system of a URL in the list is unknown or not installed."""
    import fsspec
    import pyarrow.compute as pc

    schemes = pc.extract_regex(paths, "^(?P<scheme>[^:/]+)://").field("scheme")
    for scheme in pc.unique(schemes).drop_null().to_pylist():
        try:
            fsspec.get_filesystem_class(scheme)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{where}: {scheme}://: {error}") from error
