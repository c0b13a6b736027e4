"""Verifies what was made of the dataset: image features, trainings, models and evaluations. It needs no torch."""

import hashlib

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.checkpoints import model_folder
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import dataset_index, feature_file
from lotlip_data.manifests.run_layout import TRAINING_METRICS, Run
from lotlip_data.pipeline.verification.tally import Tally

_CHECKPOINT_DIGEST_BYTES = 64


def verify_features(run: Run) -> Tally:
    """The stored features of every tower, by tar of the dataset and by image shard.

    Those of tars that the dataset no longer has are read, too.
    """
    tally = Tally("features")
    towers = storage.list_names(run.features())
    samples = _samples_by_feature_file(run) if towers else {}
    for tower in towers:
        for name in storage.list_names(run.features(tower), feature_file.ENDING):
            url = run.features(tower, name)
            with tally.reading():
                feature_file.read_features(url, (samples.get(name), None))
                tally.unrecorded += not feature_file.has_digest(url)
        for name in storage.list_names(run.features(tower), ".parquet"):
            tally.read_parquet(run.features(tower, name), "Remove it; `lotlip-data score` computes it again.")
    return tally


def _samples_by_feature_file(run: Run) -> dict[str, int]:
    try:
        files = dataset_index.shard_files(run, dataset_index.read_samples_index(run))
    except UserError:
        return {}  # a problem of the dataset
    return {feature_file.file_name(file.sha256): file.samples for file in files}


def verify_trainings(run: Run) -> Tally:
    """Settings, metrics, checkpoints, results and models of every training, and the results of evaluations."""
    tally = Tally("trainings")
    for name in storage.list_names(run.trainings):
        folder = run.train(name)
        remedy = f"Remove {folder} and train again."
        names = storage.list_names(folder)
        for file in names:
            if file.startswith("eval") and file.endswith(".json"):
                tally.read_json(storage.join(folder, file), "Remove it and evaluate again.")
            elif file.endswith(".json"):
                tally.read_json(storage.join(folder, file), remedy)
        if TRAINING_METRICS in names:
            _verify_metrics(tally, storage.join(folder, TRAINING_METRICS))
        for checkpoint in storage.list_names(storage.join(folder, "checkpoints"), ".ckpt"):
            _verify_checkpoint(tally, storage.join(folder, "checkpoints", checkpoint))
        _verify_model(tally, run.trained_model(name), remedy, storage.exists(run.training_done(name)))
    for file in storage.list_names(run.evaluations, ".json"):
        tally.read_json(storage.join(run.evaluations, file), "Remove it and evaluate again.")
    return tally


def _verify_metrics(tally: Tally, url: str) -> None:
    with tally.reading(recorded=False):
        for number, line in enumerate(storage.read_bytes(url).splitlines(), 1):
            artifacts.parse_json(line, f"{url}, line {number}", "Correct or remove this line.", artifacts.JsonObject)


def _verify_checkpoint(tally: Tally, url: str) -> None:
    with tally.reading():
        content = memoryview(storage.read_bytes(url))
        digest = hashlib.sha256(content[_CHECKPOINT_DIGEST_BYTES:]).hexdigest().encode()
        if digest != bytes(content[:_CHECKPOINT_DIGEST_BYTES]):
            raise UserError(f"{url}: its content does not match its sha256. Remove it; training resumes earlier.")


def _verify_model(tally: Tally, url: str, remedy: str, is_finished: bool) -> None:
    """The model of a training, which is missing while the training is not finished."""
    config_file = storage.join(url, model_folder.CONFIG)
    try:
        content = storage.read_bytes(config_file)
    except FileNotFoundError:
        if is_finished:
            tally.note_missing(config_file, f"but the training is finished. {remedy}")
        return
    with tally.reading():
        config = model_folder.parse_config(content, config_file)
        if config is None:
            raise UserError(f"{url}: is not a model of this release. {remedy}")
        tally.unrecorded += "files" not in config
        tally.files += len(config.get("files", {}))
        model_folder.check_files(url, config, url)
