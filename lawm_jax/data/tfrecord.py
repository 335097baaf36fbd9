"""Reads TFRecord files by record number, and parses their examples, without TensorFlow."""

import bisect
import functools
import itertools
import os

import google_crc32c
import numpy as np


class Records:
    """Reads any record of TFRecord shards; picklable and thread-safe.

    The first read of a shard locates its records, with one seek per record.
    """

    def __init__(self, paths, counts):
        """Takes the paths of the shards, and the expected number of records in each."""
        self.paths, self.ends = list(paths), list(itertools.accumulate(counts))
        self._places = {}

    def __len__(self):
        return self.ends[-1]

    def __getitem__(self, number):
        """Returns the bytes of a record.

        Raises:
          IndexError: the number is out of range.
          ValueError: the record, or an earlier one in its shard, is damaged.
          OSError: the shard can't be opened.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"number: expected 0 to {len(self) - 1}, got {number}")
        shard = bisect.bisect(self.ends, number)
        path, first = self.paths[shard], self.ends[shard - 1] if shard else 0
        with open(path, "rb") as file:
            if path not in self._places:  # two threads may both do this, which is harmless
                self._places[path] = _places(file)
            places, end = self._places[path]
            if number - first >= len(places):
                raise ValueError(f"{path} {end} after {len(places)} records")
            at, length = places[number - first].tolist()
            file.seek(at)
            data, checksum = file.read(length), file.read(4)
        if _masked(data) != checksum:
            raise ValueError(f"{path} is damaged in record {number - first}: wrong checksum")
        return data


def _places(file):
    """Locates the records of an open file: offset and length, int64 [n, 2], and how the file ends.

    A record consists of its length as uint64, the length's checksum, the data and its checksum.
    """
    size, at, places, end = os.fstat(file.fileno()).st_size, 0, [], "ends"
    while at < size:
        file.seek(at)
        header = file.read(12)
        length = int.from_bytes(header[:8], "little")
        if len(header) == 12 and _masked(header[:8]) != header[8:]:
            end = "is damaged"
            break
        if at + 16 + length > size:
            end = "is truncated"
            break
        places.append((at + 12, length))
        at += 16 + length
    return np.array(places, np.int64).reshape(-1, 2), end


def _masked(data):
    """Returns the CRC-32C of bytes as TFRecord files store it."""
    crc = google_crc32c.value(data)
    crc = (crc >> 15 | crc << 17) + 0xA282EAD8
    return (crc & 0xFFFFFFFF).to_bytes(4, "little")


def example(data):
    """Parses a serialized `tf.train.Example`.

    Args:
      data: its bytes.

    Returns:
      A dict from the name of each feature to a sequence of bytes, floats or ints.

    Raises:
      ValueError: the bytes are not such a message.
    """
    from google.protobuf import message

    try:
        features = _example_class().FromString(data).features.feature
    except message.DecodeError as error:
        raise ValueError(f"not a tf.train.Example: {error}") from error
    lists = {name: feature.WhichOneof("kind") for name, feature in features.items()}
    return {name: getattr(features[name], kind).value for name, kind in lists.items() if kind}


@functools.cache
def _example_class():
    """Declares the message `tf.train.Example` of TensorFlow's feature.proto and example.proto."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="lawm_example.proto", package="lawm")
    file.syntax = "proto3"

    def declare(message, *fields):
        for number, (name, repeated, kind) in enumerate(fields, 1):
            label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            added = message.field.add(name=name, number=number, label=label)
            if isinstance(kind, str):
                added.type, added.type_name = field.TYPE_MESSAGE, f".lawm.{kind}"
            else:
                added.type = kind
        return message

    new = lambda name: file.message_type.add(name=name)  # noqa: E731
    declare(new("BytesList"), ("value", True, field.TYPE_BYTES))
    declare(new("FloatList"), ("value", True, field.TYPE_FLOAT))
    declare(new("Int64List"), ("value", True, field.TYPE_INT64))
    kinds = [("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")]
    feature = declare(new("Feature"), *((name, False, kind) for name, kind in kinds))
    feature.oneof_decl.add(name="kind")
    for member in feature.field:
        member.oneof_index = 0
    features = declare(new("Features"), ("feature", True, "Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    declare(entry, ("key", False, field.TYPE_STRING), ("value", False, "Feature"))
    entry.options.map_entry = True
    declare(new("Example"), ("features", False, "Features"))

    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("lawm.Example"))
