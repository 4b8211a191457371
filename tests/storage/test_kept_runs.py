"""Finished runs of training are read back from their files."""

import numpy as np

from gradtrail.storage.files.kept_runs import KeptRuns


def test_a_run_is_found_again_by_seed_and_left_out_set_to_the_last_bit(tmp_path):
    losses = np.random.default_rng(0).normal(size=(3, 4))
    KeptRuns(tmp_path / "runs").put((7, 12), losses)
    again = KeptRuns(tmp_path / "runs")
    assert (again.get((7, 12)) == losses).all()
    assert again.get((7, 11)) is None
    assert again.get((7, None)) is None


def test_names_of_the_files_stay_for_runs_that_were_kept_before(tmp_path):
    losses = np.zeros((1, 1))
    for kept in (KeptRuns(tmp_path), KeptRuns(tmp_path, "without-single")):
        kept.put((0, None), losses)
        kept.put((0, 5), losses)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"seed-0-all.npy", "seed-0-without-005.npy", "seed-0-without-single-005.npy"}
