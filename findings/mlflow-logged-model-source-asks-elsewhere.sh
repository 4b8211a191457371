#!/usr/bin/env bash
# mlflow-skinny 3.17.2: registering a LoggedModel through a client with addresses of its own.
# Guess: MlflowClient(tracking_uri, registry_uri).create_model_version(source="models:/m-…") looks the LoggedModel up in the
#        store that the client was made for.
# Seen: it looks it up at the process-wide tracking URI. Where that is another store the LoggedModel is "not found", though
#       the same client's get_logged_model finds it; after set_tracking_uri the same call works.
# Source: mlflow/store/model_registry/sqlalchemy_store.py, create_model_version.
# Output: found by the client: True / registered: False / registered after set_tracking_uri: True
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "mlflow-skinny==3.17.2" "sqlalchemy<2.1" alembic pandas
cd "$folder"
cat > register.py <<'PY'
import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

mlflow.set_tracking_uri("sqlite:///elsewhere.db")
here = "sqlite:///here.db"
client = MlflowClient(here, here)
experiment = client.create_experiment("one")
model = client.create_logged_model(experiment, name="net")
client.finalize_logged_model(model.model_id, "READY")
client.create_registered_model("net")
print("found by the client:", client.get_logged_model(model.model_id).model_id == model.model_id)


def registered():
    try:
        client.create_model_version("net", source=f"models:/{model.model_id}")
    except MlflowException as error:
        assert "not found" in str(error), error
        return False
    return True


print("registered:", registered())
mlflow.set_tracking_uri(here)
print("registered after set_tracking_uri:", registered())
PY
"$folder/venv/bin/python" register.py 2>/dev/null | tee seen
diff seen - <<'SEEN' || { echo "the behaviour changed"; exit 1; }
found by the client: True
registered: False
registered after set_tracking_uri: True
SEEN
