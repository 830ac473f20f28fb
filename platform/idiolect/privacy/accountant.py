"""From noise to (epsilon, delta) and back.

T Gaussian releases with noise multiplier s compose to exactly one with s / sqrt(T) (Dong, Roth & Su 2022,
Corollary 3.3), so a finished run is reported with the exact curve of Balle & Wang 2018, Theorem 8. Filters, whose
runs are chosen adaptively, use RDP: epsilon(rho) there is slightly larger. Tests hold both against dp_accounting
and Opacus.
"""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import log_ndtr

from idiolect.errors import InvalidInputError
from idiolect.privacy.events import GaussianEvent, is_positive


def check_epsilon(epsilon: float) -> float:
    if not is_positive(epsilon):
        raise InvalidInputError(f"epsilon {epsilon!r} is not usable.", mend="Use a finite number above 0.")
    return float(epsilon)


def check_delta(delta: float, units: int | None = None) -> float:
    """`delta` must be in (0, 1) and, where the number of protected units is known, below 1 / units."""
    if isinstance(delta, bool) or not isinstance(delta, int | float) or not 0.0 < delta < 1.0:
        raise InvalidInputError(f"delta {delta!r} is not usable.", mend="Use a number between 0 and 1, such as 1e-5.")
    if units is not None and units > 0 and delta >= 1.0 / units:
        raise InvalidInputError(
            f"delta {delta:g} is not below 1/{units}: it would allow one unit to be published outright.",
            mend=f"Use a delta below {1.0 / units:.1e}.",
        )
    return float(delta)


def gaussian_delta(epsilon: float, mu: float) -> float:
    """delta(epsilon) of the Gaussian mechanism with sensitivity / sigma = mu. Balle & Wang 2018, Theorem 8."""
    first = float(log_ndtr(mu / 2.0 - epsilon / mu))
    second = float(epsilon + log_ndtr(-mu / 2.0 - epsilon / mu))
    if first == -math.inf:  # then so is `second`, and their difference is no number
        return 0.0
    return math.exp(first) * -math.expm1(min(second - first, 0.0))


def epsilon_of_run(event: GaussianEvent, delta: float) -> float:
    """The exact epsilon of one finished run at `delta`."""
    check_delta(delta)
    mu = math.sqrt(2.0 * event.rho)
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    # epsilon <= rho + 2 sqrt(rho log(1/delta)) for any zCDP mechanism (Bun & Steinke 2016, Proposition 1.3).
    upper = event.rho + 2.0 * math.sqrt(event.rho * math.log(1.0 / delta)) + 1e-9
    return float(brentq(lambda epsilon: gaussian_delta(epsilon, mu) - delta, 0.0, upper, xtol=1e-12))


def composed_epsilon(rho: float, delta: float) -> float:
    """The exact epsilon of finished Gaussian runs that cost `rho` together and were not chosen by their outcomes."""
    check_delta(delta)
    return 0.0 if rho == 0 else epsilon_of_run(GaussianEvent(1.0 / math.sqrt(2.0 * rho), 1), delta)


def noise_multiplier_for(epsilon: float, delta: float, steps: int) -> float:
    """The smallest noise multiplier with which `steps` releases satisfy (epsilon, delta).

    Balle & Wang 2018, Algorithm 1, solved by bisection on the exact curve and rounded up.
    """
    check_epsilon(epsilon), check_delta(delta)
    single = GaussianEvent(noise_multiplier=1.0, steps=steps)  # checks `steps`
    # delta(epsilon, mu) < mu, and it is 1 within rounding at sqrt(2 epsilon) + 200.
    low, high = min(1e-6, delta), math.sqrt(2.0 * epsilon) + 200.0
    mu = float(brentq(lambda m: gaussian_delta(epsilon, m) - delta, low, high, xtol=1e-7 * low, rtol=1e-12))
    return math.sqrt(single.steps) / mu * (1.0 + 1e-9)


def filter_epsilon(rho: float, delta: float) -> float:
    """The epsilon at `delta` that a filter may claim after adaptive runs of total cost `rho`."""
    check_delta(delta)
    if rho == 0:
        return 0.0
    if not is_positive(rho):
        raise InvalidInputError(f"cost {rho!r} is not usable.", mend="Use a finite number from 0, in zCDP.")
    # Imported here: it takes most of a second, and serving never needs it.
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    # The square of a noise multiplier that is any larger overflows; rounding the cost up is safe.
    accountant.compose(dp_accounting.GaussianDpEvent(1.0 / math.sqrt(2.0 * max(rho, 1e-300))))
    return float(accountant.get_epsilon(delta))


def filter_rho(epsilon: float, delta: float) -> float:
    """The total cost at which a filter must stop so that it never passes `epsilon` at `delta`."""
    check_epsilon(epsilon), check_delta(delta)
    low, high = 1e-15, float(epsilon)
    if filter_epsilon(low, delta) >= epsilon:
        raise InvalidInputError(
            f"epsilon {epsilon!r} is too small a budget for any run at delta {delta:g}.", mend="Raise the budget."
        )
    while filter_epsilon(high, delta) < epsilon:  # only where delta is close to 1
        high *= 2.0
    # The curve has steps where the best RDP order changes, so the answer is rounded down by more than the tolerance.
    found = brentq(lambda rho: filter_epsilon(rho, delta) - epsilon, low, high, xtol=1e-11 * low, rtol=1e-10)
    return float(found) * (1.0 - 1e-9)
