from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

CLUSTERS = Path(__file__).resolve().parent.parent / "clusters"
LAUNCHER_FILES = [
    path for path in sorted(CLUSTERS.glob("*.yaml")) if "provider" in yaml.safe_load(path.open())
]
PROVIDER_KEYS = {  # Ray checks no spelling below `provider`
    "aws": {"type", "region", "availability_zone", "cache_stopped_nodes", "security_group"},
    "local": {"type", "head_ip", "worker_ips"},
}
NODE_KEYS = {  # nor below `node_config`, which goes to EC2's RunInstances as it stands
    "InstanceType",
    "ImageId",
    "BlockDeviceMappings",
    "InstanceMarketOptions",
    "IamInstanceProfile",
    "KeyName",
    "SubnetIds",
    "SecurityGroupIds",
}


@pytest.fixture(params=LAUNCHER_FILES, ids=lambda path: path.name)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(request.param.read_text())
    return parsed


@pytest.fixture
def gpu() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((CLUSTERS / "gpu.yaml").read_text())
    return parsed


def test_rays_schema_accepts_the_file(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))


def test_what_rays_schema_does_not_see(config: dict[str, Any]) -> None:
    provider = config["provider"]
    assert set(provider) <= PROVIDER_KEYS[provider["type"]]
    for name, node in config.get("available_node_types", {}).items():
        assert 0 <= node["min_workers"] <= node["max_workers"] <= config["max_workers"], name
        assert set(node["node_config"]) <= NODE_KEYS, name


def test_images_are_pinned_in_one_line(gpu: dict[str, Any]) -> None:
    images = {node["node_config"]["ImageId"] for node in gpu["available_node_types"].values()}
    assert len(images) == 1
    assert images.pop().startswith("ami-")
    text = (CLUSTERS / "gpu.yaml").read_text()
    assert text.count("ami-0") == 1
    assert [text.count(f"# EDIT {i}") for i in (1, 2, 3, 4)] == [1, 1, 1, 0]


def test_gpus_are_rented_for_waiting_work_alone(gpu: dict[str, Any]) -> None:
    head, worker = (gpu["available_node_types"][name] for name in ("head", "gpu"))
    assert gpu["head_node_type"] == "head"
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert worker["min_workers"] == 0
    assert worker["resources"]["GPU"] > 0
    assert 0 < gpu["idle_timeout_minutes"] <= 30


def test_setup_installs_the_tested_versions(gpu: dict[str, Any]) -> None:
    assert gpu["file_mounts"] == {"~/srdd": "."}
    install = next(line for line in gpu["setup_commands"] if "pip install" in line)
    assert "-c ~/srdd/constraints.txt" in install
    assert "-e ~/srdd " in install
    assert "/runs" in gpu["rsync_exclude"]
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in gpu["head_start_ray_commands"][-1]
    assert "--address=$RAY_HEAD_IP:6379" in gpu["worker_start_ray_commands"][-1]


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """EC2 and IAM as moto mocks them in this process: nothing is connected to, nothing is run."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
    monkeypatch.setenv("HOME", str(tmp_path))  # the new key pair is written below it
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.aws import config as bootstrap
    from ray.autoscaler._private.aws import utils

    monkeypatch.setattr(bootstrap, "time", SimpleNamespace(sleep=lambda seconds: None))
    with mock_aws():
        for cache in (utils.resource_cache, utils.client_cache):
            cache.cache_clear()
        yield boto3
        for cache in (utils.resource_cache, utils.client_cache):
            cache.cache_clear()


def test_the_launcher_creates_what_the_file_says(gpu: dict[str, Any], aws: Any) -> None:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(gpu)
    validate_config(config)
    config = AWSNodeProvider.fillout_available_node_types_resources(config)
    config = AWSNodeProvider.bootstrap_config(config)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, node in config["available_node_types"].items():
        is_head = name == config["head_node_type"]
        node_config = dict(node["node_config"]) | (config["head_node"] if is_head else {})
        tags = {
            "ray-node-type": "head" if is_head else "worker",
            "ray-user-node-type": name,
            "ray-cluster-name": config["cluster_name"],
        }
        provider.create_node(node_config, tags, 1)

    ec2 = aws.client("ec2", region_name=gpu["provider"]["region"])
    instances = {
        next(tag["Value"] for tag in instance["Tags"] if tag["Key"] == "ray-user-node-type"): (
            instance
        )
        for reservation in ec2.describe_instances()["Reservations"]
        for instance in reservation["Instances"]
    }
    assert set(instances) == {"head", "gpu"}
    for name, instance in instances.items():
        asked = gpu["available_node_types"][name]["node_config"]
        assert instance["InstanceType"] == asked["InstanceType"]
        assert instance["ImageId"] == asked["ImageId"]
        (disk,) = instance["BlockDeviceMappings"]
        (volume,) = ec2.describe_volumes(VolumeIds=[disk["Ebs"]["VolumeId"]])["Volumes"]
        assert volume["Size"] == 200
    assert "IamInstanceProfile" in instances["head"]  # it starts the workers
    assert "IamInstanceProfile" not in instances["gpu"]
    assert instances["head"]["KeyName"] == instances["gpu"]["KeyName"]
    types = ec2.describe_instance_types(
        InstanceTypes=[instance["InstanceType"] for instance in instances.values()]
    )["InstanceTypes"]
    gpus = {
        kind["InstanceType"]: sum(card["Count"] for card in kind.get("GpuInfo", {}).get("Gpus", []))
        for kind in types
    }
    cpus = {kind["InstanceType"]: kind["VCpuInfo"]["DefaultVCpus"] for kind in types}
    worker = instances["gpu"]["InstanceType"]
    promised = gpu["available_node_types"]["gpu"]["resources"]
    assert promised == {"CPU": cpus[worker], "GPU": gpus[worker]}
    assert gpus[instances["head"]["InstanceType"]] == 0
