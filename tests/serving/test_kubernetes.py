import itertools
import pathlib
import re

import kubernetes_validate
import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

SERVING = pathlib.Path(__file__).resolve().parents[2] / "serving"
VERSIONS = ["1.31", kubernetes_validate.latest_version()]


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


MANIFESTS = {path.name: documents(path) for path in sorted((SERVING / "kubernetes").glob("*.yaml"))}
BY_KIND = {}
for manifest in itertools.chain.from_iterable(MANIFESTS.values()):
    BY_KIND.setdefault(manifest["kind"], []).append(manifest)


@pytest.fixture(scope="module")
def pod():
    return BY_KIND["Deployment"][0]["spec"]["template"]


@pytest.fixture(scope="module")
def server(pod):
    [container] = pod["spec"]["containers"]
    return container


@pytest.fixture(scope="module")
def kustomization():
    return documents(SERVING / "kustomization.yaml")[0]


@pytest.fixture(scope="module")
def model():
    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse((SERVING / "models.config").read_text(encoding="utf-8"), config)
    return config.model_config_list.config[0]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_are_valid(name, version):
    for document in MANIFESTS[name]:
        kubernetes_validate.validate(document, version, strict=True)


def test_a_misspelt_key_is_not_valid():
    document = yaml.safe_load(yaml.safe_dump(BY_KIND["Deployment"][0]))
    document["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)


def test_the_kinds_there_are():
    assert {kind: len(found) for kind, found in BY_KIND.items()} == {
        "Deployment": 1,
        "Service": 2,
        "HorizontalPodAutoscaler": 1,
        "PodDisruptionBudget": 1,
    }


def test_kustomization_has_every_manifest(kustomization):
    assert kustomization["kind"] == "Kustomization"
    assert sorted(kustomization["resources"]) == sorted(f"kubernetes/{name}" for name in MANIFESTS)
    [generator] = kustomization["configMapGenerator"]
    for file in generator["files"]:
        assert (SERVING / file).is_file() and ".." not in file


def test_selectors_match_the_pods(pod):
    labels = pod["metadata"]["labels"].items()
    deployment, budget = BY_KIND["Deployment"][0], BY_KIND["PodDisruptionBudget"][0]
    selectors = [deployment["spec"]["selector"]["matchLabels"], budget["spec"]["selector"]["matchLabels"]]
    selectors += [service["spec"]["selector"] for service in BY_KIND["Service"]]
    selectors += [rule["labelSelector"]["matchLabels"] for rule in pod["spec"]["topologySpreadConstraints"]]
    assert all(selector and selector.items() <= labels for selector in selectors)
    target = BY_KIND["HorizontalPodAutoscaler"][0]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"]  # they are the autoscaler's


def test_ports_exist(server):
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in server["args"])
    assert ports == {"grpc": int(flags["port"]), "rest": int(flags["rest_api_port"])}
    for service in BY_KIND["Service"]:
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["httpGet"]["port"] in ports


def test_probes_ask_for_the_model_that_is_configured(server, model):
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["httpGet"]["path"] == f"/v1/models/{model.name}"
    # A server at work is not killed for answering late: not before its longest request has had its time.
    liveness = server["livenessProbe"]
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in server["args"])
    assert liveness["periodSeconds"] * liveness["failureThreshold"] * 1000 > int(flags["rest_api_timeout_in_ms"])


def test_a_pod_that_ends_lets_requests_finish(pod, server):
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in server["args"])
    name, seconds = server["lifecycle"]["preStop"]["exec"]["command"]
    timeout = int(flags["rest_api_timeout_in_ms"]) / 1000
    assert name == "sleep" and timeout < int(seconds) < pod["spec"]["terminationGracePeriodSeconds"]


def test_flags_are_those_of_compose(server):
    """But for the polling: here a change of the configuration is a rollout."""
    compose = yaml.safe_load((SERVING / "compose.yaml").read_text(encoding="utf-8"))["services"]["server"]
    polling = "--model_config_file_poll_wait_seconds=10"
    assert server["args"] == [flag for flag in compose["command"] if flag != polling]
    assert server["image"] == compose["image"] and server["command"] == compose["entrypoint"]


def test_configuration_is_in_the_config_map(pod, server, kustomization):
    [generator] = kustomization["configMapGenerator"]
    keys = {pathlib.PurePosixPath(file).name for file in generator["files"]}
    [volume] = [volume for volume in pod["spec"]["volumes"] if volume["name"] == "config"]
    assert volume["configMap"]["name"] == generator["name"]
    words = [*server["args"], *pod["spec"]["initContainers"][0]["command"]]
    used = set(re.findall(r"/config/(\S+)", " ".join(words)))
    assert used == keys


def test_volumes_are_mounted(pod, server, model):
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    containers = [*pod["spec"]["initContainers"], server]
    mounts = [mount for container in containers for mount in container["volumeMounts"]]
    assert {mount["name"] for mount in mounts} == volumes
    assert model.base_path.startswith("/models/")
    assert {mount["mountPath"] for mount in mounts} == {"/config", "/models", "/tmp"}
    assert all(mount.get("readOnly") for mount in server["volumeMounts"] if mount["name"] != "tmp")


def test_containers_are_confined(pod, server):
    context = pod["spec"]["securityContext"]
    assert context["runAsNonRoot"] and context["runAsUser"] > 0
    assert context["seccompProfile"]["type"] == "RuntimeDefault"
    assert not pod["spec"]["automountServiceAccountToken"]
    for container in [*pod["spec"]["initContainers"], server]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] and context["allowPrivilegeEscalation"] is False
        assert context["capabilities"]["drop"] == ["ALL"]
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert container["resources"]["limits"]["memory"]
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in server["args"])
    assert flags["tensorflow_intra_op_parallelism"] == server["resources"]["limits"]["cpu"]


def test_prometheus_finds_the_metrics(pod, server):
    annotations = pod["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] in (SERVING / "monitoring.config").read_text()
    assert int(annotations["prometheus.io/port"]) in [port["containerPort"] for port in server["ports"]]


def test_every_version_that_is_served_is_fetched(model):
    lines = (SERVING / "kubernetes" / "releases.txt").read_text(encoding="utf-8").splitlines()
    numbers = [int(line.split()[0]) for line in lines if not line.startswith("#")]
    assert numbers == list(model.model_version_policy.specific.versions)
