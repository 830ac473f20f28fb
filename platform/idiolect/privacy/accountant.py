"""From noise to (epsilon, delta) and back.

T Gaussian releases with noise multiplier s compose to exactly one with s / sqrt(T) (Dong, Roth & Su 2022,
Corollary 3.3), so a finished run is reported with the exact curve of Balle & Wang 2018, Theorem 8; a run on Poisson
samples with its privacy loss distribution, rounded up. Filters, whose runs are chosen adaptively, use RDP: epsilon(rho)
there is slightly larger. Tests hold all of them against dp_accounting and Opacus.
"""

from __future__ import annotations

import math
from functools import lru_cache

from scipy.optimize import brentq
from scipy.special import log_ndtr

from idiolect.errors import InvalidInputError
from idiolect.privacy.events import Event, GaussianEvent, SampledGaussianEvent, is_positive

PLD_INTERVAL = 1e-3  # of the discretised privacy loss; rounding is upwards and costs far less than 1% of epsilon
# Above this a loss distribution gets large and slow, and such a run protects nothing: it is reported as if unsampled.
PLD_MAX_EPSILON = 50.0
NOISE_TOLERANCE = 1e-3  # of the noise multiplier that a sampled run is planned with, on the safe side


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


def epsilon_of_run(event: Event, delta: float) -> float:
    """The epsilon of one finished run at `delta`: exact, or with sampling the least upper bound that we can compute."""
    check_delta(delta)
    unsampled = _gaussian_epsilon(event.charged, delta)
    if isinstance(event, GaussianEvent) or not 0.0 < unsampled <= PLD_MAX_EPSILON:
        return unsampled
    return min(unsampled, _sampled_epsilon(event, delta))


def _gaussian_epsilon(event: GaussianEvent, delta: float) -> float:
    mu = math.sqrt(2.0 * event.rho)
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    # epsilon <= rho + 2 sqrt(rho log(1/delta)) for any zCDP mechanism (Bun & Steinke 2016, Proposition 1.3).
    upper = event.rho + 2.0 * math.sqrt(event.rho * math.log(1.0 / delta)) + 1e-9
    return float(brentq(lambda epsilon: gaussian_delta(epsilon, mu) - delta, 0.0, upper, xtol=1e-12))


@lru_cache(maxsize=256)
def _sampled_epsilon(event: SampledGaussianEvent, delta: float) -> float:
    """For adding or removing one unit; takes a tenth of a second."""
    # Imported here: it takes most of a second, and serving never needs it.
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    release = dp_accounting.GaussianDpEvent(event.noise_multiplier)
    accountant = PLDAccountant(value_discretization_interval=PLD_INTERVAL)
    if event.unsampled_steps:
        accountant.compose(release, event.unsampled_steps)
    sampled = dp_accounting.PoissonSampledDpEvent(event.sample_rate, release)
    accountant.compose(sampled, event.steps - event.unsampled_steps)
    return float(accountant.get_epsilon(delta))


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


def sampled_run_for(
    epsilon: float, delta: float, steps: int, sample_rate: float, unsampled_steps: int = 0
) -> SampledGaussianEvent:
    """The run with the least noise that satisfies (epsilon, delta), up to NOISE_TOLERANCE on the safe side."""

    def run(multiplier: float) -> SampledGaussianEvent:
        return SampledGaussianEvent(multiplier, steps, sample_rate, unsampled_steps)

    enough = noise_multiplier_for(epsilon, delta, steps)  # even for the whole
    run(enough)  # checks the rest
    too_little = enough / 2.0
    while epsilon_of_run(run(too_little), delta) <= epsilon:
        enough, too_little = too_little, too_little / 2.0
    while enough > too_little * (1.0 + NOISE_TOLERANCE):
        middle = math.sqrt(enough * too_little)
        if epsilon_of_run(run(middle), delta) <= epsilon:
            enough = middle
        else:
            too_little = middle
    return run(enough)


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
