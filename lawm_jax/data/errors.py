"""Distinguishes system errors, which a retry may solve, from errors that a file causes.

Any other error, such as a TypeError, is a bug and ends the run.
"""

import errno
import logging
import time

PAUSES = 0.1, 0.5, 2.0, 8.0  # seconds before each retry

_LOG = logging.getLogger(__name__)
# Permanent errors of an OSError. ENXIO and EINVAL come from special files.
_LASTING = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
    errno.ENXIO,
    errno.EFBIG,
    errno.EOVERFLOW,
    errno.EROFS,
    errno.EOPNOTSUPP,
}
# FFmpeg reports damaged files as EIO, EAGAIN, ENOMEM, ERANGE and more, but not as any of these.
_SYSTEM = {
    errno.EMFILE,
    errno.ENFILE,
    errno.EBUSY,
    errno.ESTALE,
    errno.EREMOTEIO,
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
}
# Libraries of remote file systems whose network errors have no errno.
_NETWORK = {"aiohttp", "requests", "urllib3", "http", "botocore", "aiobotocore", "gcsfs", "google"}


def transient(error):
    """Returns whether an error, or an error that caused it, is a system error that may pass.

    Args:
      error: an exception; its chain of `raise ... from` is followed.
    """
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if _transient(error):
            return True
        error = error.__cause__
    return False


def _transient(error):
    import av

    code = status(error)
    if code:
        return code >= 500 or code in (408, 425, 429)
    if isinstance(error, av.FFmpegError):
        return error.errno in _SYSTEM
    if isinstance(error, (TimeoutError, ConnectionError, InterruptedError, BlockingIOError)):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno not in _LASTING
    return type(error).__module__.partition(".")[0] in _NETWORK


def status(error):
    """Returns the HTTP status in an error of any library, or None."""
    for holder in error, getattr(error, "response", None):
        for name in "status", "status_code", "code":
            code = getattr(holder, name, None)
            if isinstance(code, int) and 400 <= code < 600:
                return int(code)
    return None


def reason(error):
    """Returns a description of an error for messages."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    cause = error
    while cause is not None:
        if status(cause) and str(status(cause)) not in text:
            return f"HTTP {status(cause)}: {text}"
        cause = cause.__cause__
    return text


def retried(function, what):
    """Calls a function, and retries it after a pause if it raises a transient error.

    Args:
      function: function without arguments.
      what: name used in the log.

    Returns:
      The function's result.

    Raises:
      Exception: the function's exception, if it isn't transient or after the last retry.
    """
    for pause in PAUSES:
        try:
            return function()
        except Exception as error:  # a remote file system may raise anything
            if not transient(error):
                raise
            _LOG.warning("%s: %s; trying again in %g s", what, reason(error), pause)
        time.sleep(pause)
    return function()
