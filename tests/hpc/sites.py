"""Texts as Slurm 22.05 and 24.11 print them, and the site that they describe."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hpc import site_answers, site_text
from hpc.site import Site

CONFIG = """Configuration data as of 2026-11-22T18:24:42
AccountingStorageEnforce = associations,limits,qos
AccountingStorageType   = accounting_storage/slurmdbd
ClusterName             = noctua2
EnforcePartLimits       = NO
JobRequeue              = 1
KillWait                = 30 sec
MaxArraySize            = 1001
MaxJobCount             = 10000
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
PowerPlugin             =
SLURM_VERSION           = 22.05.8
SlurmctldParameters     = (null)

Slurmctld(primary) at vm is UP
"""

PARTITIONS = (
    "PartitionName=gpu AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES QoS=N/A "
    "DefaultTime=2-00:00:00 DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO MaxNodes=UNLIMITED "
    "MaxTime=7-00:00:00 MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED Nodes=n2gpu[1201-1224] PriorityJobFactor=1 "
    "PriorityTier=10 RootOnly=NO ReqResv=NO OverSubscribe=EXCLUSIVE OverTimeLimit=NONE PreemptMode=OFF State=UP "
    "TotalCPUs=3072 TotalNodes=24 SelectTypeParameters=NONE JobDefaults=(null) DefMemPerNode=UNLIMITED "
    "MaxMemPerNode=UNLIMITED TRES=cpu=3072,mem=11520G,node=24,billing=3072\n"
)


def node(number: int, changes: dict[str, str] | None = None) -> str:
    """One line of ``scontrol show node -o``."""
    values = {
        "NodeName": f"n2gpu{number}",
        "CoresPerSocket": "64 ",
        "CPUEfctv": "128",
        "CPUTot": "128",
        "AvailableFeatures": "ib,a100" if number < 1213 else "ib",
        "Gres": "gpu:a100:4(S:0-1)",
        "OS": "Linux 6.18.44-fc-v657 #1 SMP PREEMPT_DYNAMIC @0 ",
        "RealMemory": "491520",
        "Sockets": "2",
        "State": "IDLE",
        "Partitions": "gpu ",
        "CfgTRES": "cpu=128,mem=480G,billing=128,gres/gpu=4",
        "AllocTRES": "",
    } | (changes or {})
    return " ".join(f"{key}={value}" for key, value in values.items()) + "\n"


NODES = "".join(node(number) for number in range(1201, 1225))

# Cluster|Account|Partition|DefaultAccount|DefaultQOS|QOS|MaxWall|MaxTRES|MaxTRESPerNode|MaxSubmit|GrpTRES|GrpSubmit
ASSOCIATIONS = """noctua2|lang||lang|normal|long,normal,big||mem=9000G||4||
noctua2|sub||lang||normal|5-00:00:00|||||
noctua2|speech|gpu|lang||normal||||||
elsewhere|games||lang||normal||||||
"""
# Cluster|Account|ParentName|GrpTRES|GrpSubmit
ACCOUNTS = """noctua2|root|||
noctua2|lang|root|node=12|
noctua2|sub|lang||
noctua2|speech|root||
"""
# Name|Flags|MaxWall|MaxTRES|MaxTRESPerNode|MaxTRESPU|MaxTRESPA|MaxSubmitPU|MaxSubmitPA|GrpTRES|GrpSubmit
QOS = """normal|||||gres/gpu=32|||||
long||12:00:00|gres/gpu=6,node=2||||3||node=3|
big|PartitionTimeLimit,PartitionMaxNodes|9-00:00:00||||||||
part|DenyOnLimit|||cpu=64||||||
"""
RESERVATIONS = (
    "ReservationName=r1 StartTime=2026-11-22T18:24:42 EndTime=2026-11-22T19:24:42 Duration=01:00:00 Nodes=n2gpu1201 "
    "NodeCnt=1 CoreCnt=128 Features=(null) PartitionName=(null) Flags=SPEC_NODES TRES=cpu=128 Users=(null) "
    "Groups=(null) Accounts=sub Licenses=(null) State=ACTIVE BurstBuffer=(null) Watts=n/a MaxStartDelay=(null)\n"
    "ReservationName=open StartTime=2026-11-22T18:24:42 EndTime=2026-11-23T19:24:42 Duration=01:00:00 "
    "Nodes=n2gpu[1201-1204] NodeCnt=4 Users=-bob Groups=(null) Accounts=(null)\n"
)


def site(partitions: str = PARTITIONS, nodes: str = NODES, accounting: bool = False, **settings: str) -> Site:
    """What the texts say; with accounting, to a user of three accounts.

    Args:
        settings: of ``scontrol show config``, in place of those above.
    """
    config = site_text.config(CONFIG) | settings
    if not accounting:
        config |= {"AccountingStorageType": "accounting_storage/none", "AccountingStorageEnforce": "none"}
    groups, down = site_answers.nodes(nodes)
    found = Site(
        config,
        site_answers.partitions(partitions),
        user="alice",
        groups=("users",),
        nodes=groups,
        down=down,
        reservations=site_answers.reservations(RESERVATIONS),
    )
    if not accounting:
        return found
    return replace(
        found,
        associations=site_answers.associations(ASSOCIATIONS, "noctua2"),
        accounts=site_answers.accounts(ACCOUNTS, "noctua2"),
        qos=site_answers.all_qos(QOS),
        queued=Counter({("lang", "normal"): 3, ("lang", "long"): 2}),
    )
