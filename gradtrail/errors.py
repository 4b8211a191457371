"""Every error gradtrail raises on purpose. Each message names the thing, the cause and the remedy."""

from __future__ import annotations

from gradtrail.secret_addresses import without_secrets


class GradtrailError(Exception):
    """Base of all expected errors; the command line prints its message and exits with `exit_code`.

    Args:
        what: what happened, naming the id, file or layer concerned.
        remedy: what to do next, as an instruction.
    """

    exit_code = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        what, remedy = without_secrets(what), without_secrets(remedy)
        super().__init__(f"{what} {remedy}".strip())
        self.what = what
        self.remedy = remedy


def said(fault: Exception) -> str:
    """An error in words: gradtrail's own speak for themselves, others are told with their kind."""
    return str(fault) if isinstance(fault, GradtrailError) else without_secrets(f"{type(fault).__name__}: {fault}")


class UsageError(GradtrailError):
    """A request that cannot be understood: unknown id, bad option, unreadable setting."""

    exit_code = 2


class NotFoundError(UsageError):
    """A model, alias, output, example, audit or file that does not exist."""


class NotReadyError(NotFoundError):
    """A model version that was not taken in yet, or has no index yet: what an audit of it needs."""


class CheckpointError(GradtrailError):
    """Weights that cannot be loaded: damaged, of another architecture, or in a refused format."""


class UntrustedCodeError(GradtrailError):
    """Something that would have to execute code nobody allowed: a pickle, an unlisted adapter."""


class DataError(GradtrailError):
    """Training data, gradients or outputs that must not get in: duplicate, non-finite, mis-shaped, drifted."""


class ModelError(GradtrailError):
    """A model that cannot be attributed as it stands: random or coupled losses, no covered parameters."""


class DivergenceError(ModelError):
    """Training whose loss is no longer finite."""


class StoreError(GradtrailError):
    """The gradient store does not hold what it should: gaps, wrong count, wrong configuration."""


class LedgerError(GradtrailError):
    """The ledger cannot be read, written or trusted."""


class VerificationError(GradtrailError):
    """`gradtrail verify` found something changed, missing or unexplained."""

    exit_code = 3


class FindingsError(GradtrailError):
    """An audit found what its caller asked to be stopped by, with `--fail-on`."""

    exit_code = 4


class UnjudgedError(FindingsError):
    """A gate could not judge what it was given: too many outputs have no audit, or there were too few."""


class AttributionWarning(UserWarning):
    """Something a measurement is slower or says less by; the numbers are right."""
