"""Slurm's texts and what is read from them, with the spaces, nulls and free text that they hold."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from hpc import site_answers, site_text
from hpc.site import Site
from tests.hpc import sites

KEYS = st.from_regex(r"[A-Z][A-Za-z_]{0,12}", fullmatch=True)
# What a value holds: words without "=", or with one after a small letter, as in TRES and in OS.
WORDS = st.from_regex(r"[a-z0-9(#/][A-Za-z0-9()#/=,.:+-]{0,12}", fullmatch=True)
VALUES = st.lists(WORDS, max_size=3).map(" ".join)
FREE = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=60)


@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=12))
def test_pairs_are_read_back_whatever_their_values(values: dict[str, str]) -> None:
    line = " ".join(f"{key}={value}" for key, value in values.items())
    assert site_text.pairs(line) == values


@given(FREE)
def test_what_people_write_changes_no_field_before_it(reason: str) -> None:
    [group], down = site_answers.nodes(sites.node(1201, {"State": "DOWN*", "Reason": reason}))
    [plain], _ = site_answers.nodes(sites.node(1201))
    assert group == plain
    assert down == {"n2gpu1201"}


@given(st.text())
def test_no_text_breaks_a_parser(text: str) -> None:
    site_text.config(text)
    site_answers.partitions(f"PartitionName={text}")
    site_answers.nodes(f"NodeName=n {text}")
    site_answers.reservations(f"ReservationName=r {text}")
    site_answers.associations(text, "noctua2")
    site_answers.accounts(text, "noctua2")
    site_answers.all_qos(text)
    site_answers.queued(text)
    site_text.gpus(text)
    site_text.amounts(text)


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9]{0,6}", fullmatch=True), st.integers(1, 16), max_size=3))
def test_gpus_by_type(kinds: dict[str, int]) -> None:
    parts = [f"gpu:{kind}:{number}(S:0,{number})" for kind, number in kinds.items()]
    assert dict(site_text.gpus(",".join([*parts, "mps:400"]))) == kinds


def test_gpus_without_a_type_and_slices_of_one() -> None:
    assert site_text.gpus("gpu:4") == (("", 4),)
    assert site_text.gpus("gpu:1g.5gb:7,gpu:a100:no_consume:1") == (("1g.5gb", 7), ("a100", 1))
    assert site_text.gpus("(null)") == ()


def test_amounts_have_units() -> None:
    assert site_text.amounts("cpu=512,mem=1.5T,gres/gpu:a100=16") == {
        "cpu": 512,
        "mem": 1.5 * 2**20,
        "gres/gpu:a100": 16,
    }
    assert site_text.amounts("mem=2000M,node=4") == {"mem": 2000, "node": 4}


def test_a_partition_with_limits_and_one_without() -> None:
    plain = site_answers.partition(sites.PARTITIONS)
    assert (plain.max_time, plain.default_time, plain.max_nodes, plain.max_memory) == (604800, 172800, None, None)
    assert (plain.default, plain.exclusive, plain.qos, plain.allow_accounts) == (True, True, None, ())
    line = sites.PARTITIONS.replace("AllowAccounts=ALL", "DenyAccounts=a,b").replace("QoS=N/A", "QoS=part")
    line = line.replace("MaxTime=7-00:00:00", "MaxTime=UNLIMITED").replace("MaxNodes=UNLIMITED", "MaxNodes=2")
    line = line.replace("DefaultTime=2-00:00:00", "DefaultTime=NONE").replace(
        "MaxMemPerNode=UNLIMITED", "MaxMemPerCPU=100"
    )
    limited = site_answers.partition(line)
    assert (limited.max_time, limited.default_time, limited.max_nodes) == (math.inf, None, 2)
    assert (limited.deny_accounts, limited.qos, limited.max_memory_per_cpu) == (("a", "b"), "part", 100)


def test_nodes_that_are_alike_are_together() -> None:
    site = sites.site()
    assert [len(group.names) for group in site.nodes_of("gpu")] == [12, 12]
    assert site.nodes_of("gpu")[0].features == ("ib", "a100")
    assert site.nodes_of("cpu") == []
    for state, unusable in {"IDLE+DRAIN": True, "MIXED+PLANNED": False, "DOWN*+NOT_RESPONDING": True}.items():
        assert bool(site_answers.nodes(sites.node(1201, {"State": state}))[1]) is unusable
    # A core that is kept for the system is no job's.
    [kept], _ = site_answers.nodes(sites.node(1201, {"CPUEfctv": "126"}))
    assert (kept.cpus, kept.cores) == (126, 128)


def test_accounting_of_other_clusters_is_not_ours() -> None:
    site = sites.site(accounting=True)
    assert [each.account for each in site.associations or ()] == ["lang", "sub", "speech"]
    assert site.associations and site.associations[0].qos == ("long", "normal", "big")
    assert site.associations[0].limits.max_tres == {"mem": 9000 * 1024}
    assert site.associations[1].limits.max_wall == 5 * 86400
    assert site.accounts["sub"].parent == "lang"
    assert site.qos and site.qos["long"].limits.max_submit == 3
    assert site.qos["long"].limits.grp_tres == {"node": 3}


def test_settings_and_the_controllers_time() -> None:
    config = site_text.config(sites.CONFIG)
    assert config["PowerPlugin"] == "" and config["KillWait"] == "30 sec"
    assert config[site_text.AS_OF] == "2026-11-22T18:24:42"
    site = Site(config, {}, "alice")
    assert (site.version, site.max_array_size, site.requeue) == ((22, 5), 1001, True)
    assert site.enforces("limits") and not site.enforces("safe")


def test_jobs_are_counted_by_account_and_qos() -> None:
    assert site_answers.queued("lang|normal\nlang|normal\n(null)|(null)\n")[("lang", "normal")] == 2
