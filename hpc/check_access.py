"""Whether a site lets this user submit this request: partition, account, QoS, reservation, number of jobs. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from hpc.config import Config
from hpc.request import Request
from hpc.site import Reservation, Site
from hpc.terms import Limit, Terms, lineage, tightest
from trainer.problems import Problem


def problems(terms: Terms) -> list[Problem]:
    """Why the request may not be submitted as it is, its shape and length apart."""
    return [*_account(terms), *_qos(terms), *_reservation(terms)]


def submission(config: Config, request: Request, site: Site | None, runs: int) -> list[Problem]:
    """Whether so many runs may be submitted beside the jobs that the user has queued."""
    if site is None:
        return []
    limits = [Limit(site.max_jobs, f"scontrol show config: MaxJobCount={site.max_jobs}")] if site.max_jobs else []
    for limit, queued in Terms(config, request, site).submitted():
        limits.append(Limit(limit.value - queued, f"{limit.source}, and {queued} of yours are in the queue"))
    if not limits or runs <= (most := tightest(limits)).value:
        return []
    left = max(0, int(most.value))
    fix = f"at most {left} runs at once" if left and runs > 1 else "wait for some, or hpc cancel them"
    return [Problem("hpc submit", f"{runs} run{'s' * (runs > 1)}", f"{left} more are taken now ({most.source})", fix)]


def partition(terms: Terms) -> Iterator[Problem]:
    """Whether the partition is there, takes jobs, and takes this user's."""
    site, name, partition = terms.site, terms.request.partition, terms.partition
    elsewhere = _other_partition(terms)
    if partition is None:
        allowed = f"the Slurm of {site.name} has no such partition (scontrol show partition: "
        yield Problem("job.partition", name, f"{allowed}{', '.join(site.partitions)})", elsewhere)
        return
    if partition.state in ("DRAIN", "INACTIVE"):
        yield Problem("job.partition", name, f"takes no jobs now ({terms.source('State', partition.state)})", elsewhere)
    groups = partition.allow_groups
    if groups and site.user != "root" and not set(groups) & set(site.groups):
        allowed = f"is not for {site.user} ({terms.source('AllowGroups', ','.join(groups))})"
        yield Problem("job.partition", name, allowed, elsewhere)


def _other_partition(terms: Terms) -> str:
    known, name = terms.site.partitions, terms.request.partition
    others = [p for p in terms.config.cluster.partitions if p != name and p in known and known[p].state == "UP"]
    return f"job.partition={others[0]}" if others else ""


def _account(terms: Terms) -> Iterator[Problem]:
    account, partition, site = terms.account, terms.partition, terms.site
    assert partition is not None
    where = terms.where
    given = terms.config.job.account or terms.config.cluster.account or f"null ({account})"
    mine = [a.account for a in site.associations or () if a.partition in ("", terms.request.partition)]
    if site.associations is not None and site.enforces("associations") and terms.association is None:
        known = ", ".join(dict.fromkeys(mine)) or "none"
        allowed = f"the accounts of {site.user} here are: {known} (sacctmgr show assoc user={site.user})"
        yield Problem("job.account", given, allowed, f"job.account={mine[0]}" if mine else "")
        return
    # What is allowed for an account is so for those below it on newer Slurms; 22.05 was seen to compare names alone.
    names = {account, *(lineage(site, account) if site.version >= (23, 2) else ())}
    if not account:
        return
    if partition.allow_accounts and not names & set(partition.allow_accounts):
        best = next((name for name in mine if name in partition.allow_accounts), None)
        source = terms.source("AllowAccounts", ",".join(partition.allow_accounts))
    elif not partition.allow_accounts and names & set(partition.deny_accounts):
        best = next((name for name in mine if name not in partition.deny_accounts), None)
        source = terms.source("DenyAccounts", ",".join(partition.deny_accounts))
    else:
        return
    fix = f"job.account={best}" if best else _other_partition(terms)
    yield Problem("job.account", given, f"{where} does not take it ({source})", fix)


def _qos(terms: Terms) -> Iterator[Problem]:
    name, partition, association, site = terms.qos_name, terms.partition, terms.association, terms.site
    assert partition is not None
    if not site.enforces("qos") or association is None or name is None:
        return
    given = terms.config.job.qos or terms.config.cluster.qos or f"null ({name})"
    if name not in association.qos:
        allowed = f"account {association.account} gives: {', '.join(association.qos) or 'none'}"
        fix = f"job.qos={association.qos[0]}" if association.qos else ""
        yield Problem("job.qos", given, f"{allowed} (sacctmgr show assoc user={site.user} format=account,qos)", fix)
        return
    if partition.allow_qos and name not in partition.allow_qos:
        best = next((each for each in association.qos if each in partition.allow_qos), None)
        source = terms.source("AllowQos", ",".join(partition.allow_qos))
    elif not partition.allow_qos and name in partition.deny_qos:
        best = next((each for each in association.qos if each not in partition.deny_qos), None)
        source = terms.source("DenyQos", ",".join(partition.deny_qos))
    else:
        return
    fix = f"job.qos={best}" if best else _other_partition(terms)
    yield Problem("job.qos", given, f"{terms.where} does not take it ({source})", fix)


def _reservation(terms: Terms) -> Iterator[Problem]:
    name, site = terms.reservation, terms.site
    mine = [each.name for each in (site.reservations or {}).values() if _admits(each, terms)]
    if name is None:
        if terms.partition is not None and terms.partition.needs_reservation:
            allowed = f"{terms.where} is for reservations ({terms.source('ReqResv', 'YES')})"
            yield Problem("job.reservation", "null", allowed, f"job.reservation={mine[0] if mine else 'NAME'}")
        return
    if site.reservations is None or name in mine:
        return
    fix = f"job.reservation={mine[0]}" if mine else "job.reservation=null"
    known = site.reservations.get(name)
    if known is None:
        listed = ", ".join(site.reservations) or "none"
        yield Problem("job.reservation", name, f"there are: {listed} (scontrol show reservation)", fix)
        return
    parts = {"Users": known.users, "Accounts": known.accounts, "Groups": known.groups}
    who = " ".join(f"{key}={','.join(value)}" for key, value in parts.items() if value)
    yield Problem("job.reservation", name, f"is for others (scontrol show reservation {name}: {who})", fix)


def _admits(reservation: Reservation, terms: Terms) -> bool:
    """Whether a reservation is for this user and account; a name with "-" before it is kept out."""
    site, account = terms.site, terms.account
    for listed, mine in (
        (reservation.users, {site.user}),
        (reservation.groups, set(site.groups)),
        (reservation.accounts, {account, *lineage(site, account)}),
    ):
        denied = {name.removeprefix("-") for name in listed if name.startswith("-")}
        if denied & mine or (listed and not denied and not set(listed) & mine):
            return False
    return True
