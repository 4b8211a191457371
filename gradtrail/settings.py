"""Settings: gradtrail.toml and GRADTRAIL_* variables, read here and handed down as values."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from gradtrail.errors import UsageError
from gradtrail.nouns import PreviewMode
from gradtrail.storage.source_config import SourceConfig
from gradtrail.storage.webhooks import Webhook
from gradtrail.tasks.watched import WatchedModel
from gradtrail.tasks.workspace import Workspace

SETTINGS_FILE = "gradtrail.toml"


class Settings(BaseSettings):
    """What may be configured. Environment variables win over the file; defaults keep all under one folder."""

    model_config = SettingsConfigDict(env_prefix="GRADTRAIL_", toml_file=SETTINGS_FILE, extra="forbid")

    home: Path = Field(Path(".gradtrail"), description="Folder of everything embedded.")
    mlflow_tracking_uri: str = Field("", description="MLflow server or database; default: sqlite in the home folder.")
    mlflow_url: str = Field("http://127.0.0.1:5000", description="Public address of the MLflow UI, for links.")
    report_url: str = Field("", description="Public address of the reports folder, as served or published, for links.")
    gradients_uri: str = Field("", description="LanceDB folder or object-store URI; default: in the home folder.")
    allowed_adapters: tuple[str, ...] = Field((), description="Adapters that may run, as module:Class patterns.")
    adapter_path: Path = Field(Path(), description="Folder to import adapters from.")
    policy: Path | None = Field(None, description="Policy file; default: the built-in policy.")
    preview: PreviewMode = Field("full", description="What reports show of examples: full, redacted or none.")
    signing_key: Path | None = Field(None, description="PEM file of the Ed25519 key that signs audits.")
    personal_attributes: tuple[str, ...] = Field((), description="Attributes that are personal: kept erasable.")
    payload_retention_days: int = Field(0, ge=0, description="Days that payloads are kept; 0 keeps them.")
    models: tuple[WatchedModel, ...] = Field((), description="Models to look after, as [[models]] tables.")
    sources: tuple[SourceConfig, ...] = Field((), description="Where outputs come from, as [[sources]] tables.")
    webhooks: tuple[Webhook, ...] = Field((), description="Whom to tell about findings, as [[webhooks]] tables.")
    watch_seconds: int = Field(60, ge=5, description="How often `gradtrail serve` asks the registry what is new.")
    openlineage: str = Field("", description="OpenLineage consumer (http…) or file that every flow reports to.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic passes it by name
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic passes it by name
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Given values, then the environment, then the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    def workspace(self) -> Workspace:
        """The same as plain values, every default filled in."""
        home = self.home.resolve()
        embedded_uri = embedded_tracking_uri(home)
        tracking_uri = self.mlflow_tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or embedded_uri
        return Workspace(
            home=str(home),
            tracking_uri=tracking_uri,
            artifact_root=str(home / "artifacts") if tracking_uri == embedded_uri else "",
            gradients_uri=self.gradients_uri or str(home / "gradients"),
            mlflow_url=self.mlflow_url.rstrip("/"),
            report_url=self.report_url.rstrip("/"),
            allowed_adapters=self.allowed_adapters,
            adapter_path=str(self.adapter_path.resolve()),
            policy=str(self.policy.resolve()) if self.policy else "",
            preview=self.preview,
            signing_key=str(self.signing_key.resolve()) if self.signing_key else "",
            personal_attributes=self.personal_attributes,
            payload_retention_days=self.payload_retention_days,
            openlineage=self.openlineage,
            sources=self.sources,
            webhooks=self.webhooks,
        )


def embedded_tracking_uri(home: Path) -> str:
    """MLflow's database inside a home folder."""
    return f"sqlite:///{home.resolve() / 'mlflow.db'}"


def load_settings(**overrides: object) -> Settings:
    """Read the settings; overrides that are None count as not given.

    Raises:
        UsageError: for unknown keys and unusable values, naming each.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UsageError(
            f"The settings in {SETTINGS_FILE} or GRADTRAIL_* cannot be used: {problems}.",
            f"Known keys: {', '.join(Settings.model_fields)}.",
        ) from error
