"""idiolect privacy audit"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from idiolect.privacy.budget import DEFAULT_DELTA
from idiolect_services.bench.form import check_writable
from idiolect_services.cli.common import Bars, bars, console

if TYPE_CHECKING:
    from idiolect_adapters.audit.canary import Mechanism
    from idiolect_adapters.audit.membership import MembershipReport
    from idiolect_adapters.audit.run import AuditReport


class Audited(StrEnum):
    user = "user"
    domain = "domain"
    lora = "lora"
    global_ = "global"
    all = "all"


def audit(
    mechanism: Annotated[Audited, typer.Option(help="Which shipped mechanism to attack.")] = Audited.all,
    epsilon: Annotated[float, typer.Option(help="The claim to attack.")] = 2.0,
    delta: Annotated[float, typer.Option(help="The claim's delta.")] = DEFAULT_DELTA,
    trials: Annotated[
        int | None,
        typer.Option(help="Trainings with the canary, and as many without (default: as many as take seconds)."),
    ] = None,
    confidence: Annotated[float, typer.Option(help="With which all bounds hold at once.")] = 0.999,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Attack broken mechanisms too; fails if one is missed.")
    ] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write the outcome to this file as well.")] = None,
) -> None:
    """Attack the shipped mechanisms and say how much epsilon the attack surely shows.

    Ends with status 1 if a claim is refuted, or if the self-test misses a planted fault.

    Example: idiolect privacy audit --epsilon 2 --json audit.json
    """
    if json is not None:
        check_writable(json)
    options = {"epsilon": epsilon, "delta": delta, "trials": trials, "confidence": confidence}
    with bars() as shown:
        shipped = _audit_shipped(mechanism, options, shown)
        attack = _attack_members(mechanism, options, shown)
        planted = _audit_planted(mechanism, options, shown) if self_test else {}
    _print_shipped(shipped)
    if attack:
        _print_membership(attack)
    if self_test:
        _print_planted(planted)
    if json is not None:
        _write(json, shipped, attack, planted)
    refuted = [report.mechanism for report in shipped if report.caught]
    missed = [" / ".join(key) for key, report in planted.items() if not report.caught]
    _verdict(refuted, missed, attack is not None and attack.caught)


def _names(mechanism: Audited) -> list[str]:
    return [one.value for one in Audited if one is not Audited.all] if mechanism is Audited.all else [mechanism.value]


# The attacks are imported where they run: no other command needs them.
def _audit_shipped(mechanism: Audited, options: dict[str, Any], shown: Bars) -> list[AuditReport]:
    from idiolect_adapters.audit.domain_canaries import shipped_domain
    from idiolect_adapters.audit.global_canaries import shipped_global
    from idiolect_adapters.audit.lora_canaries import shipped_lora
    from idiolect_adapters.audit.run import audit_mechanism
    from idiolect_adapters.audit.user_canaries import shipped_user

    of: dict[str, Callable[[], Mechanism[Any]]] = {
        "user": shipped_user,
        "domain": shipped_domain,
        "lora": shipped_lora,
        "global": shipped_global,
    }
    return [
        audit_mechanism(of[name](), **options, progress=shown.stage(f"{name} canaries")) for name in _names(mechanism)
    ]


def _attack_members(mechanism: Audited, options: dict[str, Any], shown: Bars) -> MembershipReport | None:
    from idiolect_adapters.audit.membership import membership_inference

    if "user" not in _names(mechanism):
        return None
    update = shown.stage("membership inference")
    report = membership_inference(options["epsilon"], options["delta"])
    update(report.targets, report.targets)
    return report


def _audit_planted(mechanism: Audited, options: dict[str, Any], shown: Bars) -> dict[tuple[str, str], AuditReport]:
    from idiolect_adapters.audit import faults
    from idiolect_adapters.audit.run import audit_mechanism

    of = {
        "user": faults.planted_user_faults,
        "domain": faults.planted_domain_faults,
        "lora": faults.planted_lora_faults,
        "global": faults.planted_global_faults,
    }
    todo = [((name, fault), broken) for name in _names(mechanism) for fault, broken in of[name]().items()]
    update, reports = shown.stage("planted faults"), {}
    for key, broken in todo:
        reports[key] = audit_mechanism(broken, **options, stop_when_caught=True)
        update(len(reports), len(todo))
    return reports


def _print_shipped(reports: list[AuditReport]) -> None:
    table = Table(title="shipped mechanisms", box=SIMPLE_HEAD)
    for name in ("mechanism", "canary", "trials", "epsilon >=", "if Gaussian >=", "claimed", "ratio"):
        table.add_column(name, justify="left" if name in ("mechanism", "canary") else "right")
    for report in reports:
        for row in report.canaries:
            best = max(row.lower_bound, row.lower_bound_gdp)
            bounds = (f"{row.lower_bound:.2f}", f"{row.lower_bound_gdp:.2f}", f"{report.epsilon_claimed:g}")
            ratio = f"{best / report.epsilon_claimed:.2f}"
            table.add_row(report.mechanism, row.canary, f"2 x {row.trials:,}", *bounds, ratio)
        for complaint in report.structure:
            table.add_row(report.mechanism, complaint)
    console.print(table)
    if reports:
        console.print(
            f"delta {reports[0].delta:g}; all bounds of a mechanism hold at once with confidence "
            f"{reports[0].confidence:g}. The first assumes nothing; the second assumes the trade-off curve of a "
            "Gaussian mechanism, as the claim does, so either above the claim refutes it."
        )


def _print_membership(report: MembershipReport) -> None:
    title = f"membership inference on user adapters (AUC {report.auc:.3f})"
    table = Table(
        "false positives", "true positives", "surely", "claim allows", "if Gaussian", title=title, box=SIMPLE_HEAD
    )
    for point in report.points:
        rates = (point.true_positive_rate, point.tpr_at_least, point.allowed, point.allowed_gdp)
        table.add_row(f"{point.false_positive_rate:.1%}", *(f"{rate:.2%}" for rate in rates))
    console.print(table)
    console.print(f"{report.targets} comparisons, {report.trials:,} adapters with and as many without them.")


def _print_planted(reports: dict[tuple[str, str], AuditReport]) -> None:
    table = Table("mechanism", "planted fault", "verdict", "by", "epsilon >=", title="self-test", box=SIMPLE_HEAD)
    for (name, fault), report in reports.items():
        verdict = "[green]caught[/]" if report.caught else "[red]missed[/]"
        best = max(report.lower_bound, report.lower_bound_gdp)
        shown = (report.evidence, f"{best:.1f}") if report.caught and not report.structure else (report.evidence, "")
        table.add_row(name, fault, verdict, *shown)
    console.print(table)


def _write(
    path: Path,
    shipped: list[AuditReport],
    attack: MembershipReport | None,
    planted: dict[tuple[str, str], AuditReport],
) -> None:
    outcome = {
        "mechanisms": [report.to_json() for report in shipped],
        "membership": attack.to_json() if attack else None,
        "self_test": [report.to_json() | {"fault": fault} for (_, fault), report in planted.items()],
    }
    path.write_text(jsonlib.dumps(outcome, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _verdict(refuted: list[str], missed: list[str], members_shown: bool) -> None:
    """Every reason to fail, then status 1; or one line that all is well."""
    for name in refuted:
        console.print(f"[bold red]The claim of the {name} mechanism is refuted.[/] Do not release with it.")
    if members_shown:
        console.print("[bold red]Membership inference beats the claim.[/] Do not release user adapters.")
    for fault in missed:
        console.print(f"[bold red]Missed: {fault}.[/] Use more trials, or a larger epsilon.")
    if refuted or missed or members_shown:
        raise typer.Exit(1)
    console.print("No attack shows more than the claim.")
