"""Which solution does a method prefer? Margins of separable data, without a network."""

import numpy as np
import thalweg as tw

rng = np.random.default_rng(0)
data = rng.standard_normal((40, 10))
data *= np.sign(data @ np.array([3.0, 2.0, 1.0] + [0.3] * 7))[:, None]  # labels are +1 now


def exponential_loss(w):
    """log(sum(exp(-margins))) and its gradient: finite at any margin."""
    margins = data @ w
    loss = np.logaddexp.reduce(-margins)
    return loss, -data.T @ np.exp(-margins - loss)


orders = {"l1": 1, "l2": 2, "linf": np.inf}
print("margin in the norm    " + "".join(f"{norm:>8}" for norm in orders))
for norm in orders:
    result = tw.minimize(
        exponential_loss,
        np.zeros(10),
        "steepest_descent",
        norm=norm,
        normalized=True,
        lr=0.02,
        max_iterations=20_000,
    )
    w = result.x
    margins = [np.min(data @ w) / np.linalg.norm(w, order) for order in orders.values()]
    print(f"steepest descent, {norm:4}" + "".join(f"{margin:8.4f}" for margin in margins))
