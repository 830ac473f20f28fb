"""What each operation is called, and what it does, in words for whoever calls it. Clients that are generated from the
description take their names from here."""

from __future__ import annotations

from typing import Any

Operation = tuple[str, str]  # (method, path)

OPERATIONS: dict[Operation, tuple[str, str]] = {
    ("post", "/v1/rerank"): ("rerank", "Rank documents for a person, best first. Also at /v2/rerank and /rerank."),
    ("post", "/v1/score"): ("score", "Score documents for a person, in the order of the request. Also at /score."),
    ("post", "/v1/compare"): ("compare", "How probable it is that a person prefers one text over another."),
    ("post", "/v1/chat/completions"): (
        "complete_chat",
        "Ask the tenant's own server for several completions, and return the one that the person would prefer.",
    ),
    ("get", "/v1/upstream"): ("get_upstream", "Where the tenant's completions come from; never its key."),
    ("put", "/v1/upstream"): ("set_upstream", "Set where the tenant's completions come from."),
    ("delete", "/v1/upstream"): ("remove_upstream", "Forget where the tenant's completions come from, and the key."),
    ("get", "/v1/retention"): ("get_retention", "For how many days the tenant's texts are kept."),
    ("put", "/v1/retention"): (
        "set_retention",
        "Set for how many days the tenant's texts are kept. What is older is deleted within an hour.",
    ),
    ("post", "/v1/tokens"): ("create_token", "Make a short-lived token with which one person's browser may call."),
    ("post", "/v1/feedback"): (
        "send_feedback",
        "Say what a person did with what they were shown.",
    ),
    ("delete", "/v1/users/{user}"): ("erase_user", "Erase a person altogether. Doing it again is harmless."),
    ("get", "/v1/users/{user}/personalization"): ("get_personalization", "What a person has agreed to."),
    ("put", "/v1/users/{user}/personalization"): (
        "set_personalization",
        "Opt a person in or out, pause, or change the strength, in all or in single domains.",
    ),
    ("post", "/v1/users/{user}/personalization/reset"): (
        "reset_personalization",
        "Forget what was learned of a person. When it answers, nothing older is served anywhere.",
    ),
    ("get", "/v1/users/{user}/personalization/resets/{reset_id}"): (
        "get_reset",
        "The signed receipt of a reset, and how far caches are purged.",
    ),
    ("get", "/v1/users/{user}/personalization/receipt"): (
        "get_consent_receipt",
        "The signed receipt of what a person has agreed to.",
    ),
    ("get", "/v1/users/{user}/explanation"): (
        "explain_user",
        "What was learned of a person, along which directions, and the privacy that it cost.",
    ),
    ("post", "/v1/users/{user}/exports"): ("export_user", "All that is stored of a person, as a zip file."),
    ("get", "/v1/adapters"): ("list_adapters", "Versions of adapters, oldest first; of one person if named."),
    ("post", "/v1/adapters"): (
        "register_adapter",
        "Take in a LoRA that was trained elsewhere, as a person's or a domain's.",
    ),
    ("post", "/v1/adapters/{adapter_id}/versions"): (
        "register_adapter_version",
        "Take in the next version of an adapter that was trained elsewhere.",
    ),
    ("get", "/v1/adapters/{version_id}"): ("get_adapter_version", "One version with its signed manifest."),
    ("get", "/v1/adapters/{adapter_id}/versions"): ("list_adapter_versions", "Every version of one adapter."),
    ("get", "/v1/adapters/{adapter_id}/pointers"): (
        "get_pointers",
        "Which versions of an adapter are live and before.",
    ),
    ("put", "/v1/adapters/{adapter_id}/pointers/{name}"): ("move_pointer", "Make a version of an adapter live."),
    ("get", "/v1/adapters/{adapter_id}/history"): ("list_pointer_moves", "What was live when and why, newest first."),
    ("post", "/v1/adapters/{adapter_id}/rollback"): (
        "roll_back_adapter",
        "Go back to the version before the live one.",
    ),
    ("get", "/v1/adapters/{version_id}/lineage"): ("get_lineage", "What a version was made from."),
    ("get", "/v1/lineage"): ("list_contributions", "Every version that learned from a person."),
    ("get", "/v1/audit"): ("list_audit_entries", "Who changed what, when and why, newest first."),
    ("get", "/v1/releases"): ("list_releases", "What trainings published, newest first."),
    ("get", "/v1/releases/{release_id}"): ("get_release", "One release."),
    ("get", "/v1/releases/{release_id}/card"): ("get_release_card", "The model card of a release, from its manifest."),
    ("post", "/v1/releases/{release_id}/promote"): ("promote_release", "Make every version of a release live."),
    ("post", "/v1/releases/{release_id}/revoke"): (
        "revoke_release",
        "Serve no version of a release any more, in one write; everybody falls back to what they had before.",
    ),
    ("get", "/v1/releases/{release_id}/export"): ("export_release", "A release as a signed file."),
    ("post", "/v1/releases/import"): (
        "import_release",
        "Take in a release from its signed file, live for nobody. A very large one is for `idiolect registry import`.",
    ),
    ("get", "/v1/registry/diff"): ("diff", "What changed between two versions or releases."),
    ("post", "/v1/registry/gc"): ("collect_garbage", "Delete versions that nothing can reach, or say which those are."),
    ("get", "/v1/privacy/ledger"): ("list_ledger_runs", "What trainings were charged, newest first."),
    ("get", "/v1/rollouts"): ("list_rollouts", "Rollouts and their verdicts, newest first."),
    ("post", "/v1/rollouts"): ("create_rollout", "Plan to try a candidate on a share of people first."),
    ("get", "/v1/rollouts/{rollout_id}"): ("get_rollout", "One rollout: what its guardrails say, and its history."),
    ("post", "/v1/rollouts/{rollout_id}/start"): ("start_rollout", "Begin with its first step."),
    ("post", "/v1/rollouts/{rollout_id}/hold"): ("hold_rollout", "Stop it from advancing."),
    ("post", "/v1/rollouts/{rollout_id}/resume"): ("resume_rollout", "Let it advance again."),
    ("post", "/v1/rollouts/{rollout_id}/abort"): ("abort_rollout", "Put everybody back at once."),
    ("get", "/healthz"): ("get_health", "Whether this process runs."),
    ("get", "/readyz"): ("get_readiness", "Whether this process can serve."),
}


def name_operations(document: dict[str, Any]) -> None:
    """What is not listed keeps the name that it has; a test sees to it that there is none."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            named = OPERATIONS.get((method, path))
            if named is not None:
                operation["operationId"], about = named
                operation["summary"] = about
                operation["description"] = f"{about} {operation['description']}"
