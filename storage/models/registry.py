"""The MLflow registry: model versions in, tags and links out. Aliases are resolved once and pinned by number."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage
from mlflow.entities import Run as RegisteredRun
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

from gradtrail.errors import NotFoundError, StoreError, UsageError
from gradtrail.nouns import DatasetVersion, Run, no_run
from gradtrail.storage.models.moved_home import follow_moved_home

ARTIFACT_FOLDER = "gradtrail"
CHECKPOINT_LIST = "checkpoints.json"
MANIFEST_FILE = "manifest.jsonl"
ADAPTER_TAG = "gradtrail.adapter"
ADAPTER_SHA256_TAG = "gradtrail.adapter_sha256"
DATASET_TAG = "gradtrail.dataset_version"
CHECKPOINT_TAG = "gradtrail.checkpoint"

_SERVER_FAULT = 500
_CUT = f" … [cut: MLflow keeps {MAX_PARAM_VAL_LENGTH:,} characters]"
_LOGGED_MODEL = re.compile(r"models:/(?P<id>m-[0-9a-f]+)/?")
_PROMOTED = re.compile(r"models:/(?!m-[0-9a-f]+/?$)")
_NUMBERED = re.compile(r"(?P<name>[^/:]+)/(?P<version>[0-9]+)")
_WITH_ALIAS = re.compile(r"(?P<name>[^/:]+)@(?P<alias>[\w-]+)")
_NAME = re.compile(r"[^/:]+")


@dataclass(frozen=True)
class RegisteredVersion:
    """A model version as MLflow has it. `version` is the number; `source_uri` is what it was registered from."""

    name: str
    version: int
    run_id: str
    source_uri: str
    tags: Mapping[str, str]

    @property
    def model_version_id(self) -> str:
        """Name and number, for example `digits/3`."""
        return f"{self.name}/{self.version}"


class Registry:
    """MLflow's tracking store and model registry at one URI.

    Args:
        tracking_uri: `sqlite:///…`, `http://…`, `postgresql://…`.
        artifact_root: folder for the artifacts of new experiments, beside an embedded database, which follows it where
            both were moved; empty leaves that to the server.
    """

    def __init__(self, tracking_uri: str, artifact_root: str = "") -> None:
        self.tracking_uri = tracking_uri
        self._artifact_root = artifact_root
        if tracking_uri.startswith("sqlite:///"):
            database = Path(tracking_uri.removeprefix("sqlite:///"))
            database.parent.mkdir(parents=True, exist_ok=True)
            if artifact_root:
                follow_moved_home(database, Path(artifact_root).resolve())
        self.client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)

    def experiment_id(self, name: str) -> str:
        """The id of an experiment, created when it does not exist.

        Raises:
            StoreError: it was deleted, and MLflow keeps its name.
        """
        found = self.client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage == LifecycleStage.DELETED:
            raise StoreError(
                f"The experiment {name!r} was deleted in MLflow at {self.tracking_uri}.",
                f"Restore it by mlflow experiments restore --experiment-id {found.experiment_id}; what waits for it "
                "is done by the next run.",
            )
        if found is not None:
            return str(found.experiment_id)
        location = Path(self._artifact_root).resolve().as_uri() if self._artifact_root else None
        return str(self.client.create_experiment(name, artifact_location=location))

    def resolve(self, reference: str) -> RegisteredVersion:
        """Find `NAME@alias`, `NAME/3`, or `NAME` for its newest version.

        Raises:
            UsageError: if the reference has another form.
            NotFoundError: if there is no such model, alias or version; it names those that exist.
            StoreError: if MLflow does not answer.
        """
        name, alias, number = self._parts(reference)
        model = self._registered(name)
        # A name may hold `@`: a model of the whole name is meant where it alone is there.
        if model is None and alias and (model := self._registered(reference)):
            name, alias = reference, ""
        if model is None:
            known = sorted(m.name for m in self.client.search_registered_models(max_results=20))
            raise NotFoundError(
                f"No model named {name} is registered at {self.tracking_uri}.",
                f"Registered: {', '.join(known)}." if known else "Nothing is registered there yet.",
            )
        try:
            if alias:
                return _as_version(self.client.get_model_version_by_alias(name, alias))
            if number:
                return _as_version(self.client.get_model_version(name, number))
        except MlflowException as error:
            self.require_answer(error)
            aliases = ", ".join(f"@{a} → {v}" for a, v in sorted(model.aliases.items())) or "none"
            missing = f"alias {alias}" if alias else f"version {number}"
            raise NotFoundError(f"The model {name} has no {missing}.", f"Its aliases: {aliases}.") from error
        versions = self.versions(name)
        if not versions:
            raise NotFoundError(f"The model {name} has no versions.", "Register one with gradtrail.register.")
        return versions[-1]

    def _parts(self, reference: str) -> tuple[str, str, str]:
        """Name, alias and number."""
        if numbered := _NUMBERED.fullmatch(reference):
            return numbered["name"], "", numbered["version"]
        if with_alias := _WITH_ALIAS.fullmatch(reference):
            return with_alias["name"], with_alias["alias"], ""
        if _NAME.fullmatch(reference) and ("@" not in reference or self._registered(reference)):
            return reference, "", ""
        raise UsageError(f"{reference!r} does not name a model version.", "Write NAME@alias, NAME/3 or NAME.")

    def _registered(self, name: str) -> RegisteredModel | None:
        try:
            return self.client.get_registered_model(name)
        except MlflowException as fault:
            self.require_answer(fault)
            return None

    def versions(self, name: str) -> list[RegisteredVersion]:
        """Every version of a model that is not deleted, by number."""
        found: list[RegisteredVersion] = []
        token: str | None = None
        while token != "":
            page = self.client.search_model_versions(_named(name), page_token=token)
            found += [_as_version(each) for each in page if each.name == name]
            token = page.token or ""
        return sorted(found, key=lambda version: version.version)

    def location(self, version: RegisteredVersion) -> str:
        """Where a version's files lie: of a promoted one, what MLflow resolved when it was promoted.

        The source of such a version, `models:/NAME/1`, names other weights once NAME is registered anew.
        """
        if _PROMOTED.match(version.source_uri or ""):
            return str(self.client.get_model_version_download_uri(version.name, str(version.version)))
        return version.source_uri

    def fetch(self, version: RegisteredVersion, destination: Path) -> Path:
        """Copy the files of a model version below `destination` and return their folder.

        Raises:
            NotFoundError: if MLflow no longer has them.
        """
        uri = self.client.get_model_version_download_uri(version.name, str(version.version))
        destination.mkdir(parents=True, exist_ok=True)
        try:
            folder = download_artifacts(artifact_uri=uri, dst_path=str(destination), tracking_uri=self.tracking_uri)
        except (MlflowException, OSError) as error:
            raise NotFoundError(
                f"The files of {version.model_version_id} at {uri} cannot be read: {error}",
                "Check the artifact store, or register the model again.",
            ) from error
        return Path(folder)

    def run(self, run_id: str) -> Run:
        """The training run as a noun."""
        try:
            found = self.client.get_run(run_id)
        except MlflowException as error:
            self.require_answer(error)
            raise NotFoundError(
                f"The run {run_id} is not in MLflow at {self.tracking_uri}.",
                "Restore it, or register the model again from a run that exists.",
            ) from error
        started = found.info.start_time
        return Run(
            run_id=run_id,
            experiment_id=str(found.info.experiment_id),
            name=found.info.run_name or run_id,
            started_at=datetime.fromtimestamp(started / 1000, UTC) if started else None,
            parameters={name: marked_where_cut(value) for name, value in found.data.params.items()},
        )

    def training_run(self, version: RegisteredVersion) -> Run:
        """The run that a model version names, or a stand-in that says that it names none.

        A version whose source is a logged model (`models:/m-…`) and that names no run has that model's.

        Raises:
            NotFoundError: it names a run that MLflow does not have.
        """
        run_id = version.run_id or self._run_of_logged_model(version.source_uri)
        return self.run(run_id) if run_id else no_run(version.model_version_id)

    def _run_of_logged_model(self, source_uri: str) -> str:
        named = _LOGGED_MODEL.fullmatch(source_uri or "")
        if named is None:
            return ""
        try:
            return str(self.client.get_logged_model(named["id"]).source_run_id or "")
        except MlflowException as fault:
            self.require_answer(fault)
            return ""

    def start_run(self, experiment: str, name: str, tags: Mapping[str, str] | None = None) -> str:
        """Create a run and return its id."""
        run = self.client.create_run(self.experiment_id(experiment), run_name=name, tags=dict(tags or {}))
        return str(run.info.run_id)

    def log_dataset(self, run_id: str, dataset: DatasetVersion) -> None:
        """Attach the dataset version to a run as its training input. MLflow cuts digests at 36 characters."""
        # MLflow keeps the first record of a name and digest for every run: a source in one run would stand with all.
        source = json.dumps({"manifest_sha256": dataset.dataset_version_id})
        entry = Dataset(
            name=dataset.name,
            digest=dataset.dataset_version_id[:36],
            source_type="gradtrail",
            source=source,
            profile=json.dumps({"num_rows": dataset.example_count}),
        )
        self.client.log_inputs(run_id, [DatasetInput(entry, [InputTag("mlflow.data.context", "training")])])

    def add_version(
        self, name: str, run_id: str, tags: Mapping[str, str], aliases: Sequence[str] = ()
    ) -> RegisteredVersion:
        """Register the gradtrail files of a run as the next version of `name`."""
        try:
            self.client.get_registered_model(name)
        except MlflowException:
            self.client.create_registered_model(name)
        source = f"runs:/{run_id}/{ARTIFACT_FOLDER}"
        root = str(self.client.get_run(run_id).info.artifact_uri).rstrip("/")
        if root.startswith("mlflow-artifacts:"):
            # A server cannot follow runs:/ to artifacts that it passes on, and shows such a version without a schema.
            source = f"{root}/{ARTIFACT_FOLDER}"
        created = self.client.create_model_version(name, source=source, run_id=run_id, tags=dict(tags))
        for alias in aliases:
            self.client.set_registered_model_alias(name, alias, created.version)
        return _as_version(created)

    def tag_version(self, version: RegisteredVersion, tags: Mapping[str, str]) -> None:
        """Set tags on the version, and on its run unless that was deleted."""
        run = self.active_run(version.run_id)
        for key, value in tags.items():
            self.client.set_model_version_tag(version.name, str(version.version), key, value)
            if run is not None:
                self.client.set_tag(version.run_id, key, value)

    def active_run(self, run_id: str) -> RegisteredRun | None:
        """The run with that id; None where there is none, or it was deleted: MLflow lets nobody write to it then."""
        try:
            run = self.client.get_run(run_id) if run_id else None
        except MlflowException as fault:
            self.require_answer(fault)
            return None
        return run if run is not None and run.info.lifecycle_stage == LifecycleStage.ACTIVE else None

    def require_answer(self, fault: MlflowException) -> None:
        """Tell an MLflow that is away from one that says no."""
        if int(fault.get_http_status_code()) >= _SERVER_FAULT:  # type: ignore[no-untyped-call]  # mlflow's
            raise StoreError(
                f"MLflow at {self.tracking_uri} does not answer: {fault}",
                "See that it runs; a repeat goes on from here.",
            ) from fault


def marked_where_cut(value: str) -> str:
    """The value of a parameter as MLflow can keep it, marked where MLflow cuts it or may have cut it."""
    if len(value) < MAX_PARAM_VAL_LENGTH or value.endswith(_CUT):
        return value
    return value[: MAX_PARAM_VAL_LENGTH - len(_CUT)] + _CUT


def _named(name: str) -> str:
    """A filter for versions of a model: MLflow knows no escape, so a name with both quotes gets all versions."""
    quote = "'" if "'" not in name else '"'
    if quote not in name:
        return f"name = {quote}{name}{quote}"
    return ""


def _as_version(found: object) -> RegisteredVersion:
    return RegisteredVersion(
        name=found.name,  # type: ignore[attr-defined]  # mlflow's entity carries no types
        version=int(found.version),  # type: ignore[attr-defined]
        run_id=found.run_id or "",  # type: ignore[attr-defined]
        source_uri=found.source,  # type: ignore[attr-defined]
        tags=dict(found.tags),  # type: ignore[attr-defined]
    )
