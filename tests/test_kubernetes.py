"""The manifests in examples/kubernetes: by Kubernetes' published schemas, and by what the program
does with them. No cluster runs here; tests/test_docker.py runs their containers."""

import base64
import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import requests
import yaml

from tests.programs import Program, command, program, run
from tests.support import DEADLINE, closed_port, eventually, get, letters
from tests.test_program import admin, needs_fork

FOLDER = Path(__file__).parents[1] / "examples" / "kubernetes"
OPERATIONS = (FOLDER.parents[1] / "docs" / "operations.md").read_text(encoding="utf-8")
VERSIONS = ["1.25", kubernetes_validate.latest_version()]
PASSWORD = "made-up"

Manifest = dict[str, Any]
kubectl, prometheus = shutil.which("kubectl"), shutil.which("prometheus")
needs_kubectl = pytest.mark.skipif(not kubectl, reason="not installed: kubectl")


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def manifests() -> list[Manifest]:
    return [
        one
        for name in read("kustomization.yaml")["resources"]
        for one in yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))
    ]


def the(kind: str, name: str) -> Manifest:
    [found] = [one for one in manifests() if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def container(name: str) -> Manifest:
    pod = the("Deployment", name)["spec"]["template"]["spec"]
    [found] = pod["containers"]
    assert isinstance(found, dict)
    return found


def settings() -> str:
    text = the("ConfigMap", "pyproxy")["data"]["appsettings.json"]
    assert isinstance(text, str)
    return text


def validate(manifest: Manifest, version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_there_is_all_that_the_page_promises() -> None:
    kinds = ["ConfigMap", "Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"]
    expected = {(kind, "pyproxy") for kind in kinds} | {(kind, "target") for kind in kinds[1:]}
    assert {(one["kind"], one["metadata"]["name"]) for one in manifests()} == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_obeys_its_schema(version: str) -> None:
    for one in manifests():
        validate(one, version)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ["spec", "template", "spec", "containers", 0, "readOnly"], True),
        ("Deployment", ["spec", "template", "spec", "terminationGracePeriodSeconds"], "45s"),
        ("Service", ["spec", "selectors"], {}),
        ("PodDisruptionBudget", ["spec", "maxUnavailable"], [1]),
        ("HorizontalPodAutoscaler", ["spec", "metrics", 0, "pods", "metric", "name"], None),
        ("ConfigMap", ["data", "appsettings.json"], {}),
    ],
)
def test_a_wrong_field_is_found(kind: str, path: list[Any], value: object) -> None:
    wrong = copy.deepcopy(the(kind, "pyproxy"))
    place = wrong
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(wrong, VERSIONS[-1])


def test_names_lead_to_what_they_mean() -> None:
    for name in ("pyproxy", "target"):
        deployment, service = the("Deployment", name)["spec"], the("Service", name)["spec"]
        pod = deployment["template"]
        labels = pod["metadata"]["labels"]
        budget = the("PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"]
        [spread] = pod["spec"]["topologySpreadConstraints"]
        assert deployment["selector"]["matchLabels"] == labels
        assert service["selector"] == budget == spread["labelSelector"]["matchLabels"] == labels
        scaled = the("HorizontalPodAutoscaler", name)["spec"]["scaleTargetRef"]
        assert scaled == {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
        ports = {one["name"] for one in container(name)["ports"]}
        assert {one["targetPort"] for one in service["ports"]} <= ports
        for kind, probe in container(name).items():
            assert not kind.endswith("Probe") or probe["httpGet"]["port"] in ports
    mounted = {one["name"]: one["mountPath"] for one in container("pyproxy")["volumeMounts"]}
    [volume] = the("Deployment", "pyproxy")["spec"]["template"]["spec"]["volumes"]
    assert volume["configMap"]["name"] == "pyproxy"
    assert container("pyproxy")["args"][1] == f"{mounted[volume['name']]}/appsettings.json"


def test_the_settings_fit_the_rest() -> None:
    said = json.loads(settings())
    headless = the("Service", "target")["spec"]
    assert headless["clusterIP"] == "None"
    assert said["targets"] == [f"dns://target:{headless['ports'][0]['port']}"]
    listening = {one["name"]: one["containerPort"] for one in container("pyproxy")["ports"]}
    assert said["listen"] == f"http://0.0.0.0:{listening['http']}"
    assert said["admin"]["listen"] == f"http://0.0.0.0:{listening['admin']}"


def test_there_is_time_for_requests_to_end() -> None:
    def sleep(name: str) -> int:
        return int(container(name)["lifecycle"]["preStop"]["exec"]["command"][1])

    def grace(name: str) -> int:
        pod = the("Deployment", name)["spec"]["template"]["spec"]
        return int(pod["terminationGracePeriodSeconds"])

    said = json.loads(settings())
    assert grace("pyproxy") > sleep("pyproxy") + said["timeouts"]["drain"]
    assert grace("target") > sleep("target") > said["resolving"] + 5


def test_nobody_has_rights_that_it_does_not_need() -> None:
    for name in ("pyproxy", "target"):
        pod = the("Deployment", name)["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        context = container(name)["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}


def variables() -> dict[str, str]:
    """The proxy's environment, as the cluster would make it."""
    [one] = container("pyproxy")["env"]
    assert one["valueFrom"]["secretKeyRef"] == {"name": "pyproxy-admin", "key": "password"}
    return {one["name"]: PASSWORD}


def test_the_program_accepts_the_settings_and_only_with_the_password(tmp_path: Path) -> None:
    file = tmp_path / "appsettings.json"
    file.write_text(settings())
    done = run("check", "--config", str(file), env=variables())
    assert done.returncode == 0, done.stderr
    without = run("check", "--config", str(file))
    assert without.returncode != 0
    assert "admin.password" in without.stderr


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    """A folder with the settings as the kubelet mounts them: behind two symbolic links."""
    folder = tmp_path / "etc"
    write(folder, "..1", json.loads(settings()))
    (folder / "appsettings.json").symlink_to("..data/appsettings.json")
    return folder


def write(folder: Path, version: str, said: dict[str, Any]) -> None:
    """A new version, which takes the place of the old one at one stroke."""
    (folder / version).mkdir(parents=True)
    (folder / version / "appsettings.json").write_text(json.dumps(said))
    (folder / "..data_tmp").symlink_to(version)
    (folder / "..data_tmp").rename(folder / "..data")


@pytest.fixture
def served(mounted: Path) -> Iterator[Program]:
    """The proxy with those settings, but on free ports, and with a log for the tests."""
    local = "http://127.0.0.1:0"
    other = {"listen": local, "admin.listen": local, "log.format": "text"}
    arguments = [word for key, value in other.items() for word in (f"--{key}", value)]
    file = str(mounted / "appsettings.json")
    with letters("a") as [a]:
        write(mounted, "..2", {**json.loads(settings()), "targets": [a.url]})
        with program("--config", file, *arguments, env=variables()) as proxy:
            yield proxy


def probe(served: Program, kind: str) -> int:
    """As the kubelet asks: without a password."""
    path = container("pyproxy")[kind]["httpGet"]["path"]
    return requests.get(admin(served) + path, timeout=DEADLINE).status_code


@needs_fork
def test_the_probes_are_answered_and_a_renewed_settings_map_takes_effect(
    served: Program, mounted: Path
) -> None:
    assert probe(served, "livenessProbe") == 200
    eventually(lambda: probe(served, "readinessProbe") == 200)
    assert get(served.url).status == 200
    write(mounted, "..3", {**json.loads(settings()), "targets": [closed_port()]})
    eventually(lambda: get(served.url).status == 503)
    assert probe(served, "livenessProbe") == 200
    eventually(lambda: probe(served, "readinessProbe") == 503)
    assert requests.get(f"{admin(served)}/status", timeout=DEADLINE).status_code == 401


def queries() -> dict[str, str]:
    """What the autoscalers' metrics are, as prometheus-adapter would ask for them."""
    said = read("prometheus-adapter.yaml")
    found = {}
    for rule, grouped, matched in [
        (said["rules"][0], "pod", 'namespace="default",pod=~"pyproxy-1"'),
        (said["externalRules"][0], "namespace", 'namespace="default"'),
    ]:
        query = rule["metricsQuery"].replace("<<.GroupBy>>", grouped)
        query = query.replace("<<.Series>>", rule["seriesQuery"].partition("{")[0])
        found[rule["name"]["as"]] = query.replace("<<.LabelMatchers>>", matched)
    return found


def test_the_autoscalers_ask_for_metrics_that_there_are() -> None:
    asked = set()
    for name in ("pyproxy", "target"):
        [metric] = the("HorizontalPodAutoscaler", name)["spec"]["metrics"]
        asked.add(metric[metric["type"].lower()]["metric"]["name"])
    assert asked == set(queries())
    used = {name for query in queries().values() for name in re.findall(r"pyproxy_\w+", query)}
    assert {name for name in used if name.endswith(("_total", "_inflight", "_waiting"))} <= set(
        re.findall(r"`(pyproxy_\w+)`", OPERATIONS)
    )


@needs_fork
@pytest.mark.skipif(not prometheus, reason="not installed: prometheus")
def test_a_prometheus_answers_what_the_autoscalers_ask(served: Program, tmp_path: Path) -> None:
    """It finds the proxy by the labels that the cluster would give it, another pod left out."""
    said = read("prometheus.yml")
    [job] = said["scrape_configs"]
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    [port] = [one["name"] for one in container("pyproxy")["ports"] if one["name"] == "admin"]
    labels = the("Deployment", "pyproxy")["spec"]["template"]["metadata"]["labels"]
    place = admin(served).removeprefix("http://")
    meta = "__meta_kubernetes_"
    job["static_configs"] = [
        {
            "targets": [place],
            "labels": {
                f"{meta}namespace": "default",
                f"{meta}pod_name": "pyproxy-1",
                f"{meta}pod_container_port_name": name,
                f"{meta}pod_label_app_kubernetes_io_name": labels["app.kubernetes.io/name"],
            },
        }
        for name in (port, "http")
    ]
    (tmp_path / "password").write_text(PASSWORD)
    job["basic_auth"]["password_file"] = str(tmp_path / "password")
    job |= {"scrape_interval": "200ms", "scrape_timeout": "200ms"}
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(said))
    address = f"127.0.0.1:{closed_port()}"
    arguments = {
        "config.file": file,
        "storage.tsdb.path": tmp_path / "data",
        "web.listen-address": address,
    }
    with command(str(prometheus), *(f"--{key}={value}" for key, value in arguments.items())):

        def ask(query: str) -> list[Any]:
            url = f"http://{address}/api/v1/query"
            try:
                told = requests.get(url, {"query": query}, timeout=DEADLINE).json()
            except (requests.ConnectionError, ValueError):  # it starts
                return []
            assert told["status"] == "success", told
            found: list[Any] = told["data"]["result"]
            return found

        def value(metric: str) -> float:
            return float((ask(queries()[metric]) or [{"value": [0, -1]}])[0]["value"][1])

        eventually(lambda: value("pyproxy_target_requests_in_flight") == 0)
        assert len(ask("up")) == 1
        assert get(served.url).status == 200
        eventually(lambda: ask("pyproxy_requests_total"))
        for _ in range(10):
            assert get(served.url).status == 200
        eventually(lambda: value("pyproxy_requests_per_second") > 0)
        [found] = ask(queries()["pyproxy_requests_per_second"])
        assert found["metric"] == {"pod": "pyproxy-1"}


def kubectl_says(*arguments: str) -> str:
    done = subprocess.run(
        [str(kubectl), *arguments],
        cwd=FOLDER.parents[1],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_kubectl
def test_kubectl_puts_them_together() -> None:
    made = list(yaml.safe_load_all(kubectl_says("kustomize", str(FOLDER))))
    assert len(made) == len(manifests())
    images = set()
    for one in made:
        validate(one, VERSIONS[-1])
        if one["kind"] == "Deployment":
            images |= {each["image"] for each in one["spec"]["template"]["spec"]["containers"]}
    assert images == {"registry.example.com/pyproxy-lb:1"}


PAGE = (FOLDER.parents[1] / "docs" / "clusters.md").read_text(encoding="utf-8")


@needs_kubectl
def test_the_commands_of_the_page_are_right() -> None:
    """Without a cluster: what would be sent is printed."""
    create, show = re.findall(r"^kubectl .*", PAGE, re.MULTILINE)
    made = yaml.safe_load(shell(f"{create} --dry-run=client --validate=false -o yaml"))
    validate(made, VERSIONS[-1])
    [one] = container("pyproxy")["env"]
    secret = one["valueFrom"]["secretKeyRef"]
    assert made["metadata"]["name"] == secret["name"]
    assert len(base64.b64decode(made["data"][secret["key"]])) > 40
    assert shell(show) == kubectl_says("kustomize", str(FOLDER))


def shell(command: str) -> str:
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=FOLDER.parents[1],
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
