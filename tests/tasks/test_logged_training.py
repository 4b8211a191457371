"""Optimiser and learning rate as trainers log them to MLflow, and how they meet what was asked for."""

import pytest

from gradtrail.tasks.calibrate.logged_training import LoggedTraining, logged_training
from gradtrail.tasks.calibrate.plans import CalibrateOptions
from gradtrail.tasks.calibrate.training_choices import training_choice


@pytest.mark.parametrize(
    ("parameters", "optimiser", "rate"),
    [
        ({"optim": "adamw_torch_fused", "learning_rate": "5e-05", "lr_scheduler_type": "linear"}, "adamw", 5e-5),
        ({"optim": "OptimizerNames.SGD", "learning_rate": "0.1"}, "sgd", 0.1),
        ({"optimizer_name": "Adam", "lr": "0.001", "betas": "(0.9, 0.999)"}, "adam", 0.001),
        ({"optimizer": "Adam (\nParameter Group 0\n    lr: 0.01\n)", "lr": "0.01"}, "adam", 0.01),
        ({"optimizer": "<class 'torch.optim.adamw.AdamW'>", "LR": "0.01"}, "adamw", 0.01),
        ({"opt_name": "SGD", "opt_learning_rate": "0.5"}, "sgd", 0.5),
        ({"solver": "adam", "learning_rate": "constant", "learning_rate_init": "0.001"}, "adam", 0.001),
        ({"optimizer__lr": "0.3", "optimizer": "torch.optim.SGD"}, "sgd", 0.3),
        ({"model/optimizer/_target_": "torch.optim.Adam", "model/optimizer/lr": "0.002"}, "adam", 0.002),
        ({"optimiser": "Adam", "learning_rate": "0.002", "warmup/lr": "1e-6"}, "adam", 0.002),
        ({"lr": "0.05"}, None, 0.05),
        ({"optimizer": "SGD"}, "sgd", None),
        ({"optim": "adafactor", "learning_rate": "0.001"}, None, None),
        ({"solver": "lbfgs", "lr": "1.0"}, None, None),
        ({"optim": "sgd", "optimizer": "adam", "lr": "0.1"}, None, None),
        ({"encoder/lr": "0.1", "decoder/lr": "0.2"}, None, None),
        ({"lr": "nan", "learning_rate": "-1", "optimizer": "paged_adamw_8bit"}, "adamw", None),
        ({"color": "adam", "adam_beta1": "0.9"}, None, None),
    ],
)
def test_what_trainers_log_is_read(parameters, optimiser, rate):
    found = logged_training(parameters)
    assert (found.optimiser, found.learning_rate) == (optimiser, rate)


def test_what_is_given_decides_then_what_was_logged_then_the_default():
    adam = LoggedTraining("adam", 0.002, {"optimizer": "Adam", "lr": "0.002"})
    nothing = LoggedTraining(None, None, {})

    def choice(logged, **options):
        found = training_choice(CalibrateOptions(**options), logged)
        return found.optimiser, found.learning_rate, found.optimiser_from, found.rate_from

    assert choice(adam) == ("adam", 0.002, "logged", "logged")
    assert choice(adam, learning_rate=0.1) == ("sgd", 0.1, "default", "given")
    assert choice(adam, optimiser="adam") == ("adam", 0.002, "given", "logged")
    assert choice(adam, optimiser="sgd") == ("sgd", 0.02, "given", "default")
    assert choice(adam, optimiser="adamw", learning_rate=0.3) == ("adamw", 0.3, "given", "given")
    assert choice(nothing) == ("sgd", 0.02, "default", "default")
    assert choice(nothing, optimiser="adam") == ("adam", 0.001, "given", "default")
    assert choice(LoggedTraining(None, 0.05, {"lr": "0.05"})) == ("sgd", 0.05, "default", "logged")
