"""Where everything lives: the values that settings hand down to flows and tasks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from gradtrail.digests import sha256_bytes
from gradtrail.errors import UsageError
from gradtrail.nouns import PreviewMode
from gradtrail.secret_addresses import FROM_ENVIRONMENT, resolved
from gradtrail.storage.sources.config import DEFAULT_SOURCE, SourceConfig, SourceConfigError
from gradtrail.storage.webhooks import Webhook

if TYPE_CHECKING:
    from gradtrail.lineage.ledger.writing import Ledger
    from gradtrail.storage.files.payloads import PayloadStore
    from gradtrail.storage.gradients.store import GradientStore
    from gradtrail.storage.models.audit_runs import Links
    from gradtrail.storage.models.registry import Registry


@dataclass(frozen=True)
class Workspace:
    """Locations and rules of one gradtrail installation; plain values, so that a Prefect flow takes it as a parameter.

    Attributes:
        home: folder of everything embedded: ledger, snapshot, gradients, payloads, checkpoints, inbox, reports.
        tracking_uri: MLflow tracking and registry; `env:NAME` reads it from a variable of the environment.
        artifact_root: where new embedded MLflow experiments put their files; empty means MLflow's own default.
        gradients_uri: LanceDB folder or object-store URI.
        mlflow_url: public address of the MLflow UI, for links.
        report_url: public address of the folder of reports, for links; empty where it is not served.
        allowed_adapters: patterns of adapters that may run.
        adapter_path: folder to import adapters and extensions from.
        extensions: patterns of the sources, methods, policy rules and exports of other packages that may run.
        layer_rules: layer rules of other packages, each loaded before a model is measured.
        policy: path of the policy file; empty means the built-in policy.
        preview: how much of the examples and outputs a report shows.
        signing_key: PEM file of the Ed25519 key that signs audits; empty signs none.
        personal_attributes: attributes that go into the ledger's erasable table, and into no index and no report.
        payload_retention_days: days after which an audit run deletes payloads; 0 keeps them.
        openlineage: address of an OpenLineage consumer, or a file, that flows report to; empty reports nowhere.
        sources: where outputs come from, besides the inbox of the home folder.
        webhooks: whom to tell about findings.
    """

    home: str
    tracking_uri: str
    artifact_root: str
    gradients_uri: str
    mlflow_url: str
    report_url: str = ""
    allowed_adapters: tuple[str, ...] = ()
    adapter_path: str = "."
    extensions: tuple[str, ...] = ()
    layer_rules: tuple[str, ...] = ()
    policy: str = ""
    preview: PreviewMode = "full"
    signing_key: str = ""
    personal_attributes: tuple[str, ...] = ()
    payload_retention_days: int = 0
    openlineage: str = ""
    sources: tuple[SourceConfig, ...] = ()
    webhooks: tuple[Webhook, ...] = ()

    def __post_init__(self) -> None:
        names = [source.name for source in self.output_sources]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise SourceConfigError(
                f"Two sources are called {repeated[0]!r}.",
                "Give each a name of its own; the inbox of the home folder is called 'inbox' unless it is named.",
            )

    @cached_property
    def root(self) -> Path:
        """The home folder as an absolute path."""
        return Path(self.home).resolve()

    @property
    def inbox(self) -> Path:
        """Folder into which outputs are dropped as Parquet or JSON Lines."""
        return self.root / "inbox"

    @property
    def home_source(self) -> SourceConfig:
        """The inbox of the home folder as a source: as the settings describe it, else with every output audited."""
        described = [source for source in self.sources if source.is_home]
        return replace(described[0] if described else SourceConfig(DEFAULT_SOURCE, "inbox"), location=str(self.inbox))

    @property
    def output_sources(self) -> tuple[SourceConfig, ...]:
        """Every source of outputs, the inbox of the home folder first."""
        return (self.home_source, *(source for source in self.sources if not source.is_home))

    @property
    def spool(self) -> Path:
        """What was read from sources and is not in the ledger yet."""
        return self.root / "sources.sqlite"

    @property
    def reports(self) -> Path:
        """Folder with one sub-folder an audit."""
        return self.root / "reports"

    @property
    def checkpoints(self) -> Path:
        """Folder of safetensors files named by their digest."""
        return self.root / "checkpoints"

    @property
    def manifests(self) -> Path:
        """Folder of dataset manifests named by their digest."""
        return self.root / "manifests"

    @property
    def curvatures(self) -> Path:
        """Folder of fitted curvature, one file an index and kind."""
        return self.root / "curvature"

    @property
    def snapshot(self) -> Path:
        """The published read-only copy of the ledger."""
        return self.root / "snapshot.duckdb"

    def audit_lock(self, model_version_id: str) -> Path:
        """File that whoever audits a model version holds meanwhile."""
        return self.root / "locks" / f"audit-{sha256_bytes(model_version_id.encode())}"

    def ledger(self) -> Ledger:
        """The ledger; opening it creates nothing."""
        from gradtrail.lineage.ledger.writing import Ledger

        return Ledger(self.root / "ledger.duckdb", self.snapshot)

    def gradients(self) -> GradientStore:
        """The gradient store."""
        from gradtrail.storage.gradients.store import GradientStore

        return GradientStore(self.gradients_uri)

    def payloads(self) -> PayloadStore:
        """The store of output payloads."""
        from gradtrail.storage.files.payloads import PayloadStore

        return PayloadStore(self.root / "payloads")

    def registry(self) -> Registry:
        """The MLflow registry.

        Raises:
            UsageError: its address is in a variable that is not set.
        """
        from gradtrail.storage.models.registry import Registry

        address = resolved(self.tracking_uri)
        if address is None:
            raise UsageError(
                f"The address of MLflow is to be in the variable {self.tracking_uri.removeprefix(FROM_ENVIRONMENT)}, "
                "which is not set.",
                "Set it where gradtrail runs.",
            )
        return Registry(address, self.artifact_root)

    def links(self) -> Links:
        """Deep links into MLflow and to the reports, at their public addresses."""
        from gradtrail.storage.models.audit_runs import Links

        return Links(self.mlflow_url, self.report_url)
