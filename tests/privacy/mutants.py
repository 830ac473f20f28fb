"""Mistakes in the source, each as small as it is made, and the tests that must notice it.

`kills` names tests that fail on the mutant, all of them, and whose failure shows `because` (a regular expression).
Whoever changes a line that is quoted here moves the quote along: a mutant that does not apply fails the run.
"""

from __future__ import annotations

from dataclasses import dataclass

CLIP = "adapters/idiolect_adapters/training/clip_noise.py"
DESCENT = "adapters/idiolect_adapters/training/descent.py"
DOMAIN = "adapters/idiolect_adapters/training/domain.py"
GLOBAL = "adapters/idiolect_adapters/training/private_global.py"
LORA = "adapters/idiolect_adapters/training/domain_lora.py"
SAMPLING = "adapters/idiolect_adapters/training/sampling.py"
USER = "adapters/idiolect_adapters/training/user.py"
EVENTS = "platform/idiolect/privacy/events.py"
ACCOUNTANT = "platform/idiolect/privacy/accountant.py"
LEDGER = "platform/idiolect/privacy/ledger.py"
SQL_LEDGER = "platform/idiolect/stores/sql/ledger.py"
MANIFEST = "platform/idiolect/registry/manifest.py"
RANDOMISED = "platform/idiolect/privacy/randomised_response.py"
TRAINER = "services/idiolect_services/trainer.py"
PRIVATE = "services/idiolect_services/private_global.py"

SENSITIVITY = "tests/privacy/test_sensitivity.py::"
NOISE = "tests/privacy/test_noise_of_training.py::"
SECURE = "tests/privacy/test_secure_noise.py::"
POISSON = "tests/privacy/test_poisson_sampling.py::"
ACCOUNT = "tests/privacy/test_poisson_accounting.py::"
EXACT = "tests/privacy/test_accounting.py::"
STORE = "tests/contracts/test_store_ledger.py::"
INNER = "tests/unit/test_domain_lora.py::"
RUNS = "tests/integration/test_trainer_runs.py::"
WHOLE = "tests/privacy/test_private_global.py::"
WHOLE_RUNS = "tests/integration/test_private_global_runs.py::"

ASSERTION = r"^E +(assert|AssertionError)"


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    file: str
    edits: tuple[tuple[str, str], ...]  # (a part of the source that occurs once, what it becomes)
    kills: tuple[str, ...]
    because: str = ASSERTION

    @property
    def slow(self) -> bool:
        return self.kills[0].startswith((RUNS, WHOLE_RUNS, STORE, INNER))


def _mutant(name: str, file: str, old: str, new: str, *kills: str, because: str = ASSERTION) -> Mutant:
    return Mutant(name, file, ((old, new),), kills, because)


_TEN_THOUSAND = f"{SENSITIVITY}test_a_subject_moves_a_domain_no_more_with_ten_thousand_comparisons_than_with_one"
_SIZE_OF_NOISE = f"{NOISE}test_the_noise_of_a_step_is_the_multiplier_times_the_clip_norm[2.0-4.0-7.0]"
_DOMAIN_DRAWS = f"{NOISE}test_a_domain_training_draws_once_for_the_count_and_once_a_step[9-20]"
_ONE_BATCH = f"{POISSON}test_a_step_sums_the_batch_and_is_scaled_by_the_expected_size[0.2]"

MUTANTS: tuple[Mutant, ...] = (
    # Constrain the sensitivity
    _mutant(
        "drop the clip of rows",
        CLIP,
        "np.where(largest > bound, scaled * bound, contributions)",
        "contributions",
        f"{_TEN_THOUSAND}[huge-1]",
    ),
    _mutant(
        "clip each entry of a row apart",
        CLIP,
        "np.maximum(np.sqrt((scaled**2).sum(axis=-1, keepdims=True)), 1.0)",
        "1.0",
        f"{_TEN_THOUSAND}[the same-1]",
    ),
    _mutant(
        "drop the clip of a user's comparisons",
        CLIP,
        "np.fmin(np.fmax(lengths, 0.0), clip_norm)",
        "np.fmax(lengths, 0.0)",
        f"{SENSITIVITY}test_a_comparison_that_says_as_much_as_it_can_reaches_the_clip_norm",
    ),
    _mutant(
        "let what is not finite through",
        CLIP,
        "contributions = np.where(finite, contributions, 0.0)",
        "contributions = contributions + 0.0 * finite",
        f"{SENSITIVITY}test_extreme_rows_are_clipped_without_a_warning[row4-1.0]",
    ),
    Mutant(
        "clip a subject's comparisons apart",
        DOMAIN,
        (
            (
                "np.add.at(rows_S_K, data.subject_C, pull_C[:, None] * data.differences_C_K)",
                "np.add.at(rows_S_K, data.subject_C, clip_rows(pull_C[:, None] * data.differences_C_K, 0.5))",
            ),
            ("clip_rows(rows_S_K[batch_S], recipe.clip_norm).sum(", "rows_S_K[batch_S].sum("),
        ),
        (f"{_TEN_THOUSAND}[huge-10000]",),
    ),
    _mutant(
        "let a weight lift a comparison",
        USER,
        "np.clip(comparisons.weight_C[picked_P_C], 0.0, 1.0)",
        "comparisons.weight_C[picked_P_C]",
        f"{SENSITIVITY}test_the_weight_of_a_comparison_can_not_lift_it_over_the_clip_norm",
    ),
    # Then add the noise
    _mutant(
        "halve the noise",
        CLIP,
        "return sums + noise_multiplier * clip_norm * noise.normal(sums.shape)",
        "return sums + 0.5 * noise_multiplier * clip_norm * noise.normal(sums.shape)",
        _SIZE_OF_NOISE,
    ),
    _mutant(
        "forget to scale the noise with the clip norm",
        CLIP,
        "noise_multiplier * clip_norm * noise.normal(sums.shape)",
        "noise_multiplier * noise.normal(sums.shape)",
        _SIZE_OF_NOISE,
    ),
    _mutant(
        "draw one number for all entries",
        CLIP,
        "noise.normal(sums.shape)",
        "noise.normal((1,) * sums.ndim)",
        f"{NOISE}test_noise_is_added_to_every_entry_independently",
    ),
    _mutant(
        "skip the noise on an empty batch",
        CLIP,
        "return sums + noise_multiplier",
        "return sums if not sums.any() else sums + noise_multiplier",
        f"{NOISE}test_a_domain_without_anybody_draws_noise_like_any_other",
    ),
    _mutant(
        "reuse the noise's key",
        CLIP,
        "Cipher(algorithms.AES(os.urandom(16)), modes.CTR(os.urandom(16)))",
        "Cipher(algorithms.AES(bytes(16)), modes.CTR(bytes(16)))",
        f"{SECURE}test_no_two_calls_give_the_same_draws",
    ),
    _mutant(
        "average the four Gaussians",
        CLIP,
        "/ math.sqrt(SUMMED_GAUSSIANS)",
        "/ SUMMED_GAUSSIANS",
        f"{SECURE}test_the_first_four_moments_are_those_of_a_standard_normal",
    ),
    _mutant(
        "add noise in the first step alone",
        DESCENT,
        "if noise_multiplier > 0:",
        "if noise_multiplier > 0 and not adapters_P_K.any():",
        f"{NOISE}test_a_user_training_of_t_steps_draws_t_times[50-7]",
        _DOMAIN_DRAWS,
    ),
    _mutant(
        "take one step more than is charged",
        DESCENT,
        "for _ in range(recipe.steps):",
        "for _ in range(recipe.steps + 1):",
        f"{NOISE}test_a_user_training_of_t_steps_draws_t_times[50-7]",
        _DOMAIN_DRAWS,
    ),
    # Public denominators
    _mutant(
        "divide by the private number of subjects",
        DOMAIN,
        "sample_rate * noisy_count(data.subjects, noise_multiplier, noise)",
        "sample_rate * max(1, data.subjects)",
        _DOMAIN_DRAWS,
    ),
    _mutant(
        "divide by the size of the sample",
        DOMAIN,
        "clip_rows(rows_S_K[batch_S], recipe.clip_norm).sum(axis=0, keepdims=True)",
        "clip_rows(rows_S_K[batch_S], recipe.clip_norm).sum(axis=0, keepdims=True) * "
        "(sample_rate * data.subjects / max(1, batch_S.sum()))",
        _ONE_BATCH,
    ),
    _mutant("forget the rate in the denominator", DOMAIN, "sample_rate * noisy_count", "noisy_count", _ONE_BATCH),
    # The sampler
    _mutant(
        "ignore the sample rate",
        SAMPLING,
        "sampled: NDArray[np.bool_] = drawn < np.uint64(int(sample_rate * 2**_BITS))",
        "sampled: NDArray[np.bool_] = drawn <= np.uint64(2**_BITS - 1)",
        f"{POISSON}test_a_batch_may_be_empty_and_a_rate_of_one_is_everybody",
        f"{POISSON}test_each_unit_is_in_a_batch_with_the_rate_and_alone[0.3]",
    ),
    _mutant(
        "sample a fixed number without replacement",
        SAMPLING,
        "sampled: NDArray[np.bool_] = drawn < np.uint64(int(sample_rate * 2**_BITS))",
        "sampled: NDArray[np.bool_] = drawn.argsort().argsort() < round(sample_rate * units)",
        f"{POISSON}test_each_unit_is_in_a_batch_with_the_rate_and_alone[0.3]",
    ),
    _mutant(
        "sample with twice the rate",
        SAMPLING,
        "int(sample_rate * 2**_BITS)",
        "int(sample_rate * 2**_BITS) * 2 % 2**_BITS",
        f"{POISSON}test_each_unit_is_in_a_batch_with_the_rate_and_alone[0.3]",
    ),
    _mutant(
        "seed the sampler",
        SAMPLING,
        "drawn = np.frombuffer(os.urandom(units * _BITS // 8), dtype=np.uint64)",
        "drawn = np.random.default_rng(os.getpid()).integers(0, 2**_BITS, units, np.uint64)",
        f"{POISSON}test_batches_come_from_the_operating_system_and_nowhere_else",
    ),
    Mutant(
        "keep one sample for all steps",
        DOMAIN,
        (
            ("        batch_S = poisson_sample(data.subjects, sample_rate)\n", ""),
            (
                "    def clipped_sums(",
                "    batch_S = poisson_sample(data.subjects, sample_rate)\n\n    def clipped_sums(",
            ),
        ),
        (f"{POISSON}test_every_step_draws_a_batch_of_its_own_from_all_subjects",),
    ),
    _mutant(
        "read everybody where a sample is claimed",
        DOMAIN,
        "clip_rows(rows_S_K[batch_S], recipe.clip_norm)",
        "clip_rows(rows_S_K, recipe.clip_norm)",
        _ONE_BATCH,
    ),
    # The account
    _mutant(
        "plan with half the noise",
        ACCOUNTANT,
        "return math.sqrt(single.steps) / mu * (1.0 + 1e-9)",
        "return 0.5 * math.sqrt(single.steps) / mu * (1.0 + 1e-9)",
        f"{EXACT}test_a_planned_run_costs_what_it_should_by_every_exact_accountant[5-2.0]",
    ),
    _mutant(
        "count the steps once",
        EVENTS,
        "return self.steps / (2.0 * self.noise_multiplier**2)",
        "return 1.0 / (2.0 * self.noise_multiplier**2)",
        f"{EXACT}test_twelve_runs_at_epsilon_two_cost_about_eight_and_not_twenty_four",
    ),
    _mutant(
        "charge a sampled run as if sampling made it free",
        EVENTS,
        "return GaussianEvent(self.noise_multiplier, self.steps)",
        "return GaussianEvent(self.noise_multiplier / self.sample_rate, self.steps)",
        f"{ACCOUNT}test_what_the_ledger_charges_bounds_a_sampled_run_at_every_order[0.9-6-0.1]",
    ),
    _mutant(
        "count the release that reads everybody as sampled",
        ACCOUNTANT,
        "    if event.unsampled_steps:\n        accountant.compose(release, event.unsampled_steps)\n",
        "",
        f"{ACCOUNT}test_the_claim_of_a_sampled_run_is_that_of_opacus_and_of_a_finer_grid[0.9-6-0.1-1]",
    ),
    _mutant(
        "flip labels half as often",
        RANDOMISED,
        "if below(2**_BITS) < flip:",
        "if below(2**_BITS) < flip // 2:",
        "tests/privacy/test_randomised_response.py::test_a_direction_is_flipped_as_often_as_warner_says[1.0]",
    ),
    # The ledger and the manifest
    _mutant(
        "forget what was spent before",
        LEDGER,
        "return spent_rho + rho <= budget_rho",
        "return rho <= budget_rho",
        f"{STORE}test_a_reservation_charges_whoever_stays_within_the_budget[sqlite]",
        f"{STORE}test_a_reset_never_refunds[sqlite]",
    ),
    _mutant(
        "reserve without a charge",
        SQL_LEDGER,
        "    charge(connection, run, rho, granted)\n",
        "",
        f"{STORE}test_a_reservation_charges_whoever_stays_within_the_budget[sqlite]",
    ),
    _mutant(
        "leave the privacy statement out of the signature",
        MANIFEST,
        "for name, value in template.to_json().items()}\n",
        "for name, value in template.to_json().items() if name != 'privacy'}\n",
        "tests/privacy/test_claims.py::test_no_card_is_rendered_of_a_manifest_whose_privacy_was_edited",
        because=r"DID NOT RAISE",
    ),
    # The global model
    _mutant(
        "do not clip the halves of a subject",
        GLOBAL,
        "clip_rows(mean_gradients(data.where(half_C == half), reward_D), clip_norm)",
        "mean_gradients(data.where(half_C == half), reward_D)",
        f"{WHOLE}test_a_subject_who_says_one_thing_as_loudly_as_can_be_reaches_the_bound",
    ),
    _mutant(
        "forget that a moment is a product of two",
        GLOBAL,
        "first_S_D.T @ second_S_D / clip_norm",
        "first_S_D.T @ second_S_D / clip_norm**2",
        f"{WHOLE}test_a_subject_who_says_one_thing_as_loudly_as_can_be_reaches_the_bound",
    ),
    _mutant(
        "count what is off the diagonal once",
        GLOBAL,
        "vector_V: FloatArray = matrix_D_D[row, column] * np.where(row == column, 1.0, np.sqrt(2.0))",
        "vector_V: FloatArray = matrix_D_D[row, column] * np.where(row == column, 1.0, 1.0)",
        f"{WHOLE}test_a_symmetric_matrix_and_its_vector_have_one_norm_and_are_one_thing",
    ),
    _mutant(
        "forget the noise of the moment",
        GLOBAL,
        "    if noise_multiplier > 0:\n        moment_V",
        "    if noise_multiplier > 0 and not data.subjects:\n        moment_V",
        f"{WHOLE}test_the_count_every_step_and_the_moment_draw_their_noise_whoever_speaks[1-5]",
    ),
    _mutant(
        "charge a global training for its steps alone",
        GLOBAL,
        "return recipe.steps + UNSAMPLED_RELEASES",
        "return recipe.steps",
        f"{WHOLE}test_the_count_every_step_and_the_moment_draw_their_noise_whoever_speaks[1-5]",
    ),
    _mutant(
        "read whoever was refused",
        PRIVATE,
        "[person in people for person in data.people]",
        "[True for person in data.people]",
        f"{WHOLE_RUNS}test_of_people_who_were_refused_nothing_is_left",
    ),
    # Subject-unit LoRA on inner layers
    _mutant(
        "do not clip the update of inner layers",
        LORA,
        "clip_rows(gradients(batch_S), recipe.clip_norm).sum(axis=0)",
        "gradients(batch_S).sum(axis=0)",
        f"{INNER}test_a_step_is_that_of_the_clipped_reference[1.0]",
    ),
    _mutant(
        "forget the noise of inner layers",
        LORA,
        "        if noise_multiplier > 0:\n",
        "        if noise_multiplier > 0 and not batch_S.any():\n",
        f"{INNER}test_it_draws_once_for_the_count_and_once_a_step_whoever_is_there[1.0-2-1]",
    ),
    _mutant(
        "average over all comparisons, not over a subject's",
        DOMAIN,
        "share_C: FloatArray = self.weights_C / size_S[self.subject_C]",
        "share_C: FloatArray = self.weights_C / size_S.mean()",
        f"{INNER}test_the_gradients_of_subjects_are_those_of_one_after_another[0]",
    ),
    # The run
    _mutant(
        "swap the unit",
        TRAINER,
        'self._reserve(tenant, "subject", f"domain {domain}"',
        'self._reserve(tenant, "comparison", f"domain {domain}"',
        f"{RUNS}test_a_domain_charges_everybody_it_reads_in_the_subjects_account",
    ),
    _mutant(
        "publish a tensor that is not declared",
        TRAINER,
        "dump_weights({HEAD_B: adapter_K[None, :].astype(np.float32)})",
        'dump_weights({HEAD_B: adapter_K[None, :].astype(np.float32), "head.bias": np.zeros(1, np.float32)})',
        f"{RUNS}test_nothing_is_trained_that_was_not_declared",
        because=r"CorruptArtifactError.*head\.bias",
    ),
)
