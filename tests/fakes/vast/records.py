"""How an instance looks on the wire."""

from __future__ import annotations

from typing import Any

from tests.fakes.vast.answers import Shapes
from tests.fakes.vast.machine import Instance


def instance_record(instance: Instance, now_s: float, balance_usd: float, shapes: Shapes) -> dict[str, Any]:
    """One record of the list and of the single show."""
    offer, endpoint = instance.offer, instance.endpoint
    disk = instance.storage_usd_per_h
    wire = offer.wire(now_s, instance.is_bid, instance.disk_gb)
    names = (
        "machine_id", "host_id", "num_gpus", "gpu_name", "gpu_ram", "gpu_total_ram", "gpu_frac", "cpu_name",
        "cpu_cores", "cpu_cores_effective", "cpu_ram", "disk_bw", "inet_up", "inet_down", "inet_up_cost",
        "inet_down_cost", "min_bid", "storage_cost", "reliability2", "verification", "geolocation", "static_ip",
        "direct_port_count", "rentable", "cuda_max_good", "driver_version", "score", "dlperf",
    )  # fmt: skip
    record = {name: wire[name] for name in names}
    running = instance.actual == "running" and instance.running_since_s is not None
    record |= {
        "id": instance.id, "label": instance.label, "actual_status": instance.actual,
        "intended_status": instance.intended, "cur_state": instance.current, "next_state": instance.following,
        "status_msg": instance.message or None, "image_uuid": instance.image,
        "image_runtype": f"ssh {instance.runtype}", "image_args": list(instance.arguments),
        "extra_env": [list(pair) for pair in instance.environment], "onstart": instance.onstart,
        "is_bid": instance.is_bid, "dph_base": instance.gpu_usd_per_h, "dph_total": instance.gpu_usd_per_h + disk,
        "storage_total_cost": disk, "disk_space": instance.disk_gb, "disk_usage": 0.1 if running else -1,
        "start_date": instance.created_s, "end_date": instance.end_s, "duration": max(0.0, instance.end_s - now_s),
        "uptime_mins": None, "gpu_util": 0.0 if running else None, "gpu_temp": 41.0 if running else None,
        "cpu_util": 0.0, "mem_usage": None, "credit_balance": balance_usd, "volume_info": [],
        "local_ipaddrs": "10.0.0.5", "ssh_idx": str(instance.id % 9),
        "ssh_host": endpoint.ssh_host if endpoint else None, "ssh_port": endpoint.ssh_port if endpoint else None,
        "machine_dir_ssh_port": 21000, "direct_port_start": -1, "direct_port_end": -1, "public_ipaddr": None,
    }  # fmt: skip
    if running:
        assert instance.running_since_s is not None
        record["uptime_mins"] = (now_s - instance.running_since_s) / 60
    if endpoint and endpoint.direct_host is not None:
        record["public_ipaddr"] = endpoint.direct_host + shapes.address_suffix
    ports = _ports(instance, now_s)
    if ports is not None or not shapes.absent_ports:
        record["ports"] = ports
    return record


def _ports(instance: Instance, now_s: float) -> dict[str, Any] | None:
    """The port map of a running instance with a direct port; null until it is known."""
    endpoint = instance.endpoint
    if instance.actual != "running" or instance.running_since_s is None or endpoint is None:
        return None
    late = now_s < instance.running_since_s + instance.boot.ports_s
    if instance.boot.trouble == "no_ports" or late or endpoint.direct_port is None or "direc" not in instance.runtype:
        return None
    port = str(endpoint.direct_port)
    return {"22/tcp": [{"HostIp": "0.0.0.0", "HostPort": port}, {"HostIp": "::", "HostPort": port}]}
