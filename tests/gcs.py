"""Serves an emulated Cloud Storage bucket named "bucket": python tests/gcs.py PORT.

gcp-storage-emulator keeps the objects. This file adds what TensorStore relies on and it lacks:
generations in answers, preconditions on them, and lists between two names.
"""

import functools
import json
import logging
import sys
from http import HTTPStatus

from gcp_storage_emulator import server
from gcp_storage_emulator.handlers import objects


def conditional(handler):
    """Wraps a handler: answers 412 or 304 by the generation of the object, and returns it."""

    @functools.wraps(handler)
    def handle(request, response, storage, *args, **kwargs):
        bucket, (given, *_) = request.params["bucket_name"], request.query.get("name", [""])
        name = request.params.get("object_id") or given

        def generation():
            return storage.objects.get(bucket, {}).get(name, {}).get("generation", "0")

        if request.query.get("ifGenerationMatch", [generation()]) != [generation()]:
            response.status = HTTPStatus.PRECONDITION_FAILED
        elif request.query.get("ifGenerationNotMatch") == [generation()] != ["0"]:
            response.status = HTTPStatus.NOT_MODIFIED
        else:
            handler(request, response, storage, *args, **kwargs)
            response["x-goog-generation"] = generation()

    return handle


def listed(handler):
    """Wraps a handler: leaves out the names that are not in [startOffset, endOffset)."""

    @functools.wraps(handler)
    def handle(request, response, storage, *args, **kwargs):
        handler(request, response, storage, *args, **kwargs)
        (start, *_), (end, *_) = (
            request.query.get(key, [""]) for key in ("startOffset", "endOffset")
        )
        if start or end:
            found = json.loads(response._content)
            names = [(item["name"], item) for item in found["items"]]
            found["items"] = [x for name, x in names if start <= name and (not end or name < end)]
            response.json(found)

    return handle


def main(port):
    """Serves until it is killed."""
    logging.disable(logging.CRITICAL)
    wrapped = {name: conditional(getattr(objects, name)) for name in ("download", "insert")}
    wrapped |= {"delete": conditional(objects.delete), "ls": listed(objects.ls)}
    before = {getattr(objects, name): handler for name, handler in wrapped.items()}
    for _, methods in server.HANDLERS:
        methods.update({method: before.get(f, f) for method, f in methods.items()})
    for name, handler in wrapped.items():
        setattr(objects, name, handler)
    server.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket").run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
