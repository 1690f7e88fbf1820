"""e34: initialization, step size and conditioning."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from thalweg import Model, Objective, init, minimize, nn, optim
from thalweg.landscape import predict_step

from .base import Context, Experiment, Outcome, digits, error_rate, loss_or_infinity, train

_ROWS, _SEEDS = 200, 3
_INIT_STEPS = 3000
_SCALES = (1.0, 8.0)
_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_RATE_STEPS = 300
_BATCH = 50
_ZIGZAG = np.array([1.0, 50.0])


def _network(first: float = 1.0) -> nn.Sequential:
    """One hidden layer, its first weights `first` times as large as He's."""
    scale = init.Normal(first * math.sqrt(2.0 / 64.0))
    return nn.Sequential(nn.Dense(100, init=scale), nn.ReLU(), nn.Dense(10))


def _initial_scale(context: Context) -> tuple[list[float], list[float]]:
    """Mean training and test error by the scale of the initial weights."""
    data = digits()
    x, y = data.x_train[:_ROWS], data.y_train[:_ROWS]
    training, test = [], []
    for scale in _SCALES:
        errors = []
        for seed in range(context.seed, context.seed + (1 if context.quick else _SEEDS)):
            model = Model(
                _network(scale), 64, optimizer=optim.SGD(0.05), seed=seed, threads=context.threads
            )
            train(model, x, y, context.steps(_INIT_STEPS), _BATCH)
            errors.append((error_rate(model, x, y), error_rate(model, data.x_test, data.y_test)))
        training.append(float(np.mean([e[0] for e in errors])))
        test.append(float(np.mean([e[1] for e in errors])))
    return training, test


def _rises(context: Context) -> dict[str, Any]:
    """A step of half and of twice the rate above which the quadratic model rises."""
    data = digits()
    model = Model(
        nn.Sequential(nn.Dense(20), nn.Tanh(), nn.Dense(10)),
        64,
        optimizer=optim.SGD(0.1),
        seed=context.seed,
        dtype="float64",
        threads=context.threads,
    )
    train(model, data.x_train, data.y_train, context.steps(200), _BATCH)
    objective = Objective(model, data.x_train, data.y_train)
    critical = predict_step(objective, [0.0]).critical_rate
    found = predict_step(objective, critical * np.array([0.5, 2.0]))
    return {"critical_rate": critical, "actual": found.actual, "predicted": found.predicted}


def _valley(p: Any) -> tuple[float, Any]:
    return 0.5 * float(_ZIGZAG @ p**2), _ZIGZAG * p


def _zigzag(context: Context) -> dict[str, tuple[float, int, Any]]:
    """Loss, changes of direction across the valley, and path of 100 steps."""
    found = {}
    rate = 1.8 / _ZIGZAG[1]
    for name, method in (
        ("gradient descent", optim.SGD(rate)),
        ("momentum", optim.Momentum(rate, momentum=0.7)),
    ):
        path = [np.array([10.0, 1.0])]

        def note(progress: Any, path: list[Any] = path) -> None:
            path.append(progress.x)

        result = minimize(_valley, path[0], method, max_iterations=100, gtol=0.0, callback=note)
        across = np.array(path)[:, 1]
        turns = int(np.sum(across[1:] * across[:-1] < 0.0))
        found[name] = (result.fun, turns, np.array(path))
    return found


def run(context: Context) -> Outcome:
    """Check the four inequalities."""
    data = digits()
    training, test = _initial_scale(context)
    step = _rises(context)
    zigzag = _zigzag(context)
    losses = []
    for rate in _RATES:
        model = Model(
            _network(), 64, optimizer=optim.SGD(rate), seed=context.seed, threads=context.threads
        )
        finite = train(model, data.x_train, data.y_train, context.steps(_RATE_STEPS), _BATCH)
        losses.append(loss_or_infinity(model, data.x_train, data.y_train, finite))
    best = int(np.argmin(losses))
    plain, heavy = zigzag["gradient descent"], zigzag["momentum"]
    holds = {
        "large weights overfit": training[1] == 0.0 and test[1] > test[0] + 1.0,
        "a long step raises the loss": bool(step["actual"][0] < 0.0 < step["actual"][1]),
        "momentum damps the zigzag": heavy[1] < plain[1] and heavy[0] < 0.1 * plain[0],
        "rates have an optimum": 0 < best < len(_RATES) - 1
        and min(losses[0], losses[-1]) > 2.0 * losses[best],
    }

    def draw(figure: Any) -> None:
        left, middle, right = figure.subplots(1, 3)
        left.bar([f"{s:g} x He" for s in _SCALES], test)
        left.set(ylabel="test error, %")
        for name, (_, _, path) in zigzag.items():
            middle.plot(path[:30, 0], path[:30, 1], "o-", markersize=2, label=name)
        middle.set(xlabel="along the valley", ylabel="across")
        middle.legend()
        finite = [(r, v) for r, v in zip(_RATES, losses, strict=True) if math.isfinite(v)]
        right.loglog([r for r, _ in finite], [v for _, v in finite], "o-")
        right.set(xlabel="learning rate", ylabel=f"training loss at {_RATE_STEPS} steps")

    return Outcome(
        f"test error {test[0]:.1f} % from He's weights, {test[1]:.1f} % from {_SCALES[1]:g} times "
        f"larger ones (training error {training[1]:.1f} %); loss changes by "
        f"{step['actual'][0]:.3f} at half of the critical rate {step['critical_rate']:.2f}, by "
        f"{step['actual'][1]:+.3f} at twice; {plain[1]} turns without momentum, {heavy[1]} with; "
        f"best rate {_RATES[best]:g} of {_RATES[0]:g} to {_RATES[-1]:g}",
        {
            "holds": holds,
            "training_error": training,
            "test_error": test,
            "critical_rate": step["critical_rate"],
            "step_actual": step["actual"].tolist(),
            "step_predicted": step["predicted"].tolist(),
            "turns": {name: turns for name, (_, turns, _) in zigzag.items()},
            "zigzag_loss": {name: value for name, (value, _, _) in zigzag.items()},
            "rates": list(_RATES),
            "losses": [v if math.isfinite(v) else None for v in losses],
        },
        all(holds.values()),
        draw,
    )


EXPERIMENT = Experiment(
    "e34",
    "Initialization and conditioning",
    "Large initial weights overfit; a step raises the loss when e g'Hg / 2 > g'g; momentum damps "
    "the zigzag across a valley; the loss after a number of steps has an optimum in the learning "
    "rate.",
    "Goodfellow, Bengio, Courville, Deep Learning, sections 8.2.1, 8.3.2 and 8.4",
    "digits: 64-100-10 ReLU, 200 rows, 3 seeds, first weights 1 and 8 times He's; 64-20-10 tanh "
    "after 200 steps; quadratic of condition 50, rate 1.8 / L, momentum 0.7; 300 steps at rates "
    "0.001 to 10",
    "training error 0, test error more than 1 point higher; loss falls at half and rises at twice "
    "the critical rate; fewer turns and a tenth of the loss; best rate inside, both ends twice as "
    "high",
    run,
)
