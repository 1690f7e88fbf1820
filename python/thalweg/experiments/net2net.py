"""e16: a trained network is a start for a larger one."""

from __future__ import annotations

from typing import Any

import numpy as np

from thalweg import Model, nn, optim, surgery

from .base import Context, Experiment, Outcome, digits, train

_SMALL, _LARGE = 32, 128
_BATCH = 50
_TEACHER_EPOCHS = 20
_EPOCHS = 10
_RATE = 0.1


def _network(width: int, depth: int, batch_norm: bool) -> nn.Sequential:
    middle = [nn.BatchNorm()] if batch_norm else []
    block = [nn.Dense(width), *middle, nn.ReLU()]
    return nn.Sequential(*block * depth, nn.Dense(10))


def _wider(model: Model, x: Any) -> Model:
    for layer in _dense(model)[:-1]:
        model = surgery.widen(model, layer, _LARGE)
    return model


def _deeper(model: Model, x: Any) -> Model:
    return surgery.deepen(model, _dense(model)[-2], x)


def _dense(model: Model) -> list[str]:
    return [f"layers.{i}" for i, layer in enumerate(model.network) if isinstance(layer, nn.Dense)]


def run(context: Context) -> Outcome:
    """Teach, enlarge, and train the students and networks of their shape from scratch."""
    data = digits()
    x, y = data.x_train, data.y_train
    per_epoch = len(x) // _BATCH
    shapes = {"wider": (_wider, _LARGE, 2), "deeper": (_deeper, _SMALL, 3)}
    curves: dict[str, list[float]] = {}
    gaps, ratios, scratch_losses, student_losses = {}, {}, {}, {}
    for batch_norm in (False, True):
        kind = "batch norm" if batch_norm else "plain"

        def model(width: int, depth: int, rate: float, batch_norm: bool = batch_norm) -> Model:
            return Model(
                _network(width, depth, batch_norm),
                64,
                optimizer=optim.Momentum(rate),
                seed=context.seed,
                dtype="float64",
                threads=context.threads,
            )

        def curve(student: Model) -> list[float]:
            losses = [float(student.evaluate(x, y)["loss"])]
            for _ in range(1 if context.quick else _EPOCHS):
                train(student, x, y, per_epoch, _BATCH)
                losses.append(float(student.evaluate(x, y)["loss"]))
            return losses

        teacher = model(_SMALL, 2, _RATE)
        train(teacher, x, y, context.steps(_TEACHER_EPOCHS * per_epoch), _BATCH)
        taught = float(teacher.evaluate(x, y)["loss"])
        for shape, (enlarge, width, depth) in shapes.items():
            name = f"{shape}, {kind}"
            student = enlarge(teacher, x)
            student.set_optimizer(optim.Momentum(_RATE / 10.0))
            curves[name] = curve(student)
            curves[f"{name}, from scratch"] = curve(model(width, depth, _RATE / 10.0))
            gaps[name] = abs(curves[name][0] / taught - 1.0)
            student_losses[name] = curves[name][1]
            scratch_losses[name] = curves[f"{name}, from scratch"][1]
            ratios[name] = student_losses[name] / scratch_losses[name]
    passed = max(gaps.values()) < 1e-10 and max(ratios.values()) < 0.25

    def draw(figure: Any) -> None:
        for axes, shape in zip(figure.subplots(1, 2), shapes, strict=True):
            for name, losses in curves.items():
                if name.startswith(shape):
                    axes.semilogy(np.arange(len(losses)), losses, "o-", markersize=3, label=name)
            axes.set(xlabel="epochs", ylabel="training loss")
            axes.legend(fontsize=7)

    listed = "; ".join(
        f"{student_losses[name]:.3f} against {scratch_losses[name]:.3f} from scratch ({name})"
        for name in ratios
    )
    return Outcome(
        f"loss changes by {max(gaps.values()):.0e} of itself at most; after one epoch {listed}",
        {"relative_change": gaps, "ratios": ratios, "curves": curves},
        passed,
        draw,
    )


EXPERIMENT = Experiment(
    "e16",
    "A trained network is a start for a larger one",
    "Widened or deepened without a change of its function, a trained network goes on where it was, "
    "while one of the larger shape has to start from nothing.",
    "Chen, Goodfellow, Shlens, Net2Net: accelerating learning via knowledge transfer, 2016",
    "digits, 64-32-32-10 ReLU, plain and with batch norm, momentum 0.9, rate 0.1, 20 epochs of "
    "minibatches of 50; widened to 64-128-128-10, deepened to 64-32-32-32-10; rate 0.01 for "
    "students and for networks of their shape from scratch, float64",
    "relative change of the loss < 1e-10; loss after one epoch < 25 % of that from scratch",
    run,
)
