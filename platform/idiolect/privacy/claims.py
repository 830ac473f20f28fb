"""Privacy claims in plain words, from the manifest alone: nobody can claim what was not signed."""

from __future__ import annotations

from collections.abc import Mapping

from idiolect.privacy.budget import PrivacyStatement
from idiolect.privacy.events import Unit
from idiolect.registry.manifest import ReleaseScope, ReleaseTemplate

_PROTECTED: Mapping[Unit, str] = {
    "comparison": "what one comparison of the person says",
    "subject": "one person with everything they ever said in what was trained on",
}

_NOT_PROTECTED: Mapping[Unit, tuple[str, ...]] = {
    "comparison": (
        "What many comparisons of a person have in common. An adapter that hid this from its reader would personalize "
        "nothing: there is no guarantee for the person as a whole here, and none is claimed.",
        "That the person has an adapter at all, and when it was trained.",
    ),
    "subject": (
        "What is true of many of the people: learning that is what it is for.",
        "The person, from observers of their own signals: this is about what was released, not about the data.",
    ),
}

_TITLES: Mapping[ReleaseScope, str] = {
    "user": "User adapters",
    "domain": "Domain adapters",
    "global": "Private training of the global model",
}

_NEVER_PROTECTED = (
    "The raw signals and texts, from whoever operates the installation.",
    "Anything that the global model learned from data that was declared public.",
)


NOTHING_CLAIMED = (
    "Nothing is claimed. This adapter was trained elsewhere and registered here: what its training read, and what the "
    "weights say about it, this installation can't know."
)


def claims(statement: PrivacyStatement) -> tuple[str, ...]:
    """One sentence each: what is claimed, against what change, by which accounting."""
    lines = [
        f"Protected is {_PROTECTED[statement.unit]}: (epsilon, delta)-differential privacy with epsilon "
        f"{statement.epsilon:.4g} at delta {statement.delta:g} for this training.",
        f"Neighbouring data: {statement.adjacency}.",
        f"Mechanism: {statement.mechanism}; {statement.steps} releases, each clipped to {statement.clip_norm:g} per "
        f"{statement.unit}, noise multiplier {statement.noise_multiplier:.4g}.",
        f"Accountant: {statement.accountant}; {statement.rho:.4g} in zCDP.",
    ]
    if statement.sample_rate is not None:
        lines.append(
            f"Each step read a secret random sample, with every {statement.unit} in it with probability "
            f"{statement.sample_rate:g}, but for {statement.unsampled_steps or 0} that read everybody. The budget was "
            "charged as if every step had read everybody."
        )
    if statement.weak:
        lines.append("This is weak: the operator asked for an epsilon that protects almost nothing.")
    return (*lines, _budget_claim(statement), *_local_claim(statement))


def _budget_claim(statement: PrivacyStatement) -> str:
    if statement.budget_epsilon is None:
        return "Nothing is claimed about this training together with others on the same data."
    total = f"together may reach epsilon {statement.budget_epsilon:g} at delta {statement.delta:g}"
    if statement.budget_days is None:
        return f"All trainings on the same data {total}, for ever."
    return (
        f"Trainings on the same data {total} per window of {statement.budget_days:g} days. The budget renews, so over "
        "several windows the total has no bound."
    )


def _local_claim(statement: PrivacyStatement) -> tuple[str, ...]:
    if statement.local_epsilon is None:
        return ()
    return (
        "Feedback received under this setting went through randomised response with epsilon "
        f"{statement.local_epsilon:g} per signal before it was stored (Warner 1965). Imported comparisons, and "
        "feedback from before the setting, did not.",
    )


def not_protected(statement: PrivacyStatement) -> tuple[str, ...]:
    return (*_NOT_PROTECTED[statement.unit], *_NEVER_PROTECTED)


def render_card(template: ReleaseTemplate, versions_count: int, revoked: bool) -> str:
    """The model card of a release, in Markdown. Verify a signature of the release before you call it."""
    facts = {
        "tenant": template.tenant,
        "state": "**revoked: it is not served**" if revoked else "not revoked",
        "versions": f"{versions_count:,}",
        "kind": f"{template.kind} on {', '.join(template.targets)}, rank {template.rank}, alpha {template.alpha:g}",
        "tensors": ", ".join(f"`{t.name}` {' x '.join(map(str, t.shape))} {t.dtype}" for t in template.tensors),
        "global model": f"`{template.global_digest}`",
        "basis": f"`{template.basis_digest}`",
        "trained on": template.data_window,
        "ledger run": f"`{template.run}`",
        "made": f"{template.created_at.isoformat()} by {template.producer}",
    }
    if template.imported is not None:
        facts["imported"] = (
            f"from the tenant {template.imported.tenant}; every claim here is that of the key "
            f"`{template.imported.public_key}`"
        )
    return "\n".join(
        [
            f"# {_TITLES[template.scope]} of {template.created_at.date().isoformat()}",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {_cell(value)} |" for name, value in facts.items()),
            "",
            "## Privacy",
            "",
            *_privacy(template.privacy),
            "",
        ]
    )


def _privacy(statement: PrivacyStatement | None) -> list[str]:
    if statement is None:
        return [f"- {NOTHING_CLAIMED}"]
    lines = [*(f"- {line}" for line in claims(statement)), "", "## Not protected", ""]
    return lines + [f"- {line}" for line in not_protected(statement)]


def _cell(value: str) -> str:
    return " ".join(value.replace("|", "\\|").split())
