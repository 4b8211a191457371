"""Settings: gradtrail.toml and GRADTRAIL_* variables, read here and handed down as values."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from gradtrail.errors import GradtrailError, UsageError
from gradtrail.nouns import PreviewMode
from gradtrail.secret_addresses import by_name
from gradtrail.storage.sources.config import SourceConfig
from gradtrail.storage.webhooks import Webhook
from gradtrail.tasks.core.watched import WatchedModel
from gradtrail.tasks.core.workspace import Workspace

SETTINGS_FILE = "gradtrail.toml"
PREFIX = "GRADTRAIL_"
FILE_VARIABLE = PREFIX + "SETTINGS_FILE"
"""Names another settings file; `serve` sets it for the runs that it starts."""
_KEPT = PREFIX + "KEPT_"
_KEY_FAULTS = {
    "extra_forbidden": "there is no such key",
    "unexpected_keyword_argument": "there is no such key",
    "missing": "it is missing",
}
_JSON = f"""Lists and tables in variables are JSON, for example {PREFIX}ALLOWED_ADAPTERS='["my_adapter:MyAdapter"]'."""


class SigningKeyError(UsageError, ValueError):
    """A key in the place of its path; a ValueError too, so that pydantic names the setting."""


class Settings(BaseSettings):
    """What may be configured. Environment variables win over the file; defaults keep all under one folder."""

    # Without inputs: a value that cannot be used may be a secret in the wrong place.
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, toml_file=SETTINGS_FILE, extra="forbid", hide_input_in_errors=True
    )

    home: Path = Field(Path(".gradtrail"), description="Folder of everything embedded.")
    mlflow_tracking_uri: str = Field(
        "", description="MLflow server or database, or env:NAME; default: sqlite in the home folder."
    )
    mlflow_url: str = Field("http://127.0.0.1:5000", description="Public address of the MLflow UI, for links.")
    report_url: str = Field("", description="Public address of the reports folder, as served or published, for links.")
    gradients_uri: str = Field("", description="LanceDB folder or object-store URI; default: in the home folder.")
    allowed_adapters: tuple[str, ...] = Field((), description="Adapters that may run, as module:Class patterns.")
    adapter_path: Path = Field(Path(), description="Folder to import adapters and extensions from.")
    extensions: tuple[str, ...] = Field(
        (), description="Sources, methods, policy rules and exports of yours that may run, as module:name patterns."
    )
    layer_rules: tuple[str, ...] = Field((), description="Layer rules of yours, as module:Class; each is loaded.")
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

    @field_validator("signing_key", mode="before")
    @classmethod
    def _is_no_key_text(cls, value: Any) -> Any:
        if isinstance(value, str) and ("-----BEGIN" in value or "\n" in value):
            raise SigningKeyError(
                "it holds the text of a key, where the path of its PEM file belongs",
                "Keep the key in a file that only its owner can read, and give that file's path.",
            )
        return value

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
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, settings_file())

    def workspace(self) -> Workspace:
        """The same as plain values, every default filled in."""
        home = self.home.resolve()
        embedded_uri = embedded_tracking_uri(home)
        tracking_uri = self.mlflow_tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or embedded_uri
        # Flows take the workspace as a parameter, which Prefect shows: what has a secret goes by name.
        tracking_uri = by_name(tracking_uri, _KEPT + "MLFLOW_TRACKING_URI")
        return Workspace(
            home=str(home),
            tracking_uri=tracking_uri,
            artifact_root=str(home / "artifacts") if tracking_uri == embedded_uri else "",
            gradients_uri=self.gradients_uri or str(home / "gradients"),
            mlflow_url=self.mlflow_url.rstrip("/"),
            report_url=self.report_url.rstrip("/"),
            allowed_adapters=self.allowed_adapters,
            adapter_path=str(self.adapter_path.resolve()),
            extensions=self.extensions,
            layer_rules=self.layer_rules,
            policy=str(self.policy.resolve()) if self.policy else "",
            preview=self.preview,
            signing_key=str(self.signing_key.resolve()) if self.signing_key else "",
            personal_attributes=self.personal_attributes,
            payload_retention_days=self.payload_retention_days,
            openlineage=by_name(self.openlineage, _KEPT + "OPENLINEAGE"),
            sources=tuple(
                replace(each, location=by_name(each.location, _KEPT + f"SOURCE_{each.name.upper().replace('-', '_')}"))
                for each in self.sources
            ),
            webhooks=self.webhooks,
        )


def settings_file() -> Path:
    """The settings file: the one that a variable of the environment names, else gradtrail.toml in this folder."""
    return Path(os.environ.get(FILE_VARIABLE) or SETTINGS_FILE)


def embedded_tracking_uri(home: Path) -> str:
    """MLflow's database inside a home folder."""
    return f"sqlite:///{home.resolve() / 'mlflow.db'}"


def load_settings(**overrides: object) -> Settings:
    """Read the settings; overrides that are None count as not given.

    Raises:
        UsageError: for a file that cannot be read, unknown keys and unusable values, naming file or variable.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]  # pydantic checks them
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"The settings in {SETTINGS_FILE} are no TOML: {error}.", f"Correct {settings_file().resolve()}."
        ) from error
    except OSError as error:
        raise UsageError(
            f"The settings in {SETTINGS_FILE} cannot be read: {error.strerror}.",
            f"Look at the rights of {settings_file().resolve()}.",
        ) from error
    except SettingsError as error:
        unread = [name for name in Settings.model_fields if f'"{name}"' in str(error)]
        variable = PREFIX + unread[0].upper() if unread else f"A variable {PREFIX}…"
        raise UsageError(f"{variable} cannot be read: it is no JSON.", _JSON) from error
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        problems = "; ".join(f"{_place(each['loc'], given)}: {_cause(each)}" for each in found)
        remedies = dict.fromkeys(_remedy(each) for each in found)
        raise UsageError(f"The settings cannot be used. {problems}.", " ".join(remedies)) from error


def _place(location: tuple[int | str, ...], given: Mapping[str, object]) -> str:
    """Where a value comes from, and which it is: `gradtrail.toml: models.0.audit`."""
    path = ".".join(map(str, location))
    key = str(location[0])
    if key in given:
        return f"as given: {path}"
    return f"{_variable(key)}{path[len(key) :]}" if _variable(key) else f"{SETTINGS_FILE}: {path}"


def _variable(key: str) -> str:
    """The variable of the environment that sets a key, as it is written there; empty where none does."""
    return next((name for name in os.environ if name.upper() == PREFIX + key.upper()), "")


def _cause(problem: Mapping[str, Any]) -> str:
    fault = problem.get("ctx", {}).get("error")
    said = fault.what if isinstance(fault, GradtrailError) else _KEY_FAULTS.get(problem["type"], problem["msg"])
    return str(said).rstrip(".")


def _remedy(problem: Mapping[str, Any]) -> str:
    fault, location = problem.get("ctx", {}).get("error"), problem["loc"]
    if isinstance(fault, GradtrailError):
        return fault.remedy
    if problem["type"] in _KEY_FAULTS and len(location) == 1:
        return f"Known keys: {', '.join(Settings.model_fields)}."
    if problem["type"] in _KEY_FAULTS:
        table = next(each for each in get_args(Settings.model_fields[location[0]].annotation) if is_dataclass(each))
        return f"Known keys of [[{location[0]}]]: {', '.join(each.name for each in fields(table))}."
    if problem["type"] == "tuple_type" and not _variable(location[0]):
        return 'Write lists as ["…"], and tables with two brackets, such as [[models]].'
    remedy = "Correct the value; docs/running.md says what each setting means."
    return f"{remedy} {_JSON}" if _variable(location[0]) else remedy
