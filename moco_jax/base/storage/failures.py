"""What goes wrong with a store, as errors of the operating system with one clear line."""

import contextlib
import errno
import re
from collections.abc import Iterator

from moco_jax.base.errors import Busy, UserError
from moco_jax.base.storage import retries
from moco_jax.base.text import printable

_FORBIDDEN = "Forbidden"  # so gcsfs begins what it says of status 403
# So tensorstore begins what it says in a ValueError, after tries of its own; JAX says such words of
# processes that are lost, in other errors.
_DENIED = ("PERMISSION_DENIED:", "UNAUTHENTICATED:")
_AWAY = ("UNAVAILABLE:", "DEADLINE_EXCEEDED:", "ABORTED:")
# Of libraries that find no account to show: google-auth and botocore.
_NOBODY = ("DefaultCredentialsError", "RefreshError", "NonRetryableError", "NoCredentialsError")
_REMEDIES = {
    "gs": "log in by `gcloud auth application-default login`, or give the machine's account the"
    " role roles/storage.objectViewer on the bucket (to write, roles/storage.objectUser and"
    " roles/storage.legacyBucketReader)",
    "s3": "log in by `aws configure`, or give the machine's role s3:ListBucket and s3:GetObject"
    " on the bucket (s3:PutObject to write)",
}


class Refused(OSError, UserError):
    """Raised where a store refuses access; its text says what gives access."""


class Unreachable(OSError, Busy):
    """Raised where a store did not answer, though it was asked again and again."""


# Who takes an error of the operating system for damage lets these pass: they say nothing of a file.
OF_STORES = (Refused, Unreachable)


def said(error: BaseException) -> str:
    """Return what `error` says in one short line."""
    text = re.sub(rf"^{_FORBIDDEN}: \S+ ", "", " ".join(str(error).split()))
    text = re.sub(r" \[(http_\w+|source locations)=.*|^[A-Z]+_?[A-Z]+: ", "", text)
    return printable(text[:300]) or type(error).__name__


def is_refusal(error: BaseException) -> bool:
    """Whether `error` says that a store refuses access."""
    if retries.status_of(error) in (401, 403) or isinstance(error, PermissionError):
        return True
    if isinstance(error, ValueError) and str(error).startswith(_DENIED):
        return True
    return type(error).__name__ in _NOBODY or str(error).startswith(_FORBIDDEN)


def translate(error: Exception, path: str) -> Exception:
    """Return the error to raise for what a library raised about `path`."""
    if isinstance(error, UserError | Busy):
        return error
    status, shown = retries.status_of(error), printable(path)
    if isinstance(error, FileNotFoundError) or status == 404:
        return missing(path)
    if isinstance(error, FileExistsError) or status == 412:  # asked for where nothing was to be
        return FileExistsError(errno.EEXIST, "File exists", path)
    if is_refusal(error):
        scheme = path.partition("://")[0]
        remedy = _REMEDIES.get(scheme, "log in as the store's own tools want it")
        number = status or (401 if type(error).__name__ in _NOBODY else 403)
        return Refused(f"access to {shown} is refused ({number}: {said(error)}); {remedy}")
    is_away = isinstance(error, ValueError) and str(error).startswith(_AWAY)
    if is_away or retries.passes(error):
        return Unreachable(
            f"{shown} cannot be reached ({said(error)}; asked {retries.TRIES} times); give the same"
            " command again when the store or the network is back"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return OSError(errno.EIO, said(error), path)


@contextlib.contextmanager
def told(path: str) -> Iterator[None]:
    """Turn what libraries raise about `path` within the block, if a store is the cause."""
    try:
        yield
    except Exception as error:
        found = translate(error, path) if "://" in path else error
        if isinstance(found, OF_STORES) and found is not error:
            raise found from error
        raise


def not_utf8(path: str) -> OSError:
    """Make the error of a `path` in a bucket that is no UTF-8."""
    return OSError(errno.EILSEQ, "is no name in UTF-8, as a bucket's are", path)


def missing(path: str) -> OSError:
    """Make the error of a `path` at which there is nothing."""
    return FileNotFoundError(errno.ENOENT, "No such file or folder", path)
