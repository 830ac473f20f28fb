"""Every error that Idiolect raises on purpose.

    IdiolectError
    ├── InvalidInputError        the caller sent something that can never work
    │   └── TooLargeError        ... only because it is over a bound
    ├── NotAuthenticatedError    no credential, or one that is unknown or revoked
    ├── NotFoundError            does not exist, or the caller may not see it: the same answer
    ├── ConflictError            the state moved; read it again and decide
    │   └── PreconditionError    ... and the caller said which state it expected (If-Match)
    ├── ConsentError             personalization was required, and the person has not opted in
    ├── QuotaExceededError       a tenant used up what it was given; `retry_after_s`: until when, if it passes
    ├── BudgetExceededError      the privacy filter refused; the numbers are in the message
    ├── CorruptArtifactError     a digest, signature, shape or value does not check out
    ├── ConfigurationError       a setting, file, port or package of this installation
    └── UnavailableError         a store or worker can't be reached now; trying again is right

Each says what is wrong (the culprit) and what to do (the mend). `code` is stable: clients match on it.
"""

from __future__ import annotations


class IdiolectError(Exception):
    """Base of the tree. `message` names the culprit, `mend` says what to do about it."""

    code = "internal"
    retry_after_s: float | None = None  # trying again is of use after so many seconds

    def __init__(self, message: str, *, mend: str = "", code: str | None = None) -> None:
        super().__init__(f"{message} {mend}".strip())
        self.message = message
        self.mend = mend
        if code is not None:
            self.code = code


class InvalidInputError(IdiolectError):
    code = "invalid_input"


class TooLargeError(InvalidInputError):
    code = "too_large"


class NotAuthenticatedError(IdiolectError):
    code = "not_authenticated"


class NotFoundError(IdiolectError):
    code = "not_found"


class ConflictError(IdiolectError):
    code = "conflict"


class PreconditionError(ConflictError):
    code = "precondition_failed"


class ConsentError(IdiolectError):
    code = "personalization_unavailable"


class QuotaExceededError(IdiolectError):
    code = "quota_exceeded"

    def __init__(self, message: str, *, mend: str = "", retry_after_s: int | None = None) -> None:
        super().__init__(message, mend=mend)
        self.retry_after_s = retry_after_s


class BudgetExceededError(IdiolectError):
    code = "privacy_budget_exceeded"


class CorruptArtifactError(IdiolectError):
    code = "corrupt_artifact"


class ConfigurationError(IdiolectError):
    code = "configuration"


class UnavailableError(IdiolectError):
    code = "unavailable"

    def __init__(
        self, message: str, *, mend: str = "", code: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message, mend=mend, code=code)
        self.retry_after_s = retry_after_s
