"""What can go wrong with a transfer, and which of it a repeat may cure."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Iterator, Mapping
from typing import Any

from configs.errors import RefusedInput
from data_pipeline.location import redacted

# Answers that a repeat may well change: overload, timeouts, a gateway whose server restarts.
_PASSING_STATUSES = {408, 409, 421, 423, 425, 429}
# Not found, gone, and a range of bytes past the end of the file.
_WRONG_FILE_STATUSES = {404, 410, 416}
_FIRM_ERRORS = (
    FileNotFoundError,
    IsADirectoryError,
    PermissionError,
    ImportError,
    ValueError,
    TypeError,
)
_FIRM_ERROR_NAMES = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}


class ShardUnavailable(RefusedInput):
    """A remote file could not be had, for all the attempts that its budget allowed."""


class ShardWrong(ShardUnavailable):
    """The server answers, but the file is missing or not the one that the manifest describes.

    Other than an outage this stays the same whoever asks, so it may count as broken data.
    """


class TransferFault(Exception):
    """One attempt that failed; the message is the cause, without secrets.

    Attributes:
        is_firm: A repeat seldom changes it (404, 403, wrong length); it is tried a few times only.
        is_wrong_file: The file is missing or another one than the manifest says.
        retry_after_seconds: What the server asked for.
    """

    def __init__(
        self,
        cause: str,
        *,
        is_firm: bool = False,
        is_wrong_file: bool = False,
        retry_after_seconds: float | None = None,
    ) -> None:
        """Describe the attempt."""
        super().__init__(redacted(cause))
        self.is_firm = is_firm or is_wrong_file
        self.is_wrong_file = is_wrong_file
        self.retry_after_seconds = retry_after_seconds


def fault_of_status(status: int, reason: str | None, headers: Mapping[str, str]) -> TransferFault:
    """The fault that an HTTP answer with an error status is."""
    return TransferFault(
        f"the server answered {status} {reason or ''}".rstrip(),
        is_firm=status < 500 and status not in _PASSING_STATUSES,
        is_wrong_file=status in _WRONG_FILE_STATUSES,
        retry_after_seconds=seconds_to_wait(headers.get("Retry-After")),
    )


def fault_of_error(error: BaseException) -> TransferFault:
    """The fault that an exception of a client library is."""
    for cause in _chain(error):
        if isinstance(cause, TransferFault):
            return cause
        answer: Any = cause
        if hasattr(answer, "request_info"):  # aiohttp's ClientResponseError
            return fault_of_status(answer.status, answer.message, answer.headers or {})
        answer = getattr(cause, "response", None)
        if isinstance(answer, dict) and "ResponseMetadata" in answer:  # botocore's ClientError
            return _fault_of_s3_answer(answer)
    name = type(error).__name__
    is_firm = isinstance(error, _FIRM_ERRORS) or name in _FIRM_ERROR_NAMES
    is_missing = isinstance(error, FileNotFoundError)
    return TransferFault(f"{name}: {error}", is_firm=is_firm, is_wrong_file=is_missing)


def seconds_to_wait(header: str | None) -> float | None:
    """What a Retry-After header asks for: a number of seconds, or until a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None


def _fault_of_s3_answer(answer: dict[str, Any]) -> TransferFault:
    metadata, error = answer["ResponseMetadata"], answer.get("Error", {})
    headers = {name.title(): value for name, value in metadata.get("HTTPHeaders", {}).items()}
    status = int(metadata.get("HTTPStatusCode", 500))
    return fault_of_status(status, f"{error.get('Code', '')}: {error.get('Message', '')}", headers)


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__
